"""Design matrices that are mostly zeros, as one-hot encoding makes them: kept as codes, multiplied by gathering and counting.

A row of such a matrix has a few entries outside of its dense columns, and the entries of one column are all the same number (1 for a
one-hot column, 1/std for a scaled one). So it is enough to know which columns a row has an entry in: two bytes an entry, where a dense
row of 700 columns takes 5,600. ``X @ W`` is then a gather, ``R @ X`` a weighted count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SPAN = 1 << 13
"""Rows that are multiplied at a time: what is made for them stays in the processor's cache. It decides the bits, as a block does."""


@dataclass(frozen=True, eq=False)
class Coded:
    """A matrix (rows, columns) of float64.

    numbers:  the dense columns, float64 (rows, dense).
    places:   which columns these are, int64 (dense,).
    codes:    the columns of the other entries, unsigned (slots, rows), row by row in ascending order; ``width`` for an empty slot.
    scale:    what an entry of each column is, float64 (width,); None where it is always 1.
    width:    number of columns.
    """

    numbers: np.ndarray = field(repr=False)
    places: np.ndarray = field(repr=False)
    codes: np.ndarray = field(repr=False)
    scale: np.ndarray | None = field(repr=False)
    width: int

    # NumPy leaves ``array @ coded`` to this class.
    __array_ufunc__ = None
    ndim = 2
    dtype = np.dtype(np.float64)

    @classmethod
    def of(cls, matrix: Any) -> Coded:
        """The same values as a SciPy sparse matrix. Columns whose entries differ from each other become dense ones."""
        rows, width = matrix.shape
        whole = matrix.tocsr(copy=True)
        whole.sum_duplicates()
        whole.eliminate_zeros()
        columns, values = whole.indices, whole.data.astype(np.float64, copy=False)
        filled = np.bincount(columns, minlength=width) > 0
        scale = np.ones(width)
        scale[columns] = values  # the last entry of each column, which all others of a coded one equal
        dense = np.zeros(width, dtype=bool)
        dense[columns[values != scale[columns]]] = True
        places = np.flatnonzero(dense)
        numbers = np.ascontiguousarray(whole[:, places].toarray(), dtype=np.float64)
        coded = ~dense[columns]
        lengths = np.diff(np.concatenate([[0], np.cumsum(coded)])[whole.indptr])
        codes = np.full((int(lengths.max(initial=0)), rows), width, dtype=np.uint16 if width < 2**16 else np.uint32)
        slot = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        codes[slot, np.repeat(np.arange(rows), lengths)] = columns[coded]
        plain = bool((scale[filled & ~dense] == 1.0).all())
        return cls(numbers, places, codes, None if plain else np.where(dense, 1.0, scale), width)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.width

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + self.codes.nbytes + self.places.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> Coded:
        """Some rows: a slice, indices or a mask."""
        return Coded(self.numbers[rows], self.places, self.codes[:, rows], self.scale, self.width)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The dense matrix, for learners that know no other."""
        dense = np.zeros((len(self), self.width + 1))
        at = np.arange(len(self))
        for codes in self.codes:
            dense[at, codes] = 1.0 if self.scale is None else np.append(self.scale, 0.0)[codes]
        dense[:, self.places] = self.numbers
        return np.ascontiguousarray(dense[:, : self.width], dtype=dtype)

    def take(self, rows: np.ndarray, axis: int = 0, out: np.ndarray | None = None, mode: str = "raise") -> np.ndarray:
        """The given rows, dense, as :meth:`numpy.ndarray.take` gives them: a mini-batch."""
        batch = np.asarray(self[rows])
        if out is None:
            return batch
        out[...] = batch
        return out

    def spans(self) -> Iterator[slice]:
        """Runs of at most :data:`SPAN` rows, in order."""
        return (slice(start, min(start + SPAN, len(self))) for start in range(0, len(self), SPAN))

    def __matmul__(self, weights: np.ndarray) -> np.ndarray:
        """``X @ W``: (rows, k) for W (columns, k), (rows,) for a vector."""
        if weights.ndim == 1:
            return np.asarray((self @ weights[:, None])[:, 0])
        scaled = weights if self.scale is None else weights * self.scale[:, None]
        # An empty slot gathers a zero. Each output is gathered on its own, from a vector that stays in the cache.
        tables = np.concatenate([scaled.T, np.zeros((weights.shape[1], 1))], axis=1)
        result = np.empty((weights.shape[1], len(self)))
        dense = weights[self.places]
        for span in self.spans():
            result[:, span] = (self.numbers[span] @ dense).T
            where = self.codes[:, span].astype(np.intp)
            for table, out in zip(tables, result[:, span], strict=True):
                for slot in where:
                    out += table.take(slot, mode="clip")
        return result.T

    def __rmatmul__(self, values: np.ndarray) -> np.ndarray:
        """``R @ X``: (k, columns) for R (k, rows), (columns,) for a vector."""
        if values.ndim == 1:
            return np.asarray((values[None] @ self)[0])
        total = np.zeros((len(values), self.width + 1))
        dense = np.zeros((len(values), len(self.places)))
        for span in self.spans():
            part = np.ascontiguousarray(values[:, span])
            dense += part @ self.numbers[span]
            where = self.codes[:, span].astype(np.intp)
            for own, out in zip(part, total, strict=True):
                for slot in where:
                    out += np.bincount(slot, own, self.width + 1)
        result = total[:, :-1] if self.scale is None else total[:, :-1] * self.scale
        result[:, self.places] = dense
        return np.ascontiguousarray(result)

    def moments(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``R @ X`` and the same with all entries of X squared, both (k, columns), for R (k, rows)."""
        plain = values @ self
        squared = plain.copy() if self.scale is None else plain * self.scale
        squared[:, self.places] = values @ self.numbers**2
        return plain, squared

    def gram(self, weight: np.ndarray) -> np.ndarray:
        """``X' diag(weight) X``, (columns, columns); weight: (rows,)."""
        size = self.width + 1
        total, slots = np.zeros((size, size)), [_Slot.of(codes) for codes in self.codes]
        for first, one in enumerate(slots):
            columns = np.arange(one.low, one.low + one.span)
            total[columns, columns] += np.bincount(one.codes, weight, one.span)
            for two in slots[first + 1 :]:
                # The codes of a row ascend, so that all of this lies above the diagonal.
                both = np.bincount(one.codes * two.span + two.codes, weight, one.span * two.span)
                total[one.low : one.low + one.span, two.low : two.low + two.span] += both.reshape(one.span, two.span)
        if self.scale is not None:
            scale = np.append(self.scale, 0.0)
            total *= scale[:, None] * scale
        weighted = self.numbers * weight[:, None]
        for place, column in zip(self.places, np.ascontiguousarray(weighted.T), strict=True):
            crossed = np.zeros(size)
            for slot in slots:
                crossed[slot.low : slot.low + slot.span] += np.bincount(slot.codes, column, slot.span)
            crossed[:-1] *= 1.0 if self.scale is None else self.scale
            total[place, place:], total[: place + 1, place] = crossed[place:], crossed[: place + 1]
        total[self.places[:, None], self.places] = np.triu(weighted.T @ self.numbers)
        total = total[:-1, :-1]
        return np.ascontiguousarray(total + np.triu(total, 1).T)


@dataclass(frozen=True)
class _Slot:
    """A slot's codes counted from the lowest one: what is counted by them is then no larger than it must be."""

    codes: np.ndarray
    low: int
    span: int

    @classmethod
    def of(cls, codes: np.ndarray) -> _Slot:
        low = int(codes.min()) if len(codes) else 0
        return cls(codes.astype(np.intp) - low, low, int(codes.max(initial=low)) - low + 1)
