"""What a source of data gives: rows, and whose they are. Sources are read once per process and kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from hansa.core.blocks import Table

Task: TypeAlias = Literal["classification", "regression"]


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a source, before anybody partitions them.

    x:       a NumPy array (rows, ...), or a data frame whose columns are float64 (NaN where missing) or objects (str, NaN where
             missing).
    y:       (rows,) int64 or str for classification, float64 for regression; None without labels.
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


class Source(Protocol):
    """Where data comes from: a frozen dataclass of options, in a job the table ``[data]``."""

    def read(self) -> Rows:
        """All rows; the same object again in the same process while it is among the last ones used."""
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
