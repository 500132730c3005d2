"""A whole run state as one safetensors file.

What a tree may hold says :mod:`hansa.core.tree`. In the file

- every array is a tensor, named by its path;
- everything else is JSON in the metadata entry ``tree``;
- the metadata begins with ``sha256``, the digest of the whole file with 64 zeros in the digest's place. Any change of any byte is
  found before anything is used. It finds damage; it is not a signature.

Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from hansa.core.errors import InputError
from hansa.core.files import replace_file
from hansa.core.tree import DTYPES, as_array, decode, encode

_FORMAT: Final = "1"
_START: Final = b'{"__metadata__":{"sha256":"'
_NO_DIGEST: Final = b"0" * 64


def save_tree(path: Path | str, tree: Mapping[str, Any]) -> None:
    """Write a tree atomically and durably, mode 0600. Tensors of other libraries are saved as NumPy arrays.

    Raises :class:`InputError` for a leaf that is none of the kinds above, naming its path.
    """
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(encode(tree, "", arrays), allow_nan=False, separators=(",", ":"))
    save_arrays(path, arrays, {"hansa": _FORMAT, "tree": text})


def load_tree(path: Path | str) -> dict[str, Any]:
    """Read a tree, all arrays as NumPy arrays of their own, keys in the order in which they were saved.

    Raises :class:`InputError` for a file that is missing, cut, changed, or not written by :func:`save_tree`.
    """
    arrays, metadata = load_arrays(path)
    if metadata.get("hansa") != _FORMAT or "tree" not in metadata:
        raise InputError(
            f"damaged file {path}: it holds no state of a run in format {_FORMAT} (format {metadata.get('hansa')!r}); "
            "read it with the version of hansa that wrote it"
        )
    tree: dict[str, Any] = decode(json.loads(metadata["tree"]), arrays)
    return tree


def save_arrays(path: Path | str, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays as a safetensors file that any reader of the format opens, with its digest in the metadata."""
    ready = {name: as_array(value, name) for name, value in arrays.items()}
    if "__metadata__" in ready:
        raise InputError("an array is named '__metadata__', which safetensors keeps for itself; rename it")
    for name in ready:
        if name != name.encode(errors="replace").decode():
            raise InputError(f"the name {name!r} of an array is not valid Unicode text; rename it")
    # Widest items first, so that each array starts at a multiple of its item size and can be mapped without a copy.
    ordered = sorted(ready.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"sha256": _NO_DIGEST.decode(), **(metadata or {})}}
    start = 0
    for name, array in ordered:
        stop = start + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    bodies = [array.reshape(-1).view(np.uint8).data for _, array in ordered if array.size]
    digest = hashlib.sha256(head)
    for body in bodies:
        digest.update(body)
    replace_file(Path(path), [head.replace(_NO_DIGEST, digest.hexdigest().encode(), 1), *bodies])


def load_arrays(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a file by :func:`save_arrays`. Raises :class:`InputError` where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    _check_digest(Path(path))
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"damaged file {path}: {error}; restore it from a backup, or run the job again") from error


def _check_digest(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(8 + len(_START))
            given = file.read(len(_NO_DIGEST))
            digest = hashlib.sha256(head + _NO_DIGEST)
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        what = "it is missing" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error.strerror})"
        raise InputError(f"damaged file {path}: {what}; restore it from a backup, or run the job again") from error
    if head[8:] != _START:
        raise InputError(f"damaged file {path}: hansa did not write it, or its start is lost; restore it, or run the job again")
    if digest.hexdigest().encode() != given:
        raise InputError(
            f"damaged file {path}: its content does not match its SHA-256 digest; restore it from a backup, or run the job again"
        )
