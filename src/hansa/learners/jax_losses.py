"""Losses of JAX outputs, by name or by the user's own function: (output, target) -> the loss of each row, (rows,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from hansa.core.errors import InputError

RowLoss: TypeAlias = Callable[[Any, Any], Any]


def _cross_entropy(output: Any, target: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(output, axis=1), target[:, None], axis=1)[:, 0]


def _binary_cross_entropy(output: Any, target: Any) -> Any:
    return jnp.maximum(output, 0) - output * target + jnp.log1p(jnp.exp(-jnp.abs(output)))


def _huber(output: Any, target: Any) -> Any:
    distance = jnp.abs(output - target)
    return jnp.where(distance < 1, 0.5 * distance**2, distance - 0.5)


_MATCHED: dict[str, RowLoss] = {
    "binary_cross_entropy": _binary_cross_entropy,
    "mse": lambda output, target: (output - target) ** 2,
    "l1": lambda output, target: jnp.abs(output - target),
    "huber": _huber,
    "poisson_nll": lambda output, target: jnp.exp(output) - target * output,
}


def losses(loss: Any, output: Any, target: Any) -> Any:
    """The loss of each row, (rows,); where a row has several values, it is their mean."""
    if loss == "cross_entropy":
        values = _cross_entropy(output, target)
    elif isinstance(loss, str):
        if output.ndim == target.ndim + 1 and output.shape[-1] == 1:
            output = output[..., 0]
        if output.shape != target.shape:
            raise InputError(
                f"the model gives {output.shape} for targets of shape {target.shape}; for the loss {loss!r} they must agree"
            )
        values = _MATCHED[loss](output, target.astype(output.dtype))
    else:
        values = loss(output, target)
        shape = getattr(values, "shape", ())
        if shape[:1] != target.shape[:1]:
            raise InputError(f"{loss.__name__} gives shape {shape} for {len(target)} rows; it must give one value per row")
    return values.reshape(len(values), -1).mean(axis=1)
