"""What the tests of every engine have done at its workers. Apart from the tests, so that a worker imports little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.core.blocks import Block
from hansa.core.contracts import Collectives
from hansa.core.updates import Update


@dataclass(frozen=True)
class Names:
    """Returns the members of a block; raises at a given one."""

    fail_at: int = -1

    def __call__(self, worker: Any, block: Block) -> Update:
        if self.fail_at in block.members:
            raise ValueError(f"no luck with client {self.fail_at}")
        return Update({"member": np.array(block.members)}, np.ones(len(block.members)))


def meet(gang: Collectives) -> tuple[float, list[int], int]:
    total = gang.all_reduce(np.full(3, 0.1 * (gang.rank + 1)))
    ranks = gang.all_gather(gang.rank)
    gang.barrier()
    return float(total[0]), ranks, gang.broadcast(gang.rank * 7, root=1)


def one_raises(gang: Collectives) -> None:
    if gang.rank == 1:
        raise ValueError("member one has no luck")
    gang.barrier()
