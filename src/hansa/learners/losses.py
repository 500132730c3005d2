"""Losses of linear models: value, first and second derivative with respect to the score.

``score`` and ``target`` have shape (..., outputs). A target is 0/1 one-hot for softmax, -1/+1 for margin losses, else the number itself.
Each function returns per-row arrays: ``value`` sums over outputs to (...,), ``slope`` is (..., outputs). Conventions are those of
scikit-learn: the squared error is halved, the Poisson deviance is halved and without its constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy.special import expit, log_softmax, softmax

Array = np.ndarray
Target = Literal["margin", "one_hot", "number"]


@dataclass(frozen=True)
class Loss:
    """A loss by output; ``curve`` is None where it has no second derivative to speak of.

    steepest: the largest second derivative of a loss that is flat in places, where ``curve`` at one point says little of others.
    """

    target: Target
    value: Callable[[Array, Array], Array]
    slope: Callable[[Array, Array], Array]
    curve: Callable[[Array, Array], Array] | None = None
    both: Callable[[Array, Array], tuple[Array, Array]] | None = None
    curve_of: Callable[[Array], Array] | None = None
    steepest: float | None = None

    def value_and_slope(self, score: Array, target: Array) -> tuple[Array, Array]:
        """``value`` and ``slope`` at once; ``both`` shares what they have in common. ``curve_of`` is ``curve`` from the slope."""
        return (self.value(score, target), self.slope(score, target)) if self.both is None else self.both(score, target)


def _huber_value(epsilon: float) -> Loss:
    return Loss(
        "number",
        lambda s, t: np.where(np.abs(s - t) <= epsilon, 0.5 * (s - t) ** 2, epsilon * np.abs(s - t) - 0.5 * epsilon**2),
        lambda s, t: np.clip(s - t, -epsilon, epsilon),
        lambda s, t: (np.abs(s - t) <= epsilon).astype(s.dtype),
        steepest=1.0,
    )


def _insensitive(epsilon: float) -> Loss:
    return Loss(
        "number",
        lambda s, t: np.maximum(np.abs(s - t) - epsilon, 0.0),
        lambda s, t: np.sign(s - t) * (np.abs(s - t) > epsilon),
    )


def _squared_insensitive(epsilon: float) -> Loss:
    return Loss(
        "number",
        lambda s, t: np.maximum(np.abs(s - t) - epsilon, 0.0) ** 2,
        lambda s, t: 2 * np.sign(s - t) * np.maximum(np.abs(s - t) - epsilon, 0.0),
        lambda s, t: 2.0 * (np.abs(s - t) > epsilon),
        steepest=2.0,
    )


def _modified_huber_slope(s: Array, t: Array) -> Array:
    z = s * t
    return np.where(z >= 1, 0.0, np.where(z >= -1, -2 * t * (1 - z), -4 * t))


def _log_value_and_slope(s: Array, t: Array) -> tuple[Array, Array]:
    # One exponential for both, and log1p from the logarithm that NumPy has vectorised, with its rounding error put right.
    margin = s * t
    decay = np.exp(-np.abs(margin))
    whole = 1.0 + decay
    value = np.log(whole)
    value += (decay - (whole - 1.0)) / whole
    value -= np.minimum(margin, 0.0)
    slope = np.where(margin > 0, decay, 1.0)
    slope /= whole
    slope *= -t
    return value, slope


LOG = Loss(
    "margin",
    lambda s, t: _log_value_and_slope(s, t)[0],
    lambda s, t: -t * expit(-s * t),
    lambda s, t: expit(s) * expit(-s),
    _log_value_and_slope,
    lambda slope: np.abs(slope) * (1.0 - np.abs(slope)),
)
SOFTMAX = Loss(
    "one_hot",
    lambda s, t: -log_softmax(s, axis=-1) * t,
    lambda s, t: softmax(s, axis=-1) - t,
    lambda s, t: softmax(s, axis=-1),  # the class probabilities: the Hessian is diag(p) - p p'
)
SQUARED = Loss("number", lambda s, t: 0.5 * (s - t) ** 2, lambda s, t: s - t, lambda s, t: np.ones_like(s))
POISSON = Loss("number", lambda s, t: np.exp(s) - t * s, lambda s, t: np.exp(s) - t, lambda s, t: np.exp(s))
HINGE = Loss("margin", lambda s, t: np.maximum(1 - s * t, 0.0), lambda s, t: -t * (s * t < 1))
PERCEPTRON = Loss("margin", lambda s, t: np.maximum(-s * t, 0.0), lambda s, t: -t * (s * t <= 0))
SQUARED_HINGE = Loss(
    "margin",
    lambda s, t: np.maximum(1 - s * t, 0.0) ** 2,
    lambda s, t: -2 * t * np.maximum(1 - s * t, 0.0),
    lambda s, t: 2.0 * (s * t < 1),  # the generalised Hessian of Mangasarian 2002
    steepest=2.0,
)
MODIFIED_HUBER = Loss(
    "margin",
    lambda s, t: np.where(s * t >= -1, np.maximum(1 - s * t, 0.0) ** 2, -4 * s * t),
    _modified_huber_slope,
    steepest=2.0,
)


@cache
def loss_named(name: str, epsilon: float = 0.1) -> Loss:
    """A loss by scikit-learn's name for it; ``epsilon`` for those that have one."""
    table = {
        "log_loss": LOG,
        "softmax": SOFTMAX,
        "squared_error": SQUARED,
        "poisson": POISSON,
        "hinge": HINGE,
        "perceptron": PERCEPTRON,
        "squared_hinge": SQUARED_HINGE,
        "modified_huber": MODIFIED_HUBER,
        "huber": _huber_value(epsilon),
        "epsilon_insensitive": _insensitive(epsilon),
        "squared_epsilon_insensitive": _squared_insensitive(epsilon),
    }
    return table[name]
