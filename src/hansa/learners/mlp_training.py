"""Local training of a perceptron at the clients of a block.

There are two regimes, and which one is used depends on the model alone. A step of a small model costs more to call than to compute, so
small models are trained stacked: one batched product per layer and step, for a group of clients whose weights and rows fit in the cache
together. A step of a large model costs what its memory traffic costs, so large models are trained one client after another; plain SGD
then never forms a gradient (:mod:`hansa.learners.mlp_delayed`).

Clients are sorted by their number of steps, so that those still training are always a leading slice of the stacked arrays. Short
mini-batches are padded with rows whose share is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hansa.core.blocks import LoadedBlock
from hansa.core.local import SGD, Plan, Schedule, Trained, clip_, direction, schedule
from hansa.core.params import Params
from hansa.core.pixels import take_each
from hansa.learners.mlp_batches import batches
from hansa.learners.mlp_delayed import train_delayed
from hansa.learners.mlp_network import Network, Reused, Room

LARGE = 100_000
"""Parameters from which clients are trained one after another: about where the weights of one fill a core's own cache."""

GROUP_BYTES = 1 << 20
"""What the weights, the gradients and the mini-batches of a stacked group may take together: about a core's own cache."""

Move = Callable[[Params, list[np.ndarray], np.ndarray, int], None]
"""(params, values of the forward pass, delta of the output, step): one step in place. The deltas of plain SGD are minus the learning
rate times those of the others: one small array is scaled instead of every gradient."""


def train(network: Network, params: Params, block: LoadedBlock, plan: Plan, l2: float) -> Trained:
    """Train every client of the block from the same params, by the step that :mod:`hansa.core.local` defines."""
    times = schedule(block, plan.local)
    large = network.parameters >= LARGE
    if large and not l2 and is_plain(plan):
        stacked, losses = train_delayed(network, params, block.tables, times, plan.rate)
    else:
        width = plan.local.batch_size or int(times.rows.max(initial=1))
        step_bytes = (2 * network.parameters + width * network.widths[0]) * params["layer0.weight"].dtype.itemsize
        group = 1 if large else max(1, GROUP_BYTES // step_bytes)
        stacked, losses = _train_stacked(network, params, block, times, plan, l2, group)
    return Trained(stacked, times.steps, {"loss": (losses, (times.rows * times.epochs).astype(np.float64))})


def is_plain(plan: Plan) -> bool:
    """The step is ``w -= rate * g`` and nothing else."""
    sgd = plan.local.optimizer
    return isinstance(sgd, SGD) and not (sgd.momentum or plan.local.clip or plan.proximal) and plan.drift is None


def _train_stacked(
    network: Network, params: Params, block: LoadedBlock, times: Schedule, plan: Plan, l2: float, group: int
) -> tuple[Params, np.ndarray]:
    """Train ``group`` clients at a time. Returns the params stacked (clients, ...), and each client's sum of losses."""
    order = np.argsort(-times.steps, kind="stable")
    tables, dtype = [block.tables[k] for k in order], params["layer0.weight"].dtype
    todo, features = batches(times, order), [table.x for table in tables]
    labels, real = todo.labels(tables), todo.real()
    scale = (real * ((-plan.rate if is_plain(plan) else 1) / np.maximum(todo.count, 1)[..., None])).astype(dtype)
    losses = np.zeros(scale.shape, dtype)
    stacked = {name: np.repeat(value[None], len(block), axis=0) for name, value in params.items()}
    room = Reused()
    width = scale.shape[2]
    for first in range(0, len(block), group):
        here = slice(first, min(first + group, len(block)))
        w = {name: value[here] for name, value in stacked.items()}
        move = _plain(network, plan, l2, room) if is_plain(plan) else _general(network, w, params, order[here], plan, l2, room)
        rows, active = todo.rows[here], np.count_nonzero(todo.count[here], axis=0).tolist()
        x = room("x", (here.stop - first, width, network.widths[0]), dtype)
        for step, a in enumerate(active):
            if a == 0:
                break
            if step == 0 or a != active[step - 1]:
                own = {name: value[:a] for name, value in w.items()}
            if plan.local.batch_size or step == 0:  # a full batch is the same at every step
                take_each(features[first : first + a], rows[:a, step], x[:a])
            now = slice(first, first + a), step
            values = network.forward(own, x[:a], room)
            delta, losses[now] = network.slope(values.pop(), labels[now], scale[now])
            move(own, values, delta, step)
    back = np.argsort(order, kind="stable")
    if np.any(order[1:] < order[:-1]):
        stacked = {name: value[back] for name, value in stacked.items()}
    return stacked, np.where(real, losses, 0).sum(axis=(1, 2), dtype=np.float64)[back]


def _plain(network: Network, plan: Plan, l2: float, room: Room) -> Move:
    decay = 1 - plan.rate * l2

    def move(own: Params, values: list[np.ndarray], delta: np.ndarray, step: int) -> None:
        def add(name: str, change: np.ndarray) -> None:
            w = own[name]
            if l2 and name.endswith("weight"):
                w *= decay
            w += change

        network.backward(own, values, delta, add, room)

    return move


def _general(network: Network, w: Params, anchor: Params, members: np.ndarray, plan: Plan, l2: float, room: Room) -> Move:
    drift = plan.drift and {name: v[members] if plan.drift_per_client else v[None] for name, v in plan.drift.items()}
    state = plan.local.optimizer.init(w)

    def move(own: Params, values: list[np.ndarray], delta: np.ndarray, step: int) -> None:
        a, gradient = len(delta), Params()
        network.backward(own, values, delta, gradient.__setitem__, room)
        if l2:
            for layer in range(network.layers):
                gradient[f"layer{layer}.weight"] += l2 * own[f"layer{layer}.weight"]
        clip_(gradient, plan.local.clip, stacked=True)
        along = direction(gradient, own, anchor, plan, drift and {name: v[:a] for name, v in drift.items()})
        moments = {kind: {name: v[:a] for name, v in entries.items()} for kind, entries in state.items()}
        plan.local.optimizer.step(own, along, moments, plan.rate, step + 1)

    return move
