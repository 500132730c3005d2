"""DiLoCo: replicas train far apart and meet seldom.

Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen: DiLoCo: Distributed Low-Communication Training of Language
Models, 2023 (arXiv 2311.08105), algorithm 1. k is ``parallel.data``, T the job's ``rounds.count``, H ``steps``, InnerOpt the
``optimizer`` (AdamW, whose state every replica keeps to itself), OuterOpt SGD with Nesterov momentum (Sutskever et al. 2013, as in
PyTorch):

    each replica i:   theta_i <- theta;  H times: theta_i <- InnerOpt(theta_i, grad on a batch of its own rows)
    Delta = 1/k sum_i (theta - theta_i)
    m <- mu m + Delta;   theta <- theta - eta (Delta + mu m)

A replica may itself be sharded, split by tensors, or a pipeline. Local SGD (Stich 2019, arXiv 1805.09767) is the setting InnerOpt = SGD,
eta = 1, mu = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from hansa.core.contracts import Message, State
from hansa.core.params import Kinds, Params, map_params, with_kind, zeros_like
from hansa.core.synchrony import Part, Synchrony


@dataclass(frozen=True)
class DiLoCo(Synchrony):
    """``steps`` steps of each replica on its own rows, then one outer step along their mean change. ``batch_size`` is a replica's.

    outer_learning_rate: eta.
    outer_momentum:      mu, of Nesterov's form.
    """

    name: Literal["diloco"] = field(default="diloco", kw_only=True)
    steps: Annotated[int, Ge(0)] = 50
    optimizer: str = "AdamW"
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    outer_learning_rate: Annotated[float, Gt(0)] = 0.7
    outer_momentum: Annotated[float, Ge(0), Lt(1)] = 0.9

    collective: Literal["gang"] = field(default="gang", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"gang"}), init=False, repr=False)

    @property
    def apart(self) -> bool:
        return True

    def init(self, params: Params, kinds: Kinds) -> State:
        weights = with_kind(params, kinds, "weight")
        return {"params": params, "momentum": zeros_like(weights)}

    def broadcast(self, state: State, round: int) -> Message:
        return Message(state["params"])

    def update(self, state: State, parts: Sequence[Part]) -> State:
        theta, replicas = state["params"], sorted({part.replica for part in parts})
        trained = [{name: value for part in parts if part.replica == i for name, value in part.params.items()} for i in replicas]
        eta, mu = self.outer_learning_rate, self.outer_momentum
        delta = {name: sum(theta[name] - one[name] for one in trained) / len(trained) for name in state["momentum"]}
        m = map_params(lambda m, d: mu * m + d, state["momentum"], delta)
        moved = map_params(lambda w, d, m: w - eta * (d + mu * m), {name: theta[name] for name in delta}, delta, m)
        return {**state, "params": {**theta, **moved}, "momentum": m}
