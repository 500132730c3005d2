"""SCAFFOLD: stochastic controlled averaging.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020, algorithm 1
with option II. c is the server's control variate, c_i the client's (kept by the client, zero at first), K the local steps,
eta_l ``local.learning_rate``, eta_g ``server_rate``, N the number of clients, S the cohort:

    y_i <- y_i - eta_l (g_i(y_i) - c_i + c)            K times from x
    c_i+ = c_i - c + (x - y_i) / (K eta_l)
    x <- x + eta_g mean_S (y_i - x)
    c <- c + |S|/N mean_S (c_i+ - c_i)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt

from hansa.algorithms.fedavg import apply_delta
from hansa.algorithms.server_optimizers import SGD
from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Collective, Learner, Message, State
from hansa.core.errors import InputError
from hansa.core.local import Local, Plan
from hansa.core.params import Kinds, Params, with_kind, zeros_like
from hansa.core.updates import Total, Update, prefixed


@dataclass(frozen=True)
class Scaffold:
    """FedAvg whose clients correct the drift towards their own optimum; every client keeps one control variate.

    The local optimiser must be plain SGD: the control variate is the mean gradient only then.
    """

    name: Literal["scaffold"] = field(default="scaffold", kw_only=True)
    local: Local = field(default_factory=Local)
    server_rate: Annotated[float, Gt(0)] = 1.0

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"train"}), init=False, repr=False)

    def init(self, params: Params, kinds: Kinds) -> State:
        if self.local.optimizer.name != "sgd" or self.local.optimizer.momentum or self.local.clip:
            raise InputError(
                "algorithm scaffold: needs plain local SGD, because its control variates are mean gradients "
                "(write local.optimizer = {name = 'sgd', momentum = 0} and local.clip = 0)"
            )
        weights = with_kind(params, kinds, "weight")
        return {"params": params, "kinds": dict(kinds), "server": {}, "control": zeros_like(weights)}

    def broadcast(self, state: State, round: int) -> Message:
        extra = {"rate": state["rate"], "control": state["control"]}
        return Message(state["params"], extra, keeps=zeros_like(state["control"]))

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        x, c, c_i = message.params, message.extra["control"], block.state
        eta_l = self.local.learning_rate * message.extra["rate"]
        drift = {name: c[name] - c_i[name] for name in c}
        trained = learner.train(x, block, Plan(self.local, eta_l, drift=drift, drift_per_client=True))
        delta = {name: y - x[name] for name, y in trained.params.items()}
        k_eta = trained.steps * eta_l
        change = {name: -c[name] - delta[name] / _per_client(k_eta, delta[name]) for name in c}
        return Update(
            values=prefixed(delta, "delta") | prefixed(change, "control"),
            weight=block.weight,
            metrics=trained.metrics,
            state={name: (c_i[name] + change[name]).astype(c_i[name].dtype) for name in c},
        )

    def update(self, state: State, total: Total) -> State:
        moved = apply_delta(SGD(learning_rate=self.server_rate), state, total.means("delta"))
        share = total.clients / state["population"]
        change = total.means("control")
        control = {name: (c + share * change[name]).astype(c.dtype) for name, c in state["control"].items()}
        return {**state, **moved, "control": control}


def _per_client(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    return values.reshape((-1,) + (1,) * (like.ndim - 1)).astype(like.dtype)
