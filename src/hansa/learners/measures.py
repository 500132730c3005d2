"""Metrics of one client as (sum, count), in NumPy."""

from __future__ import annotations

import numpy as np


def accuracy(predicted: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Right answers, answers."""
    return float(np.count_nonzero(predicted == y)), float(len(y))


def squared_error(predicted: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    return float(np.sum((predicted - y) ** 2)), float(len(y))


def absolute_error(predicted: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    return float(np.sum(np.abs(predicted - y))), float(len(y))


def concordance(score: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Pairs of a positive and a negative that the score puts in the right order (a tie is half a pair), and all such pairs.

    Their ratio is the area under the ROC curve (Hanley and McNeil 1982). Summed over clients it compares rows of the same client
    only. score: (rows,); y: (rows,), 1 for positives and 0 for negatives.
    """
    positive = y == 1
    n_positive = int(np.count_nonzero(positive))
    n_negative = len(y) - n_positive
    if not n_positive or not n_negative:
        return 0.0, 0.0
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    concordant = float(ranks[positive].sum()) - n_positive * (n_positive + 1) / 2
    return concordant, float(n_positive) * float(n_negative)
