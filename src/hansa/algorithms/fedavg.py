"""Federated averaging and its kin: clients train for a while, the server averages what changed.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS
2017, algorithm 1 (FedAvg): C is the job's ``rounds.clients``, E ``local.epochs``, B ``local.batch_size``, eta ``local.learning_rate``.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020, algorithm 2 (FedProx): the
clients minimise F_k(w) + mu/2 |w - w_t|^2 (the norm is squared; its gradient is mu (w - w_t)). With mu = 0 it is FedAvg.

The server's step is Reddi et al. 2021, algorithm 2: x_{t+1} = ServerOpt(x_t, mean Delta); the default, SGD with rate 1, is the average.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge

from hansa.algorithms.server_optimizers import SGD, ServerOptimizer
from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Collective, Learner, Message, State
from hansa.core.local import Local, Plan
from hansa.core.params import Kinds, Params, map_params, with_kind
from hansa.core.updates import Total, Update, prefixed


@dataclass(frozen=True)
class FedAvg:
    """Clients train ``local`` from the global params, the server moves along their weighted mean change."""

    name: Literal["fedavg"] = field(default="fedavg", kw_only=True)
    local: Local = field(default_factory=Local)
    server: ServerOptimizer = field(default_factory=SGD)

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"train"}), init=False, repr=False)

    def init(self, params: Params, kinds: Kinds) -> State:
        return {"params": params, "kinds": dict(kinds), "server": self.server.init(with_kind(params, kinds, "weight"))}

    def broadcast(self, state: State, round: int) -> Message:
        return Message(state["params"], {"rate": state["rate"]})

    def plan(self, message: Message) -> Plan:
        return Plan(self.local, rate=self.local.learning_rate * message.extra["rate"])

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        trained = learner.train(message.params, block, self.plan(message))
        for name, w in trained.params.items():
            w -= message.params[name]  # in place: these copies are the block's own
        return Update(prefixed(trained.params, "delta"), block.weight, trained.metrics)

    def update(self, state: State, total: Total) -> State:
        return {**state, **apply_delta(self.server, state, total.means("delta"))}


def apply_delta(server: ServerOptimizer, state: State, delta: Params) -> dict[str, Any]:
    """Move the params along the mean change: weights by the server optimiser, buffers by the mean, counters to whole numbers."""
    params, kinds = state["params"], state["kinds"]
    weights, kept = server.step(with_kind(params, kinds, "weight"), with_kind(delta, kinds, "weight"), state["server"])
    others = with_kind(params, kinds, "buffer", "counter")
    moved = map_params(lambda x, d: x + d, others, with_kind(delta, kinds, "buffer", "counter"))
    for name, value in with_kind(moved, kinds, "counter").items():
        moved[name] = value.round().astype(params[name].dtype)
    return {"params": {name: weights[name] if name in weights else moved[name] for name in params}, "server": kept}


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose clients are held near the global params by ``mu``/2 times the squared distance to them."""

    name: Literal["fedprox"] = field(default="fedprox", kw_only=True)  # type: ignore[assignment]  # each algorithm has its own name
    mu: Annotated[float, Ge(0)] = 0.01

    def plan(self, message: Message) -> Plan:
        return replace(super().plan(message), proximal=self.mu)
