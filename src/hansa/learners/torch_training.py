"""Local training of a block's clients with PyTorch: one after another, or as one stacked batch with ``torch.func``.

Both take the same mini-batches and the same local step (:mod:`hansa.core.local`), and agree up to rounding. One after another is
exact: a client's bits do not depend on the block it is in. Stacked spreads the cost of PyTorch's own Python over the clients.
"""

from __future__ import annotations

import copy
import re
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.errors import InputError
from hansa.core.local import SGD, LocalOptimizer, Plan, Schedule, Trained, clip_, direction, repeat, schedule
from hansa.core.params import Params
from hansa.learners.torch_losses import RowLoss
from hansa.learners.torch_model import Model, array, seed_generators, tensor


def train_one_by_one(model: Model, loss: RowLoss, l2: float, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
    """Train each client of the block from the same params, in the model's own memory."""
    times, noise = schedule(block, plan.local), block.keys("dropout")
    trained: list[Params] = []
    sums = np.zeros(len(block))
    for k, table in enumerate(block.tables):
        model.load(params).train()
        seed_generators(int(noise[k]), model.device)
        drift = None if plan.drift is None else {name: d[k] if plan.drift_per_client else d for name, d in plan.drift.items()}
        try:
            sums[k] = _train_one(model, loss, l2, table, list(times.batches(k)), plan, drift)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"client {block.clients[k].id}: a mini-batch of one row (of {len(table)}, with local.batch_size = "
                f"{plan.local.batch_size}), and batch norm cannot train on one row; "
                "write another local.batch_size, or 0 for all rows"
            ) from error
        trained.append(model.params())
    stacked = {name: np.stack([client[name] for client in trained]) for name in trained[0]}
    return Trained(stacked, times.steps, {"loss": (sums, (times.rows * times.epochs).astype(np.float64))})


def _train_one(
    model: Model, loss: RowLoss, l2: float, table: Table, batches: list[np.ndarray], plan: Plan, drift: Params | None
) -> float:
    """Train on one client's mini-batches; returns the sum of its rows' losses."""
    module, device, optimizer = model.module, model.device, plan.local.optimizer
    leaves, weights = list(model.weights.values()), {name: w.detach() for name, w in model.weights.items()}
    anchor = {name: w.clone() for name, w in weights.items()} if plan.proximal else {}
    drift = None if drift is None else {name: tensor(d, device) for name, d in drift.items()}
    state = optimizer.init(weights)
    x, y = model.rows(table.x), model.rows(table.y)
    values = []
    for count, rows in enumerate(batches, 1):
        index = tensor(rows, device)
        value = loss(module(x.index_select(0, index)), y.index_select(0, index)).mean()
        gradient = torch.autograd.grad(value, leaves, materialize_grads=True)
        along = step_direction(gradient, weights, anchor, plan, drift, l2, stacked=False)
        advance(optimizer, weights, along, state, plan.rate, count)
        values.append(value.detach())
    if not values:
        return 0.0
    means = torch.stack(values).double().cpu().numpy()
    return float((means * [len(rows) for rows in batches]).sum())


def step_direction(
    gradient: Any, weights: Params, anchor: Params, plan: Plan, drift: Params | None, l2: float, *, stacked: bool
) -> Params:
    """The direction of a local step from the gradient of the mean loss, without changing what autograd returned."""
    if l2:
        gradient = torch._foreach_add(gradient, list(weights.values()), alpha=l2)
    elif plan.local.clip or plan.proximal or drift is not None:
        # Autograd may return one tensor for two parameters, or an expanded one; neither can be changed in place.
        gradient = [g.clone(memory_format=torch.contiguous_format) for g in gradient]
    named = dict(zip(weights, gradient, strict=True))
    clip_(named, plan.local.clip, stacked=stacked)
    return direction(named, weights, anchor, plan, drift)


def advance(optimizer: LocalOptimizer, weights: Params, along: Params, state: dict[str, Params], rate: float, count: int) -> None:
    """One step in place. SGD, whose arithmetic is cheaper than the calls that do it, moves all params in one call."""
    if not isinstance(optimizer, SGD):
        return optimizer.step(weights, along, state, rate, count)
    moved = list(along.values())
    if optimizer.momentum:
        velocity = list(state["velocity"].values())
        torch._foreach_mul_(velocity, optimizer.momentum)
        torch._foreach_add_(velocity, moved)
        moved = list(torch._foreach_add(moved, velocity, alpha=optimizer.momentum)) if optimizer.nesterov else velocity
    torch._foreach_add_(list(weights.values()), moved, alpha=-float(rate))


