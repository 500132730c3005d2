"""Newton's method on summed gradients and Hessians: exact, and usually done in five or six rounds.

For a generalised linear model this is iteratively reweighted least squares (McCullagh and Nelder 1989, section 2.5) with the sums taken
over clients; damped by backtracking as in Boyd and Vandenberghe 2004, algorithm 9.5 (alpha = ``armijo``, beta = 1/2).

One round is one exchange. In the phase "newton" the clients return loss, gradient and Hessian at the params; if the loss has fallen
enough since the last step, the server takes the next full step, else the phase "search" asks for the loss along the step, at all
halvings at once, and goes back. lambda^2 = g' H^-1 g is the Newton decrement; lambda^2 / 2 <= ``tolerance`` ends the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Lt
from scipy.linalg import lapack

from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Collective, Learner, Message, State
from hansa.core.errors import InputError
from hansa.core.params import Kinds, Params, flatten, unflatten
from hansa.core.updates import Total, Update, under

HALVINGS = 30
LARGEST = 5000


@dataclass(frozen=True)
class Newton:
    """Exact second-order fit for models with up to 5,000 params; the upload of a client is p^2 + p numbers.

    tolerance:  on half the squared Newton decrement, in units of the mean loss.
    armijo:     share of the predicted decrease that a step must reach.
    """

    name: Literal["newton"] = field(default="newton", kw_only=True)
    tolerance: Annotated[float, Gt(0)] = 1e-14
    armijo: Annotated[float, Gt(0), Lt(0.5)] = 1e-4

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"hessian"}), init=False, repr=False)

    def init(self, params: Params, kinds: Kinds) -> State:
        size = sum(value.size for value in params.values())
        if size > LARGEST:
            raise InputError(
                f"algorithm newton: the model has {size:,} params, its Hessian {size * size * 8 / 1e9:.1f} GB per client; "
                f"newton takes up to {LARGEST:,} params (use algorithm.name = 'fedavg' or 'gradient_descent')"
            )
        return {"params": params, "phase": "newton", "from": params, "step": None, "loss": None, "slope": 0.0, "done": False}

    def broadcast(self, state: State, round: int) -> Message:
        if state["phase"] == "newton":
            return Message(state["params"])
        return Message(state["from"], {"step": state["step"]})

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        if "step" not in message.extra:
            return replace(learner.hessian(message.params, block), weight=block.weight)
        points = [_move(message.params, message.extra["step"], t) for t in _step_sizes()]
        return replace(learner.losses(points, block), weight=block.weight)

    def update(self, state: State, total: Total) -> State:
        return self._search(state, total.mean("losses")) if state["phase"] == "search" else self._newton(state, total)

    def _newton(self, state: State, total: Total) -> State:
        loss = float(total.mean("objective"))
        if state["loss"] is not None and not self._fell(state, loss, 1.0) and not state.get("searched"):
            return {**state, "params": state["from"], "phase": "search"}
        gradient = flatten(under(total.values, "gradient")) / total.weight
        step = -_solve(total.mean("hessian"), gradient)
        slope = float(gradient @ step)
        here = {**state, "from": state["params"], "step": step, "loss": loss, "slope": slope, "searched": False}
        if -slope / 2 <= self.tolerance:
            return {**here, "done": True}
        return {**here, "params": _move(state["params"], step, 1.0)}

    def _search(self, state: State, losses: np.ndarray) -> State:
        for t, loss in zip(_step_sizes(), losses, strict=True):
            if self._fell(state, float(loss), t):
                return {**state, "phase": "newton", "searched": True, "params": _move(state["from"], state["step"], t)}
        return {**state, "done": True}  # no step lowers the loss any more: the params are as good as the arithmetic

    def _fell(self, state: State, loss: float, t: float) -> bool:
        rounding = 8 * np.finfo(np.float64).eps * max(1.0, abs(state["loss"]))
        return loss <= state["loss"] + self.armijo * t * state["slope"] + rounding


def _step_sizes() -> list[float]:
    return [2.0**-halving for halving in range(1, HALVINGS + 1)]


def _move(params: Params, step: np.ndarray, t: float) -> Params:
    return unflatten(flatten(params) + t * step, params)


def _solve(hessian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    # The least-norm solution where the Hessian is singular (collinear columns, the redundant class of a softmax). Its condition is
    # estimated from the factors, which takes a hundredth of the time of its singular values.
    factor, indefinite = lapack.dpotrf(hessian)
    if not indefinite and lapack.dpocon(factor, np.abs(hessian).sum(axis=0).max())[0] > 1e-12:
        return np.asarray(lapack.dpotrs(factor, gradient)[0])
    return np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0]
