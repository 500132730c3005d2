"""What a member of a gang does with a PyTorch module: it takes its place, builds its part, and plays rounds of steps with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from hansa.core.contracts import Collectives, Schema
from hansa.core.errors import InputError
from hansa.core.params import Params
from hansa.core.randomness import derive
from hansa.core.synchrony import GangCall, Part
from hansa.core.worker import Worker
from hansa.learners.parallel import checkpoint
from hansa.learners.parallel.batches import Batch, share_of
from hansa.learners.parallel.group import come_together
from hansa.learners.parallel.optimizers import optimizer_of, refuse_optimizer
from hansa.learners.parallel.pipeline import Pipe, cut, microbatches_of
from hansa.learners.parallel.place import place_of
from hansa.learners.parallel.replicas import joined, refuse_compression
from hansa.learners.parallel.tensor import plan_of, split_layers
from hansa.learners.torch_model import Model, array, scoped, seed_generators, tensor

if TYPE_CHECKING:
    from hansa.learners.torch_bound import BoundTorch


class Member:
    """A :class:`hansa.core.synchrony.Trainer`. Built from the params of the call before the first round, else from the last checkpoint.

    All members build and play together: every step of either may be a collective. InputError for a module, a layout and options that do
    not go together; where it is raised it is raised in all members.
    """

    def __init__(self, learner: BoundTorch, call: GangCall, worker: Worker, schema: Schema, gang: Collectives) -> None:
        refuse_optimizer(call.options)
        refuse_compression(call.options, call.layout)
        if call.round > 1 and not checkpoint.exists(call.home, call.round - 1):
            raise InputError(f"{call.home}: there is no checkpoint of round {call.round - 1}; restore it, or start a new run")
        self._group = come_together(gang, learner.options.device)
        self.lasting = self._group.own or not distributed.is_initialized()
        self.round = call.round - 1
        self._learner = learner
        try:
            with scoped(self._group.device):
                self._build(call, worker, schema, gang)
        except BaseException:
            self.end()
            raise

    def _build(self, call: GangCall, worker: Worker, schema: Schema, gang: Collectives) -> None:
        options, layout, device = call.options, call.layout, self._group.device
        self._multiple = microbatches_of(options, layout.pipeline) if layout.pipeline > 1 else 1
        model = self._learner.fresh(device)
        if call.params is not None:
            model.load(call.params)
        _refuse_module(model, call)
        self._place = place_of(layout, gang.rank, device)
        self._module = self._own_part(model, call)
        held = _tensors(self._module)
        self._names = [name for name in model.names if name in held]
        self._forward, self._meet = joined(self._module, self._place, options, device)
        self._optimizer = optimizer_of(options, self._module.parameters())
        self._replica = self._place.replica if options.apart else None
        if call.round > 1:
            checkpoint.load(call.home, call.round - 1, self._forward, self._optimizer, self._replica)
            self._optimizer.zero_grad()
        share = share_of(worker, schema, gang, layout.shares, self._place.share)
        self._share = share if self._replica is None else share.part(*_shares_of(self._replica, call))
        self._x, self._y = (model.rows(side) for side in (self._share.table.x, self._share.table.y))
        self._pipe: Pipe | None = None
        if layout.pipeline > 1:
            self._pipe = Pipe(self._forward, self._place, device, options.schedule, self._multiple, self._loss)
        self._sum, self._rows = torch.zeros((), dtype=torch.float64, device=device), 0

    def _own_part(self, model: Model, call: GangCall) -> nn.Module:
        layout, module = call.layout, model.module
        plan = plan_of(module, call.options.tensor_plan) if layout.tensor > 1 else {}
        if layout.pipeline > 1:
            module = cut(module, layout.pipeline, call.options.stages)[self._place.stage]
        if layout.tensor > 1:
            split_layers(module, self._place.part("tensor"), plan)
        return module.train()

    def play(self, call: GangCall) -> Part:
        """Play the steps of a round, write its checkpoint, and give what this member answers for."""
        options, device = call.options, self._group.device
        with scoped(device):
            if options.apart:
                self._set(call.params)
            for group in self._optimizer.param_groups:
                group["lr"] = options.learning_rate * call.rate
            count = options.steps or self._share.steps_of_pass(options.batch_size)
            path = (call.seed, "gang") if self._replica is None else (call.seed, "replica", self._replica)
            first = (call.round - 1) * count
            for step, batch in enumerate(self._share.batches(first, count, options.batch_size, self._multiple, *path), first):
                # Members with the same rows draw the same numbers: what they do not split must stay alike.
                seed_generators(derive(call.seed, "dropout", step, self._place.share, self._place.stage), device)
                self._step(batch)
            checkpoint.save(call.home, call.round, self._forward, self._optimizer, self._replica)
            self.round = call.round
            return Part(self._params(options.apart), self._place.replica, self._forget_losses())

    def end(self) -> None:
        self._group.end()

    def _step(self, batch: Batch) -> None:
        device = self._group.device
        rows = tensor(batch.rows, device)
        x, self._target = self._x.index_select(0, rows), self._y.index_select(0, rows)
        self._weight = tensor(batch.weight, device)
        self._rows += batch.real
        self._optimizer.zero_grad(set_to_none=True)
        if self._pipe is not None:
            value = self._pipe.step(x)
        else:
            loss = self._loss(self._forward(x), torch.arange(len(x), device=device))
            loss.backward()
            value = loss.detach().double()
        self._sum += value / batch.one
        self._meet()
        if self._learner.options.l2:
            with torch.no_grad():
                for p in self._module.parameters():
                    if p.grad is not None:
                        p.grad.add_(p, alpha=self._learner.options.l2)
        self._optimizer.step()

    def _loss(self, output: Tensor, places: Tensor) -> Tensor:
        """The weighted sum of row losses whose gradients, averaged over shares, are the gradient of the batch's mean."""
        losses, weight = self._learner.row_loss(output, self._target[places]), self._weight[places]
        if not losses.ndim:
            raise InputError(
                "learner.loss gives the mean of a batch; a gang needs one value per row, (rows,), to put batches together"
            )
        return (losses * weight.to(losses.dtype)).sum()

    def _forget_losses(self) -> tuple[float, int]:
        """What was summed since the last time, of rows that no other member reports."""
        told = (float(self._sum), self._rows) if self._place.last and self._place.first_of_tensor else (0.0, 0)
        self._sum, self._rows = torch.zeros_like(self._sum), 0
        return told

    def _params(self, apart: bool) -> Params:
        """The entries of this member's stage, put together from all who hold parts of them: every one of these has to call this."""
        held, leads, params = _tensors(self._module), self._place.leads(apart), dict[str, np.ndarray]()
        for name in self._names:
            value = held[name].detach()
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if leads:
                params[name] = array(whole)
        return params

    def _set(self, params: Params | None) -> None:
        assert params is not None
        own: dict[str, Any] = {name: tensor(params[name], self._group.device) for name in self._names}
        set_model_state_dict(self._module, own, options=StateDictOptions(full_state_dict=True, strict=False))


def _tensors(module: nn.Module) -> dict[str, Any]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _shares_of(replica: int, call: GangCall) -> tuple[int, int]:
    return replica * call.layout.shard, (replica + 1) * call.layout.shard - 1


def _refuse_module(model: Model, call: GangCall) -> None:
    """InputError for a module whose rows influence each other while it is trained, where its batches are cut."""
    layout = call.layout
    cuts = layout.shares > 1 and not (call.options.apart and layout.shard == 1)
    for name, layer in model.module.named_modules():
        if isinstance(layer, _BatchNorm) and (cuts or layout.pipeline > 1 or call.options.apart):
            raise InputError(
                f"layer {name!r} ({type(layer).__name__}) would take its statistics from a member's part of a batch (parallel: {layout}); "
                "write nn.GroupNorm or nn.LayerNorm, or parallel with no factor but tensor"
            )
