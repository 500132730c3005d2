"""A made-up table of the agreed layout that stands in for the rows nobody may see.

Its columns hold every value that a column may take, where that is known, and zeros where it is not. Sent through the fitted steps
of a pipeline it shows, for any later step, the type, dtype, names and possible values of what will reach that step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from hansa.core.errors import InputError, did_you_mean
from hansa.data.preparing.layout import EMPTY, TEXT, Layout, text_dtype


@dataclass(frozen=True)
class Sample:
    """Made-up rows ``x``, and for each column whether its values are all that may occur, bool (columns,)."""

    x: Any
    complete: np.ndarray

    def take(self, positions: np.ndarray) -> Sample:
        return Sample(take(self.x, positions), self.complete[positions])


def sample_of(layout: Layout, candidates: Mapping[Any, Sequence[Any]]) -> Sample:
    """The sample of raw rows. ``candidates``: column name (position in an array) -> values that may occur, missing ones aside.

    The last row is the only one with missing values.
    """
    keys: Sequence[Any] = layout.names or range(len(layout.dtypes))
    unknown = [key for key in candidates if key not in keys]
    if unknown:
        raise InputError(f"candidates: there is no column {unknown[0]!r}{did_you_mean(str(unknown[0]), map(str, keys))}")
    values = [_values(key, dtype, candidates.get(key)) for key, dtype in zip(keys, layout.dtypes, strict=True)]
    rows = 2 + max((len(column) for column in values if column is not None), default=0)
    columns = [_column(column, dtype, rows) for column, dtype in zip(values, layout.dtypes, strict=True)]
    complete = np.array([column is not None for column in values], dtype=bool)
    if layout.names:
        return Sample(pd.DataFrame(dict(zip(layout.names, columns, strict=True))), complete)
    return Sample(np.column_stack([np.asarray(column) for column in columns]), complete)


def _values(key: Any, dtype: str, given: Sequence[Any] | None) -> list[Any] | None:
    if dtype == "bool":
        return [False, True]
    if dtype == EMPTY:
        return []
    if given is None:
        return None
    plain = [value.item() if isinstance(value, np.generic) else value for value in given]
    return [value for value in plain if not (value is None or value != value)]


def _column(values: list[Any] | None, dtype: str, rows: int) -> pd.Series:
    if values is None:
        return pd.Series([""] * rows, dtype=object) if dtype in TEXT else pd.Series(np.zeros(rows, dtype=dtype))
    if dtype == "bool" or dtype.startswith(("int", "uint")):
        return pd.Series(np.resize(np.array(values or [0]), rows).astype(dtype))
    if dtype in TEXT:
        column = [*values, *[values[-1] if values else np.nan] * (rows - 1 - len(values)), np.nan]
        return pd.Series(column, dtype=text_dtype() if dtype == "str" else object)
    numbers = np.array([float(value) for value in values] or [np.nan])
    return pd.Series(np.append(np.resize(numbers, rows - 1), np.nan).astype("float64" if dtype == EMPTY else dtype))


def take(x: Any, positions: np.ndarray) -> Any:
    """The columns at ``positions`` of a data frame, an array or a sparse matrix."""
    return x.iloc[:, positions] if hasattr(x, "iloc") else x[:, positions]


def columns_of(x: Any) -> list[np.ndarray]:
    """The columns, each a vector (rows,) of its own dtype; text as objects."""
    if hasattr(x, "iloc"):
        return [column.to_numpy() for _, column in x.items()]
    dense = x.toarray() if sparse.issparse(x) else x
    return [dense[:, j] for j in range(dense.shape[1])]


def label(x: Any, column: int) -> str:
    """How a message names a column."""
    return repr(str(x.columns[column])) if hasattr(x, "columns") else str(column)


def numbers(x: Any, names: Sequence[str] = ()) -> np.ndarray:
    """The values as float64 (rows, columns), missing ones NaN. Raises InputError for text; ``names`` are the columns' in its message."""
    try:
        if hasattr(x, "iloc"):
            return x.to_numpy(dtype=np.float64)
        return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float64)
    except (ValueError, TypeError):
        text = _first_text(x)
        raise InputError(
            f"column {names[text] if names else label(x, text)} holds text where numbers are needed; encode it first"
        ) from None


def _first_text(x: Any) -> int:
    for position, column in enumerate(columns_of(x)):
        try:
            np.asarray(column, dtype=np.float64)
        except (ValueError, TypeError):
            return position
    return 0


def missing(x: Any, marker: Any) -> np.ndarray:
    """Where a value is missing, bool (rows, columns): NaN, or equal to ``marker`` where that is not NaN."""
    values = x.toarray() if sparse.issparse(x) else x
    return np.asarray(pd.isna(values) if marker != marker else values == marker, dtype=bool)


def uniques(sample: Sample, column: int) -> np.ndarray:
    """The values that may occur in a column, ascending, NaN last. Raises InputError where they are not known."""
    values = columns_of(sample.x)[column]
    if not sample.complete[column]:
        raise InputError(
            f"the values of column {label(sample.x, column)} are not known; give them as candidates[{label(sample.x, column)}] = [...] "
            "(or as the encoder's own categories=[...])"
        )
    gaps = pd.isna(values)
    try:
        ordered = np.unique(values[~gaps]) if values.dtype != object else np.array(sorted(set(values[~gaps])), dtype=object)
    except TypeError:
        raise InputError(f"column {label(sample.x, column)} mixes text with numbers; make its values one or the other") from None
    return np.append(ordered, values[gaps][:1])


def like(x: Any, columns: Iterable[np.ndarray]) -> Any:
    """Other values in the type, dtypes and names of ``x``."""
    listed = list(columns)
    if hasattr(x, "iloc"):
        typed = [pd.Series(column).astype(dtype) for column, dtype in zip(listed, x.dtypes, strict=True)]
        return pd.DataFrame(dict(zip(x.columns, typed, strict=True)))
    dense = np.empty((len(listed[0]), len(listed)), dtype=x.dtype)
    for j, column in enumerate(listed):
        dense[:, j] = column
    return type(x)(dense) if sparse.issparse(x) else dense
