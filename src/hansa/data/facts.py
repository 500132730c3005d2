"""What can be said of one client's data without showing a row: plain JSON values, that a server may check and a person read.

A table's facts::

    {"layout": "table", "rows": {"train": 240, "test": 60},
     "columns": {"age": {"kind": "number", "missing": 0, "infinite": 0, "min": 28.0, "max": 77.0, "mean": 54.4, "std": 9.0},
                 "sex": {"kind": "category", "missing": 0, "distinct": 2, "values": {"Male": 165, "Female": 75}}},
     "labels": {"dtype": "int64", "counts": {"train": [[0, 131], [1, 109]], "test": [[0, 33], [1, 27]]},
                "min": 0.0, "max": 1.0, "mean": 0.454, "std": 0.498, "infinite": 0, "missing": 0}}

A number with few values has them as "few"; a text that names its rows has "identifier" and no values. An array's facts have
``"layout": "array"``, and for ``columns`` the one entry ``"x"`` with ``shape`` and ``dtype`` of an example. Missing and infinite values
are counted over all splits, everything else is told of the training rows. What is not defined is None.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hansa.core.blocks import Splits, Table
from hansa.core.errors import InputError
from hansa.data.tables import kind_of

FEW = 20
"""At most so many different values make a number a code, and a text surely no name of its row."""

MOST_VALUES = 10_000
"""Distinct values of a category that are counted one by one, the most frequent first."""


def refuse_names(splits: Splits, client: str = "") -> None:
    """InputError for labels that are texts and name their rows: their client keeps them to itself. All splits are looked at, since
    who makes the split may make it small."""
    parts = [np.asarray(table.y) for table in splits.values() if table.y is not None]
    if not parts or any(part.dtype.kind in "biuf" for part in parts):
        return
    y = np.concatenate(parts)
    distinct = len(np.unique(y))
    if _names_rows(distinct, len(y)):
        raise InputError(
            f"{f'client {client}: ' if client else ''}the labels are {distinct:,} different texts in {len(y):,} rows, which name the "
            "rows and are no classes; they are not told to anybody (name another column in data.label)"
        )


def _names_rows(distinct: int, rows: int) -> bool:
    """Whether texts of which so many rows have so many different ones say who a row is."""
    return distinct > FEW and 2 * distinct > rows


def facts_of(splits: Splits) -> dict[str, Any]:
    """The facts of a client's tables. InputError for labels that name their rows."""
    refuse_names(splits)
    train = splits["train"]
    table = hasattr(train.x, "columns")
    return {
        "layout": "table" if table else "array",
        "rows": {name: len(part) for name, part in splits.items()},
        "columns": _columns(splits) if table else {"x": _array(splits)},
        "labels": None if train.y is None else _labels(splits),
    }


def _columns(splits: Splits) -> dict[str, Any]:
    import pandas as pd

    train = splits["train"].x
    result: dict[str, Any] = {}
    for name in train.columns:
        parts = [table.x[name] for table in splits.values() if name in table.x.columns]
        kinds = [kind for kind in map(kind_of, parts) if kind is not None]
        numeric = kinds[0] == "number" if kinds else train[name].dtype.kind == "f"
        if numeric:
            values = [part.to_numpy(dtype=np.float64, na_value=np.nan) for part in parts]
            own = train[name].to_numpy(dtype=np.float64, na_value=np.nan)
            result[str(name)] = {"kind": "number", **_broken(values), **_moments(own), **_few(own)}
        else:
            counts = train[name].value_counts()
            # Texts of which most rows have their own are not told to anybody, nor those of a few rows of such a column.
            names_rows = _names_rows(len(counts), len(train)) or (
                len(parts) > 1 and _names_rows(int(pd.concat(parts).nunique()), sum(map(len, parts)))
            )
            result[str(name)] = {
                "kind": "category",
                "missing": sum(int(part.isna().sum()) for part in parts),
                "distinct": len(counts),
                "values": {} if names_rows else {str(value): int(count) for value, count in counts.head(MOST_VALUES).items()},
            } | ({"identifier": True} if names_rows else {})
    return result


def _few(values: np.ndarray) -> dict[str, list[float]]:
    """The values of a number that is a code (sex, grade), for encoders; nothing where they could tell rows apart."""
    distinct = np.unique(values[np.isfinite(values)])
    return {"few": distinct.tolist()} if len(distinct) <= FEW and 5 * len(distinct) <= len(values) else {}


def _array(splits: Splits) -> dict[str, Any]:
    parts = {name: np.asarray(table.x) for name, table in splits.items()}
    x = parts["train"]
    finite = _finite(x)
    return {
        "kind": "number",
        "shape": list(x.shape[1:]),
        "dtype": str(x.dtype),
        **_broken(list(parts.values())),
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
    }


def _labels(splits: Splits) -> dict[str, Any]:
    y = np.asarray(splits["train"].y)
    result: dict[str, Any] = {"dtype": str(y.dtype) if y.dtype.kind in "biuf" else "str"}
    if y.dtype.kind in "biuf":
        result |= _broken([np.asarray(table.y) for table in splits.values()]) | _moments(y.astype(np.float64))
    if y.dtype.kind != "f":
        result["counts"] = {name: _counts(table) for name, table in splits.items()}
    return result


def _counts(table: Table) -> list[list[Any]]:
    values, counts = np.unique(np.asarray(table.y), return_counts=True)
    return [[value, count] for value, count in zip(values.tolist(), counts.tolist(), strict=True)]


def _broken(parts: list[np.ndarray]) -> dict[str, int]:
    floats = [part for part in parts if part.dtype.kind == "f"]
    return {
        "missing": sum(int(np.isnan(part).sum()) for part in floats),
        "infinite": sum(int(np.isinf(part).sum()) for part in floats),
    }


def _finite(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f":
        return values
    finite = np.isfinite(values)
    return values if finite.all() else values[finite]


def _moments(values: np.ndarray) -> dict[str, float | None]:
    finite = _finite(values)
    if not finite.size:
        return {"min": None, "max": None, "mean": None, "std": None}
    return {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean()), "std": float(finite.std())}
