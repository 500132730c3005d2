"""Clients as recipes: from a source, a partition and a split to what a worker loads.

A recipe names its source and the client's rows in it; the worker reads the source once, keeps it, takes the rows and splits them. A
source in memory cannot be read elsewhere, so its recipes carry their own rows with them when they are sent to another process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from hansa.core.blocks import Client, Splits, Table
from hansa.core.errors import InputError
from hansa.core.pixels import as_array
from hansa.data.describe import Everyone
from hansa.data.elsewhere import Elsewhere
from hansa.data.features import Columns, Features
from hansa.data.memory import Memory
from hansa.data.partition import Assignment, Column, Partition
from hansa.data.sources import Holders, Ids, Source, Task
from hansa.data.split import Split

POOLED = "pooled"


@dataclass(frozen=True, eq=False)
class Piece:
    """A client's rows of a source.

    rows:  row indices in the source, int64, ascending.
    total: rows of the source when the piece was cut.
    """

    source: Source
    rows: np.ndarray
    total: int

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.source, Memory):
            return Piece, (self.source.take(self.rows), np.arange(len(self.rows), dtype=np.int64), len(self.rows))
        return Piece, (self.source, self.rows, self.total)


def load(piece: Piece, id: str, split: Split, seed: int) -> Splits:
    """The client's tables by use. Raises InputError when the source has changed since the piece was cut."""
    rows = piece.source.read()
    _unchanged(len(rows), piece.total)
    own = len(piece.rows) if rows.y is None else rows.y[piece.rows]
    whole, parts = Table(rows.x, rows.y), split.indices(own, (seed, id), rows.task)
    return {name: whole.take(piece.rows[places]) for name, places in parts.items()}


def _unchanged(rows: int, before: int) -> None:
    if rows != before:
        raise InputError(f"data: the source has {rows:,} rows and had {before:,} when the job began; start the job again")


def load_held(source: Holders, position: int, split: Split, seed: int) -> Splits:
    """The tables by use of a client that its source has on its own."""
    table = source.table(position, seed)
    parts = split.indices(len(table) if table.y is None else table.y, (seed, source.ids[position]), source.task)
    return {name: table.take(places) for name, places in parts.items()}


@dataclass(frozen=True)
class Cut:
    """A source of which every client has a part: the partition's assignment, made where and when it is first needed."""

    source: Source
    partition: Partition
    seed: int
    total: int

    @cached_property
    def _assignment(self) -> Assignment:
        rows = self.source.read()
        _unchanged(len(rows), self.total)
        return self.partition.assign(rows, self.seed)

    def __reduce__(self) -> tuple[Any, ...]:
        return Cut, (self.source, self.partition, self.seed, self.total)

    @property
    def ids(self) -> Ids:
        return self._assignment.ids

    @property
    def classes(self) -> tuple[Any, ...] | None:
        rows = self.source.read()
        return None if rows.y is None or rows.task != "classification" else tuple(np.unique(rows.y).tolist())

    def sizes(self) -> np.ndarray:
        return self._assignment.sizes

    def client(self, position: int, split: Split) -> Client:
        rows = self._assignment.rows(position)
        arguments = {"piece": Piece(self.source, rows, self.total), "id": self.ids[position], "split": split, "seed": self.seed}
        return Client(self.ids[position], load, arguments, split.training_rows(len(rows)))


@dataclass(frozen=True)
class Held:
    """A source that has its clients one by one."""

    source: Holders
    seed: int

    @property
    def ids(self) -> Ids:
        return self.source.ids

    @property
    def classes(self) -> tuple[Any, ...] | None:
        return self.source.classes

    def sizes(self) -> np.ndarray:
        return self.source.sizes(np.arange(len(self.ids)), self.seed)

    def client(self, position: int, split: Split) -> Client:
        rows = int(self.source.sizes(np.array([position]), self.seed)[0])
        source, place = self._alone(position)
        arguments = {"source": source, "position": place, "split": split, "seed": self.seed}
        return Client(self.ids[position], load_held, arguments, split.training_rows(rows))

    def _alone(self, position: int) -> tuple[Holders, int]:
        """The source as a recipe takes it along, and the client's position in it: a source that knows much of every client gives one
        of a single client (``alone``)."""
        alone = getattr(self.source, "alone", None)
        return (self.source, position) if alone is None else (alone(position), 0)


@dataclass(frozen=True)
class Population(Sequence[Client]):
    """All clients of a job in canonical order, which is that of their ids, each made when it is asked for.

    What is kept is the order of the rows and where it is cut, or nothing for a source that has its clients one by one. Sent to
    another process it takes along the options alone, and for data in memory the data, and cuts again there.
    """

    holders: Cut | Held | Columns
    split: Split

    def __len__(self) -> int:
        return len(self.holders.ids)

    @overload
    def __getitem__(self, position: int) -> Client: ...
    @overload
    def __getitem__(self, position: slice) -> list[Client]: ...
    def __getitem__(self, position: int | slice) -> Client | list[Client]:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(len(self)))]
        return self.holders.client(position + len(self) if position < 0 else position, self.split)

    @property
    def rows(self) -> int:
        """Training rows of all clients together. Where more than half of the rows are held out and classes are kept in every part,
        a client may have a few more."""
        rows = self.split.training_rows(self.holders.sizes())
        return int(rows[0] if isinstance(self.holders, Columns) else rows.sum())

    @property
    def classes(self) -> tuple[Any, ...] | None:
        """The labels that may occur, in ascending order; None for a regression and without labels."""
        return self.holders.classes


def clients(source: Source | Holders, partition: Partition | Features, split: Split, seed: int) -> Population:
    """All clients of a job, sorted by id. Raises InputError when the source, the partition or the split cannot work."""
    if isinstance(source, Elsewhere):
        raise InputError(
            "data.name = 'elsewhere': the rows are at the clients of a federation; write `hansa server JOB.toml --home DIR` to play "
            "the job with them, or give data that is here"
        )
    if isinstance(source, Holders):
        if not isinstance(partition, Column):
            raise InputError(
                f"partition: the data has {len(source.ids):,} clients of its own and no rows to deal to others; leave [partition] out"
            )
        holders: Cut | Held | Columns = Held(source, seed)
    elif isinstance(partition, Features):
        holders = Columns(source, partition, seed, len(source.read()))
    else:
        holders = Cut(source, partition, seed, len(source.read()))
    split.refuse_empty(holders.sizes(), holders.ids)
    return Population(holders, split)


def everyone(clients: Sequence[Client]) -> Everyone:
    """What the index of a population tells of all clients, or the recipes of any clients."""
    if isinstance(clients, Population):
        return Everyone(len(clients), clients.rows, clients.classes or ())
    return Everyone(len(clients), sum(client.rows for client in clients))


def task_of(source: Source | Holders) -> Task:
    """What the labels of a source are."""
    return source.task if isinstance(source, Holders) else source.read().task


def central(source: Source | Holders) -> Table | None:
    """The central test set, where the data set comes with one."""
    test = None if isinstance(source, Holders) else source.read().test
    return test if test is None or hasattr(test.x, "iloc") else Table(as_array(test.x), test.y)


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
