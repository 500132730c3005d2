"""A tree as plain JSON values beside named arrays, and back: what every file of a tree is made of.

A tree is made of nested dictionaries with string keys, lists and tuples; its leaves are arrays, NumPy scalars, or None, bool, int,
float and str. Every array is named by its path as a JSON pointer (RFC 6901): ``/params/layer.0~1weight`` is the entry ``layer.0/weight``
of ``params``. A ``~`` of a key is written ``~0`` and a ``/`` is written ``~1``, so no two paths share a name. Everything else is JSON; a
float that JSON does not know is ``{"float": "nan"}``, a tuple ``{"tuple": [...]}``, a dictionary ``{"dict": {...}}``, an array
``{"array": name}`` and a NumPy scalar ``{"scalar": name}``, so that no value can be mistaken for another.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from array_api_compat import is_array_api_obj

from hansa.core.errors import InputError

DTYPES: Final = {
    np.dtype(name): code
    for name, code in [
        ("float64", "F64"), ("float32", "F32"), ("float16", "F16"), ("bool", "BOOL"),
        ("int64", "I64"), ("int32", "I32"), ("int16", "I16"), ("int8", "I8"),
        ("uint64", "U64"), ("uint32", "U32"), ("uint16", "U16"), ("uint8", "U8"),
    ]
}  # fmt: skip
"""What an array may consist of, and its name in a safetensors file."""

UNLIMITED: Final = sys.maxsize


def encode(node: Any, path: str, arrays: dict[str, np.ndarray], depth: int = UNLIMITED) -> Any:
    """The tree as JSON values; its arrays are put into ``arrays``, those of other libraries as NumPy arrays.

    depth: at most so many dictionaries and lists may lie within each other.

    Raises :class:`InputError` for a leaf that is none of the kinds above, naming its path.
    """
    if isinstance(node, str):
        return str(node)
    if isinstance(node, np.generic):
        # Not as a Python number: a NumPy scalar decides the dtype of what it is multiplied with, a Python number does not.
        arrays[path] = as_array(np.asarray(node), path)
        return {"scalar": path}
    if node is None or isinstance(node, bool | int):
        return node
    if isinstance(node, float):
        return node if np.isfinite(node) else {"float": repr(node)}
    if isinstance(node, Mapping):
        _refuse_depth(path, depth)
        return {"dict": {key: encode(value, f"{path}/{_token(key, path)}", arrays, depth - 1) for key, value in node.items()}}
    if isinstance(node, list | tuple):
        _refuse_depth(path, depth)
        items = [encode(value, f"{path}/{position}", arrays, depth - 1) for position, value in enumerate(node)]
        return items if isinstance(node, list) else {"tuple": items}
    arrays[path] = as_array(node, path)
    return {"array": path}


def decode(node: Any, arrays: Mapping[str, np.ndarray], depth: int = UNLIMITED) -> Any:
    """The inverse of :func:`encode`, for JSON of any origin. Raises :class:`InputError` for what that has not written."""
    if isinstance(node, list):
        _refuse_depth("", depth)
        return [decode(item, arrays, depth - 1) for item in node]
    if not isinstance(node, dict):
        return node
    kind, value = next(iter(node.items())) if len(node) == 1 else ("", None)
    if kind == "dict" and isinstance(value, dict):
        _refuse_depth("", depth)
        return {key: decode(item, arrays, depth - 1) for key, item in value.items()}
    if kind == "tuple" and isinstance(value, list):
        return tuple(decode(value, arrays, depth))
    if kind in ("array", "scalar") and isinstance(value, str) and value in arrays:
        array = arrays[value]
        if kind == "array" or array.ndim == 0:
            return array if kind == "array" else array[()]
    if kind == "float" and value in ("nan", "inf", "-inf"):
        return float(value)
    raise InputError(f"{str(node)[:200]} is no part of a tree; read what hansa has written")


def as_array(value: Any, name: str) -> np.ndarray:
    """An array of any library as a NumPy array in C order that a file can hold. Raises :class:`InputError` with its name."""
    if not is_array_api_obj(value):
        raise InputError(
            f"entry {name!r}: a {type(value).__name__} cannot be saved; keep arrays, numbers, text, lists and dictionaries of them"
        )
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value, order="C")
    except TypeError as error:  # PyTorch has dtypes that NumPy lacks
        raise InputError(f"entry {name!r}: {value.dtype} has no NumPy equal; convert it to float32 before it is saved") from error
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in DTYPES:
        allowed = ", ".join(str(dtype) for dtype in DTYPES)
        raise InputError(f"entry {name!r}: an array of dtype {array.dtype} cannot be saved (allowed: {allowed}); convert it first")
    return array


def _token(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise InputError(f"entry {path!r}: the key {key!r} is of type {type(key).__name__}; keys must be text, write str(...)")
    return key.replace("~", "~0").replace("/", "~1")


def _refuse_depth(path: str, depth: int) -> None:
    if depth < 1:
        raise InputError(f"entry {path[:200]!r}: dictionaries and lists lie too deep within each other; flatten them")
