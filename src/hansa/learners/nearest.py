"""Rows and the centres that are nearest to them: the arithmetic of k-means, on rows that are laid out for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.core.coded import SPAN, Coded
from hansa.learners.unlabelled import squared_norms

STRIPE = 1 << 16
"""Numbers of the rows, or distances of them, that are computed with at a time. It decides the bits, as a block does."""

CANCELLED = 1e-6
"""Share of the squared distances from the middle below which those from the own centres are no difference of sums."""

FAR = 100.0
"""How many times their spread rows lie from the origin before differences of squares lack the digits that this costs."""

SOME = 1000
"""Rows that the middle is taken from."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Rows about a middle, each with a one behind it: products with them add and count at once.

    rows:   float64 (rows, features + 1).
    middle: (features,): zeros, which leave the rows as they are, but for features that lie far from the origin.
    spread: the squared distances of all rows from the middle, summed.
    """

    rows: np.ndarray = field(repr=False)
    middle: np.ndarray
    spread: float

    @classmethod
    def of(cls, x: np.ndarray) -> Placed:
        middle = _middle(x)
        rows = np.ones((len(x), x.shape[1] + 1))
        moved = np.subtract(x, middle, out=rows[:, :-1])
        return cls(rows, middle, float(np.einsum("nf,nf->", moved, moved)))

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Some rows where they were: a slice, indices or a mask."""
        return np.asarray(self.rows[rows][..., :-1] + self.middle)


def _middle(x: np.ndarray) -> np.ndarray:
    if not len(x):
        return np.zeros(x.shape[1])
    low, middle, high = np.quantile(x[:: -(-len(x) // SOME)], (0.25, 0.5, 0.75), axis=0)
    return np.where(np.abs(middle) > FAR * (high - low), middle, 0.0)


def placed(x: Any) -> Placed | Coded:
    """A float64 matrix (rows, features) as :class:`Placed`; codes stay codes."""
    return x if isinstance(x, Coded) else Placed.of(x)


def sums_of(centers: np.ndarray, x: Placed | Coded) -> tuple[np.ndarray, np.ndarray, float]:
    """Of the rows nearest to each centre: their sums (clusters, features), and how many they are; and all rows' squared distances to
    their centres, summed."""
    return _sums_of_codes(centers, x) if isinstance(x, Coded) else _sums(centers, x)


def _sums(centers: np.ndarray, x: Placed) -> tuple[np.ndarray, np.ndarray, float]:
    """No row's number of its cluster is made: where a row's smallest distance stands, the matrix is one that is multiplied by the
    rows."""
    away = centers - x.middle
    # The product with a row is its squared distance from each centre, less that from the middle, which is the same for all centres.
    left = np.column_stack([-2.0 * away, np.einsum("kf,kf->k", away, away)])
    # New arrays of this size come from the system, page by page, and would take longer than what is computed in them.
    span = max(STRIPE // max(left.shape), 256)
    apart, least = np.empty((len(left), span)), np.empty(span)
    sums, inertia = np.zeros(left.shape), x.spread
    for start in range(0, len(x), span):
        rows = x.rows[start : start + span]
        if len(rows) < span:
            apart, least = np.empty((len(left), len(rows))), least[: len(rows)]
        np.matmul(left, rows.T, out=apart)
        apart.min(axis=0, out=least)
        inertia += float(least.sum())
        belongs = np.equal(apart, least, out=apart)
        own = belongs @ rows
        if own[:, -1].sum() != len(rows):  # the first of equals
            belongs[np.cumsum(belongs, axis=0) > 1] = 0.0
            own = belongs @ rows
        sums += own
    if inertia < CANCELLED * x.spread:
        inertia = sum(float(distance.sum()) for _, _, distance in nearest(away, x.rows[:, :-1]))
    counts = sums[:, -1].copy()
    return sums[:, :-1] + counts[:, None] * x.middle, counts, max(inertia, 0.0)


def _sums_of_codes(centers: np.ndarray, x: Coded) -> tuple[np.ndarray, np.ndarray, float]:
    sums, counts, inertia = np.zeros(centers.shape), np.zeros(len(centers)), 0.0
    for rows, labels, distance in nearest(centers, x):
        belongs = (labels == np.arange(len(centers))[:, None]).astype(np.float64)
        sums += belongs @ rows
        counts += belongs.sum(axis=1)
        inertia += float(distance.sum())
    return sums, counts, inertia


def nearest(centers: np.ndarray, x: Any) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """For runs of rows of a matrix: the rows, the number of each one's nearest centre, and its squared distance; the first of equals."""
    # About the middle of the centres the products are small, and less is lost when they are taken from each other.
    middle = np.zeros(centers.shape[1]) if isinstance(x, Coded) else centers.mean(axis=0)
    away = centers - middle
    norms = np.einsum("kf,kf->k", away, away)
    for start in range(0, len(x), SPAN):
        rows = x[start : start + SPAN]
        moved = rows if isinstance(x, Coded) else rows - middle
        labels = (norms - 2.0 * (moved @ away.T)).argmin(axis=1)
        if isinstance(x, Coded):
            distance = squared_norms(rows) + (norms - 2.0 * (rows @ away.T))[np.arange(len(rows)), labels]
            yield rows, labels, np.maximum(distance, 0.0)
        else:
            apart = moved - away[labels]
            yield rows, labels, np.einsum("nf,nf->n", apart, apart)


def squares_of(x: Placed | Coded) -> np.ndarray:
    """The sum of each feature's squares, (features,)."""
    if not isinstance(x, Coded):
        moved = x.rows[:, :-1]
        return np.asarray(np.einsum("nf,nf->f", moved, moved) + x.middle * (2.0 * moved.sum(axis=0) + len(x) * x.middle))
    whole = np.bincount(x.codes.ravel(), minlength=x.width + 1)[:-1] * (1.0 if x.scale is None else x.scale**2)
    whole[x.places] = np.einsum("nf,nf->f", x.numbers, x.numbers)
    return np.asarray(whole)
