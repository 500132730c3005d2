"""The problem that a holder of columns solves by itself: a convex quadratic with an L1 penalty, exactly.

    minimise over v   v'Qv / 2 - q'v + l1 |v|_1

Cyclic coordinate descent on the Gram matrix (Friedman, Hastie and Tibshirani 2010, section 2.2) finds the signs of the solution; with
the signs known the solution is that of a linear system, and the optimality conditions say whether they were the right ones.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular

SWEEPS = 10_000
"""Passes over all coordinates after which the point that was reached is given back; each pass lowers the objective."""

EPSILON = float(np.finfo(np.float64).eps)


def minimise(quadratic: np.ndarray, linear: np.ndarray, l1: float, start: np.ndarray) -> np.ndarray:
    """The minimiser v (p,) for ``quadratic`` Q (p, p), positive semidefinite, and ``linear`` q (p,).

    start: where to begin; of several minimisers (collinear columns without a penalty) the one next to it is found. A coordinate that
           Q says nothing about (a constant column) stays there, or goes to zero under an L1 penalty.
    """
    told = np.flatnonzero(quadratic.diagonal() > 0)
    result = start.copy() if l1 == 0 else np.zeros_like(start)
    if len(told):
        scale = np.sqrt(quadratic.diagonal()[told])
        q, g, v = quadratic[np.ix_(told, told)], linear[told], start[told]
        if l1 == 0:
            result[told] = v + _solve(q, g - q @ v, scale)
        else:
            result[told] = _lasso(q, g, l1, v.copy(), scale)
    return result


def violation(gradient: np.ndarray, l1: float, v: np.ndarray) -> np.ndarray:
    """How far the smooth part's gradient at v is from fulfilling the optimality conditions, by coordinate: the least absolute entry of
    gradient + l1 d|v|."""
    return np.where(v != 0, np.abs(gradient + l1 * np.sign(v)), np.maximum(np.abs(gradient) - l1, 0.0))


def _solve(matrix: np.ndarray, right: np.ndarray, scale: np.ndarray) -> np.ndarray:
    # On the scale of correlations, so that the units of columns do not matter; of least norm there where columns are collinear.
    scaled, b = matrix / np.outer(scale, scale), right / scale
    try:
        factor = cholesky(scaled, lower=True)
        if factor.diagonal().min() > 1e-6:
            return solve_triangular(factor, solve_triangular(factor, b, lower=True), lower=True, trans=1) / scale
    except LinAlgError:
        pass  # not positive definite in floating point: the least-squares solution below is for that
    return np.asarray(np.linalg.lstsq(scaled, b, rcond=1e-13)[0]) / scale


def _lasso(q: np.ndarray, linear: np.ndarray, l1: float, v: np.ndarray, scale: np.ndarray) -> np.ndarray:
    against = linear - q @ v  # minus the gradient
    diagonal, before = q.diagonal().tolist(), None
    for _ in range(SWEEPS):
        largest = 0.0
        for j, own in enumerate(diagonal):
            old = v[j]
            pull = against[j] + own * old
            new = (pull - l1 if pull > l1 else pull + l1 if pull < -l1 else 0.0) / own
            if new != old:
                against -= q[:, j] * (new - old)
                v[j] = new
                largest = max(largest, abs(new - old) * scale[j])
        signs = np.sign(v)
        if before is not None and np.array_equal(signs, before):
            exact = _with_signs(q, linear, l1, signs, v, scale)
            if exact is not None:
                return exact
        before = signs
        if largest <= EPSILON * float(np.abs(v * scale).max(initial=0.0)):
            break
    return v


def _with_signs(
    q: np.ndarray, linear: np.ndarray, l1: float, signs: np.ndarray, near: np.ndarray, scale: np.ndarray
) -> np.ndarray | None:
    """The solution if its signs are these, else None."""
    own = np.flatnonzero(signs)
    v = np.zeros_like(linear)
    if len(own):
        right = linear[own] - l1 * signs[own]
        v[own] = near[own] + _solve(q[np.ix_(own, own)], right - q[np.ix_(own, own)] @ near[own], scale[own])
        if not np.array_equal(np.sign(v[own]), signs[own]):
            return None
    rounding = 64 * EPSILON * (np.abs(linear) + np.abs(q) @ np.abs(v)).max(initial=0.0)
    return v if float(violation(q @ v - linear, l1, v).max(initial=0.0)) <= rounding else None
