"""What a server can do that knows the scores of the training rows and their labels, but no column: losses, intercepts, searches."""

from __future__ import annotations

from typing import Any

import numpy as np

from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Additive
from hansa.core.params import Params

NEWTON = 50
"""Steps of Newton's method at most; each converges quadratically near the end and is halved where it does not."""

NEAR = 1e-8
"""A step of Newton's method that is so much shorter than the way gone: its successor would be lost in rounding."""

EPSILON = float(np.finfo(np.float64).eps)


def labels_of(learner: Additive, outputs: int, block: LoadedBlock) -> dict[str, Any]:
    """What the clients give before the first step: ``targets`` (rows, outputs) from whoever holds the labels, zeros from all others,
    and ``holders``, how many hold them."""
    targets = [np.zeros((len(t), outputs)) if t.y is None else learner.targets(t.y) for t in block.tables]
    return {"targets": np.stack(targets), "holders": np.array([float(t.y is not None) for t in block.tables])}


def objective(model: Additive, scores: np.ndarray, targets: np.ndarray, coef: np.ndarray) -> float:
    """F: the mean loss with its penalties."""
    penalty = model.l2 / 2 * float((coef * coef).sum()) + model.l1 * float(np.abs(coef).sum())
    return float(model.values(scores, targets).mean()) + penalty


