"""Clients that hold columns: all rows of some of the features each, and one of them the labels.

Rows are the same at all clients, in the same order: that of the source, or that of the ids in a column of it. Between organisations the
rows have to be matched before; what happens here is that nobody looks at a column that is not his.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import Client, Splits, Table
from hansa.core.errors import InputError, did_you_mean
from hansa.data.memory import Memory
from hansa.data.sources import Ids, Rows, Source
from hansa.data.split import Split

HELD_OUT = "rows of all clients"
"""Stands for every client's id when rows are drawn for the test: all clients hold out the same ones."""


@dataclass(frozen=True)
class Features:
    """Every client has all rows of columns of its own: a model split over machines, or organisations that know the same people.

    parts:   so many clients, each with a run of columns; they are named ``client-000`` and on.
    groups:  or the columns of each client by name: ``{bank = ["age", "income"], shop = ["visits"]}``.
    labels:  the client that holds the labels as well; the first one without it. They never go to another client.
    id:      a column that names each row, for an order of the rows that is not that of the source; it is no feature.

    Which rows are held out depends on the seed alone, and not on the labels, which only one client has: ``split.stratify`` changes
    nothing.
    """

    name: Literal["features"] = field(default="features", kw_only=True)
    parts: Annotated[int, Ge(0)] = 0
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if bool(self.parts) == bool(self.groups):
            raise InputError(
                "partition: features are split into a number of parts or into groups by name "
                f"(give {'only one of parts and groups' if self.parts else 'parts or groups'})"
            )

        for client, wanted in self.groups.items():
            if isinstance(wanted, str):
                raise InputError(
                    f"partition.groups: client {client} has {wanted!r}, and a list of columns is needed; write {client} = [{wanted!r}]"
                )

    def deal(self, rows: Rows) -> Deal:
        """Which columns are whose. Raises InputError for columns that are in no group or in two, and for rows that cannot be told apart."""
        names = _names(rows.x)
        own = [place for place, name in enumerate(names) if self.id is None or name != self.id]
        if self.parts:
            if self.parts > len(own):
                raise InputError(
                    f"partition: parts={self.parts:,} needs as many columns, and the data has {len(own):,}; lower parts"
                )
            ids = Ids(self.parts)
            groups = {ids[k]: piece for k, piece in enumerate(np.array_split(np.array(own, dtype=np.int64), self.parts))}
            first = ids[0]
        else:
            groups = {
                client: _places(client, self.groups[client], names, hasattr(rows.x, "columns")) for client in sorted(self.groups)
            }
            first = next(iter(self.groups))
            self._refuse(groups, names, own)
        holder = first if self.labels is None else self.labels
        if holder not in groups:
            raise InputError(f"partition.labels = {holder!r}: there is no such client{did_you_mean(holder, groups)}")
        return Deal(groups, holder, None if self.id is None else _order(rows.x, self.id, names))

    def _refuse(self, groups: Mapping[str, np.ndarray], names: list[str], own: list[int]) -> None:
        whose: dict[int, str] = {}
        for client, places in groups.items():
            for place in places.tolist():
                if place not in own:
                    raise InputError(f"partition.groups: {names[place]!r} of client {client} is the id of the rows; take it out")
                if place in whose:
                    both = client if whose[place] == client else f"{whose[place]} and {client}"
                    raise InputError(f"partition.groups: column {names[place]!r} is given twice, to {both}; give it to one client")
                whose[place] = client
        left = [names[place] for place in own if place not in whose]
        if left:
            raise InputError(
                f"partition.groups: column {left[0]!r} belongs to no client; add it to one, or leave it out, for files with "
                f"data.drop = [{left[0]!r}]"
            )


@dataclass(frozen=True, eq=False)
class Deal:
    """Whose the columns are.

    groups:  client -> places of its columns in the source, int64, clients in ascending order.
    labels:  the client that holds them.
    order:   of the rows, where it is not that of the source.
    """

    groups: Mapping[str, np.ndarray]
    labels: str
    order: np.ndarray | None


def _names(x: Any) -> list[str]:
    if hasattr(x, "columns"):
        return [str(name) for name in x.columns]
    if len(x.shape) != 2:
        raise InputError(
            f'partition: features of shape {tuple(x.shape[1:])} have no columns to split; use a partition of rows, such as name = "iid"'
        )
    return [f"x{place}" for place in range(x.shape[1])]


