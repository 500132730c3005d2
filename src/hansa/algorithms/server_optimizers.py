"""Server optimisers: what the server does with the clients' mean change.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: Adaptive Federated Optimization, ICLR 2021, algorithm 2 (FedAdagrad,
FedYogi, FedAdam) and its SGD and momentum special cases. Symbols: Delta is the clients' mean change of the params (so the step is
*along* it), eta ``learning_rate``, beta_1 ``beta1``, beta_2 ``beta2``, tau ``tau`` (the degree of adaptivity; v starts at tau^2).
As in the paper, none of them corrects the bias of its moments.

Each is a pair of functions: ``init(params) -> state`` and ``step(params, delta, state) -> (params, state)``. Nothing is changed but
``delta``, which the caller gives away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from hansa.core.contracts import State
from hansa.core.params import Array, Params, map_params, zeros_like


@dataclass(frozen=True)
class SGD:
    """x + eta * Delta. With eta = 1 this is the plain average of the clients' params."""

    name: Literal["sgd"] = field(default="sgd", kw_only=True)
    learning_rate: Annotated[float, Gt(0)] = 1.0

    def init(self, params: Params) -> State:
        return {}

    def step(self, params: Params, delta: Params, state: State) -> tuple[Params, State]:
        return map_params(self._moved, params, delta), {}

    def _moved(self, x: Array, d: Array) -> Array:
        if not isinstance(d, np.ndarray) or d.dtype.kind != "f" or (d.dtype, d.shape) != (x.dtype, x.shape):
            return x + self.learning_rate * d
        d *= self.learning_rate  # in its own memory: a model may be as large as half of what there is
        d += x
        return d


@dataclass(frozen=True)
class Momentum:
    """m = beta_1 m + Delta; x + eta * m (FedAvgM: Hsu, Qi, Brown 2019)."""

    name: Literal["momentum"] = field(default="momentum", kw_only=True)
    learning_rate: Annotated[float, Gt(0)] = 1.0
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9

    def init(self, params: Params) -> State:
        return {"m": zeros_like(params)}

    def step(self, params: Params, delta: Params, state: State) -> tuple[Params, State]:
        m = map_params(lambda m, d: self.beta1 * m + d, state["m"], delta)
        return map_params(lambda x, m: x + self.learning_rate * m, params, m), {"m": m}


@dataclass(frozen=True)
class Adaptive:
    """The common form of algorithm 2: m = beta_1 m + (1 - beta_1) Delta; v by the method; x + eta * m / (sqrt(v) + tau)."""

    learning_rate: Annotated[float, Gt(0)] = 0.1
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    tau: Annotated[float, Gt(0)] = 1e-3

    def second_moment(self, v: Array, d: Array) -> Array:
        raise TypeError("use AdaGrad, RMSprop, Adam or Yogi")

    def init(self, params: Params) -> State:
        return {"m": zeros_like(params), "v": map_params(lambda z: z + self.tau**2, zeros_like(params))}

    def step(self, params: Params, delta: Params, state: State) -> tuple[Params, State]:
        m = map_params(lambda m, d: self.beta1 * m + (1 - self.beta1) * d, state["m"], delta)
        v = map_params(self.second_moment, state["v"], delta)
        moved = map_params(lambda x, m, v: x + self.learning_rate * m / (v**0.5 + self.tau), params, m, v)
        return moved, {"m": m, "v": v}


@dataclass(frozen=True)
class AdaGrad(Adaptive):
    """FedAdagrad: v = v + Delta^2."""

    name: Literal["adagrad"] = field(default="adagrad", kw_only=True)
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.0

    def second_moment(self, v: Array, d: Array) -> Array:
        return v + d * d


@dataclass(frozen=True)
class Adam(Adaptive):
    """FedAdam: v = beta_2 v + (1 - beta_2) Delta^2."""

    name: Literal["adam"] = field(default="adam", kw_only=True)
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99

    def second_moment(self, v: Array, d: Array) -> Array:
        return self.beta2 * v + (1 - self.beta2) * d * d


@dataclass(frozen=True)
class RMSprop(Adam):
    """FedAdam without the first moment (beta_1 = 0), which is RMSprop (Tieleman and Hinton 2012) at the server."""

    name: Literal["rmsprop"] = field(default="rmsprop", kw_only=True)  # type: ignore[assignment]  # each optimiser has its own name
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.0


@dataclass(frozen=True)
class Yogi(Adaptive):
    """FedYogi: v = v - (1 - beta_2) Delta^2 sign(v - Delta^2)."""

    name: Literal["yogi"] = field(default="yogi", kw_only=True)
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99

    def second_moment(self, v: Array, d: Array) -> Array:
        squared = d * d
        return v - (1 - self.beta2) * squared * np.sign(v - squared)


ServerOptimizer = SGD | Momentum | AdaGrad | RMSprop | Adam | Yogi