def level(model: Additive, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The constant (outputs,) that is best added to the scores (rows, outputs); zeros for a model without an intercept."""
    outputs = scores.shape[1]
    if not model.intercept:
        return np.zeros(outputs)
    free = np.broadcast_to(np.eye(outputs), (len(scores), outputs, outputs))
    return _newton(model, scores, targets, np.zeros(1), free, np.zeros((1, outputs)), np.zeros(1))


def centred(intercept: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of several outputs only the differences matter: the intercepts (outputs,) that add up to zero, and the scores with them."""
    excess = intercept.mean() if len(intercept) > 1 else 0.0
    return intercept - excess, scores - excess


def best_in_span(model: Additive, scores: np.ndarray, targets: np.ndarray, coef: np.ndarray, steps: Params) -> Params:
    """The combination of steps that minimises F, with the L1 penalty as it is for the signs of ``coef``.

    steps: ``coef`` (steps, outputs, columns), ``scores`` (steps, rows, outputs) and ``shift`` (steps, outputs), the part of the
           scores that is the intercept's. The intercept is free to move beside them.
    """
    outputs, columns = coef.shape
    # On one scale, so that the small matrix is no worse conditioned than the directions are.
    size = np.abs(steps["scores"]).max(axis=(1, 2))
    used, size = np.flatnonzero(size > 0), size[size > 0]
    s = np.moveaxis(steps["scores"][used], 0, -1) / size
    w = np.moveaxis(steps["coef"][used], 0, -1).reshape(outputs * columns, -1) / size
    shift = np.moveaxis(steps["shift"][used], 0, -1) / size
    if model.intercept:
        s = np.concatenate([s, np.broadcast_to(np.eye(outputs), (len(s), outputs, outputs))], axis=-1)
        w = np.concatenate([w, np.zeros((len(w), outputs))], axis=-1)
        shift = np.concatenate([shift, np.eye(outputs)], axis=-1)
    signs = np.sign(coef.ravel()) if model.l1 else np.zeros(outputs * columns)
    a = _newton(model, scores, targets, coef.ravel(), s, w, signs)
    return {"coef": (w @ a).reshape(coef.shape), "scores": s @ a, "shift": shift @ a}


def _newton(
    model: Additive, scores: np.ndarray, targets: np.ndarray, coef: np.ndarray, s: np.ndarray, w: np.ndarray, signs: np.ndarray
) -> np.ndarray:
    """The a that minimises the mean loss at scores + s a, with l2/2 |coef + w a|^2 + l1 signs'(coef + w a).

    s is on the scale of the scores, so that a step of ``a`` below their rounding is none.
    """

    def value(a: np.ndarray) -> float:
        here = coef + w @ a
        penalty = model.l2 / 2 * float(here @ here) + model.l1 * float(signs @ here)
        return float(model.values(scores + s @ a, targets).mean()) + penalty

    n, a = len(scores), np.zeros(s.shape[-1])
    flat, now, least = s.reshape(-1, len(a)), value(a), EPSILON * float(np.abs(scores).max())
    for _ in range(NEWTON):
        at, here = scores + s @ a, coef + w @ a
        gradient = model.slopes(at, targets).ravel() @ flat / n + w.T @ (model.l2 * here + model.l1 * signs)
        bent = (model.curvatures(at, targets) @ s).reshape(-1, len(a))
        hessian = flat.T @ bent / n + model.l2 * (w.T @ w)
        move = -np.linalg.lstsq(hessian, gradient, rcond=1e-14)[0]
        t, after = 1.0, value(a + move)
        while after > now + 8 * EPSILON * abs(now) and t > 1e-9:
            t /= 2
            after = value(a + t * move)
        if t <= 1e-9:
            break
        a, now = a + t * move, after
        if float(np.abs(move).max()) <= max(NEAR * float(np.abs(a).max()), least):
            break
    return a


def proximal(model: Additive, near: np.ndarray, c: float, targets: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The intercept b (outputs,) and the scores q (rows, outputs) that minimise sum_i loss(q_i) + c/2 |q_i - b - near_i|^2.

    start: an intercept to begin with. In closed form for the squared loss, of which one step of Newton's method is exact.
    """
    b, q = start, near + start
    for _ in range(NEWTON):
        q = _by_row(model, b + near, c, targets, q)
        if not model.intercept:
            break
        slopes = model.slopes(q, targets)
        gradient = slopes.mean(axis=0)
        if float(np.abs(gradient).max()) <= 16 * EPSILON * float(np.abs(slopes).mean()):
            break
        inverse = np.linalg.inv(model.curvatures(q, targets) + c * np.eye(q.shape[1]))
        hessian = (c * (np.eye(q.shape[1]) - c * inverse)).mean(axis=0)
        move = -np.linalg.lstsq(hessian, gradient, rcond=1e-14)[0]
        # What is minimised over b is convex, so the slope by b gets smaller along a step that is short enough.
        t, here = 1.0, float(np.abs(gradient).sum())
        while t > 1e-9:
            after = _by_row(model, b + t * move + near, c, targets, q + t * move)
            if float(np.abs(model.slopes(after, targets).mean(axis=0)).sum()) < here:
                break
            t /= 2
        else:
            break  # as near to zero as rounding lets it be
        b, q = b + t * move, after
    return b, q


def _by_row(model: Additive, near: np.ndarray, c: float, targets: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Every row's minimiser of loss(q) + c/2 |q - near|^2: Newton's method, with a step of its own for each row."""

    def value(q: np.ndarray) -> np.ndarray:
        return model.values(q, targets) + c / 2 * ((q - near) ** 2).sum(axis=-1)

    now = value(q)
    for _ in range(NEWTON):
        gradient = model.slopes(q, targets) + c * (q - near)
        bent = model.curvatures(q, targets) + c * np.eye(q.shape[1])
        move = -gradient / bent[:, :, 0] if q.shape[1] == 1 else -np.linalg.solve(bent, gradient[:, :, None])[:, :, 0]
        share = np.ones((len(q), 1))
        after = value(q + move)
        rounding = 8 * EPSILON * np.maximum(np.abs(now), 1.0)
        worse = after > now + rounding
        while worse.any() and share.min() > 1e-9:
            share[worse] /= 2
            after = value(q + share * move)
            worse = after > now + rounding
        q, now = q + share * move, after
        if bool((np.abs(move) <= NEAR * np.maximum(np.abs(q), 1.0)).all()):
            break
    return q
