"""What the tests of the engine ``ray`` alone have done at its workers. Apart from the tests, so that a worker imports little."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hansa.core.blocks import Block
from hansa.core.contracts import Collectives
from hansa.core.updates import Update
from hansa.engines.ray_cluster import import_ray
from tests.conformance.deeds import until


def node_of(_: Any = None) -> str:
    return str(import_ray().get_runtime_context().get_node_id())


@dataclass(frozen=True)
class Gate:
    """A call whose blocks wait, once they have said that they are at work, until they are let through."""

    folder: str
    size: int

    def __call__(self, worker: Any, block: Block) -> Update:
        Path(self.folder, f"at-{block.number}-{node_of()}").touch()
        assert until(lambda: Path(self.folder, "open").exists(), 120)
        return Update({"n": np.full((1, self.size), block.number)}, np.ones(1))


def reduce_and_gather(gang: Collectives) -> tuple[Any, ...]:
    total = gang.all_reduce(np.full(50_000, 0.1 * (gang.rank + 1), dtype=np.float32))
    gang.barrier()
    return total, gang.all_gather(gang.rank), gang.broadcast({"from": gang.rank}, root=2), gang.size


def one_dies(gang: Collectives) -> None:
    if gang.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gang.barrier()
