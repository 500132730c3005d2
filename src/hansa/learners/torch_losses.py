"""Losses and metrics of PyTorch modules, by name or by the user's own function.

A loss takes (output, target) and gives one value per row, (rows,), or the mean as a single number; a metric likewise. Where a row
has several values (a sequence, several outputs), its loss is their mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hansa.core.errors import InputError
from hansa.learners import measures

RowLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def matched(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Output and target of one shape: (rows, 1) and (rows,) would silently spread to (rows, rows)."""
    if output.ndim == target.ndim + 1 and output.shape[-1] == 1:
        output = output.squeeze(-1)
    if output.shape != target.shape:
        raise InputError(
            f"the module gives {tuple(output.shape)} for targets of shape {tuple(target.shape)}; "
            "for this loss or metric they must agree"
        )
    return output, target.to(output.dtype)


def _matching(function: Callable[..., Tensor]) -> RowLoss:
    return lambda output, target: function(*matched(output, target), reduction="none")


_NAMED: dict[str, RowLoss] = {
    "cross_entropy": lambda output, target: F.cross_entropy(output, target, reduction="none"),
    "binary_cross_entropy": _matching(F.binary_cross_entropy_with_logits),
    "mse": _matching(F.mse_loss),
    "l1": _matching(F.l1_loss),
    "huber": _matching(F.huber_loss),
    "poisson_nll": _matching(F.poisson_nll_loss),
}


def _gathered_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return -F.log_softmax(output, 1).gather(1, target.unsqueeze(1)).squeeze(1)


def row_loss(loss: str | Callable[..., Any], *, batched: bool = False) -> RowLoss:
    """(output, target) -> the loss of each row, (rows,), or a single number where the user's own function gives the mean.

    batched: for use under ``vmap``, where PyTorch has no rule of its own for the cross entropy: it would load its decompositions
    (0.4 s) and take 0.2 ms longer each step than the same arithmetic written out, which in turn is slower outside of ``vmap``.
    """
    function = (_gathered_cross_entropy if batched and loss == "cross_entropy" else _NAMED[loss]) if isinstance(loss, str) else loss

    def losses(output: Tensor, target: Tensor) -> Tensor:
        values = function(output, target)
        if not isinstance(values, Tensor) or (values.ndim and len(values) != len(target)):
            what = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"the loss gives {what} for {len(target)} rows; it must give one value per row, or their mean")
        return values.flatten(1).mean(1) if values.ndim > 1 else values

    return losses


def total(losses: Tensor, rows: int) -> float:
    """The sum over rows, in float64."""
    return float(losses.detach().double().sum()) * (1 if losses.ndim else rows)


def classes_of(output: Tensor, loss: Any) -> Tensor:
    """Class numbers: the largest of several outputs (along axis 1); the sign of a single one, or of each for the binary loss."""
    if loss != "binary_cross_entropy" and output.ndim > 1 and output.shape[1] > 1:
        return output.argmax(1)
    return ((output.squeeze(-1) if output.ndim > 1 else output) > 0).long()


def measure(metric: str | Callable[..., Any], output: Tensor, target: Tensor, loss: Any) -> tuple[float, float]:
    """One metric of some rows as (sum, count)."""
    if not isinstance(metric, str):
        values = torch.as_tensor(metric(output, target))
        values = values.double().flatten(1).mean(1) if values.ndim > 1 else values.double()
        return total(values, len(target)), float(len(target))
    if metric == "accuracy":
        predicted, truth = matched(classes_of(output, loss), target)
        return float((predicted == truth).sum()), float(truth.numel())
    if metric == "auc":
        return measures.concordance(_score(output, target).double().cpu().numpy(), target.cpu().numpy())
    number, truth = matched(output.exp() if loss == "poisson_nll" else output, target)
    difference = number.double() - truth.double()
    distance = difference.square() if metric == "mse" else difference.abs()
    return total(distance.flatten(1).mean(1) if distance.ndim > 1 else distance, len(target)), float(len(target))


def _score(output: Tensor, target: Tensor) -> Tensor:
    if output.shape == (len(target), 2):
        return output[:, 1] - output[:, 0]
    if output.numel() != len(target):
        raise InputError(
            f'the metric "auc" is for two classes; the module gives {tuple(output.shape)}: leave it out of learner.metrics'
        )
    return output.reshape(len(target))


def name_of(metric: str | Callable[..., Any]) -> str:
    """What a metric is called in the history."""
    return metric if isinstance(metric, str) else str(getattr(metric, "__name__", type(metric).__name__))


def prediction(output: np.ndarray, loss: Any, classes: tuple[Any, ...] | None) -> np.ndarray:
    """Labels where there are classes, else numbers; a user's own loss with other outputs gives the outputs."""
    if loss == "poisson_nll":
        output = np.exp(output)
    if classes is None and loss not in ("cross_entropy", "binary_cross_entropy"):
        return output[:, 0] if output.ndim == 2 and output.shape[1] == 1 else output
    numbers = classes_of(torch.from_numpy(output), loss).numpy()
    return numbers if classes is None else np.asarray(classes)[numbers]
