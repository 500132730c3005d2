"""Block coordinate descent over the columns of a linear model: every client moves the coefficients of its own.

Minimised is, with n training rows, F(w, b) = 1/n sum_i loss(s_i, y_i) + l2/2 |w|^2 + l1 |w|_1 and the scores s = sum_p X_p w_p + b. The
method is that of Trofimov and Genkin 2015 (d-GLMNET, algorithm 1), which is the block coordinate gradient descent of Tseng and Yun 2009
with all blocks at once: what is broadcast says how the loss depends on the scores near where they are, and each client minimises over
its block, exactly, with everybody else's at rest,

    d_p = argmin g_p'd + sigma/2 d'H_p d + l2/2 |w_p + d|^2 + l1 |w_p + d|_1       g_p = X_p's / n,  H_p = X_p'D X_p / n

What is summed are the changes X_p d_p of the partial predictions, and the fall of F that each client promises itself.

=================  ===============================================================================================================
in the paper       here
=================  ===============================================================================================================
beta, Delta beta   ``coef``, the scattered ``coef`` of the updates
Delta beta'x_i     ``scores`` of the updates
w_i                ``curve``, D; s is ``slope``: second and first derivative of the loss by the scores
mu                 ``damping``, sigma
alpha              the step; sigma of Armijo's rule is ``armijo``
=================  ===============================================================================================================

The step. All blocks moving at once may overshoot by a factor of at most the number of clients, so sigma between 1 and that number makes
the full step safe for a quadratic; it is doubled whenever the full step falls short of Armijo's rule, and the step is then halved until
it does not, which Tseng and Yun prove to converge for any convex loss with a Lipschitz gradient. The server knows the scores and so
needs no further round for that. Where the signs of the coefficients are settled (at once without L1) it does better: it minimises F
exactly over the span of the step and the last ``memory`` steps, which for a quadratic is the method of conjugate gradients,
preconditioned by the blocks (Narkiss and Zibulevsky 2005), and keeps that point where F is lower.

The intercept belongs to the server and is not penalised. A client centres its columns with the weights D, so that each of its steps has
an intercept of its own, and the server sets the rest to the optimum after every step.

``rounds.clients`` says how many blocks move in a round: all of them, or a random choice; one is randomised coordinate descent
(Nesterov 2012). The run is done when every client in turn promises a fall of at most ``tolerance``, and nobody has moved meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from hansa.algorithms.quadratic import minimise
from hansa.algorithms.score_space import best_in_span, centred, labels_of, level, objective
from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Additive, Collective, Message, State
from hansa.core.params import Kinds, Params
from hansa.core.updates import Total, Update

HALVINGS = 40
FLATTEST = 1e-6
"""Least second derivative of a row's loss that a block reckons with: rows that are surely right or wrong would not hold it at all."""

EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class CoordinateDescent:
    """Exact fit of a linear model whose columns are split over clients, with L2, L1 or both; needs partition.name = "features".

    tolerance:  on the fall of the objective that the blocks together still promise, relative to the loss of the best constant score.
    memory:     so many of the last steps take part in the server's search; the state grows by the rows' scores for each.
    armijo:     share of the promised fall that a step must reach.

    The server sees the labels, the sum of the partial predictions row by row, and all coefficients; a client sees all coefficients and
    the residual of each row, from which the labels can be told.
    """

    name: Literal["coordinate_descent"] = field(default="coordinate_descent", kw_only=True)
    tolerance: Annotated[float, Gt(0)] = 1e-20
    memory: Annotated[int, Ge(0)] = 5
    armijo: Annotated[float, Gt(0), Lt(0.5)] = 1e-4

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"parts"}), init=False, repr=False)
    _model: Additive | None = field(default=None, repr=False, compare=False)

    def knowing(self, model: Additive) -> CoordinateDescent:
        """The algorithm as the server plays it, which computes losses from scores."""
        return replace(self, _model=model)

    def init(self, params: Params, kinds: Kinds) -> State:
        return {
            "params": params, "phase": "labels", "targets": None, "scores": None, "damping": 1.0, "history": {}, "worst": 0.0,
            "still": np.zeros(params["coef"].shape[1]), "metrics": {}, "done": False,
        }  # fmt: skip

    def broadcast(self, state: State, round: int) -> Message:
        if state["phase"] == "labels":
            return Message(state["params"])
        model, scores, targets = self._at_server, state["scores"], state["targets"]
        curve = np.einsum("nkk->nk", model.curvatures(scores, targets))
        curve = np.maximum(curve, FLATTEST)
        extra = {"slope": model.slopes(scores, targets), "damping": state["damping"]}
        return Message(state["params"], extra if bool((curve == 1.0).all()) else {**extra, "curve": curve})

    def work(self, learner: Any, message: Message, block: LoadedBlock) -> Update:
        ones, coef = np.ones(len(block)), message.params["coef"]
        if "slope" not in message.extra:
            return Update(labels_of(learner, coef.shape[0], block), ones)
        moves = [self._move(learner, message, learner.columns(c.id), t.x) for c, t in zip(block.clients, block.tables, strict=True)]
        return Update({name: np.stack([move[name] for move in moves]) for name in moves[0]}, ones)

    def _move(self, learner: Additive, message: Message, columns: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
        """One client's step, whole coefficients zero elsewhere, and what comes of it."""
        coef, slope, damping = message.params["coef"], message.extra["slope"], message.extra["damping"]
        x, n, (outputs, width) = np.asarray(x), len(x), coef.shape
        move = {
            "coef": np.zeros((outputs, width)), "scores": np.zeros((n, outputs)), "shift": np.zeros(outputs), "promise": np.zeros(()),
            "seen": np.zeros(width),
        }  # fmt: skip
        move["seen"][columns] = 1.0
        for k in range(outputs):
            curve = message.extra["curve"][:, k] if "curve" in message.extra else np.ones(n)
            mean = curve @ x / curve.sum() if learner.intercept else np.zeros(x.shape[1])
            own, w = x - mean, coef[k, columns]
            gradient = own.T @ slope[:, k] / n
            hessian = damping / n * (own.T @ (own * curve[:, None]))
            quadratic = hessian + learner.l2 * np.eye(len(w))
            d = minimise(quadratic, hessian @ w - gradient, learner.l1, w) - w
            move["coef"][k, columns], move["scores"][:, k], move["shift"][k] = d, own @ d, -(mean @ d)
            bent = learner.l2 / 2 * float(2 * w @ d + d @ d) + learner.l1 * float(np.abs(w + d).sum() - np.abs(w).sum())
            move["promise"] -= float(gradient @ d) + bent
        return move

    def update(self, state: State, total: Total) -> State:
        return self._begin(state, total) if state["phase"] == "labels" else self._step(state, total)

    @property
    def _at_server(self) -> Additive:
        if self._model is None:
            raise RuntimeError("coordinate_descent: the server's half needs the model; play it as algorithm.knowing(learner)")
        return self._model

    def _begin(self, state: State, total: Total) -> State:
        if not total.values["holders"]:
            return state  # whoever holds the labels is not in this round's cohort
        # Coefficients start at zero, and with them everybody's partial predictions: so it does not matter whose are here.
        model, params, targets = self._at_server, state["params"], total.values["targets"]
        coef = np.zeros_like(params["coef"])
        intercept = level(model, np.zeros_like(targets), targets)
        params = {**params, "coef": coef} | ({"intercept": intercept} if model.intercept else {})
        scores = np.zeros_like(targets) + intercept
        worst = objective(model, scores, targets, coef)
        history = {"coef": coef[None][:0], "scores": scores[None][:0], "shift": intercept[None][:0]}
        return {
            **state, "phase": "blocks", "targets": targets, "scores": scores, "worst": worst, "params": params, "history": history,
        }  # fmt: skip

    def _step(self, state: State, total: Total) -> State:
        model, scores, targets, params = self._at_server, state["scores"], state["targets"], state["params"]
        now = objective(model, scores, targets, params["coef"])
        told = {"loss": float(model.values(scores, targets).mean()), "objective": now}
        promise = float(total.values["promise"])
        if promise <= self.tolerance * state["worst"]:
            still = np.maximum(state["still"], total.values["seen"])
            return {**state, "still": still, "done": bool(still.all()), "metrics": told}
        step = {name: total.values[name] for name in ("coef", "scores", "shift")}
        share, damping, least = self._armijo(state, step, promise, now)
        taken = {name: share * value for name, value in step.items()}
        signs = np.sign(params["coef"])
        if not model.l1 or np.array_equal(np.sign(params["coef"] + step["coef"]), signs):
            held = ~((state["history"]["coef"] != 0) & (signs == 0)).any(axis=(1, 2)) if model.l1 else slice(None)
            span = {name: np.concatenate([value[None], state["history"][name][held]]) for name, value in step.items()}
            found = best_in_span(model, scores, targets, params["coef"], span)
            after = objective(model, scores + found["scores"], targets, params["coef"] + found["coef"])
            if after <= least + _rounding(least):
                taken = found
        rest = level(model, scores + taken["scores"], targets)
        taken = {**taken, "scores": taken["scores"] + rest, "shift": taken["shift"] + rest}
        params, scores = {**params, "coef": params["coef"] + taken["coef"]}, scores + taken["scores"]
        if model.intercept:
            params["intercept"], scores = centred(params["intercept"] + taken["shift"], scores)
        kept = {name: np.concatenate([taken[name][None], past])[: self.memory] for name, past in state["history"].items()}
        return {
            **state, "params": params, "scores": scores, "damping": damping, "history": kept,
            "still": np.zeros_like(state["still"]), "metrics": told,
        }  # fmt: skip

    def _armijo(self, state: State, step: Params, promise: float, now: float) -> tuple[float, float, float]:
        """(share of the step, damping from now on, objective there)."""
        coef, share, damping = state["params"]["coef"], 1.0, state["damping"]
        for _ in range(HALVINGS):
            after = objective(
                self._at_server, state["scores"] + share * step["scores"], state["targets"], coef + share * step["coef"]
            )
            if after <= now - self.armijo * share * promise + _rounding(now):
                return share, damping, after
            damping = min(2 * state["damping"], float(state["population"]))
            share /= 2
        return 0.0, damping, now


def _rounding(value: float) -> float:
    return 8 * EPSILON * abs(value)
