"""The engine of this process: no other processes, no threads, any debugger. The reference that all engines equal bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from hansa.core.blocks import Block, Client
from hansa.core.contracts import Call, ClientStore, Collectives, Engine, Result, UnboundLearner
from hansa.core.gang import run_threads
from hansa.core.synchrony import forget
from hansa.core.worker import Worker, attempt

R = TypeVar("R")


@dataclass(frozen=True)
class Inline:
    """Do the work here, block after block."""

    name: Literal["inline"] = field(default="inline", kw_only=True)

    slots: int = field(default=1, init=False, repr=False)
    """Places for members of a gang that are in a process group."""

    def build(self) -> Engine:
        return InlineEngine()


class InlineEngine:
    def __init__(self) -> None:
        self._worker: Worker | None = None

    def start(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore) -> None:
        self._worker = Worker(learner, clients, store)

    def map(self, call: Call, blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        assert self._worker is not None, "start the engine first"
        for block in blocks:
            yield block.number, attempt(call, self._worker, block)

    def gang(self, function: Callable[[Collectives], R], members: int) -> list[R]:
        return run_threads(function, members)

    def stop(self) -> None:
        self._worker = None
        forget()
