"""What a source of data gives: rows, and whose they are. Sources are read once per process and kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from hansa.core.blocks import Table

Task: TypeAlias = Literal["classification", "regression", "unlabelled"]
"""What the labels are for; "unlabelled" where there are none, for learners that find structure in the features alone."""


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a source, before anybody partitions them.

    x:       a NumPy array (rows, ...), :class:`~hansa.core.pixels.Pixels`, or a data frame whose columns are float64 (NaN where
             missing) or objects (str, NaN where missing).
    y:       (rows,) int64, bool or str for classification, float64 for regression; None without labels.
    client:  (rows,) str, whose each row is; None where the source does not say.
    test:    a central test set, where the data set comes with one.
    """

    x: Any
    y: np.ndarray | None
    client: np.ndarray | None
    test: Table | None
    task: Task

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Ids:
    """The ids of so many clients by position, ascending.

    given: (clients,) of str, ascending; without it they are made up: ``client-000`` and on, padded, so that the order of the
           strings is that of the numbers.
    """

    count: int
    given: np.ndarray | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> str:
        if not 0 <= position < self.count:
            raise IndexError(f"there are {self.count:,} clients, and none at position {position:,}")
        if self.given is not None:
            return str(self.given[position])
        return f"client-{position:0{max(3, len(str(self.count - 1)))}d}"


class Source(Protocol):
    """Where data comes from: a frozen dataclass of options, in a job the table ``[data]``."""

    def read(self) -> Rows:
        """All rows; the same object again in the same process while it is among the last ones used."""
        ...


@runtime_checkable
class Holders(Protocol):
    """A source that has its clients one by one: a client's rows are read or made when it is loaded, and nobody holds all rows.

    Everything it gives is a function of its options, the seed of the job and the client alone.
    """

    @property
    def task(self) -> Task: ...

    @property
    def classes(self) -> tuple[Any, ...] | None:
        """The labels that may occur, in ascending order, for classification; else None."""
        ...

    @property
    def ids(self) -> Ids: ...

    def sizes(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Rows of the clients at the given positions, int64, without making any of them."""
        ...

    def table(self, position: int, seed: int) -> Table:
        """All rows of one client."""
        ...


KEPT = 4
"""Sources kept in memory by a process: a job reads one, a comparison or a notebook a few."""

_lock = threading.RLock()
_kept: OrderedDict[Hashable, Rows] = OrderedDict()


def remembered(key: Hashable, build: Callable[[], Rows]) -> Rows:
    """``build()``, or what it gave for the same key before; the least recently used of more than :data:`KEPT` is dropped."""
    with _lock:  # held while building: two threads must not read a large file twice at the same time
        if key not in _kept:
            _kept[key] = build()
        _kept.move_to_end(key)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
        return _kept[key]
