"""Clients as recipes: from a source, a partition and a split to what a worker loads.

A recipe names its source and the client's rows in it; the worker reads the source once, keeps it, and takes the rows. A source in
memory cannot be read elsewhere, so its recipes carry their own rows with them when they are sent to another process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.core.blocks import Client, Splits, Table
from hansa.core.errors import InputError
from hansa.data.memory import Memory
from hansa.data.partition import Partition
from hansa.data.sources import Rows, Source
from hansa.data.split import Split

POOLED = "pooled"


@dataclass(frozen=True, eq=False)
class Piece:
    """A client's rows of a source.

    parts: split -> row indices in the source, int64.
    total: rows of the source when the piece was cut.
    """

    source: Source
    parts: Mapping[str, np.ndarray]
    total: int

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self.source, Memory):
            return {"source": self.source, "parts": dict(self.parts), "total": self.total}
        rows = np.concatenate(list(self.parts.values()))
        ends = np.cumsum([len(part) for part in self.parts.values()])
        places = np.split(np.arange(len(rows), dtype=np.int64), ends[:-1])
        return {"source": self.source.take(rows), "parts": dict(zip(self.parts, places, strict=True)), "total": len(rows)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def load(piece: Piece) -> Splits:
    """The client's tables by use. Raises InputError when the source has changed since the piece was cut."""
    rows = piece.source.read()
    if len(rows) != piece.total:
        raise InputError(f"data: the source has {len(rows):,} rows and had {piece.total:,} when the job began; start the job again")
    whole = Table(rows.x, rows.y)
    return {name: whole.take(indices) for name, indices in piece.parts.items()}


def recipe(source: Source, id: str, indices: np.ndarray, split: Split, seed: int) -> Client:
    """One client that holds the given rows of a source, split by its own labels."""
    rows = source.read()
    own = len(indices) if rows.y is None else rows.y[indices]
    parts = {name: indices[places] for name, places in split.indices(own, (seed, id), rows.task).items()}
    return Client(id, load, {"piece": Piece(source, parts, len(rows))}, rows=len(parts["train"]))


def clients(source: Source, partition: Partition, split: Split, seed: int) -> list[Client]:
    """All clients of a job, sorted by id. Raises InputError when the source, the partition or the split cannot work."""
    rows: Rows = source.read()
    return [recipe(source, id, indices, split, seed) for id, indices in partition.assign(rows, seed)]


def central(source: Source) -> Table | None:
    """The central test set, where the data set comes with one."""
    return source.read().test


def pooled(clients: Sequence[Client]) -> list[Client]:
    """One client, named "pooled", that holds what all the given ones hold, each split put together in their order.

    It is what nobody may build when the data may not move: the yardstick of a comparison.
    """
    return [Client(POOLED, load_pooled, {"clients": tuple(clients)}, rows=sum(client.rows for client in clients))]


def load_pooled(clients: Sequence[Client]) -> Splits:
    """The splits of all clients, each put together in client order."""
    loaded = [client.load() for client in clients]
    return {name: _joined([splits[name] for splits in loaded if name in splits]) for name in loaded[0]}


def _joined(tables: Sequence[Table]) -> Table:
    if hasattr(tables[0].x, "iloc"):
        import pandas as pd

        x: Any = pd.concat([table.x for table in tables], ignore_index=True)
    else:
        x = np.concatenate([table.x for table in tables])
    return Table(x, None if tables[0].y is None else np.concatenate([table.y for table in tables]))
