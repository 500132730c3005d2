"""Metrics as (sum, count) pairs, so that they add like updates do.

A metric of many clients is ``sum of sums / sum of counts``: the mean over all examples, exactly. The area under the ROC curve is
such a pair too: concordant pairs over pairs, compared within a client. Two scores of different clients are never compared,
because nobody may see both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

Metrics: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]
"""name -> (sum, count), float64: of shape (clients,) for a block, scalars for a total."""

HIGHER_IS_BETTER = frozenset({"accuracy", "auc", "r2", "explained_variance"})
"""Metrics that grow as the model gets better; all others are losses."""


def totals(metrics: Metrics) -> Metrics:
    """Add over the leading client axis, in client order."""
    return {name: (_ordered_sum(total), _ordered_sum(count)) for name, (total, count) in metrics.items()}


def _ordered_sum(values: np.ndarray) -> Any:
    # accumulate adds strictly from left to right; sum() would pair, and pair differently for other lengths.
    return np.add.accumulate(values, dtype=np.float64)[-1] if len(values) else np.float64(0.0)


def add(first: Metrics, second: Metrics) -> Metrics:
    """Add two totals; a metric that only one side has is kept."""
    result = dict(first)
    for name, (total, count) in second.items():
        before = result.get(name)
        result[name] = (total, count) if before is None else (before[0] + total, before[1] + count)
    return result


def stack(rows: Iterable[Mapping[str, tuple[float, float]]]) -> Metrics:
    """One (sum, count) pair per client, stacked to arrays of shape (clients,); a client without a metric counts zero."""
    listed = list(rows)
    names = list(dict.fromkeys(name for row in listed for name in row))
    return {
        name: (
            np.array([row.get(name, (0.0, 0.0))[0] for row in listed], dtype=np.float64),
            np.array([row.get(name, (0.0, 0.0))[1] for row in listed], dtype=np.float64),
        )
        for name in names
    }


def values(metrics: Metrics) -> dict[str, float]:
    """Means of a total: name -> sum / count, NaN where nothing was counted."""
    return {name: float(total) / float(count) if count else float("nan") for name, (total, count) in metrics.items()}
