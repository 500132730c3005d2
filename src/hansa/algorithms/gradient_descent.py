"""Distributed gradient descent: one full-gradient step a round.

Each client sends the gradient of its mean loss at the broadcast params; their weighted mean is the gradient of the pooled objective
(with weighting by examples), and the server takes one step against it. The textbook method (FedSGD with C = 1 in McMahan et al.
2017, section 2); any server optimiser can take the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from hansa.algorithms.server_optimizers import SGD, ServerOptimizer
from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Collective, Learner, Message, State
from hansa.core.params import Kinds, Params, with_kind
from hansa.core.updates import Total, Update


@dataclass(frozen=True)
class GradientDescent:
    """x - eta * mean gradient, with eta in ``server.learning_rate``."""

    name: Literal["gradient_descent"] = field(default="gradient_descent", kw_only=True)
    server: ServerOptimizer = field(default_factory=lambda: SGD(learning_rate=0.1))

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"gradient"}), init=False, repr=False)

    def init(self, params: Params, kinds: Kinds) -> State:
        weights = with_kind(params, kinds, "weight")
        return {"params": params, "kinds": dict(kinds), "server": self.server.init(weights)}

    def broadcast(self, state: State, round: int) -> Message:
        return Message(state["params"])

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        return replace(learner.gradient(message.params, block), weight=block.weight)

    def update(self, state: State, total: Total) -> State:
        against = {name: -state["rate"] * gradient for name, gradient in total.means("gradient").items()}
        weights, kept = self.server.step({name: state["params"][name] for name in against}, against, state["server"])
        return {**state, "params": {**state["params"], **weights}, "server": kept}
