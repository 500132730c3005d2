"""Losses and metrics by name, and which labels each of them is for."""

from __future__ import annotations

from typing import Any

from hansa.core.errors import InputError, did_you_mean

NEEDS: dict[str, frozenset[str]] = {
    "cross_entropy": frozenset({"classes"}),
    "binary_cross_entropy": frozenset({"two classes"}),
    "mse": frozenset({"numbers"}),
    "l1": frozenset({"numbers"}),
    "huber": frozenset({"numbers"}),
    "poisson_nll": frozenset({"numbers"}),
}
"""What a loss needs of the labels."""

METRICS = ("accuracy", "auc", "mse", "mae")
SUITED = {"classes": ("accuracy",), "two classes": ("accuracy", "auc"), "numbers": ("mse", "mae")}
"""The metrics that say most, for each kind of labels."""


def needs_of(loss: Any) -> frozenset[str]:
    """What a loss needs of the labels; nothing is demanded for a function of the user's own."""
    return NEEDS.get(loss, frozenset()) if isinstance(loss, str) else frozenset()


def measured(loss: Any, metrics: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The metrics beside the loss: those given, or those that suit the loss."""
    return metrics if metrics is not None else tuple(name for need in needs_of(loss) for name in SUITED[need])


def refuse_unknown(loss: Any, metrics: tuple[Any, ...] | None) -> None:
    """InputError for a loss or a metric that is neither a known name nor a function."""
    if not callable(loss) and loss not in NEEDS:
        raise InputError(f"learner.loss = {loss!r} is unknown{did_you_mean(str(loss), NEEDS)}")
    for metric in metrics or ():
        if not callable(metric) and metric not in METRICS:
            raise InputError(f"learner.metrics: {metric!r} is unknown{did_you_mean(str(metric), METRICS)}")


def refuse_labels(loss: Any, classes: tuple[Any, ...] | None) -> None:
    """InputError where the labels are not what the loss is for."""
    needs = needs_of(loss)
    if classes is None and needs & {"classes", "two classes"}:
        raise InputError(
            f'learner.loss = "{loss}": the labels are numbers, not classes; write "mse", "l1", "huber" or "poisson_nll"'
        )
    if classes is not None and "numbers" in needs:
        raise InputError(f'learner.loss = "{loss}": the labels are {len(classes)} classes, not numbers; write "cross_entropy"')
    if classes is not None and "two classes" in needs and len(classes) != 2:
        raise InputError(f'learner.loss = "{loss}" is for two classes, the data has {len(classes)}; write "cross_entropy"')


def refuse_outputs(what: str, loss: Any, shape: tuple[int, ...], classes: tuple[Any, ...] | None) -> None:
    """InputError for fewer outputs than classes; ``shape`` is (rows, ...)."""
    if loss == "cross_entropy" and (len(shape) < 2 or shape[1] < len(classes or ())):
        raise InputError(
            f"{what} gives outputs of shape {tuple(shape[1:])} per row and the data has {len(classes or ())} classes; "
            "cross_entropy needs one output per class"
        )