def _places(client: str, wanted: tuple[str, ...], names: list[str], table: bool) -> np.ndarray:
    if not wanted:
        raise InputError(f"partition.groups: client {client} has no columns; name some, or leave it out")
    for name in wanted:
        if name not in names:
            instead = did_you_mean(name, names) if table else f" (the columns of an array are called x0 ... {names[-1]})"
            raise InputError(f"partition.groups: client {client} has a column {name!r} that the data has not{instead}")
    return np.array([names.index(name) for name in wanted], dtype=np.int64)


def _order(x: Any, id: str, names: list[str]) -> np.ndarray:
    if id not in names:
        raise InputError(f"partition.id: the data has no column {id!r}{did_you_mean(id, names)}")
    column = x[id] if hasattr(x, "columns") else x[:, names.index(id)]
    missing = np.flatnonzero(np.asarray(column != column))  # nothing but NaN differs from itself
    if len(missing):
        raise InputError(
            f"partition.id: column {id!r} is empty in {len(missing):,} of {len(column):,} rows (first: row {missing[0]}, counted from 0); "
            "rows without an id cannot be matched: fill these or delete their rows"
        )
    values = np.asarray(column)
    found, counts = np.unique(values, return_counts=True)
    if len(found) < len(values):
        often = int(np.argmax(counts))
        raise InputError(
            f"partition.id: column {id!r} has {_written(found[often])} in {counts[often]:,} rows and {int((counts > 1).sum()):,} ids more "
            "than once; keep one row of each"
        )
    return np.argsort(values, kind="stable").astype(np.int64)


def _written(value: Any) -> str:
    # Ids of whole numbers are float64 by now.
    value = value.item() if hasattr(value, "item") else value
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)


@dataclass(frozen=True, eq=False)
class Slice:
    """A client's columns of a source.

    columns: places in the source, int64; None for all.
    labels:  whether the client holds them.
    order:   of the rows, None for that of the source.
    total:   rows of the source when it was cut.

    Of a source in memory only the client's own is sent to another process.
    """

    source: Source
    columns: np.ndarray | None
    labels: bool
    order: np.ndarray | None
    total: int

    def table(self) -> Table:
        """The client's rows. Raises InputError when the source has changed since it was cut."""
        rows = self.source.read()
        if len(rows) != self.total:
            raise InputError(
                f"data: the source has {len(rows):,} rows and had {self.total:,} when the job began; start the job again"
            )
        x = rows.x if self.columns is None else _columns_of(rows.x, self.columns)
        table = Table(x, rows.y if self.labels else None)
        return table if self.order is None else table.take(self.order)

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.source, Memory):
            own = self.table()
            return Slice, (Memory(x=own.x, y=own.y, task=self.source.read().task), None, self.labels, None, self.total)
        return Slice, (self.source, self.columns, self.labels, self.order, self.total)


def _columns_of(x: Any, places: np.ndarray) -> Any:
    if not hasattr(x, "iloc"):
        return np.ascontiguousarray(np.asarray(x)[:, places])
    own = x.iloc[:, places]
    return own.set_axis([str(name) for name in own.columns], axis=1)


def load_columns(own: Slice, split: Split, seed: int) -> Splits:
    """The client's tables by use; the rows of each use are the same at all clients."""
    table = own.table()
    parts = split.indices(len(table), (seed, HELD_OUT), "regression")
    return {name: table.take(places) for name, places in parts.items()}


@dataclass(frozen=True)
class Columns:
    """A source of which every client has some columns: the partition's deal, made where and when it is first needed."""

    source: Source
    partition: Features
    seed: int
    total: int

    @cached_property
    def deal(self) -> Deal:
        return self.partition.deal(self.source.read())

    def __reduce__(self) -> tuple[Any, ...]:
        return Columns, (self.source, self.partition, self.seed, self.total)

    @property
    def ids(self) -> Ids:
        return Ids(len(self.deal.groups), np.array(list(self.deal.groups)))

    @property
    def classes(self) -> tuple[Any, ...] | None:
        rows = self.source.read()
        return None if rows.y is None or rows.task != "classification" else tuple(np.unique(rows.y).tolist())

    def sizes(self) -> np.ndarray:
        return np.full(len(self.deal.groups), self.total)

    def client(self, position: int, split: Split) -> Client:
        deal, id = self.deal, self.ids[position]
        own = Slice(self.source, deal.groups[id], id == deal.labels, deal.order, self.total)
        return Client(id, load_columns, {"own": own, "split": split, "seed": self.seed}, split.training_rows(self.total))

    @property
    def places(self) -> Mapping[str, tuple[int, ...]]:
        """Where each client's columns stand among the features of all."""
        every = np.sort(np.concatenate(list(self.deal.groups.values())))
        return {client: tuple(np.searchsorted(every, own).tolist()) for client, own in self.deal.groups.items()}
