"""Whose the rows are: natural clients as the source names them, or clients made up for a simulation.

``assign(rows, seed)`` gives (client id, row indices) for every client, sorted by id; the indices are int64, ascending, and every row
belongs to exactly one client. It is a pure function of the rows and the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

import numpy as np
from annotated_types import Ge, Gt

from hansa.core.errors import InputError
from hansa.core.randomness import generator
from hansa.data.sources import Rows

Assignment: TypeAlias = list[tuple[str, np.ndarray]]

TRIES = 1000
"""Draws of a Dirichlet partition before it gives up on its least number of rows."""


@dataclass(frozen=True)
class Column:
    """Natural clients: the ones that the source names."""

    name: Literal["column"] = "column"

    def assign(self, rows: Rows, seed: int) -> Assignment:
        """Raises InputError when the source names none."""
        if rows.client is None:
            raise InputError(
                "partition: the data names no clients of its own; name a column in data.client where it is a file, or make "
                'clients up: set partition.name to "iid", "dirichlet" or "shards", and partition.clients'
            )
        ids, owner = np.unique(rows.client, return_inverse=True)
        return _groups([str(name) for name in ids], owner)


@dataclass(frozen=True)
class IID:
    """``clients`` equal random parts: sizes differ by at most one row."""

    name: Literal["iid"] = "iid"
    clients: Annotated[int, Ge(1)] = field(kw_only=True)

    def assign(self, rows: Rows, seed: int) -> Assignment:
        """Raises InputError when there are more clients than rows."""
        _enough(self.name, rows, self.clients, f"clients={self.clients:,}")
        order = generator(seed, "partition").permutation(len(rows))
        return _named(np.array_split(order, self.clients))


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: the rows of every class are dealt to the clients in shares drawn from Dir(alpha).

    Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni: Bayesian Nonparametric Federated Learning of Neural Networks, ICML
    2019, section 4: for every class k, p_k ~ Dir_J(alpha) over the J clients, of whom j gets a share p_kj of the class's rows. (Hsu,
    Qi and Brown 2019 draw the other way round: for every client of equal size, a distribution over the classes.)

    alpha:  concentration: 0.1 leaves most clients with one or two classes, 1 is moderate, 100 close to equal shares.
    least:  the draw is repeated until every client has so many rows.
    """

    name: Literal["dirichlet"] = "dirichlet"
    clients: Annotated[int, Ge(1)] = field(kw_only=True)
    alpha: Annotated[float, Gt(0)] = field(kw_only=True)
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
        return _groups(_ids(self.clients), owner)

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

    name: Literal["shards"] = "shards"
    clients: Annotated[int, Ge(1)] = field(kw_only=True)
    shards: Annotated[int, Ge(1)] = 2

    def assign(self, rows: Rows, seed: int) -> Assignment:
        """Raises InputError for data without labels, and for more shards than rows."""
        if rows.y is None:
            raise InputError('partition: "shards" sorts by label, and this data has none; use partition.name = "iid"')
        count = self.clients * self.shards
        _enough(self.name, rows, count, f"clients={self.clients:,} times shards={self.shards:,}")
        pieces = np.array_split(np.argsort(rows.y, kind="stable"), count)
        dealt = generator(seed, "partition").permutation(count).reshape(self.clients, self.shards)
        return _named([np.concatenate([pieces[k] for k in hand]) for hand in dealt])


Partition = Column | IID | Dirichlet | Shards


def _enough(name: str, rows: Rows, needed: int, what: str) -> None:
    if needed > len(rows):
        raise InputError(f'partition: "{name}" with {what} needs {needed:,} rows, and the data has {len(rows):,}; lower clients')


def _ids(clients: int) -> list[str]:
    # Padded, so that the order of the strings is that of the numbers.
    width = max(3, len(str(clients - 1)))
    return [f"client-{k:0{width}d}" for k in range(clients)]


def _named(parts: list[np.ndarray]) -> Assignment:
    return [(name, np.sort(part).astype(np.int64)) for name, part in zip(_ids(len(parts)), parts, strict=True)]


def _groups(ids: list[str], owner: np.ndarray) -> Assignment:
    # Stable, so that every client's rows stay ascending.
    order = np.argsort(owner, kind="stable").astype(np.int64)
    ends = np.cumsum(np.bincount(owner, minlength=len(ids)))
    return list(zip(ids, np.split(order, ends[:-1]), strict=True))
