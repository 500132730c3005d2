"""What another organisation tells of its data is checked before anybody reckons with it: its form is that of :mod:`hansa.data.facts`."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np

from hansa.core.errors import InputError
from hansa.data.facts import FEW, MOST_VALUES

LARGEST = 2**53
SPLITS = ("train", "validation", "test")

_DTYPE = re.compile("[<>|=]?(?!a[0-9]*$)[A-Za-z]{1,16}[0-9]{0,3}")

Check = Callable[[Any], bool]


def check_facts(facts: Any) -> None:
    """Raise InputError, naming the entry, for what :func:`hansa.data.facts.facts_of` gives of no table."""
    if not _has(facts, {"layout", "rows", "columns", "labels"}):
        raise _wrong("facts")
    if not _by_split(facts["rows"], _count):
        raise _wrong("facts.rows")
    if not _columns(facts["layout"], facts["columns"]):
        raise _wrong("facts.columns")
    if facts["labels"] is not None and not _labels(facts["labels"]):
        raise _wrong("facts.labels")


def _wrong(what: str) -> InputError:
    return InputError(f"{what}: they are not what a client tells of its data; use the same version of hansa at both ends")


def _has(value: Any, required: set[str], optional: frozenset[str] = frozenset()) -> bool:
    return isinstance(value, dict) and required <= value.keys() <= required | optional


def _is(value: Any, text: str) -> bool:
    return isinstance(value, str) and value == text  # an array is compared by its elements


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _moment(value: Any) -> bool:
    return value is None or (type(value) is float and isfinite(value))


def _by_split(value: Any, check: Check) -> bool:
    return isinstance(value, dict) and "train" in value and value.keys() <= set(SPLITS) and all(map(check, value.values()))


def _columns(layout: Any, columns: Any) -> bool:
    if _is(layout, "array"):
        return _has(columns, {"x"}) and _array(columns["x"])
    return _is(layout, "table") and isinstance(columns, dict) and all(map(_column, columns.values()))


def _array(x: Any) -> bool:
    if not _has(x, {"kind", "shape", "dtype", "missing", "infinite", "min", "max"}) or not _is(x["kind"], "number"):
        return False
    shape = isinstance(x["shape"], list) and len(x["shape"]) <= 32 and all(map(_count, x["shape"]))
    return (
        shape
        and _is_dtype(x["dtype"])
        and all(map(_count, (x["missing"], x["infinite"])))
        and all(map(_moment, (x["min"], x["max"])))
    )


def _is_dtype(name: Any) -> bool:
    return isinstance(name, str) and kind_of_dtype(name) in tuple("biuf")


def kind_of_dtype(name: str) -> str:
    """NumPy's letter for the kind of a dtype; empty for what is no dtype's name."""
    # NumPy evaluates some texts as Python, and warns of others.
    if not _DTYPE.fullmatch(name):
        return ""
    try:
        return np.dtype(name).kind
    except (TypeError, ValueError):
        return ""


def _column(column: Any) -> bool:
    moments = {"min", "max", "mean", "std"}
    if _has(column, {"kind", "missing", "infinite", *moments}, frozenset({"few"})) and _is(column["kind"], "number"):
        few = column.get("few", [])
        codes = isinstance(few, list) and len(few) <= FEW and all(value is not None and _moment(value) for value in few)
        return codes and _count(column["missing"]) and _count(column["infinite"]) and all(_moment(column[name]) for name in moments)
    named = _has(column, {"kind", "missing", "distinct", "values"}, frozenset({"identifier"}))
    if not (named and _is(column["kind"], "category")):
        return False
    values = column["values"]
    counted = isinstance(values, dict) and len(values) <= MOST_VALUES and all(map(_count, values.values()))
    return counted and _count(column["missing"]) and _count(column["distinct"]) and column.get("identifier", True) is True


def _labels(labels: Any) -> bool:
    told = {"min", "max", "mean", "std", "missing", "infinite"}
    if not _has(labels, {"dtype"}, frozenset({"counts", *told})) or not isinstance(labels["dtype"], str):
        return False
    if labels["dtype"] != "str":
        numbers = told <= labels.keys() and _count(labels["missing"]) and _count(labels["infinite"])
        if not (numbers and _is_dtype(labels["dtype"]) and all(_moment(labels[name]) for name in ("min", "max", "mean", "std"))):
            return False
    return _by_split(labels["counts"], _counted) if "counts" in labels else np.dtype(labels["dtype"]).kind == "f"


def _counted(pairs: Any) -> bool:
    return isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _label(pair[0]) and _count(pair[1]) for pair in pairs
    )


def _label(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (type(value) is float and isfinite(value))
