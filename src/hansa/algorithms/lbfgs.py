"""L-BFGS on summed gradients: quasi-Newton steps from the last few differences (Liu and Nocedal 1989, algorithm 2.1).

The server keeps the last m pairs s_k = x_{k+1} - x_k and y_k = g_{k+1} - g_k, and moves along d = -H g, where H is applied by the
two-loop recursion of Nocedal 1980. It begins from H_0 = gamma P, with gamma = s'y / y'P y of the newest pair: P is the identity, as in
the paper, or where the clients can tell how curved the objective is at the start, a preconditioner
(:mod:`hansa.algorithms.preconditioner`), for which they are asked once. What a client sends otherwise is one gradient and one number,
whatever m is.

One round is one exchange: the clients return objective and gradient at one point of the line search (:mod:`hansa.algorithms.wolfe`),
whose place in it is part of the state. Once there are pairs, the first point, a full step, is nearly always accepted, and its gradient
begins the next iteration: an iteration is a round.

Until a point is accepted ``params`` are those of the last iteration, which is what a run gives back that ends before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from hansa.algorithms import preconditioner, wolfe
from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Collective, Curved, Learner, Message, State, Transform
from hansa.core.errors import InputError
from hansa.core.objective import value_and_gradient
from hansa.core.params import Kinds, Params, flatten, unflatten, with_kind
from hansa.core.updates import Total, Update


@dataclass(frozen=True)
class LBFGS:
    """Exact fit for smooth objectives of any number of params; the upload of a client is p + 1 numbers.

    memory:     pairs that are kept, m in the paper.
    tolerance:  on the largest entry of the gradient of the mean objective; scikit-learn's ``tol`` is the same.
    """

    name: Literal["lbfgs"] = field(default="lbfgs", kw_only=True)
    memory: Annotated[int, Ge(1)] = 10
    tolerance: Annotated[float, Ge(0)] = 1e-8

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"gradient"}), init=False, repr=False)

    def check(self, rounds: int, transforms: Sequence[Transform]) -> None:
        if any(getattr(transform, "name", "") == "clip" for transform in transforms):
            raise InputError(
                "transforms: 'clip' scales the objective and gradient of a client at each point by another factor, and algorithm 'lbfgs' "
                "compares points (leave clip out, or write algorithm.name = 'gradient_descent')"
            )

    def init(self, params: Params, kinds: Kinds) -> State:
        weights = with_kind(params, kinds, "weight")
        size = sum(int(np.prod(value.shape)) for value in weights.values())
        pairs = np.zeros((0, size))
        return {
            "params": params, "kinds": dict(kinds), "trial": params, "direction": None, "gradient": None, "search": None,
            "s": pairs, "y": pairs, "preconditioner": None, "done": False,
        }  # fmt: skip

    def broadcast(self, state: State, round: int) -> Message:
        return Message(state["trial"], {"curvature": True} if state["gradient"] is None else {})

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        told = value_and_gradient(learner, message.params, block)
        if "curvature" in message.extra and isinstance(learner, Curved):
            told = replace(told, values={**told.values, **learner.curvature(message.params, block).values})
        return replace(_refused_where_infinite(told), weight=block.weight)

    def update(self, state: State, total: Total) -> State:
        infinite = float(total.values["infinite"]) > 0
        value = np.inf if infinite else float(total.mean("objective"))
        gradient = _flat(total.means("gradient"), state)
        search = state["search"]
        if search is None:
            state = {**state, "preconditioner": None if infinite else preconditioner.of(total)}
            return self._iterate(state, value, gradient, state["s"], state["y"])
        slope = float(gradient @ state["direction"])
        accepted, search = wolfe.advance(search, value, slope)
        if accepted:
            pairs = self._remember(state, gradient)
            return self._iterate({**state, "params": state["trial"]}, value, gradient, *pairs)
        if search is not None:
            return {**state, "search": search, "trial": _moved(state, search["t"])}
        if len(state["s"]):
            # The pairs may be of no use any more: once more along the gradient itself.
            return self._iterate(state, state["search"]["start"][0], state["gradient"], state["s"][:0], state["y"][:0])
        return {**state, "trial": state["params"], "search": None, "done": True}  # as good as the arithmetic

    def _iterate(self, state: State, value: float, gradient: np.ndarray, s: np.ndarray, y: np.ndarray) -> State:
        """The next direction, from ``params`` with their value and gradient."""
        direction = -two_loop(gradient, s, y, _begin(state))
        # Without a preconditioner the scale of the params is not known yet: a first step of length one, at most a whole one along the
        # gradient.
        known = len(s) or state["preconditioner"] is not None
        first = 1.0 if known else min(1.0, 1.0 / max(float(np.linalg.norm(gradient)), np.finfo(np.float64).tiny))
        here = {**state, "gradient": gradient, "direction": direction, "s": s, "y": y, "trial": state["params"]}
        if float(np.abs(gradient).max(initial=0.0)) <= self.tolerance:
            return {**here, "search": None, "done": True}
        here["search"] = wolfe.begin(value, float(gradient @ direction), first)
        return {**here, "trial": _moved(here, first)}

    def _remember(self, state: State, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s, y = state["search"]["t"] * state["direction"], gradient - state["gradient"]
        if not s @ y > np.finfo(np.float64).eps * (y @ _begin(state)(y)):  # H would not stay positive definite
            return state["s"], state["y"]
        return tuple(np.concatenate([old, new[None]])[-self.memory :] for old, new in ((state["s"], s), (state["y"], y)))  # type: ignore[return-value]  # of two, which mypy does not count


def two_loop(gradient: np.ndarray, s: np.ndarray, y: np.ndarray, begin: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """H g, for pairs (pairs, p) from the oldest to the newest; begin: P times a vector."""
    q = gradient.copy()
    rho, alpha = 1.0 / np.einsum("kp,kp->k", s, y), np.zeros(len(s))
    for k in reversed(range(len(s))):
        alpha[k] = rho[k] * (s[k] @ q)
        q -= alpha[k] * y[k]
    q = begin(q)
    if len(s):
        q *= (s[-1] @ y[-1]) / (y[-1] @ begin(y[-1]))
    for k in range(len(s)):
        q += (alpha[k] - rho[k] * (y[k] @ q)) * s[k]
    return q


def _begin(state: State) -> Callable[[np.ndarray], np.ndarray]:
    own, weights = state["preconditioner"], with_kind(state["params"], state["kinds"], "weight")
    return lambda vector: vector.copy() if own is None else preconditioner.applied(own, vector, weights)


def _refused_where_infinite(told: Update) -> Update:
    """Clients at which the objective is not finite say so instead: the server then looks nearer, and nothing has diverged."""
    value = np.asarray(told.values["objective"], dtype=np.float64)
    wrong = ~np.isfinite(value)
    if not wrong.any():
        return replace(told, values={**told.values, "infinite": np.zeros(len(value))})
    values = {name: np.array(entry, copy=True) for name, entry in told.values.items()}
    for entry in values.values():
        entry[wrong] = 0.0
    metrics = {name: (np.where(wrong, 0.0, a), np.where(wrong, 0.0, b)) for name, (a, b) in told.metrics.items()}
    return replace(told, values={**values, "infinite": wrong.astype(np.float64)}, metrics=metrics)


def _flat(gradient: Params, state: State) -> np.ndarray:
    weights = with_kind(state["params"], state["kinds"], "weight")
    return flatten({name: gradient[name] for name in weights})


def _moved(state: State, t: float) -> Params:
    weights = with_kind(state["params"], state["kinds"], "weight")
    return {**state["params"], **unflatten(flatten(weights) + t * state["direction"], weights)}


__all__ = ["LBFGS", "two_loop"]
