"""What the tests of the engine ``spark`` have done at its workers. Apart from the tests, so that a worker imports little."""

from __future__ import annotations

import gc
import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from hansa.algorithms.fedavg import FedAvg
from hansa.core.blocks import Block, Splits, Table
from hansa.core.contracts import Collectives
from hansa.core.updates import Update
from tests.conformance.deeds import claim


def load(x: np.ndarray, y: np.ndarray, ballast: bytes = b"", log: str = "", name: str = "") -> Splits:
    if log:
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {name}\n")
    return {"train": Table(x, y)}


@dataclass(frozen=True)
class Act:
    """A call that does to each block what it is told: nothing, raise, return what cannot be sent, or end its process."""

    deeds: tuple[tuple[int, str], ...] = ()
    once: str = ""
    ballast: bytes = b""

    def __call__(self, worker: Any, block: Block) -> Any:
        deed = dict(self.deeds).get(block.number)
        if deed == "raise":
            raise KeyError("no such luck")
        if deed == "unsendable":
            return Update({"f": [threading.Lock()]}, np.ones(1))
        if deed == "kill" and (not self.once or claim(self.once)):
            os.kill(os.getpid(), signal.SIGKILL)
        return Update({"n": np.array([[block.number, len(self.ballast)]])}, np.ones(1))


@dataclass(frozen=True)
class Deadly(FedAvg):
    """FedAvg in whose work a process is killed once: its own, or the executor with all that it started."""

    once: str = ""
    executor: bool = False

    def work(self, learner: Any, message: Any, block: Any) -> Update:
        if block.number == 3 and claim(self.once):
            if self.executor:
                daemon = psutil.Process(os.getppid())
                os.kill(daemon.ppid(), signal.SIGKILL)
                daemon.kill()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(learner, message, block)


class Frozen:
    """How many objects the garbage collector leaves alone, and how many it looks through."""

    def __call__(self, worker: Any, block: Block) -> Update:
        return Update({"n": np.array([[gc.get_freeze_count(), len(gc.get_objects())]])}, np.ones(1))


class Unreadable:
    def __reduce__(self) -> Any:
        return refuse, (os.getpid(),)


def refuse(made_in: int) -> None:
    if os.getpid() != made_in:
        raise ValueError("not here")


@dataclass(frozen=True)
class Member:
    """Notes that it began; member 1 ends its process."""

    log: str

    def __call__(self, gang: Collectives) -> None:
        with open(self.log, "a") as file:
            file.write(f"{gang.rank}\n")
        gang.barrier()
        if gang.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        gang.barrier()


def sum_of_ranks(gang: Collectives) -> Any:
    return gang.all_reduce(np.full(1000, 0.1 * (gang.rank + 1))).tobytes(), gang.broadcast(os.getpid(), root=gang.size - 1)
