"""Images that stay the bytes they are stored in until rows of them are used: a quarter of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Pixels:
    """An array of float32 in [0, 1], of which rows are made when they are taken or when NumPy asks for an array.

    bytes: uint8 (images, ...).
    """

    bytes: np.ndarray = field(repr=False)

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bytes.shape

    @property
    def ndim(self) -> int:
        return self.bytes.ndim

    @property
    def nbytes(self) -> int:
        return self.bytes.nbytes

    def __len__(self) -> int:
        return len(self.bytes)

    def __getitem__(self, images: Any) -> Pixels:
        return Pixels(self.bytes[images])

    def reshape(self, *shape: int) -> Pixels:
        return Pixels(self.bytes.reshape(*shape))

    def astype(self, dtype: Any, copy: bool = True) -> Pixels | np.ndarray:
        """As they are where the type is float32, else an array."""
        return self if np.dtype(dtype) == self.dtype else np.asarray(self, dtype=dtype)

    def take(self, rows: np.ndarray, axis: int = 0, out: np.ndarray | None = None, mode: Any = "raise") -> np.ndarray:
        """As NumPy's ``take``, of whole images: float32 (rows, ...)."""
        taken: np.ndarray = np.divide(self.bytes.take(rows, axis=0, mode=mode), np.float32(255), out=out)
        return taken

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        floats = self.bytes / np.float32(255)
        return floats if dtype is None else floats.astype(dtype, copy=False)


def take_each(arrays: Sequence[Any], rows: np.ndarray, out: np.ndarray) -> None:
    """Of every array those ``rows`` (arrays, n) into ``out`` (arrays, n, ...); all arrays are pixels, or none is."""
    pixels = isinstance(arrays[0], Pixels)
    taken = np.empty(out.shape, np.uint8) if pixels else out
    for array, chosen, room in zip(arrays, rows, taken, strict=True):
        (array.bytes if pixels else array).take(chosen, axis=0, out=room, mode="clip")
    if pixels:
        np.divide(taken, np.float32(255), out=out)  # once for all: a call costs as much as a client's rows


def as_array(x: Any) -> Pixels | np.ndarray:
    """``x`` as an array; pixels as they are."""
    return x if isinstance(x, Pixels) else np.asarray(x)
