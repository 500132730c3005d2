"""How recipes reach a worker process: all at once where they are small, else in shards that are opened when one of their clients is
needed, so that data in memory is not held by every worker."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, overload

from hansa.core.blocks import Block, Client

SHARD = 32
"""Consecutive clients that are pickled together."""

WHOLE = 2**20
"""Bytes up to which all recipes are sent at once: a population that makes its recipes when asked is far below."""


class Recipes(Sequence[Client]):
    """The clients of a job at a worker, by the shards that were opened so far.

    fetch: gives a shard that was not; without it such a shard is a KeyError.
    """

    def __init__(self, length: int, fetch: Callable[[int], list[Client]] | None = None) -> None:
        self.shards: dict[int, list[Client]] = {}
        self._length, self._fetch = length, fetch

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, position: int) -> Client: ...
    @overload
    def __getitem__(self, position: slice) -> list[Client]: ...
    def __getitem__(self, position: int | slice) -> Client | list[Client]:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(self._length))]
        shard, place = divmod(position, SHARD)
        if shard not in self.shards and self._fetch is not None:
            self.shards[shard] = self._fetch(shard)
        return self.shards[shard][place]


def shards_of(block: Block) -> tuple[int, ...]:
    """The numbers of the shards that hold a block's clients, ascending."""
    return tuple(sorted({position // SHARD for position in block.members}))


def are_small(clients: Sequence[Client], pickler: Callable[..., Any]) -> bool:
    """Whether all recipes together are at most :data:`WHOLE` bytes; stops to pickle once they are not."""
    try:
        pickler(_Limited(WHOLE), protocol=5).dump(clients)
    except _TooLarge:
        return False
    except Exception:  # noqa: BLE001  # said properly, with the client's name, when its shard is pickled
        return False
    return True


class _TooLarge(Exception):
    pass


class _Limited(io.RawIOBase):
    """Takes so many bytes and keeps none."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.left -= size
        if self.left < 0:
            raise _TooLarge
        return size
