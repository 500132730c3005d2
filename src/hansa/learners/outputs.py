"""Predictions and metrics from a model's outputs, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from hansa.core.errors import InputError
from hansa.learners import measures


def classes_of(output: np.ndarray, loss: Any) -> np.ndarray:
    """Class numbers: the largest of several outputs (along axis 1); the sign of a single one, or of each for the binary loss."""
    if loss != "binary_cross_entropy" and output.ndim > 1 and output.shape[1] > 1:
        return np.asarray(output.argmax(axis=1))
    return np.asarray((_single(output) > 0).astype(np.int64))


def prediction(output: np.ndarray, loss: Any, classes: tuple[Any, ...] | None) -> np.ndarray:
    """Labels where there are classes, else numbers; a user's own loss with other outputs gives the outputs."""
    if loss == "poisson_nll":
        output = np.exp(output)
    if classes is None and loss not in ("cross_entropy", "binary_cross_entropy"):
        return _single(output)
    numbers = classes_of(output, loss)
    return numbers if classes is None else np.asarray(classes)[numbers]


def measure(metric: str, output: np.ndarray, y: np.ndarray, loss: Any) -> tuple[float, float]:
    """One metric of some rows, by its name, as (sum, count)."""
    if metric == "accuracy":
        return measures.accuracy(*_matched(classes_of(output, loss), y))
    if metric == "auc":
        score = output[:, 1] - output[:, 0] if output.shape == (len(y), 2) else output
        if score.size != len(y):
            raise InputError(
                f'the metric "auc" is for two classes; the model gives {output.shape}: leave it out of learner.metrics'
            )
        return measures.concordance(score.reshape(len(y)).astype(np.float64), y)
    pair = _matched(np.exp(output) if loss == "poisson_nll" else output, y)
    number, truth = (side.astype(np.float64) for side in pair)
    return (measures.squared_error if metric == "mse" else measures.absolute_error)(number, truth)


def _single(output: np.ndarray) -> np.ndarray:
    return output[..., 0] if output.ndim > 1 and output.shape[-1] == 1 else output


def _matched(output: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Output and target of one shape: (rows, 1) and (rows,) would silently spread to (rows, rows)."""
    output = _single(output) if output.ndim == y.ndim + 1 else output
    if output.shape != y.shape:
        raise InputError(f"the model gives {output.shape} for targets of shape {y.shape}; for this metric they must agree")
    return output, y
