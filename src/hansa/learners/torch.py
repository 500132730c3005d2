"""Any PyTorch module as a learner.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.contracts import Schema
from hansa.core.errors import InputError, did_you_mean, missing_extra
from hansa.core.local import Plan, Trained
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.randomness import derive
from hansa.core.updates import Update, prefixed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hansa.learners.torch_losses import RowLoss
    from hansa.learners.torch_model import Model

ROWS_AT_ONCE = 4096
"""Rows of one forward pass outside training."""

_NEEDS: dict[str, frozenset[str]] = {
    "cross_entropy": frozenset({"classes"}),
    "binary_cross_entropy": frozenset({"two classes"}),
    "mse": frozenset({"numbers"}),
    "l1": frozenset({"numbers"}),
    "huber": frozenset({"numbers"}),
    "poisson_nll": frozenset({"numbers"}),
}
_METRICS = {"classes": ("accuracy",), "two classes": ("accuracy", "auc"), "numbers": ("mse", "mae")}


@dataclass(frozen=True)
class TorchLearner:
    """A ``torch.nn.Module``, trained by gradient steps.

    module:   the module itself, whose own initial weights are then used; or a function (or class) that makes one, as a Python object
              or by name: ``"package.module:factory"`` or ``"path/to/file.py:factory"``.
    options:  arguments of the factory.
    loss:     by name, as ``torch.nn.functional`` defines it: "cross_entropy" (outputs (rows, classes)), "binary_cross_entropy" (one
              logit per row), "mse", "l1", "huber", "poisson_nll" (the output is the log of the rate); or a function
              (output, target) -> one value per row, (rows,), or their mean.
    metrics:  beside the loss: "accuracy", "auc" (two classes), "mse", "mae", or functions of the same form as a loss; None takes
              those that suit the loss.
    l2:       penalty l2/2 |w|^2 on every trained parameter, biases included.
    device:   "auto" is CUDA where there is one.
    batch:    how the clients of a block are trained: "one_by_one", or "stacked" as one batch (``torch.func``), which needs layers
              that treat rows independently, draw no random numbers and change no buffers; "auto" stacks where that is faster and
              possible, and warns once, with the reason, where it is not possible.

    The same job gives the same bits on a CPU. Trained one by one, a client's bits do not even depend on its block; stacked they agree up to
    rounding. On CUDA, kernels that PyTorch lists as non-deterministic (scatter, some pooling) may differ between runs.
    """

    module: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: str | Callable[..., Any] = "cross_entropy"
    metrics: tuple[str | Callable[..., Any], ...] | None = None
    l2: Annotated[float, Ge(0)] = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: Literal["auto", "stacked", "one_by_one"] = "auto"
    name: Literal["torch"] = "torch"

    can: frozenset[str] = field(default=frozenset({"train", "gradient"}), init=False, repr=False)
    schema: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in _NEEDS:
            raise InputError(f"learner.loss = {self.loss!r} is unknown{did_you_mean(self.loss, _NEEDS)}")
        for metric in self.metrics or ():
            known = ("accuracy", "auc", "mse", "mae")
            if isinstance(metric, str) and metric not in known:
                raise InputError(f"learner.metrics: {metric!r} is unknown{did_you_mean(metric, known)}")

    def __getstate__(self) -> dict[str, Any]:
        # The model is built again where the learner arrives: it may lie on a device, and is as large as the params.
        return {name: value for name, value in self.__dict__.items() if name not in ("_model", "_losses")}

    @property
    def needs(self) -> frozenset[str]:
        return _NEEDS[self.loss] if isinstance(self.loss, str) else frozenset()

    @cached_property
    def _model(self) -> Model:
        from hansa.learners.torch_model import Model, device_named, scoped

        device = device_named(self.device)
        with scoped(device):
            return Model(self._built(derive(0, "module")), device)

    @cached_property
    def _losses(self) -> RowLoss:
        from hansa.learners.torch_losses import row_loss

        return row_loss(self.loss)

    def _built(self, key: int) -> nn.Module:
        from hansa.learners.torch_model import build, materialise

        module = build(self.module, self.options, key)
        materialise(module, self.schema)
        return module

    def bind(self, schema: Schema) -> TorchLearner:
        """The learner that knows the data. InputError when the module cannot take such rows, or has too few outputs for the classes."""
        try:
            import torch
        except ImportError as error:
            raise missing_extra("PyTorch", "torch") from error
        bound = replace(self)
        object.__setattr__(bound, "schema", schema)
        dtype, start = np.dtype(schema.dtype), bound._model.params()
        if schema.shape and dtype.kind in "biuf":
            example = bound._features(np.zeros((2, *schema.shape), dtype=dtype))
            try:
                output = bound._outputs(start, example)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                hint = "; whole numbers stay whole, for embeddings: make them floats for other layers" if dtype.kind in "iu" else ""
                raise InputError(
                    f"{type(bound._model.module).__name__} cannot take rows of shape {schema.shape} and type {example.dtype}: "
                    f"{str(error).splitlines()[0]}{hint}"
                ) from error
            classes = len(schema.classes or ())
            if self.loss == "cross_entropy" and (output.ndim < 2 or output.shape[1] < classes):
                raise InputError(
                    f"{type(bound._model.module).__name__} gives outputs of shape {output.shape[1:]} per row and the data has {classes} "
                    f"classes; cross_entropy needs one output per class"
                )
        return bound

    def arrays(self, table: Table) -> Table:
        """x to the module's floating type (float32), whole numbers to int64; y to class numbers, or to floats where there are none."""
        x = self._features(table.x)
        if table.y is None:
            return Table(x)
        y = np.asarray(table.y)
        if self.schema is not None and self.schema.classes is not None:
            from hansa.learners.linear import encode

            y = encode(y, self.schema.classes)
        whole = y.dtype.kind in "iu" and not self.needs & {"numbers", "two classes"}
        return Table(x, y.astype(np.int64 if whole or "classes" in self.needs else self._float, copy=False))

    @property
    def _float(self) -> np.dtype[Any]:
        import torch

        return np.dtype(np.float64 if self._model.dtype == torch.float64 else np.float32)

    def _features(self, x: Any) -> np.ndarray:
        values = np.asarray(x)
        if values.dtype.kind not in "biuf":
            raise InputError(f"the features have type {values.dtype}; PyTorch takes numbers only: add a preparation to the job, or encode them")
        return values.astype(np.int64 if values.dtype.kind in "iu" else self._float, copy=False)

    def kinds(self) -> Kinds:
        return self._model.kinds()

    def init(self, seed: int) -> Params:
        """The module's own initial weights; a factory runs under the seed, and PyTorch's global random state stays as it is."""
        from hansa.learners.torch_model import Model, scoped

        with scoped(self._model.device):
            return Model(self._built(derive(seed, "init")), self._model.device).params()

    def train(self, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
        from hansa.learners import torch_training
        from hansa.learners.torch_model import scoped

        with scoped(self._model.device):
            train = torch_training.train_stacked if self._stacks(block) else torch_training.train_one_by_one
            return train(self._model, self._losses, self.l2, params, block, plan)

    def _stacks(self, block: LoadedBlock) -> bool:
        from hansa.learners.torch_training import obstacle_to_stacking, worth_stacking

        model, rows = self._model, int(np.argmax(block.rows))
        if self.batch == "one_by_one" or not block.rows[rows] or (self.batch == "auto" and not worth_stacking(model, len(block))):
            return False
        if not hasattr(model, "obstacle"):
            table = block.tables[rows]
            model.obstacle = obstacle_to_stacking(model, self._losses, table.x, table.y)
            if model.obstacle and self.batch == "auto":
                warnings.warn(
                    f"{type(model.module).__name__}: {model.obstacle}; clients are trained one after another "
                    '(learner.batch = "one_by_one" says so without this warning)',
                    stacklevel=3,
                )
        if model.obstacle and self.batch == "stacked":
            raise InputError(f'learner.batch = "stacked": {model.obstacle}; write "auto" or "one_by_one"')
        return model.obstacle is None

    def _chunks(self, table: Table) -> Iterator[tuple[Tensor, Tensor]]:
        from hansa.learners.torch_model import tensor

        device = self._model.device
        for start in range(0, len(table), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            # A copy lies aligned, wherever the rows lay: the bits must not depend on that.
            yield tensor(table.x[rows], device).clone(), tensor(table.y[rows], device).clone()

    def gradient(self, params: Params, block: LoadedBlock) -> Update:
        """Gradient of each client's F at ``params``: ``gradient/<name>`` for the weights; metric ``loss``, without the penalty."""
        import torch

        from hansa.learners.torch_losses import total
        from hansa.learners.torch_model import array, scoped

        model, sums = self._model, np.zeros(len(block))
        with scoped(model.device):
            module = model.load(params).eval()
            weights = {name: w.detach() for name, w in model.weights.items()}
            stacked = {name: np.zeros((len(block), *w.shape), dtype=array(w).dtype) for name, w in weights.items()}
            for k, table in enumerate(block.tables):
                mean = {name: w * self.l2 for name, w in weights.items()}
                for x, y in self._chunks(table):
                    losses = self._losses(module(x), y)
                    value = losses.mean() * (len(x) / len(table))
                    parts = torch.autograd.grad(value, list(model.weights.values()), materialize_grads=True)
                    torch._foreach_add_(list(mean.values()), parts)
                    sums[k] += total(losses.detach(), len(x))
                for name, g in mean.items():
                    stacked[name][k] = array(g)
        return Update(prefixed(stacked, "gradient"), block.weight, {"loss": (sums, block.rows.astype(np.float64))})

    def hessian(self, params: Params, block: LoadedBlock) -> Update:
        raise InputError("the torch learner offers no Hessian; choose an algorithm that works with gradients, or learner.name = \"linear\"")

    def losses(self, candidates: Sequence[Params], block: LoadedBlock) -> Update:
        """Each client's F under several params: ``losses`` (clients, candidates), float64."""
        import torch

        from hansa.learners.torch_losses import total
        from hansa.learners.torch_model import scoped

        model, values = self._model, np.zeros((len(block), len(candidates)))
        with scoped(model.device), torch.no_grad():
            for c, params in enumerate(candidates):
                module = model.load(params).eval()
                penalty = 0.5 * self.l2 * sum(float(w.double().square().sum()) for w in model.weights.values())
                for k, table in enumerate(block.tables):
                    sums = sum(total(self._losses(module(x), y), len(x)) for x, y in self._chunks(table))
                    values[k, c] = sums / max(len(table), 1) + penalty
        return Update({"losses": values}, block.weight)

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """``loss`` (without the penalty) and the metrics of each client's rows."""
        import torch

        from hansa.learners.torch_model import scoped

        with scoped(self._model.device), torch.no_grad():
            module = self._model.load(params).eval()
            return stack([self._measure(module, table) for table in block.tables])

    def _measure(self, module: nn.Module, table: Table) -> dict[str, tuple[float, float]]:
        import torch

        from hansa.learners.torch_losses import measure, name_of, total

        metrics = self.metrics if self.metrics is not None else tuple(m for need in self.needs for m in _METRICS[need])
        result = {"loss": (0.0, 0.0)} | {name_of(metric): (0.0, 0.0) for metric in metrics}
        ranked: list[tuple[Tensor, Tensor]] = []  # the AUC compares all rows of the client with each other
        for x, y in self._chunks(table):
            output = module(x)
            parts = {"loss": (total(self._losses(output, y), len(x)), float(len(x)))}
            parts |= {name_of(m): measure(m, output, y, self.loss) for m in metrics if m != "auc"}
            for name, (part, count) in parts.items():
                result[name] = (result[name][0] + part, result[name][1] + count)
            if "auc" in metrics:
                ranked.append((output, y))
        if ranked:
            output, y = (torch.cat(side) for side in zip(*ranked, strict=True))
            result["auc"] = measure("auc", output, y, self.loss)
        return result

    def _outputs(self, params: Params, x: np.ndarray) -> np.ndarray:
        import torch

        from hansa.learners.torch_model import array, scoped

        with scoped(self._model.device), torch.no_grad():
            module = self._model.load(params).eval()
            return np.concatenate([array(module(part)) for part, _ in self._chunks(Table(x, np.zeros(len(x))))])

    def predict(self, params: Params, x: Any) -> np.ndarray:
        """Labels for classification, numbers for regression, (rows,); the outputs themselves for a loss of one's own without classes."""
        from hansa.learners.torch_losses import prediction

        classes = None if self.schema is None else self.schema.classes
        return prediction(self._outputs(params, self._features(x)), self.loss, classes)

    def export(self, params: Params) -> nn.Module:
        """The module with these params, in evaluation mode, on the CPU: an ordinary ``torch.nn.Module`` of the caller's own."""
        from hansa.learners.torch_model import scoped

        with scoped(self._model.device):
            return copy.deepcopy(self._model.load(params)).cpu().eval()
