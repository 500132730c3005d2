"""Local training of a whole block at once: one batched computation per step, no per-client arithmetic.

Clients are sorted by their number of steps, so that those still training are always a leading slice of the stacked arrays: ragged
clients cost neither masks nor copies. Short last mini-batches are padded with rows of weight zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hansa.core.blocks import LoadedBlock
from hansa.core.local import Plan, Trained, clip_, direction, repeat, schedule
from hansa.core.params import Params

BatchGradient = Callable[[Params, np.ndarray, np.ndarray, np.ndarray], tuple[Params, np.ndarray]]
"""(stacked params, x (clients, batch, ...), y (clients, batch), share (clients, batch)) -> (stacked gradient, losses per row)"""


def train_stacked(params: Params, block: LoadedBlock, plan: Plan, batch_gradient: BatchGradient) -> Trained:
    """Train every client of the block from the same params."""
    local, times = plan.local, schedule(block, plan.local)
    order = np.argsort(-times.steps, kind="stable")
    tables = [block.tables[k] for k in order]
    steps, per_epoch, rows, batch = times.steps[order], times.steps_per_epoch[order], times.rows[order], times.batch[order]
    stacked = {name: repeat(value, len(block)) for name, value in params.items()}
    anchor = {name: np.broadcast_to(value, stacked[name].shape) for name, value in params.items()} if plan.proximal else {}
    drift = None
    if plan.drift is not None:
        drift = {
            name: value[order] if plan.drift_per_client else np.broadcast_to(value, stacked[name].shape)
            for name, value in plan.drift.items()
        }
    state = local.optimizer.init(stacked)
    width = int(batch.max())
    lanes = np.arange(width)
    x = np.zeros((len(block), width, *tables[0].x.shape[1:]), dtype=tables[0].x.dtype)
    y = np.zeros((len(block), width), dtype=tables[0].y.dtype)
    loss_sum = np.zeros(len(block))
    for step in range(int(steps.max(initial=0))):
        a = int(np.searchsorted(-steps, -step, side="left"))  # clients 0..a-1 have more than `step` steps
        epoch, place = np.divmod(step, per_epoch[:a])
        start = place * batch[:a]
        size = np.minimum(batch[:a], rows[:a] - start)
        for k in range(a):
            chosen = times.order[order[k], epoch[k], start[k] : start[k] + size[k]]
            tables[k].x.take(chosen, axis=0, out=x[k, : size[k]], mode="clip")
            y[k, : size[k]] = tables[k].y[chosen]
        share = (lanes < size[:, None]) / size[:, None]
        w = _first(stacked, a)
        gradient, losses = batch_gradient(w, x[:a], y[:a], share)
        loss_sum[:a] += (losses * (share > 0)).sum(axis=1)
        clip_(gradient, local.clip, stacked=True)
        step_along = direction(gradient, w, _first(anchor, a), plan, None if drift is None else _first(drift, a))
        local.optimizer.step(w, step_along, {name: _first(value, a) for name, value in state.items()}, plan.rate, step + 1)
    back = np.argsort(order, kind="stable")
    seen = (rows * local.epochs).astype(np.float64)
    return Trained(
        params={name: value[back] for name, value in stacked.items()},
        steps=times.steps,
        metrics={"loss": (loss_sum[back], seen[back])},
    )


def _first(params: Params, clients: int) -> Params:
    return {name: value[:clients] for name, value in params.items()}
