"""Where the time of a round goes: waiting, transfer, compute, reduce.

Whoever does a block's work measures it around the call, and the measure travels beside the result, never inside what is reduced.
The process that plays the rounds measures what it does itself: moving messages and results, and bringing results together. What is
left is time in which it had nothing to do: as much of it as the busiest worker computed is compute, and the rest is waiting. So the
four parts of a map add up to the time that it took.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

R = TypeVar("R")
S = TypeVar("S")

TIMES = ("time/wait", "time/transfer", "time/compute", "time/reduce", "time/work")
"""What the record of a round tells of its time, in seconds; the first four add up to that of its maps."""


class Spent(NamedTuple):
    """What the work on a block took. seconds: around the call, the loading of data included; where: the process that did it."""

    seconds: float = 0.0
    where: str = ""


@cache
def _process(number: int) -> str:
    return f"{platform.node()}:{number}"


def here() -> str:
    """The name of this process among those of all machines."""
    return _process(os.getpid())


class Stopwatch:
    """Seconds spent inside of its ``with``; one within another counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth, self._began = 0, 0.0

    def __enter__(self) -> None:
        if not self._depth:
            self._began = perf_counter()
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += perf_counter() - self._began


@dataclass
class Times:
    """Seconds of one or more maps.

    wait:     nothing came and, as far as is known, no worker computed all of that time.
    transfer: packing, sending, receiving and unpacking, where the rounds are played.
    compute:  of the busiest worker, as far as the others' news did not fill it.
    reduce:   bringing results together, and making the next state of them.
    work:     compute of all workers together; not a part of the whole.
    """

    wait: float = 0.0
    transfer: float = 0.0
    compute: float = 0.0
    reduce: float = 0.0
    work: float = 0.0

    def add(self, other: Times) -> None:
        self.wait += other.wait
        self.transfer += other.transfer
        self.compute += other.compute
        self.reduce += other.reduce
        self.work += other.work

    def plain(self) -> dict[str, float]:
        """As the entries :data:`TIMES` of a record."""
        return dict(zip(TIMES, (self.wait, self.transfer, self.compute, self.reduce, self.work), strict=True))


class Account:
    """The time of one map, from now on until it is closed.

    engine: tells by a :class:`Stopwatch` named ``transfer`` how long it moves data; one that has none, moves none.
    reduce: to be run while results are brought together.
    """

    def __init__(self, engine: Any) -> None:
        self.reduce = Stopwatch()
        self._transfer: Stopwatch = getattr(engine, "transfer", None) or Stopwatch()
        self._moved = self._transfer.seconds
        self._busy: dict[str, float] = {}
        self._began = perf_counter()

    def add(self, spent: Spent) -> None:
        """Take what the work on a block took."""
        self._busy[spent.where] = self._busy.get(spent.where, 0.0) + spent.seconds

    def close(self) -> Times:
        """The map is over."""
        whole, moved = perf_counter() - self._began, self._transfer.seconds - self._moved
        idle = max(0.0, whole - moved - self.reduce.seconds)
        compute = min(idle, max(self._busy.values(), default=0.0))
        return Times(idle - compute, moved, compute, self.reduce.seconds, sum(self._busy.values()))


def timed(steps: Generator[Any, Any, R]) -> Generator[Any, Any, tuple[R, Times]]:
    """The same steps, which return their result and the time of all their exchanges."""
    played, answer, whole = list[Times](), None, Times()
    try:
        while True:
            exchange = steps.send(answer)
            played.append(exchange.times)
            answer = yield exchange
    except StopIteration as end:
        for times in played:  # only now: the steps go on counting after the answer
            whole.add(times)
        return end.value, whole


def untimed(record: dict[str, S]) -> dict[str, S]:
    """A round's record without what differs from run to run: how long it took, and where the time went."""
    return {name: value for name, value in record.items() if name != "seconds" and name not in TIMES}
