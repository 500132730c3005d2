"""Models for the JAX learner that are at hand by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def perceptron(widths: Sequence[int], activation: str = "relu") -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A multi-layer perceptron: ``widths`` of its layers, the last one the number of outputs; rows of any shape are flattened.

    activation: between the layers, the name of a function of ``jax.nn``. Initial weights are those of He et al. 2015, eq. 10, before
    relu, and of Glorot and Bengio 2010, eq. 16, else; biases are zero.
    """
    between = getattr(jax.nn, activation)
    last = len(widths) - 1

    def init(key: Any, x: Any) -> dict[str, Any]:
        params, fan_in = {}, x[0].size
        for layer, (own, fan_out) in enumerate(zip(jax.random.split(key, len(widths)), widths, strict=True)):
            bound = (6 / fan_in if activation == "relu" and layer < last else 6 / (fan_in + fan_out)) ** 0.5
            params[f"layer{layer}.weight"] = jax.random.uniform(own, (fan_in, fan_out), minval=-bound, maxval=bound)
            params[f"layer{layer}.bias"] = jnp.zeros(fan_out)
            fan_in = fan_out
        return params

    def apply(params: dict[str, Any], x: Any) -> Any:
        values = x.reshape(len(x), -1)
        for layer in range(last + 1):
            values = values @ params[f"layer{layer}.weight"] + params[f"layer{layer}.bias"]
            values = between(values) if layer < last else values
        return values

    return init, apply
