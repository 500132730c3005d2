"""A gang in one process: members are threads that meet at a barrier. The reference for the collectives of every engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from hansa.core.contracts import Collectives
from hansa.core.errors import RunFailed
from hansa.core.params import Array

R = TypeVar("R")


class ThreadCollectives:
    """Collectives over shared memory; sums are taken in rank order, so that every member gets the same bits."""

    def __init__(self, rank: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank, self.size = rank, len(slots)
        self._barrier, self._slots = barrier, slots

    def all_gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()  # nobody may overwrite its slot before all have read
        return values

    def all_reduce(self, value: Array) -> Array:
        values = self.all_gather(value)
        total = values[0]
        for other in values[1:]:
            total = total + other
        return total

    def broadcast(self, value: Any, root: int = 0) -> Any:
        return self.all_gather(value)[root]

    def barrier(self) -> None:
        self._barrier.wait()


def run_threads(function: Callable[[Collectives], R], members: int) -> list[R]:
    """All or nothing: the first member that raises breaks the barrier for the others, and its error is the gang's."""
    barrier, slots = threading.Barrier(members), [None] * members
    errors: list[tuple[int, Exception]] = []

    def member(rank: int) -> R | None:
        try:
            return function(ThreadCollectives(rank, barrier, slots))
        except threading.BrokenBarrierError:
            return None
        except Exception as error:  # noqa: BLE001  # reported below as the gang's error
            errors.append((rank, error))
            barrier.abort()
            return None

    with ThreadPoolExecutor(members) as pool:
        results = list(pool.map(member, range(members)))
    if errors:
        rank, error = errors[0]
        raise RunFailed(f"gang member {rank} of {members}: {type(error).__name__}: {error}") from error
    return results  # type: ignore[return-value]  # None only where an error was raised above
