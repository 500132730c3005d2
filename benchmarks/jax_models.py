"""The models of the workloads in plain JAX, with PyTorch's own distributions of initial weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {
    "softmax": [(784, 10)],
    "2nn": [(784, 200), (200, 200), (200, 10)],
    "cnn": [(5, 5, 1, 32), (5, 5, 32, 64), (3136, 512), (512, 10)],
}


def init(model: str, seed: int = 0) -> list[tuple[jax.Array, jax.Array]]:
    """Weight and bias of each layer, uniform in +-1/sqrt(fan_in)."""
    random, layers = np.random.default_rng(seed), []
    for shape in SHAPES[model]:
        bound = 1 / np.sqrt(np.prod(shape[:-1]))
        w, b = random.uniform(-bound, bound, shape), random.uniform(-bound, bound, shape[-1])
        layers.append((jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)))
    return layers


def logits(layers: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    for k, (w, b) in enumerate(layers):
        if w.ndim == 4:
            x = x.reshape(-1, 28, 28, 1) if k == 0 else x
            x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b
            x = jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        else:
            x = x.reshape(len(x), -1) @ w + b
            x = jax.nn.relu(x) if k < len(layers) - 1 else x
    return x


def loss(layers: list[tuple[jax.Array, jax.Array]], x: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits(layers, x)), y[:, None], 1).mean()


def pair(model: str) -> tuple[Any, Any]:
    """The model as Hansa's JAX learner takes it: (init, apply), with the layers' params by name."""
    names = [f"layer{k}" for k in range(len(SHAPES[model]))]

    def make(key: jax.Array, x: jax.Array) -> dict[str, Any]:
        layers = {}
        for name, shape, own in zip(names, SHAPES[model], jax.random.split(key, len(names)), strict=True):
            bound, (for_w, for_b) = 1 / np.sqrt(np.prod(shape[:-1])), jax.random.split(own)
            layers[name] = {
                "w": jax.random.uniform(for_w, shape, minval=-bound, maxval=bound),
                "b": jax.random.uniform(for_b, shape[-1:], minval=-bound, maxval=bound),
            }
        return layers

    def apply(params: dict[str, Any], x: jax.Array) -> jax.Array:
        return logits([(params[name]["w"], params[name]["b"]) for name in names], x)

    return make, apply


def accuracy(layers: list[tuple[jax.Array, jax.Array]], x: np.ndarray, y: np.ndarray) -> float:
    found = [np.asarray(logits(layers, part).argmax(1)) for part in np.array_split(x, 5)]
    return float((np.concatenate(found) == y).mean())
