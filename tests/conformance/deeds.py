"""What the tests of several engines have done at the workers. Apart from the tests, so that a worker imports little."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
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


@dataclass(frozen=True)
class Count:
    """Adds one to what each client keeps for itself."""

    before: int

    def __call__(self, worker: Any, block: Block) -> Update:
        ids = [worker.clients[position].id for position in block.members]
        entries = [worker.store.read(id, self.before) or {"n": np.zeros(2000)} for id in ids]
        worker.store.write(self.before, {id: {"n": entry["n"] + 1} for id, entry in zip(ids, entries, strict=True)})
        return Update({"n": np.stack([entry["n"] for entry in entries])}, np.ones(len(ids)))


def meet(gang: Collectives) -> tuple[float, list[int], int]:
    total = gang.all_reduce(np.full(3, 0.1 * (gang.rank + 1)))
    ranks = gang.all_gather(gang.rank)
    gang.barrier()
    return float(total[0]), ranks, gang.broadcast(gang.rank * 7, root=1)


def one_raises(gang: Collectives) -> None:
    if gang.rank == 1:
        raise ValueError("member one has no luck")
    gang.barrier()


def claim(path: str) -> bool:
    """True for the first to come."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def until(met: Callable[[], Any], seconds: float = 30.0) -> bool:
    """Wait for something, for so long; whether it has come."""
    deadline = time.monotonic() + seconds
    while not met() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(met())
