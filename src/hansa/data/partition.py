"""Whose the rows are: natural clients as the source names them, or clients made up for a simulation.

``assign(rows, seed)`` gives an :class:`Assignment`: (client id, row indices) for every client, sorted by id; the indices are int64,
ascending, and every row belongs to exactly one client. It is a pure function of the rows and the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt

from hansa.core.errors import InputError
from hansa.core.randomness import generator
from hansa.data.sources import Ids, Rows

TRIES = 1000
"""Draws of a Dirichlet partition before it gives up on its least number of rows."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which rows are whose: one permutation of the rows and where it is cut, so that a million clients cost no objects.

    order: the rows of the first client, then those of the second, and so on, int64 (rows,).
    ends:  where each client's rows end in ``order``, int64 (clients,).
    """

    ids: Ids
    order: np.ndarray
    ends: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each client, int64 (clients,)."""
        return np.diff(self.ends, prepend=0)

    def rows(self, position: int) -> np.ndarray:
        """The rows of one client, int64, ascending."""
        start = self.ends[position - 1] if position else 0
        return np.sort(self.order[start : self.ends[position]])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> tuple[str, np.ndarray]:
        return self.ids[position], self.rows(position)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        return (self[position] for position in range(len(self)))


@dataclass(frozen=True)
class Column:
    """Natural clients: the ones that the source names."""

    name: Literal["column"] = field(default="column", kw_only=True)

    def assign(self, rows: Rows, seed: int) -> Assignment:
        """Raises InputError when the source names none."""
        if rows.client is None:
            raise InputError(
                "partition: the data names no clients of its own; name a column in data.client where it is a file, or make "
                'clients up: set partition.name to "iid", "dirichlet" or "shards", and partition.clients'
            )
        ids, owner = np.unique(rows.client, return_inverse=True)
        return _groups(Ids(len(ids), ids), owner)


@dataclass(frozen=True)
class IID:
    """``clients`` equal random parts: sizes differ by at most one row."""

    name: Literal["iid"] = field(default="iid", kw_only=True)
    clients: Annotated[int, Ge(1)]

    def assign(self, rows: Rows, seed: int) -> Assignment:
        """Raises InputError when there are more clients than rows."""
        _enough(self.name, rows, self.clients, f"clients={self.clients:,}")
        order = generator(seed, "partition").permutation(len(rows))
        return Assignment(Ids(self.clients), order.astype(np.int64), np.cumsum(_even(len(rows), self.clients)))


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: the rows of every class are dealt to the clients in shares drawn from Dir(alpha).

    Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni: Bayesian Nonparametric Federated Learning of Neural Networks, ICML
    2019, section 4: for every class k, p_k ~ Dir_J(alpha) over the J clients, of whom j gets a share p_kj of the class's rows. (Hsu,
    Qi and Brown 2019 draw the other way round: for every client of equal size, a distribution over the classes.)

    alpha:  concentration: 0.1 leaves most clients with one or two classes, 1 is moderate, 100 close to equal shares.
    least:  the draw is repeated until every client has so many rows.
    """

    name: Literal["dirichlet"] = field(default="dirichlet", kw_only=True)
    clients: Annotated[int, Ge(1)]
    alpha: Annotated[float, Gt(0)]
    least: Annotated[int, Ge(1)] = 1

    def assign(self, rows: Rows, seed: int) -> Assignment:
        """Raises InputError for data without classes, and when no draw leaves every client ``least`` rows."""
        if rows.y is None or rows.task != "classification":
            raise InputError('partition: "dirichlet" skews classes, and this data has none; use partition.name = "iid" or "shards"')
        _enough(self.name, rows, self.clients * self.least, f"clients={self.clients:,} with least={self.least:,} rows each")
        random = generator(seed, "partition")
        classes, label = np.unique(rows.y, return_inverse=True)
        cuts = self._cuts(np.bincount(label), random, len(rows))
        owner = np.empty(len(rows), dtype=np.int64)
        for k in range(len(classes)):
            shares = np.diff(cuts[k], prepend=0)
            owner[random.permutation(np.flatnonzero(label == k))] = np.repeat(np.arange(self.clients), shares)
        return _groups(Ids(self.clients), owner)

    def _cuts(self, sizes: np.ndarray, random: np.random.Generator, rows: int) -> np.ndarray:
        # Where each class's rows are cut, int64 (classes, clients); the last cut is the class's size.
        best = 0
        for _ in range(TRIES):
            shares = random.dirichlet(np.full(self.clients, self.alpha), size=len(sizes))
            cuts = np.rint(np.cumsum(shares, axis=1) * sizes[:, None]).astype(np.int64)
            cuts[:, -1] = sizes
            smallest = int(np.diff(cuts, axis=1, prepend=0).sum(axis=0).min())
            if smallest >= self.least:
                return cuts
            best = max(best, smallest)
        raise InputError(
            f"partition: with alpha={self.alpha:g}, none of {TRIES:,} draws gives each of {self.clients:,} clients at least "
            f"{self.least:,} of {rows:,} rows (the best leaves one with {best:,}); raise alpha, or lower clients or least"
        )


@dataclass(frozen=True)
class Shards:
    """Label skew by sorting: the rows in order of their labels, cut into equal shards, of which every client gets a few at random.

    McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, section 3 (there 200 shards, two for each of 100 clients). Sizes of shards
    differ by at most one row. Targets of a regression are sorted just the same.

    shards: so many for each client.
    """

    name: Literal["shards"] = field(default="shards", kw_only=True)
    clients: Annotated[int, Ge(1)]
    shards: Annotated[int, Ge(1)] = 2

    def assign(self, rows: Rows, seed: int) -> Assignment:
        """Raises InputError for data without labels, and for more shards than rows."""
        if rows.y is None:
            raise InputError('partition: "shards" sorts by label, and this data has none; use partition.name = "iid"')
        count = self.clients * self.shards
        _enough(self.name, rows, count, f"clients={self.clients:,} times shards={self.shards:,}")
        sizes, place = _even(len(rows), count), np.argsort(rows.y, kind="stable")
        dealt = generator(seed, "partition").permutation(count)
        shards = np.split(place, np.cumsum(sizes)[:-1])
        order = np.concatenate([shards[k] for k in dealt]).astype(np.int64)
        return Assignment(Ids(self.clients), order, np.cumsum(sizes[dealt].reshape(self.clients, self.shards).sum(axis=1)))


Partition = Column | IID | Dirichlet | Shards


def _enough(name: str, rows: Rows, needed: int, what: str) -> None:
    if needed > len(rows):
        raise InputError(f'partition: "{name}" with {what} needs {needed:,} rows, and the data has {len(rows):,}; lower clients')


def _even(rows: int, parts: int) -> np.ndarray:
    # Sizes of equal parts, the first ones a row larger where it does not work out.
    return rows // parts + (np.arange(parts, dtype=np.int64) < rows % parts)


def _groups(ids: Ids, owner: np.ndarray) -> Assignment:
    order = np.argsort(owner, kind="stable").astype(np.int64)
    return Assignment(ids, order, np.cumsum(np.bincount(owner, minlength=len(ids))))
