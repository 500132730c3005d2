"""A tree as one file that may come from anybody: written to the same bytes every time, read without loading and without trust.

A parcel is a safetensors file that any reader of the format opens. What a tree may hold says :mod:`hansa.core.tree`; its JSON is the
metadata entry ``tree``, its arrays are the tensors in the order in which the tree names them. Every tensor begins at a multiple of 64
bytes of the file, so that it can be used where it lies; safetensors knows no gaps, so what lies between two is a tensor of zeros
itself, named ``.0``, ``.1`` and so on.

Equal trees give equal bytes, and so the digest of a parcel names its content. The order of a dictionary's keys belongs to the tree, as
it does to params.

Nothing is believed that the reader has not checked, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from hansa.core.errors import InputError
from hansa.core.tree import DTYPES, decode, encode

ALIGNMENT: Final = 64
_FORMAT: Final = "parcel 1"
_KINDS: Final = {code: dtype for dtype, code in DTYPES.items()}
_DIMENSIONS: Final = 32
_LARGEST: Final = 2**48
_STEP: Final = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a reader accepts.

    size:    bytes of the file.
    header:  bytes of its header: names, shapes and all plain values.
    entries: arrays, and values in all.
    depth:   dictionaries and lists within each other.
    """

    size: int = 2**48
    header: int = 16 * 2**20
    entries: int = 1_000_000
    depth: int = 32


DEFAULT: Final = Limits()


def write(path: Path | str, tree: Mapping[str, Any] | list[Any]) -> str:
    """Write a tree, mode 0600; returns the SHA-256 of the file as 64 hexadecimal digits. The file must not exist yet.

    Raises :class:`InputError` for a tree that no reader with the usual :class:`Limits` accepts; nothing is written then.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        text = json.dumps(encode(tree, "", arrays, DEFAULT.depth), allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:  # a whole number of more than 4,300 digits
        raise error if isinstance(error, InputError) else InputError(f"the tree cannot be written: {error}; shorten it") from None
    head, placed = _head(text, arrays)
    if len(head) > DEFAULT.header or len(arrays) > DEFAULT.entries or _values(text) > 4 * DEFAULT.entries:
        raise InputError(
            f"the tree has {len(arrays):,} arrays and {len(text):,} bytes of plain values; a parcel holds {DEFAULT.entries:,} and "
            f"{DEFAULT.header:,} (put numbers into arrays)"
        )
    digest = hashlib.sha256()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in _parts(head, placed):
                file.write(part)
                digest.update(part)
    except BaseException:
        os.unlink(path)
        raise
    return digest.hexdigest()


def _head(text: str, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, list[np.ndarray]]:
    header: dict[str, Any] = {"__metadata__": {"hansa": _FORMAT, "tree": text}}
    placed: list[np.ndarray] = []
    end = 0
    for name, array in arrays.items():
        if name != name.encode(errors="replace").decode():
            raise InputError(f"the name {name!r} of an array is not valid Unicode text; rename it")
        gap = -end % ALIGNMENT
        if gap:
            header[f".{len(placed)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            placed.append(np.zeros(gap, dtype=np.uint8))
        start, end = end + gap, end + gap + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
        placed.append(array)
    body = json.dumps(header, separators=(",", ":")).encode()
    body += b" " * (-(8 + len(body)) % ALIGNMENT)
    return len(body).to_bytes(8, "little") + body, placed


def _parts(head: bytes, placed: list[np.ndarray]) -> Iterator[bytes | memoryview]:
    yield head
    for array in placed:
        flat = array.reshape(-1).view(np.uint8) if array.size else np.zeros(0, dtype=np.uint8)
        for start in range(0, len(flat), _STEP):
            yield flat[start : start + _STEP].data


def read(path: Path | str, limits: Limits = DEFAULT) -> Any:
    """The tree of a parcel. Its arrays are read-only :class:`numpy.memmap` views of the file, which must not change; none is loaded.

    Raises :class:`InputError` for anything that :func:`write` has not written, before more memory than a header's is used.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _read(np.memmap(file, dtype=np.uint8, mode="r") if size else np.zeros(0, np.uint8), limits)
    except OSError as error:
        raise InputError(f"parcel {path}: it cannot be read ({error.strerror}); fetch it again") from error
    except InputError as error:
        raise InputError(f"parcel {path}: {error}") from None


def view(content: bytes | memoryview, limits: Limits = DEFAULT) -> Any:
    """As :func:`read`, of a parcel that is in memory: its arrays are read-only views of the content."""
    try:
        return _read(np.frombuffer(content, np.uint8), limits)
    except InputError as error:
        raise InputError(f"parcel: {error}") from None


