"""The questions that one exchange may ask: what a client computes from its rows, and what the server learns from the sum.

Every answer is a set of float64 arrays whose shapes depend on the question alone, never on the number of rows. What is learnt is
plain JSON values and is all that the next question and the fitted transformer are made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from hansa.core.errors import InputError
from hansa.data.preparing.sample import columns_of, label, missing, numbers

Known = dict[str, Any]
"""What has been learnt about one transformer, plain JSON values."""
Sums = Mapping[str, np.ndarray]


class Question(Protocol):
    """One exchange of one transformer."""

    @property
    def name(self) -> str: ...

    def measure(self, x: Any) -> dict[str, np.ndarray]:
        """A client's answer from the rows that reach the transformer there."""
        ...

    def learn(self, known: Known, sums: Sums) -> Known:
        """What is known after the answers of all clients were added."""
        ...


@dataclass(frozen=True)
class Presence:
    """How many rows there are, and how many values each column has."""

    marker: Any = np.nan
    name: str = "presence"

    def measure(self, x: Any) -> dict[str, np.ndarray]:
        present = ~missing(x, self.marker)
        return {"rows": np.array(float(len(present))), "present": present.sum(axis=0, dtype=np.float64)}

    def learn(self, known: Known, sums: Sums) -> Known:
        return {**known, "rows": int(sums["rows"]), "present": _whole(sums["present"])}


@dataclass(frozen=True)
class Moments:
    """Count and sum of each column."""

    marker: Any = np.nan
    name: str = "moments"

    def measure(self, x: Any) -> dict[str, np.ndarray]:
        gaps = missing(x, self.marker)
        with np.errstate(over="ignore"):
            total = np.where(gaps, 0.0, numbers(x)).sum(axis=0)
        if not np.isfinite(total).all():
            column = label(x, int((~np.isfinite(total)).argmax()))
            raise InputError(f"column {column}: the sum of its values is larger than a float64 can be; rescale the column")
        return {**Presence(self.marker).measure(x), "sum": total}

    def learn(self, known: Known, sums: Sums) -> Known:
        return {**Presence().learn(known, sums), "sum": sums["sum"].tolist()}


@dataclass(frozen=True)
class Spread:
    """Sums of the deviations from a centre and of their squares: the second pass of the corrected two-pass algorithm (Chan, Golub and
    LeVeque, The American Statistician 37(3), 1983, equation 1.7). One pass with sums of squares would lose all digits of a column
    whose mean is large against its spread."""

    centre: tuple[float, ...]
    name: str = "spread"

    def measure(self, x: Any) -> dict[str, np.ndarray]:
        values = numbers(x)
        away = np.where(np.isnan(values), 0.0, values - np.array(self.centre))
        return {"shift": away.sum(axis=0), "squares": (away * away).sum(axis=0)}

    def learn(self, known: Known, sums: Sums) -> Known:
        return {**known, "shift": sums["shift"].tolist(), "squares": sums["squares"].tolist()}


@dataclass(frozen=True)
class Counts:
    """How often each candidate value occurs in each column; one vector for all columns, one behind the other."""

    candidates: tuple[np.ndarray, ...]
    name: str = "counts"

    def measure(self, x: Any) -> dict[str, np.ndarray]:
        counts = []
        for position, (column, values) in enumerate(zip(columns_of(x), self.candidates, strict=True)):
            column = column if values.dtype != object else column.astype(object)
            found = np.bincount(pd.Index(values).get_indexer(pd.Index(column, dtype=values.dtype)) + 1, minlength=len(values) + 1)
            if found[0]:
                raise InputError(
                    f"column {label(x, position)}: {found[0]} of {len(column)} rows hold a value that is not among the {len(values)} "
                    "categories that were announced; announce all values, or use categories=[...] with handle_unknown='ignore'"
                )
            counts.append(found[1:].astype(np.float64))
        return {"rows": np.array(float(x.shape[0])), "counts": np.concatenate(counts)}

    def learn(self, known: Known, sums: Sums) -> Known:
        ends = np.cumsum([len(values) for values in self.candidates])
        return {**known, "rows": int(sums["rows"]), "counts": [_whole(part) for part in np.split(sums["counts"], ends[:-1])]}


def _whole(values: np.ndarray) -> list[int]:
    return [int(value) for value in values]