def stacked_means(model: Model, loss: RowLoss) -> Callable[..., Tensor]:
    """(stacked weights, x, y, share) -> sum of share * row losses of each client, (clients,), all clients at once.

    Clients share nothing, so that the gradient of the sum over clients is every client's own gradient, stacked.
    """
    others = model.others

    def objective(weights: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        return (loss(functional_call(model.module, weights | others, (x,)), y) * share).sum()

    return vmap(objective, randomness="error")


def train_stacked(model: Model, loss: RowLoss, l2: float, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
    """Train all clients of the block at once.

    Clients are sorted by their number of steps, so that those still training are a leading slice; short mini-batches are padded
    with rows of share zero.
    """
    times, device, optimizer = schedule(block, plan.local), model.device, plan.local.optimizer
    model.load(params).train()
    order = np.argsort(-times.steps, kind="stable")
    steps = times.steps[order]
    x, y = (model.rows(np.concatenate([getattr(table, side) for table in block.tables])) for side in "xy")
    rows, size = padded(times, order)
    lanes = np.arange(rows.shape[2]) < size[..., None]
    share = tensor(lanes / np.maximum(size, 1)[..., None], device).to(model.dtype)
    index, counts = tensor(rows, device), tensor(size.astype(np.float64), device)
    weights = {name: w.detach().expand(len(block), *w.shape).clone() for name, w in model.weights.items()}
    anchor = {name: w.clone() for name, w in weights.items()} if plan.proximal else {}
    drift = None if plan.drift is None else {n: _per_client(d, plan, order, device) for n, d in plan.drift.items()}
    state = optimizer.init(weights)
    means = stacked_means(model, loss)
    sums = torch.zeros(len(block), dtype=torch.float64, device=device)
    active = -1
    for step in range(len(index)):
        a = int(np.searchsorted(-steps, -step, side="left"))  # clients 0..a-1 have more than `step` steps
        if a != active:
            active, w, near = a, _first(weights, a), _first(anchor, a)
            leaves = {name: value.detach().requires_grad_() for name, value in w.items()}
            memory = {name: _first(value, a) for name, value in state.items()}
            pull = None if drift is None else _first(drift, a)
        chosen = index[step, :a]
        batch = (side.index_select(0, chosen.reshape(-1)).reshape(*chosen.shape, *side.shape[1:]) for side in (x, y))
        value = means(leaves, *batch, share[step, :a])
        gradient = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
        along = step_direction(gradient, w, near, plan, pull, l2, stacked=True)
        advance(optimizer, w, along, memory, plan.rate, step + 1)
        sums[:a] += value.detach().double() * counts[step, :a]
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
    stacked = {
        name: array(weights[name][back]) if name in weights else repeat(array(model.others[name]), len(block))
        for name in model.names
    }
    return Trained(stacked, times.steps, {"loss": (array(sums[back]), (times.rows * times.epochs).astype(np.float64))})


def _per_client(drift: Any, plan: Plan, order: np.ndarray, device: torch.device) -> Tensor:
    return tensor(drift[order], device) if plan.drift_per_client else tensor(drift, device).expand(len(order), *np.shape(drift))


def _first(params: Params, clients: int) -> Params:
    return {name: value[:clients] for name, value in params.items()}


def padded(times: Schedule, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mini-batches of all steps as row numbers in the block's concatenated tables, clients in ``order``.

    Returns index, int64 (steps, clients, batch), padded with a client's own first row, and how many are real, int64 (steps,
    clients).
    """
    start = np.concatenate([[0], np.cumsum(times.rows)])
    width, most = int(times.batch.max(initial=1)), int(times.steps.max(initial=0))
    index = np.zeros((most, len(order), width), dtype=np.int64)
    size = np.zeros((most, len(order)), dtype=np.int64)
    for lane, k in enumerate(order):
        rows, batch, per_epoch, steps = int(times.rows[k]), int(times.batch[k]), int(times.steps_per_epoch[k]), int(times.steps[k])
        passes = np.full((times.epochs, per_epoch * batch), -1)
        passes[:, :rows] = times.order[k, :, :rows]
        own = passes.reshape(steps, batch)
        index[:, lane] = start[k] if rows else 0
        index[:steps, lane, :batch] = start[k] + np.maximum(own, 0)
        size[:steps, lane] = (own >= 0).sum(axis=1)
    return index, size


def obstacle_to_stacking(model: Model, loss: RowLoss, x: np.ndarray, y: np.ndarray) -> str | None:
    """Why the module cannot be trained stacked, found by trying on a few rows; None when it can.

    Errors of the plain, unstacked computation are the user's own and are raised.
    """
    module = copy.deepcopy(model.module).train()
    trial = Model(module, model.device)
    some_x, some_y = model.rows(x[:3]), model.rows(y[:3])
    before = {name: value.clone() for name, value in trial.others.items()}
    losses = loss(module(some_x), some_y)
    plain = torch.autograd.grad(losses.mean(), list(trial.weights.values()), materialize_grads=True)
    trial.load(trial.params())
    changed = [name for name, value in trial.others.items() if not torch.equal(value, before[name])]
    if changed:
        return f"{_layer(module, changed[0].rpartition('.')[0])} changes its buffers while training"
    if not losses.ndim:
        return "the loss gives the mean of a mini-batch, not one value per row"
    # Two clients, their rows followed by one of zeros that must not count.
    spread = {name: w.detach().expand(2, *w.shape).clone().requires_grad_() for name, w in trial.weights.items()}
    wide = [torch.cat([side, torch.zeros_like(side[:1])]).expand(2, len(side) + 1, *side.shape[1:]) for side in (some_x, some_y)]
    share = torch.full((2, len(some_x) + 1), 1.0 / len(some_x), dtype=model.dtype, device=model.device)
    share[:, -1] = 0.0
    try:
        with warnings.catch_warnings():
            # Where PyTorch has no batching rule it may loop over the clients, and warn at every step.
            warnings.filterwarnings("error", message="There is a performance drop")
            value = stacked_means(trial, loss)(spread, *wide, share).sum()
            stacked = torch.autograd.grad(value, list(spread.values()), materialize_grads=True)
    except Exception as error:  # noqa: BLE001  # whatever a module raises under vmap is the reason
        where = _layer(module, _raising(module, error.__traceback__))
        if "randomness" in str(error):
            return f"{where} draws random numbers, which must not depend on the other clients of a block"
        operation = re.search(r"[Bb]atching rule .*(aten::\w+)", str(error))
        if operation:
            return f"{where} uses {operation[1]}, which PyTorch cannot batch"
        return f"{where} cannot be batched: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    near = max(1e-5, 4 * torch.finfo(model.dtype).eps)
    for name, g, s in zip(spread, plain, stacked, strict=True):
        if not torch.allclose(s[0], g, rtol=max(1e-3, near), atol=near * (1 + float(g.abs().max()))):
            return f"the rows of a mini-batch influence each other (seen in the gradient of {name!r})"
    return None


def _layer(module: nn.Module, name: str) -> str:
    layer = module.get_submodule(name)
    return f"layer {name!r} ({type(layer).__name__})" if name else f"the module ({type(layer).__name__})"


def _raising(module: nn.Module, trace: TracebackType | None) -> str:
    """The name of the innermost layer on the way to an error."""
    names = {id(layer): name for name, layer in module.named_modules()}
    found = [names[id(frame.f_locals["self"])] for frame, _ in traceback.walk_tb(trace) if id(frame.f_locals.get("self")) in names]
    return found[-1] if found else ""


def worth_stacking(model: Model, clients: int) -> bool:
    """Whether a stacked batch is faster: measured on a CPU with perceptrons, convolutions and logistic regression.

    Stacked, a step's fixed cost in PyTorch (0.3 ms and more) is paid once, 2 to 9 times faster from 10 to 32 clients of small
    modules. For large ones the arithmetic counts, and weights that stay in the cache while their client trains are worth more.
    """
    if model.device.type == "cuda":
        return clients > 1
    return clients >= 4 and sum(w.numel() for w in model.weights.values()) <= 100_000
