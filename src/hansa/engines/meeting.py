"""Collectives of a gang with somebody in the middle: every member sends what it brings, and is answered when all have.

Sums are taken once, in rank order, so that every member gets the same bits.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hansa.core.errors import RunFailed
from hansa.core.params import Array


class Meeting:
    """A member's side.

    meet: (operation, what is brought) -> what all are told; both pickled, by members of this gang alone.
    """

    def __init__(self, rank: int, size: int, meet: Callable[[str, bytes], list[bytes]]) -> None:
        self.rank, self.size = rank, size
        self._answer = meet

    def _meet(self, operation: str, value: Any) -> list[bytes]:
        return self._answer(operation, pickle.dumps(value, protocol=5))

    def all_gather(self, value: Any) -> list[Any]:
        return [pickle.loads(part) for part in self._meet("all_gather", value)]  # noqa: S301  # from members of the same gang

    def all_reduce(self, value: Array) -> Array:
        return pickle.loads(self._meet("all_reduce", value)[0])  # noqa: S301  # as above

    def broadcast(self, value: Any, root: int = 0) -> Any:
        operation = f"broadcast from {root}"
        return pickle.loads(self._meet(operation, value if self.rank == root else None)[root])  # noqa: S301  # as above

    def barrier(self) -> None:
        self._meet("barrier", None)


def answer(waiting: Mapping[int, tuple[str, bytes]], results: Collection[int]) -> list[bytes]:
    """What all members are told when all have come to a collective, which must be the same one; else RunFailed.

    waiting: rank -> (operation, pickled value).
    results: ranks of those that have finished, of whom there must be none.
    """
    if results:
        raise RunFailed(
            f"gang: member {min(results)} has finished and member {min(waiting)} waits in {waiting[min(waiting)][0]}; "
            "all members must make the same collective calls in the same order"
        )
    operations = [waiting[rank][0] for rank in range(len(waiting))]
    if len(set(operations)) > 1:
        calls = ", ".join(f"{rank} {operation}" for rank, operation in enumerate(operations))
        raise RunFailed(f"gang: members made different collective calls ({calls}); all must make the same ones in the same order")
    parts = [waiting[rank][1] for rank in range(len(waiting))]
    if operations[0] == "all_reduce":
        total = pickle.loads(parts[0])  # noqa: S301  # from this gang's own members
        for part in parts[1:]:
            total = total + pickle.loads(part)  # noqa: S301  # as above
        return [pickle.dumps(total, protocol=5)]
    if operations[0].startswith("broadcast"):
        root = int(operations[0].rsplit(" ", 1)[1])
        return [part if rank == root else b"" for rank, part in enumerate(parts)]
    return parts
