"""Sharing ADMM over the columns of a linear model: every client fits its own share of the scores, the server the loss.

Boyd, Parikh, Chu, Peleato, Eckstein: Distributed Optimization and Statistical Learning via the Alternating Direction Method of
Multipliers, Foundations and Trends in Machine Learning 3(1), 2011: the sharing problem of section 7.3, as model fitting split across
features in section 8.3. With N clients, A_i the columns of client i, l the loss of all rows and r_i the penalty:

    x_i <- argmin r_i(x_i) + rho/2 |A_i x_i - A_i x_i^k - z + Ax + u|^2         at the clients, all at once
    z   <- argmin l(N z - b) + N rho/2 |z - Ax - u|^2                           at the server, row by row
    u   <- u + Ax - z

z and Ax are means over the clients, as the bars of the paper have it. l is the mean loss here, and so its augmented term is divided by
the number of rows as well.

=================  ===============================================================================================================
in the paper       here
=================  ===============================================================================================================
x_i                the client's columns of ``coef``
z, u               ``(fitted - level) / many`` and ``u``, each (rows, outputs); rho u is the slope of the loss
b                  the labels, inside the loss
alpha              ``relaxation``: A_i x_i is replaced by alpha A_i x_i + (1 - alpha) z_i (section 3.4.3)
mu, tau            ``balance`` and 2: rho follows the ratio of the residuals (section 3.4.1), in rounds that grow apart, so that it settles
=================  ===============================================================================================================

The x-update is a ridge regression or a lasso, exactly; the z-update is in closed form for the squared loss, and Newton's method with a
safeguard in every row for the others. Columns are centred at the clients, and the best intercept is part of the z-update: it costs no
iterations and is not penalised.

The iteration converges linearly, and as slowly as what it has to find out is ill-conditioned, whatever rho is: columns of different
clients that are nearly the same take thousands of rounds to share a weight among them. So it is played as what it is, Douglas-Rachford
splitting of s_i = z_i + u, of which z_i and u follow by the z-update, and the s_i are combined by Anderson acceleration
(`hansa.algorithms.anderson`, as in Fu, Zhang, Boyd 2020). s_i is A_i ``mixed``_i + ``shared``, with ``mean`` over the clients. A change
of rho is another iteration, which remembers nothing of the one before.

It stops by primal and dual residual (section 3.3). The primal one is how far the partial predictions' sum is from the scores that the
loss was fitted at; the dual one is how far rho u is from making each client's coefficients optimal, which the clients tell one round
later, for the point that they start from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from hansa.algorithms.anderson import begin, combined
from hansa.algorithms.quadratic import minimise, violation
from hansa.algorithms.score_space import centred, labels_of, objective, proximal
from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Additive, Collective, Message, State
from hansa.core.errors import RunFailed
from hansa.core.params import Kinds, Params
from hansa.core.updates import Total, Update

TINY = float(np.finfo(np.float64).tiny)

POINT = ("mixed", "mean", "shared")
"""What the s_i are kept as."""


@dataclass(frozen=True)
class SharingADMM:
    """Linear models whose columns are split over clients, with L2, L1 or both; needs partition.name = "features" and all clients in
    every round.

    rho:         the penalty to start with, on the scale of the loss's second derivative.
    relaxation:  1 is the plain method, 1.5 to 1.8 usually takes fewer rounds.
    balance:     rho is doubled or halved where one residual is so many times the other; 0 keeps it.
    memory:      so many of the last steps are combined (Anderson acceleration), 0 for the plain method; the state grows by four times the
                 rows' scores for each.
    tolerance:   on both residuals, relative to the scores and to the slopes.

    The server sees the labels, the sum of the partial predictions row by row, all coefficients and how far each column spreads; a client
    sees all coefficients and for each row what is left for it to explain, from which the labels can be told.
    """

    name: Literal["sharing_admm"] = field(default="sharing_admm", kw_only=True)
    rho: Annotated[float, Gt(0)] = 1.0
    relaxation: Annotated[float, Gt(0), Lt(2)] = 1.6
    balance: Annotated[float, Ge(0)] = 10.0
    memory: Annotated[int, Ge(0)] = 10
    tolerance: Annotated[float, Gt(0)] = 1e-9

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"parts"}), init=False, repr=False)
    _model: Additive | None = field(default=None, repr=False, compare=False)

    def knowing(self, model: Additive) -> SharingADMM:
        """The algorithm as the server plays it, which fits the loss."""
        return replace(self, _model=model)

    def init(self, params: Params, kinds: Kinds) -> State:
        return {"params": params, "phase": "labels", "rho": self.rho, "metrics": {}, "done": False}

    def broadcast(self, state: State, round: int) -> Message:
        if state["phase"] == "labels":
            return Message(state["params"])
        extra = {
            "mixed": state["mixed"],
            "pull": state["shared"] - 2 * state["u"],
            "slope": state["rho"] * state["u"],
            "rho": state["rho"],
        }
        return Message(state["params"], extra)

    def work(self, learner: Any, message: Message, block: LoadedBlock) -> Update:
        ones = np.ones(len(block))
        if "pull" not in message.extra:
            outputs, width = message.params["coef"].shape
            spread = np.zeros((len(block), width))
            for k, (client, rows) in enumerate(zip(block.clients, block.tables, strict=True)):
                spread[k, learner.columns(client.id)] = _spread(learner, np.asarray(rows.x))
            return Update({**labels_of(learner, outputs, block), "spread": spread}, ones)
        fits = [self._fit(learner, message, learner.columns(c.id), t.x) for c, t in zip(block.clients, block.tables, strict=True)]
        return Update({name: np.stack([fit[name] for fit in fits]) for name in fits[0]}, ones)

    def _fit(self, learner: Additive, message: Message, columns: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
        """The x-update of one client, whole coefficients zero elsewhere, how far it was from its optimum before, and |s_i - F(s)_i|^2."""
        told, coef = message.extra, message.params["coef"]
        x, n, (outputs, width) = np.asarray(x), len(x), coef.shape
        mean = x.mean(axis=0) if learner.intercept else np.zeros(x.shape[1])
        a = x - mean
        gram = a.T @ a / n
        scale = np.sqrt(gram.diagonal())
        fit = {
            "coef": np.zeros((outputs, width)),
            "scores": np.zeros((n, outputs)),
            "shift": np.zeros(outputs),
            "dual": np.zeros(()),
            "moved": np.zeros(()),
        }
        for k in range(outputs):
            old = coef[k, columns]
            apart = violation(a.T @ told["slope"][:, k] / n + learner.l2 * old, learner.l1, old)
            fit["dual"] += float(((apart / np.where(scale > 0, scale, np.inf)) ** 2).sum())
            linear = told["rho"] * (gram @ told["mixed"][k, columns] + a.T @ told["pull"][:, k] / n)
            own = minimise(told["rho"] * gram + learner.l2 * np.eye(len(old)), linear, learner.l1, old)
            residual = a @ (told["mixed"][k, columns] - own) + told["pull"][:, k] + told["slope"][:, k] / told["rho"]
            fit["moved"] += float(residual @ residual)
            fit["coef"][k, columns], fit["scores"][:, k], fit["shift"][k] = own, a @ own, -(mean @ own)
        return fit

    @property
    def _at_server(self) -> Additive:
        if self._model is None:
            raise RuntimeError("sharing_admm: the server's half needs the model; play it as algorithm.knowing(learner)")
        return self._model

    def update(self, state: State, total: Total) -> State:
        if total.clients != state["population"]:
            raise RunFailed(
                f"algorithm sharing_admm: {total.clients} of {state['population']} clients gave their share of the scores, and the loss "
                "cannot be fitted without the others (set rounds.clients = 1 and rounds.quorum = 1, or use coordinate_descent)"
            )
        return self._begin(state, total) if state["phase"] == "labels" else self._step(state, total)

    def _begin(self, state: State, total: Total) -> State:
        targets, coef = total.values["targets"], np.zeros_like(state["params"]["coef"])
        zeros = np.zeros_like(targets)
        begun = {
            **state, "phase": "fit", "targets": targets, "mixed": coef, "mean": zeros, "shared": zeros, "primal": np.inf,
            "level": np.zeros(targets.shape[1]), "since": 0, "patience": 2, "params": {**state["params"], "coef": coef},
            "spread": total.values["spread"], "past": begin(2 * targets.size + coef.size),
        }  # fmt: skip
        return self._fitted(begun, zeros, coef, np.zeros(targets.shape[1]))

    def _step(self, state: State, total: Total) -> State:
        told = self._told(state)
        slope = float(np.sqrt(((state["rho"] * state["u"]) ** 2).mean()))
        dual = float(np.sqrt(total.values["dual"])) / max(slope, TINY)
        if max(state["primal"], dual) <= self.tolerance:
            return {**state, "metrics": told, "done": True}
        balanced = self._balanced(state, dual)
        image = self._image(balanced, total.values["coef"], total.values["scores"])
        if self.memory and balanced["rho"] == state["rho"]:
            image = self._accelerated(balanced, image, float(np.sqrt(total.values["moved"])))
        elif self.memory:
            image["past"] = begin(state["past"]["images"].shape[1])
        after = {**balanced, **image, "metrics": told}
        return self._fitted(after, total.values["scores"], total.values["coef"], total.values["shift"])

    def _image(self, state: State, coef: np.ndarray, scores: np.ndarray) -> State:
        """F(s): alpha A_i x_i + (1 - alpha) z_i + u."""
        alpha, own = self.relaxation, state["mean"] - state["shared"]
        shared = alpha * state["u"] + (1 - alpha) * state["shared"]
        return {
            "mixed": alpha * coef + (1 - alpha) * state["mixed"], "shared": shared,
            "mean": alpha * scores / state["population"] + (1 - alpha) * own + shared,
        }  # fmt: skip

    def _accelerated(self, state: State, image: State, length: float) -> State:
        # The clients' own parts by what each column changes in the scores, which is what the server knows of their norm.
        clients, (n, _) = state["population"], state["mean"].shape
        weights = {
            "mixed": np.broadcast_to(np.sqrt(n) * state["spread"], state["mixed"].shape),
            "mean": np.full_like(state["mean"], np.sqrt(clients)),
            "shared": np.zeros_like(state["shared"]),
        }
        point, past = combined(state["past"], _flat(state), _flat(image), _flat(weights), length, self.memory)
        parts = np.split(point, np.cumsum([image[name].size for name in POINT])[:-1])
        return {"past": past, **{name: part.reshape(image[name].shape) for name, part in zip(POINT, parts, strict=True)}}

    def _fitted(self, state: State, scores: np.ndarray, coef: np.ndarray, shift: np.ndarray) -> State:
        """The z-update of the s_i, and how far the partial predictions are from it. scores: sum of the A_i x_i."""
        many = state["population"]
        level, fitted = proximal(self._at_server, many * state["mean"], state["rho"] / many, state["targets"], state["level"])
        params = {**state["params"], "coef": coef}
        if "intercept" in params:
            params["intercept"], _ = centred(level + shift, scores)
        primal = float(np.sqrt(((scores + level - fitted) ** 2).mean())) / max(float(np.sqrt((fitted**2).mean())), TINY)
        u = state["mean"] - (fitted - level) / many
        return {**state, "params": params, "u": u, "level": level, "primal": primal, "scores": scores + level}

    def _balanced(self, state: State, dual: float) -> State:
        since = state["since"] + 1
        ratio = state["primal"] / max(dual, TINY)
        if not self.balance or since < state["patience"] or 1 / self.balance <= ratio <= self.balance:
            return {**state, "since": since}
        factor = 2.0 if ratio > 1 else 0.5
        # u is scaled: rho u stays what it was, and so do the z_i.
        u = state["u"] / factor
        moved = {name: state[name] + u - state["u"] for name in ("mean", "shared")}
        return {**state, **moved, "rho": state["rho"] * factor, "u": u, "since": 0, "patience": state["patience"] + 1}

    def _told(self, state: State) -> dict[str, float]:
        model, scores, targets = self._at_server, state["scores"], state["targets"]
        return {
            "loss": float(model.values(scores, targets).mean()),
            "objective": objective(model, scores, targets, state["params"]["coef"]),
        }  # fmt: skip


def _spread(learner: Additive, x: np.ndarray) -> np.ndarray:
    """Root mean squares of the columns, centred where the model has an intercept."""
    a = x - x.mean(axis=0) if learner.intercept else x
    return np.asarray(np.sqrt((a * a).mean(axis=0)))


def _flat(state: State) -> np.ndarray:
    return np.concatenate([state[name].ravel() for name in POINT])
