"""Any PyTorch module as a learner: its options. PyTorch itself is imported when the learner is bound to data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from hansa.core.contracts import Schema
from hansa.core.errors import missing_extra
from hansa.learners.framework import Judged

if TYPE_CHECKING:
    from hansa.learners.torch_bound import BoundTorch


@dataclass(frozen=True)
class TorchLearner(Judged):
    """A ``torch.nn.Module``, trained by gradient steps.

    module:   the module itself, whose own initial weights are then used; or a function (or class) that makes one, as a Python
              object or by name: ``"package.module:factory"`` or ``"path/to/file.py:factory"``.
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
              possible, and warns once, with the reason, where it is not possible. On a CPU "auto" also recognises a module that is a
              perceptron (linear layers with ReLU or tanh between them, trained by the cross entropy without ``l2``) and trains it by
              Hansa's own products for perceptrons, several times as fast.

    The same job gives the same bits on a CPU. Trained one by one, a client's bits do not even depend on its block; otherwise they
    agree up to rounding. On CUDA, kernels that PyTorch lists as non-deterministic (scatter, some pooling) may differ between runs.
    """

    module: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: Any = "cross_entropy"
    metrics: tuple[Any, ...] | None = None
    l2: Annotated[float, Ge(0)] = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch: Literal["auto", "stacked", "one_by_one"] = "auto"
    name: Literal["torch"] = field(default="torch", kw_only=True)

    can: frozenset[str] = field(default=frozenset({"train", "gradient", "gang"}), init=False, repr=False)

    def bind(self, schema: Schema) -> BoundTorch:
        """The learner for these data. InputError when labels and loss do not go together, when the module cannot take such rows or
        has too few outputs for the classes, and when PyTorch is not installed."""
        try:
            from hansa.learners.torch_bound import bound
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise missing_extra("PyTorch", "torch") from error
        return bound(self, schema)
