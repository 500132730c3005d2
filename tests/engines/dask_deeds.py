"""What the tests of the engine ``dask`` have done at its workers. Apart from the tests, so that a worker imports little."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.algorithms.fedavg import FedAvg
from hansa.core.blocks import Block, Client, LoadedBlock, Splits, Table, blocks_of
from hansa.core.contracts import Collectives, Engine, Learner, Message, Schema
from hansa.core.local import Local
from hansa.core.loop import Terms, play_round
from hansa.core.params import Params
from hansa.core.store import MemoryStore
from hansa.core.updates import Update
from hansa.engines.inline import Inline
from hansa.learners.mlp import MLP
from tests.conformance.deeds import claim

CLIENTS = 7
SCHEMA = Schema(shape=(20,), classes=(0, 1, 2), rows=350)
LEARNER = MLP(hidden=(16,))
ALGORITHM = FedAvg(local=Local(epochs=1, batch_size=8, learning_rate=0.1))
BLOCKS = blocks_of(range(CLIENTS), 1)


def load(seed: int, size: int) -> Splits:
    draw = np.random.default_rng(seed)
    return {"train": Table(draw.normal(size=(size, 20)), draw.integers(0, 3, size))}


def clients() -> list[Client]:
    """Ragged ones."""
    return [Client(f"client-{k}", load, {"seed": k, "size": 35 + 5 * k}, rows=35 + 5 * k) for k in range(CLIENTS)]


def rows(x: np.ndarray) -> Splits:
    return {"train": Table(x, np.zeros(len(x), int))}


def rounds(engine: Engine, algorithm: Any = ALGORITHM) -> Params:
    """The model after three rounds."""
    learner = LEARNER.bind(SCHEMA)
    state = algorithm.init(learner.init(0), learner.kinds())
    for number in (1, 2, 3):
        state = play_round(
            state,
            algorithm=algorithm,
            engine=engine,
            blocks=BLOCKS,
            schema=SCHEMA,
            round=number,
            rate=1.0,
            terms=Terms(seed=5, population=CLIENTS),
        ).state
    return state["params"]


def same_as_inline(engine: Engine, algorithm: Any = ALGORITHM) -> bool:
    inline = Inline().build()
    inline.start(LEARNER, clients(), MemoryStore())
    here, there = rounds(inline), rounds(engine, algorithm)
    return list(here) == list(there) and all(np.array_equal(here[name], there[name]) for name in here) and bool(here)


@dataclass(frozen=True)
class Deadly(FedAvg):
    """FedAvg in whose rounds the process that does a client's work is killed, once in each round."""

    folder: str = ""

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        if block.clients[0].id == "client-3" and claim(f"{self.folder}/{block.round}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(learner, message, block)


@dataclass(frozen=True)
class Act:
    """A call that does to each block what it is told: nothing, raise, return what cannot be sent, sleep, or end the worker."""

    deeds: tuple[tuple[int, str], ...] = ()
    once: str = ""
    size: int = 3
    cargo: bytes = b""

    def __call__(self, worker: Any, block: Block) -> Any:
        deed = dict(self.deeds).get(block.number)
        if deed == "raise":
            raise KeyError("no such luck")
        if deed == "unsendable":
            return Update({"f": [(k for k in "ab")]}, np.ones(1))
        if deed == "sleep":
            time.sleep(0.5)
        if deed == "kill" and (not self.once or claim(f"{self.once}-{block.number}")):
            os.kill(os.getpid(), signal.SIGKILL)
        value = np.full((1, self.size), block.number + len(self.cargo))
        return Update({"n": value}, np.ones(1), {"pid": (np.ones(1) * os.getpid(), np.ones(1))})


@dataclass(frozen=True)
class First:
    """The first number of each client's data."""

    schema: None = None

    def __call__(self, worker: Any, block: Block) -> Update:
        values = [worker.table(position, "train", None)[1].x[0, 0] for position in block.members]
        return Update({"n": np.array(values)[:, None]}, np.ones(len(values)))


@dataclass(frozen=True)
class Layout:
    """Whether the arrays that arrive are aligned: those of the call, and those that the client keeps for itself."""

    before: int
    values: np.ndarray

    def __call__(self, worker: Any, block: Block) -> Update:
        id = worker.clients[block.members[0]].id
        kept = worker.store.read(id, self.before) or {"kept": np.zeros(9, np.float64)}
        worker.store.write(self.before, {id: {"odd": np.zeros(block.number + 1, np.uint8), "kept": kept["kept"] + 1}})
        aligned = self.values.flags.aligned and all(array.flags.aligned for array in kept.values())
        return Update({"aligned": np.array([aligned]), "kept": kept["kept"][None]}, np.ones(1))


@dataclass(frozen=True)
class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("not a number",)

    def __call__(self, worker: Any, block: Block) -> Any: ...


def meets(gang: Collectives) -> tuple[Any, ...]:
    total = gang.all_reduce(np.full(50_000, 0.1 * (gang.rank + 1), dtype=np.float32))
    return total, gang.all_gather(gang.rank), len(set(gang.all_gather(os.getpid())))


def dies(gang: Collectives) -> None:
    if gang.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gang.barrier()


def raises(gang: Collectives) -> None:
    if gang.rank == 0:
        raise ValueError("no luck")
    gang.barrier()
