"""Local training of a perceptron at the clients of a block.

There are two regimes, and which one is used depends on the job alone. A small step costs more to call than to compute, so small models
are trained stacked: one batched product per layer and step, for a group of clients whose weights and rows fit in the cache. A large
step costs what its memory traffic costs, so large models are trained one client after another, the weights staying in the cache;
plain SGD then never forms a gradient (:mod:`hansa.learners.mlp_delayed`).

In a group, clients are sorted by their number of steps, so that those still training are always a leading slice of the stacked
arrays. Short mini-batches are padded with rows whose share is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.local import SGD, Plan, Schedule, Trained, clip_, direction, repeat, schedule
from hansa.core.params import Params
from hansa.learners.mlp_batches import lanes
from hansa.learners.mlp_delayed import train_delayed
from hansa.learners.mlp_network import Network

LARGE_STEP = 1 << 20
"""Rows times parameters of a step from which clients are trained one after another."""

GROUP_BYTES = 1 << 21
"""What the weights, the gradients and the mini-batches of a stacked group may take together."""


def train(network: Network, params: Params, block: LoadedBlock, plan: Plan, l2: float) -> Trained:
    """Train every client of the block from the same params, by the step that :mod:`hansa.core.local` defines."""
    times = schedule(block, plan.local)
    width = plan.local.batch_size or int(times.rows.max(initial=1))
    large = width * network.parameters >= LARGE_STEP
    seen = (times.rows * times.epochs).astype(np.float64)
    if large and not l2 and is_plain(plan):
        moved, losses = train_delayed(network, params, block.tables, times, plan.rate)
        return Trained(moved, times.steps, {"loss": (losses, seen)})
    step_bytes = (2 * network.parameters + width * network.widths[0]) * params["layer0.weight"].dtype.itemsize
    size = 1 if large else max(1, GROUP_BYTES // step_bytes)
    order = np.argsort(-times.steps, kind="stable")
    stacked = {name: repeat(value, len(block)) for name, value in params.items()}
    losses = np.zeros(len(block))
    for start in range(0, len(block), size):
        members = order[start : start + size]
        group = {name: value[start : start + size] for name, value in stacked.items()}
        losses[members] = _train_group(network, group, params, [block.tables[k] for k in members], members, times, plan, l2)
    if np.any(order[1:] < order[:-1]):
        back = np.argsort(order, kind="stable")
        stacked = {name: value[back] for name, value in stacked.items()}
    return Trained(stacked, times.steps, {"loss": (losses, seen)})


def is_plain(plan: Plan) -> bool:
    """The step is ``w -= rate * g`` and nothing else."""
    sgd = plan.local.optimizer
    return isinstance(sgd, SGD) and not (sgd.momentum or plan.local.clip or plan.proximal) and plan.drift is None


def _train_group(
    network: Network,
    w: Params,
    anchor: Params,
    tables: Sequence[Table],
    members: np.ndarray,
    times: Schedule,
    plan: Plan,
    l2: float,
) -> np.ndarray:
    """Train the stacked params ``w`` of a group in place; members are sorted by steps, most first. Returns each one's sum of losses."""
    dtype = anchor["layer0.weight"].dtype
    chosen, count = lanes(times, members)
    clients, steps, width = chosen.shape
    labels = np.zeros((clients, int(times.rows[members].max(initial=1))), dtype=tables[0].y.dtype)
    for k, table in enumerate(tables):
        labels[k, : len(table)] = table.y
    every, positions = np.arange(width), np.arange(clients)[:, None]
    active = np.count_nonzero(count, axis=0)
    x = np.empty((clients, width, network.widths[0]), dtype=dtype)
    losses = np.zeros(clients)
    plain = is_plain(plan)
    move = _plain_step(network, plan, l2) if plain else _general_step(network, w, anchor, members, plan, l2)
    for step in range(steps):
        a = int(active[step])
        if plan.local.batch_size or step == 0:  # a full batch is the same at every step
            for k in range(a):
                tables[k].x.take(chosen[k, step], axis=0, out=x[k], mode="clip")
        own = {name: value[:a] for name, value in w.items()}
        values = network.forward(own, x[:a])
        targets = network.targets(labels[positions[:a], chosen[:a, step]], dtype)
        delta, loss = network.slope(values.pop(), targets)
        real = every < count[:a, step, None]
        loss *= real
        losses[:a] += loss.sum(axis=1)
        delta *= (real / count[:a, step, None]).astype(dtype)[..., None]
        move(own, values, delta, step)
    return losses


def _plain_step(network: Network, plan: Plan, l2: float) -> Callable[[Params, list[np.ndarray], np.ndarray, int], None]:
    decay = 1 - plan.rate * l2

    def move(own: Params, values: list[np.ndarray], delta: np.ndarray, step: int) -> None:
        def add(name: str, change: np.ndarray) -> None:
            if l2 and name.endswith("weight"):
                own[name] *= decay
            own[name] += change

        delta *= -plan.rate  # one small array instead of every gradient
        network.backward(own, values, delta, add)

    return move


def _general_step(
    network: Network, w: Params, anchor: Params, members: np.ndarray, plan: Plan, l2: float
) -> Callable[[Params, list[np.ndarray], np.ndarray, int], None]:
    drift = plan.drift and {name: v[members] if plan.drift_per_client else v[None] for name, v in plan.drift.items()}
    state = plan.local.optimizer.init(w)

    def move(own: Params, values: list[np.ndarray], delta: np.ndarray, step: int) -> None:
        a = len(delta)
        gradient: Params = {}
        network.backward(own, values, delta, gradient.__setitem__)
        if l2:
            for layer in range(network.layers):
                gradient[f"layer{layer}.weight"] += l2 * own[f"layer{layer}.weight"]
        clip_(gradient, plan.local.clip, stacked=True)
        along = direction(gradient, own, anchor, plan, drift and {name: v[:a] for name, v in drift.items()})
        moments = {kind: {name: v[:a] for name, v in entries.items()} for kind, entries in state.items()}
        plan.local.optimizer.step(own, along, moments, plan.rate, step + 1)

    return move
