"""The local step, shared by every gradient learner.

A step is always

    d = g + drift + proximal * (w - anchor)
    w = optimiser(w, d)

with g the mini-batch gradient. FedAvg leaves drift and proximal at zero; FedProx (Li et al. 2020) sets ``proximal`` = mu;
SCAFFOLD (Karimireddy et al. 2020, eq. 3) sets ``drift`` = c - c_k. What differs between learners is only how g is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt
from array_api_compat import array_namespace, device

from hansa.core.blocks import LoadedBlock
from hansa.core.params import Array, Params
from hansa.core.randomness import combine, derive, permutations


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum as in Sutskever et al. 2013 (PyTorch's form)."""

    name: Literal["sgd"] = field(default="sgd", kw_only=True)
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    nesterov: bool = False

    def init(self, params: Params) -> dict[str, Params]:
        return {"velocity": {k: array_namespace(v).zeros_like(v) for k, v in params.items()}} if self.momentum else {}

    def step(self, params: Params, direction: Params, state: dict[str, Params], rate: float, count: int) -> None:
        """One step in place. ``count`` is 1 at the first step. ``direction`` may be overwritten."""
        for name, w in params.items():
            d = direction[name]
            if self.momentum:
                v = state["velocity"][name]
                v *= self.momentum
                v += d
                d = d + self.momentum * v if self.nesterov else v
            w -= rate * d


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), with bias correction."""

    name: Literal["adam"] = field(default="adam", kw_only=True)
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    epsilon: Annotated[float, Gt(0)] = 1e-8

    def init(self, params: Params) -> dict[str, Params]:
        zeros = {k: array_namespace(v).zeros_like(v) for k, v in params.items()}
        return {"m": zeros, "v": {k: array_namespace(v).zeros_like(v) for k, v in params.items()}}

    def step(self, params: Params, direction: Params, state: dict[str, Params], rate: float, count: int) -> None:
        """One step in place. ``count`` is 1 at the first step."""
        for name, w in params.items():
            d, m, v = direction[name], state["m"][name], state["v"][name]
            m *= self.beta1
            m += (1 - self.beta1) * d
            v *= self.beta2
            v += (1 - self.beta2) * d * d
            corrected = (v / (1 - self.beta2**count)) ** 0.5
            w -= (rate / (1 - self.beta1**count)) * m / (corrected + self.epsilon)


LocalOptimizer = SGD | Adam


@dataclass(frozen=True)
class Local:
    """How a client trains within one round: the part of an algorithm's options that users set.

    epochs:         passes over the client's rows (E in McMahan et al. 2017).
    batch_size:     rows a step (B in McMahan et al. 2017); 0 takes all of the client's rows in every step. The last batch of a
                    pass may be smaller.
    learning_rate:  of the local optimiser; the job's schedule multiplies it.
    clip:           largest L2 norm of a step's gradient over all weights, 0 for no limit. It steadies training and protects
                    nothing.
    """

    epochs: Annotated[int, Ge(1)] = 1
    batch_size: Annotated[int, Ge(0)] = 32
    learning_rate: Annotated[float, Gt(0)] = 0.1
    optimizer: LocalOptimizer = field(default_factory=SGD)
    clip: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True)
class Plan:
    """One round's local training, as an algorithm hands it to a learner.

    drift:     added to every gradient: params-shaped, or stacked (clients, ...) when it differs per client; None for zero.
    proximal:  mu; the anchor is where the round's training starts, the params that were broadcast.
    """

    local: Local
    rate: float
    proximal: float = 0.0
    drift: Params | None = None
    drift_per_client: bool = False


@dataclass(frozen=True)
class Trained:
    """What local training gives: params stacked (clients, ...), steps taken (clients,), training metrics (sum, count)."""

    params: Params
    steps: np.ndarray
    metrics: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """Which rows each client uses at each step.

    order:  int64 (clients, epochs, most rows): a shuffle of the client's rows for every pass.
    rows:   int64 (clients,).
    batch:  rows a step.
    """

    order: np.ndarray
    rows: np.ndarray
    batch: np.ndarray
    epochs: int

    @property
    def steps_per_epoch(self) -> np.ndarray:
        return np.asarray(-(-self.rows // self.batch))

    @property
    def steps(self) -> np.ndarray:
        """Steps of each client, int64 (clients,)."""
        return self.steps_per_epoch * self.epochs

    def batches(self, client: int) -> Iterator[np.ndarray]:
        """Row indices of one client's mini-batches, step by step."""
        rows, size = int(self.rows[client]), int(self.batch[client])
        for epoch in range(self.epochs):
            order = self.order[client, epoch]
            for start in range(0, rows, size):
                yield order[start : min(start + size, rows)]


def schedule(block: LoadedBlock, local: Local) -> Schedule:
    """The mini-batches of a round: a fresh shuffle per client and pass; every learner uses the same ones.

    With ``batch_size`` 0 each step takes all rows, in their own order.
    """
    rows = block.rows
    full = local.batch_size == 0
    most = int(rows.max(initial=0))
    if full:
        order = np.broadcast_to(np.arange(most), (len(rows), local.epochs, most))
        batch = np.maximum(rows, 1)
    else:
        keys = block.keys("shuffle")
        order = np.stack([permutations(combine(keys, derive("epoch", e)), rows) for e in range(local.epochs)], axis=1)
        batch = np.minimum(np.maximum(rows, 1), local.batch_size)
    return Schedule(order=order, rows=rows, batch=batch, epochs=local.epochs)


def direction(gradient: Params, params: Params, anchor: Params, plan: Plan, drift: Params | None) -> Params:
    """``g + drift + proximal * (w - anchor)``, in place on ``gradient``."""
    if drift is not None:
        for name, g in gradient.items():
            g += drift[name]
    if plan.proximal:
        for name, g in gradient.items():
            g += plan.proximal * (params[name] - anchor[name])
    return gradient


def clip_(gradient: Params, limit: float, *, stacked: bool) -> None:
    """Scale a gradient in place to an L2 norm of at most ``limit`` over all its entries, per client where stacked."""
    if not limit:
        return
    squares: Any = 0.0
    for g in gradient.values():
        axes = tuple(range(1 if stacked else 0, g.ndim))
        xp = array_namespace(g)
        squares = squares + (xp.sum(g * g, axis=axes) if axes else g * g)
    norm = squares**0.5
    xp = array_namespace(norm)
    scale = xp.clip(limit / (norm + 1e-12), max=1.0)
    for g in gradient.values():
        g *= xp.reshape(scale, (-1,) + (1,) * (g.ndim - 1)) if stacked else scale


def repeat(array: Array, clients: int) -> Array:
    """A copy of ``array`` for each client, (clients, ...), each contiguous, aligned and owned."""
    xp = array_namespace(array)
    copies = xp.empty((clients, *array.shape), dtype=array.dtype, device=device(array))
    copies[...] = array  # a copy of a broadcast array would keep its strides, and BLAS needs each client's weights in one piece
    return copies