def _read(whole: np.ndarray, limits: Limits) -> Any:
    size = len(whole)
    if size > limits.size:
        raise InputError(f"{size:,} bytes are more than the {limits.size:,} that are allowed; send less")
    length = int.from_bytes(whole[:8].tobytes(), "little")
    if size < 8 or not 2 <= length <= min(size - 8, limits.header) or (8 + length) % ALIGNMENT:
        raise InputError(f"a file of {size:,} bytes with a header of {length:,} is not in hansa's format; send what hansa wrote")
    header = _json(whole[8 : 8 + length].tobytes(), limits)
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.keys() != {"hansa", "tree"} or metadata["hansa"] != _FORMAT:
        raise InputError("its header is not that of a parcel in format 1; send what this version of hansa wrote")
    if not isinstance(metadata["tree"], str):
        raise InputError("its tree is not text; send what hansa wrote")
    if len(header) > 2 * limits.entries:
        raise InputError(f"it has more than {limits.entries:,} arrays; send fewer")
    arrays = _Once(_views(header, whole, 8 + length, size))
    # The parser has refused nesting beyond what Python's stack holds; the tree itself is checked on its own.
    tree = decode(_json(metadata["tree"].encode(errors="surrogatepass"), limits), arrays, limits.depth)
    if arrays:
        raise InputError(f"its tree does not name the array {next(iter(arrays))[:200]!r}; send what hansa wrote")
    if not isinstance(tree, dict | list):
        raise InputError("its tree is neither a dictionary nor a list; send what hansa wrote")
    return tree


class _Once(dict[str, np.ndarray]):
    """Arrays of which each may be taken once."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.pop(name)


def _views(header: dict[str, Any], whole: np.ndarray, base: int, size: int) -> Iterator[tuple[str, np.ndarray]]:
    end = 0
    for place, (name, told) in enumerate(header.items()):
        dtype, shape, start, stop = _tensor(name, told)
        if start != end or stop > size - base:
            raise InputError(f"array {name[:200]!r}: its bytes {start:,} to {stop:,} overlap, leave a gap, or are not in the file")
        gap, end = -end % ALIGNMENT, stop
        view = whole[base + start : base + stop]
        if gap:
            if name != f".{place}" or dtype != np.uint8 or shape != (gap,) or view.any():
                raise InputError(f"array {name[:200]!r}: it does not begin at a multiple of {ALIGNMENT}; send what hansa wrote")
        elif name.startswith("."):
            raise InputError(f"array {name[:200]!r}: there is no gap for it to fill; send what hansa wrote")
        elif dtype == np.bool_ and view.max(initial=0) > 1:
            raise InputError(f"array {name[:200]!r}: it holds truth values that are neither 0 nor 1; send what hansa wrote")
        else:
            yield name, view.view(dtype).reshape(shape)
    if end != size - base:
        raise InputError(f"its arrays end at byte {base + end:,} and the file has {size:,}; send what hansa wrote")


def _tensor(name: str, told: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    wrong = InputError(f"array {name[:200]!r}: its dtype, shape or place is not one; send what hansa wrote")
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"} or not isinstance(told["dtype"], str):
        raise wrong
    shape, offsets, dtype = told["shape"], told["data_offsets"], _KINDS.get(told["dtype"])
    if dtype is None or not (_numbers(shape) and _numbers(offsets)) or len(shape) > _DIMENSIONS or len(offsets) != 2:
        raise wrong
    # Also with its empty dimensions left out: NumPy reckons with them.
    if prod(max(1, length) for length in shape) > _LARGEST or offsets[1] - offsets[0] != prod(shape) * dtype.itemsize:
        raise wrong
    return dtype, tuple(shape), offsets[0], offsets[1]


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _LARGEST for item in value)


def _json(text: bytes, limits: Limits) -> Any:
    """Strict JSON: no key twice, no NaN; InputError for anything else. More values than allowed are found before they are made."""
    if _values(text) > 16 * limits.entries:
        raise InputError(f"it holds more than {limits.entries:,} values; put numbers into arrays")
    try:
        return json.loads(text.decode(errors="surrogatepass"), object_pairs_hook=_distinct, parse_constant=_refused)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"its header is not JSON ({str(error)[:200]}); send what hansa wrote") from None


def _values(text: Any) -> int:
    marks = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    return sum(text.count(mark) for mark in marks)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InputError("its header names something twice; send what hansa wrote")
    return result


def _refused(constant: str) -> Any:
    raise InputError(f"its header holds {constant}, which is not JSON; send what hansa wrote")
