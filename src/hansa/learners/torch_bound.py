"""A PyTorch module that knows the data.

The objective of a client with rows (x_i, y_i), i = 1..n, is the mean

    F(w) = 1/n sum_i loss(module(x_i; w), y_i) + l2/2 |w|^2

over all trained parameters w. Params leave the learner as NumPy arrays, so that nothing else needs PyTorch: parameters with
``requires_grad`` are weights; frozen parameters and floating-point buffers are buffers; other buffers are counters. Buffers that a
module does not store in its ``state_dict`` stay with the module.

Training runs in training mode; gradient, losses, evaluation and prediction in evaluation mode, where a row's output depends on that
row alone (batch norm uses its running statistics, dropout is off).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.contracts import Collectives, Schema
from hansa.core.errors import InputError
from hansa.core.local import Plan, Trained
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.pixels import as_array
from hansa.core.randomness import derive
from hansa.core.synchrony import GangCall, Trainer
from hansa.core.updates import Update, prefixed
from hansa.core.worker import Worker
from hansa.learners.framework import Bound
from hansa.learners.linear import encode
from hansa.learners.tasks import refuse_labels, refuse_outputs
from hansa.learners.torch import TorchLearner
from hansa.learners.torch_losses import RowLoss, measure, name_of, prediction, row_loss, total
from hansa.learners.torch_memory import train_in_groups
from hansa.learners.torch_model import Model, array, build, device_named, in_layout, laid_out, materialise, scoped
from hansa.learners.torch_perceptron import Perceptron, perceptron_of
from hansa.learners.torch_training import obstacle_to_stacking, train_one_by_one, train_stacked, worth_stacking

ROWS_AT_ONCE = 256
"""Rows of one forward pass outside training: enough for the arithmetic, and few for what convolutions hold in between."""


@dataclass(frozen=True)
class BoundTorch(Bound):
    """A module, its loss and its metrics, for the data of a schema."""

    options: TorchLearner
    schema: Schema

    @cached_property
    def model(self) -> Model:
        device, shape = device_named(self.options.device), self.schema.shape
        if device.type != "cpu" or not shape or np.dtype(self.schema.dtype).kind not in "bf":
            return self.fresh(device)
        with scoped(device):
            return Model(laid_out(self._built(derive(0, "module")), shape), device)

    def fresh(self, device: torch.device) -> Model:
        """A module that nobody else has, on a device."""
        with scoped(device):
            return Model(self._built(derive(0, "module")), device)

    def assembled(self, call: GangCall, worker: Worker, schema: Schema, gang: Collectives) -> Trainer:
        """This member's part of a gang that trains the module; all members call it. InputError as :class:`Member` raises it."""
        from hansa.learners.parallel.member import Member

        return Member(self, call, worker, schema, gang)

    @cached_property
    def row_loss(self) -> RowLoss:
        return row_loss(self.options.loss)

    @cached_property
    def batched_loss(self) -> RowLoss:
        return row_loss(self.options.loss, batched=True)

    def _built(self, key: int) -> nn.Module:
        module = build(self.options.module, self.options.options, key)
        materialise(module, self.schema)
        return module

    def bind(self, schema: Schema) -> BoundTorch:
        return bound(self.options, schema)

    def arrays(self, table: Table) -> Table:
        """x to the module's floating type (float32), whole numbers to int64; y to class numbers, or to floats where there are none.

        InputError for features that are not numbers and for a label that is not one of the classes.
        """
        x = self.features(table.x)
        if table.y is None:
            return Table(x)
        y = np.asarray(table.y)
        if self.schema.classes is not None:
            y = encode(y, self.schema.classes)
        whole = y.dtype.kind in "iu" and not self.needs & {"numbers", "two classes"}
        return Table(x, y.astype(np.int64 if whole else self.model.floating, copy=False))

    def features(self, x: Any) -> Any:
        """Features as the module takes them."""
        values = as_array(x)
        if values.dtype.kind not in "biuf":
            raise InputError(f"the features have type {values.dtype} and PyTorch takes numbers only; add a preparation to the job")
        return values.astype(np.int64 if values.dtype.kind in "iu" else self.model.floating, copy=False)

    def kinds(self) -> Kinds:
        return self.model.kinds()

    def init(self, seed: int) -> Params:
        """The module's own initial weights; a factory runs under the seed, and PyTorch's global random state stays as it is."""
        with scoped(self.model.device):
            return Model(self._built(derive(seed, "init")), self.model.device).params()

    def train(self, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
        with scoped(self.model.device):
            perceptron = self._perceptron(block)
            if perceptron is not None and perceptron.takes(plan):
                return perceptron.train(params, block, plan)
            if self._stacks(block):

                def stacked(group: LoadedBlock, own: Plan) -> Trained:
                    return train_stacked(self.model, self.batched_loss, self.options.l2, params, group, own)

                return train_in_groups(stacked, block, plan, self.model.device)
            return train_one_by_one(self.model, self.row_loss, self.options.l2, params, block, plan)

    def _perceptron(self, block: LoadedBlock) -> Perceptron | None:
        """The module as a perceptron, where it is one and the job leaves the way of training open."""
        o, model, longest = self.options, self.model, int(np.argmax(block.rows))
        ours = o.batch == "auto" and o.loss == "cross_entropy" and not o.l2 and self.schema.classes is not None
        if not ours or model.device.type != "cpu" or not block.rows[longest]:
            return None
        if not hasattr(model, "perceptron"):
            model.perceptron = perceptron_of(model, block.tables[longest].x)
        return model.perceptron

    def _stacks(self, block: LoadedBlock) -> bool:
        model, batch, longest = self.model, self.options.batch, int(np.argmax(block.rows))
        if batch == "one_by_one" or not block.rows[longest] or (batch == "auto" and not worth_stacking(model, len(block))):
            return False
        if not hasattr(model, "obstacle"):
            table = block.tables[longest]
            model.obstacle = obstacle_to_stacking(model, self.batched_loss, table.x, table.y)
            if model.obstacle and batch == "auto":
                warnings.warn(
                    f"{type(model.module).__name__}: {model.obstacle}; clients are trained one after another "
                    '(learner.batch = "one_by_one" says so without this warning)',
                    stacklevel=3,
                )
        if model.obstacle and batch == "stacked":
            raise InputError(f'learner.batch = "stacked": {model.obstacle}; write "auto" or "one_by_one"')
        return model.obstacle is None

    def _chunks(self, table: Table) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(table), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            # A copy lies aligned, wherever the rows lay: the bits must not depend on that.
            yield self.model.rows(table.x[rows]).clone(), self.model.rows(table.y[rows]).clone()

    def gradient(self, params: Params, block: LoadedBlock) -> Update:
        """Gradient of each client's F at ``params``: ``gradient/<name>`` for the weights; metric ``loss``, without the penalty."""
        sums = np.zeros(len(block))
        with scoped(self.model.device):
            module = self.model.load(params).eval()
            weights = {name: w.detach() for name, w in self.model.weights.items()}
            gradients: list[Params] = []
            for k, table in enumerate(block.tables):
                mean = {name: w * self.options.l2 for name, w in weights.items()}
                for x, y in self._chunks(table):
                    losses = self.row_loss(module(x), y)
                    value = losses.mean() * (len(x) / len(table))
                    parts = torch.autograd.grad(value, list(self.model.weights.values()), materialize_grads=True)
                    torch._foreach_add_(list(mean.values()), parts)
                    sums[k] += total(losses, len(x))
                gradients.append({name: array(g) for name, g in mean.items()})
        stacked = {name: np.stack([client[name] for client in gradients]) for name in weights}
        return Update(prefixed(stacked, "gradient"), block.weight, {"loss": (sums, block.rows.astype(np.float64))})

    def hessian(self, params: Params, block: LoadedBlock) -> Update:
        raise InputError('learner "torch" offers no Hessian; choose an algorithm that works with gradients, or a linear model')

    def losses(self, candidates: Sequence[Params], block: LoadedBlock) -> Update:
        """Each client's F under several params: ``losses`` (clients, candidates), float64."""
        values = np.zeros((len(block), len(candidates)))
        with scoped(self.model.device), torch.no_grad():
            for c, params in enumerate(candidates):
                module = self.model.load(params).eval()
                penalty = 0.5 * self.options.l2 * sum(float(w.double().square().sum()) for w in self.model.weights.values())
                for k, table in enumerate(block.tables):
                    sums = sum(total(self.row_loss(module(x), y), len(x)) for x, y in self._chunks(table))
                    values[k, c] = sums / max(len(table), 1) + penalty
        return Update({"losses": values}, block.weight)

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", *(name_of(metric) for metric in self.options.measured))

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """``loss`` (without the penalty) and the metrics of each client's rows."""
        with scoped(self.model.device), torch.no_grad():
            module = self.model.load(params).eval()
            return stack([self._measure(module, table) for table in block.tables])

    def _measure(self, module: nn.Module, table: Table) -> dict[str, tuple[float, float]]:
        loss, metrics = self.options.loss, self.options.measured
        result = {"loss": (0.0, 0.0)} | {name_of(metric): (0.0, 0.0) for metric in metrics}
        ranked: list[tuple[Tensor, Tensor]] = []  # the AUC compares all rows of the client with each other
        for x, y in self._chunks(table):
            output = module(x)
            parts = {"loss": (total(self.row_loss(output, y), len(x)), float(len(x)))}
            parts |= {name_of(m): measure(m, output, y, loss) for m in metrics if m != "auc"}
            for name, (part, count) in parts.items():
                result[name] = (result[name][0] + part, result[name][1] + count)
            if "auc" in metrics:
                ranked.append((output, y))
        if ranked:
            output, y = (torch.cat(side) for side in zip(*ranked, strict=True))
            result["auc"] = measure("auc", output, y, loss)
        return result

    def outputs(self, params: Params, x: np.ndarray) -> np.ndarray:
        """What the module gives for prepared rows, in evaluation mode."""
        with scoped(self.model.device), torch.no_grad():
            module = self.model.load(params).eval()
            chunks = self._chunks(Table(x, np.zeros(len(x))))
            parts = [array(module(part)) for part, _ in chunks] if len(x) else [array(module(self.model.rows(x)))]
            return np.concatenate(parts)

    def predict(self, params: Params, x: Any) -> np.ndarray:
        """Labels for classification, numbers for regression, (rows,); the outputs for a loss of one's own without classes."""
        return prediction(self.outputs(params, self.features(x)), self.options.loss, self.schema.classes)

    def export(self, params: Params) -> nn.Module:
        """The module with these params, in evaluation mode, on the CPU: an ordinary ``torch.nn.Module`` of the caller's own."""
        with scoped(self.model.device):
            return in_layout(copy.deepcopy(self.model.load(params)).cpu().eval(), torch.contiguous_format)

    def step(self, params: Params) -> Any:
        """:meth:`export` as the last step of a scikit-learn pipeline."""
        from hansa.learners.step import step_of

        return step_of(self.export(params), outputs_of, self.options.loss, self.schema.classes)


def outputs_of(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """What a module gives for prepared rows, in evaluation mode, wherever its weights are."""
    mode, model = module.training, Model(module, next((w.device for w in module.parameters()), torch.device("cpu")))
    x = x.astype(np.int64 if x.dtype.kind in "iu" else model.floating, copy=False)
    try:
        with scoped(model.device), torch.no_grad():
            module.eval()
            # A copy lies aligned, wherever the rows lay: the bits must not depend on that.
            starts = range(0, max(len(x), 1), ROWS_AT_ONCE)
            return np.concatenate([array(module(model.rows(x[start : start + ROWS_AT_ONCE]).clone())) for start in starts])
    finally:
        module.train(mode)


def bound(options: TorchLearner, schema: Schema) -> BoundTorch:
    """The learner for these data; it has tried the module on one example, see :meth:`TorchLearner.bind`."""
    learner = BoundTorch(options, schema)
    refuse_labels(options.loss, schema.classes)
    _try(learner, learner.model)
    return learner


def _try(learner: BoundTorch, model: Model) -> None:
    """Refuse a module that cannot take an example of the data, or gives too few outputs, before any training."""
    schema, what = learner.schema, type(model.module).__name__
    dtype = np.dtype(schema.dtype)
    if not schema.shape or dtype.kind not in "biuf":
        return
    example = learner.features(np.zeros((2, *schema.shape), dtype=dtype))
    try:
        output = learner.outputs(model.params(), example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        hint = "; whole numbers stay whole, for embeddings: make them floats for other layers" if dtype.kind in "iu" else ""
        raise InputError(
            f"{what} cannot take rows of shape {schema.shape} and type {example.dtype}: {str(error).splitlines()[0]}{hint}"
        ) from error
    refuse_outputs(what, learner.options.loss, tuple(output.shape), schema.classes)
