"""Exact order statistics from sums: minimum, maximum, median and quantiles without anyone seeing a sorted column.

A float64 is mapped to a 64-bit key of the same order. Each exchange counts, for every wanted rank, how the values that share the
digits found so far spread over the 256 values of the next byte; the rank falls into one of them. After eight exchanges all 64 bits
are known: the value itself, not an approximation (radix selection, Knuth, The Art of Computer Programming 3, section 5.2.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.core.errors import RunFailed
from hansa.data.preparing.questions import Known, Sums
from hansa.data.preparing.sample import missing, numbers

BYTES = 8
_SIGN = np.uint64(1 << 63)


def to_keys(values: np.ndarray) -> np.ndarray:
    """uint64 keys in the order of the float64 values; both zeros have one key."""
    raw = np.ascontiguousarray(values + 0.0, dtype=np.float64).view(np.uint64)  # -0.0 + 0.0 is +0.0
    return np.where(raw & _SIGN, ~raw, raw | _SIGN)


def from_keys(keys: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_keys`."""
    keys = np.ascontiguousarray(keys, dtype=np.uint64)
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float64)


@dataclass(frozen=True)
class Order:
    """One byte of the wanted order statistics of all columns.

    digits:  [column][rank] -> the bytes found so far, first the highest.
    left:    [column][rank] -> the rank among the values that share those bytes; -1 for a column without values.
    """

    digits: list[list[list[int]]]
    left: list[list[int]]
    marker: Any = np.nan

    @classmethod
    def first(cls, ranks: np.ndarray, marker: Any = np.nan) -> Order:
        """``ranks``: the wanted ranks from zero, int (columns, wanted); -1 where there is no value."""
        return cls([[[] for _ in row] for row in ranks], ranks.tolist(), marker)

    @property
    def found(self) -> int:
        return len(self.digits[0][0])

    @property
    def name(self) -> str:
        return f"order {self.found + 1} of {BYTES}"

    def measure(self, x: Any) -> dict[str, np.ndarray]:
        keys, gaps = to_keys(numbers(x)), missing(x, self.marker)
        columns, wanted = len(self.left), len(self.left[0])
        shift = np.uint64(8 * (BYTES - 1 - self.found))
        byte = ((keys >> shift) & np.uint64(255)).astype(np.int64) + 256 * np.arange(columns)
        histogram = np.empty((columns, wanted, 256))
        prefixes = np.array([[int.from_bytes(bytes(found), "big") for found in row] for row in self.digits], dtype=np.uint64)
        for rank in range(wanted):
            if rank and (prefixes[:, rank] == prefixes[:, rank - 1]).all():
                histogram[:, rank] = histogram[:, rank - 1]  # neighbours mostly share all but the last bytes
                continue
            shares = ~gaps
            if self.found:
                shares &= keys >> (shift + np.uint64(8)) == prefixes[:, rank]
            histogram[:, rank] = np.bincount(byte[shares], minlength=256 * columns).reshape(columns, 256)
        return {"bytes": histogram}

    def learn(self, known: Known, sums: Sums) -> Known:
        below = np.cumsum(sums["bytes"], axis=2)
        left = np.array(self.left)
        if (below[..., -1] <= left).any():
            raise RunFailed(
                "preparation: the clients' rows changed between two rounds; all clients must take part in all rounds with the same rows"
            )
        byte = (below <= left[..., None]).sum(axis=2)
        before = np.take_along_axis(np.concatenate([np.zeros((*left.shape, 1)), below], axis=2), byte[..., None], axis=2)[..., 0]
        left = np.where(left < 0, -1, left - before).astype(int)
        digits = [[[*found, int(b)] for found, b in zip(*row, strict=True)] for row in zip(self.digits, byte, strict=True)]
        return {**known, "digits": digits, "left": left.tolist()}


def order_question(known: Known, ranks: np.ndarray, marker: Any = np.nan) -> Order | None:
    """The next question for ``ranks``, or None when all bytes are known."""
    if "digits" not in known:
        return Order.first(ranks, marker)
    question = Order(known["digits"], known["left"], marker)
    return None if question.found == BYTES else question


def order_values(known: Known) -> np.ndarray:
    """The values found, float64 (columns, wanted); NaN for a column without values."""
    keys = np.array([[int.from_bytes(bytes(found), "big") for found in row] for row in known["digits"]], dtype=np.uint64)
    return np.where(np.array(known["left"]) < 0, np.nan, from_keys(keys))
