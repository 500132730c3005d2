"""Values of transformers as plain JSON, and back with the same bits: NumPy arrays, dtypes, tuples, numbers that are not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hansa.core.errors import InputError


def to_plain(value: Any) -> Any:
    """``value`` as strict JSON values. What JSON lacks becomes an object with one tag: float, scalar, dtype, tuple or array.

    Raises InputError for what has no plain form: a function, an object of another class.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.generic):
        return {"scalar": value.dtype.name, "value": to_plain(value.item())}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, np.ndarray):
        return {"array": value.dtype.str if value.dtype != object else "object", "values": [to_plain(v) for v in value.tolist()]}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, (np.generic, bool, int, float, str))):
        return {"dtype": np.dtype(value).name}
    if isinstance(value, (list, tuple)):
        items = [to_plain(item) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise InputError(
        f"{value!r} of type {type(value).__name__} cannot be written as plain values; use numbers, text or lists of them"
    )


def from_plain(value: Any) -> Any:
    """The inverse of :func:`to_plain`."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "scalar" in value:
        return np.dtype(value["scalar"]).type(from_plain(value["value"]))
    if "dtype" in value:
        return np.dtype(value["dtype"]).type
    if "tuple" in value:
        return tuple(from_plain(item) for item in value["tuple"])
    return np.array([from_plain(item) for item in value["values"]], dtype=value["array"])
