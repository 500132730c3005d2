"""What L-BFGS may begin from: the Hessian of a model whose columns are uncorrelated.

The method leaves H_0 free, at every iteration anew (Nocedal and Wright 2006, section 7.2). Where a learner tells the diagonal h of its
Hessian, and of a linear model the entries m that each coefficient shares with its intercept, whose own is b, the Hessian is taken for

    [ V + m m'/b    m ]
    [     m'        b ],    V = diag(h - m^2/b)

which has that diagonal and that border, and is the Hessian itself where the columns, centred about their weighted means m/b, are
orthogonal. Its inverse costs as much as that of a diagonal. The method then walks alike whatever unit a column has and wherever its zero
is, as if all had been standardised; the objective, and with it the penalty, stays that of the columns as they are.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from hansa.core.params import Params, flatten, unflatten
from hansa.core.updates import Total

Preconditioner: TypeAlias = dict[str, Any]
"""Part of an algorithm's state: ``inner`` is V and the intercepts' b, ``shift`` is m/b, both name -> array."""

NOISE = 1e-10
"""Share of h that must be left in V; a column that has less is as good as constant, and is not centred."""


def of(total: Total) -> Preconditioner | None:
    """The one that the clients' curvatures make; None where they told none."""
    diagonal, border = total.means("diagonal"), total.means("border")
    if not diagonal:
        return None
    # A param without any curvature has no slope either, and stays where it is.
    inner: Params = {name: np.where(value > 0, value, 1.0) for name, value in diagonal.items()}
    shift: Params = {}
    for name, shared in border.items():
        own = _of_outputs(inner[_intercept(name)], shared)
        left = inner[name] - shared**2 / own
        apart = left > NOISE * inner[name]
        inner[name], shift[name] = np.where(apart, left, inner[name]), np.where(apart, shared / own, 0.0)
    return {"inner": inner, "shift": shift}


def applied(own: Preconditioner, vector: np.ndarray, like: Params) -> np.ndarray:
    """H_0 times a vector, flat as the params are."""
    parts = unflatten(vector, like)
    for name, shift in own["shift"].items():
        parts[name] = parts[name] - shift * _of_outputs(parts[_intercept(name)], shift)
    parts = {name: part / own["inner"][name] for name, part in parts.items()}
    for name, shift in own["shift"].items():
        beside = _intercept(name)
        parts[beside] = parts[beside] - (shift * parts[name]).reshape(len(shift), -1).sum(axis=1)
    return flatten(parts)


def _intercept(name: str) -> str:
    """That of the same model: a learner may have several, each under a name of its own (``0/coef``, ``0/intercept``)."""
    return f"{name[: name.rfind('/') + 1]}intercept"


def _of_outputs(each: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """One number for each output, to stand beside the entries of that output."""
    return each.reshape(-1, *[1] * (entries.ndim - 1))
