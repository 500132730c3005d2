"""The multi-layer perceptron itself: forward, backward and loss, by hand, in NumPy.

With h_0 = x, layer l computes z_l = h_l W_l + b_l and h_{l+1} = a(z_l); the last z is the output. For one row the loss is

    classification   -log softmax(z)_y             with dloss/dz = softmax(z) - onehot(y)
    regression       1/2 (z - y)^2                 with dloss/dz = z - y

and the chain rule gives dW_l = h_l' d_l, db_l = sum d_l, d_{l-1} = (d_l W_l') a'(z_{l-1}) (Rumelhart, Hinton and Williams 1986). Both
activations have a derivative in terms of their own value: relu' = [h > 0], tanh' = 1 - h^2, so no z is kept.

Every function takes one network or a stack of them: params (in, out) and x (rows, in), or all with the same leading client axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from hansa.core.params import Params

Activation = Literal["relu", "tanh"]
Task = Literal["classification", "regression"]


Room: TypeAlias = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]
"""Gives an array of a shape and dtype to compute into, by the name of its use."""


def fresh(use: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array every time."""
    return np.empty(shape, dtype)


class Reused:
    """The same memory for the same use every time: new memory costs more to map than small products cost to compute."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}
        self._views: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def __call__(self, use: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if (use, shape) not in self._views:
            size = int(np.prod(shape))
            if use not in self._memory or self._memory[use].size < size:
                self._memory[use] = np.empty(size, dtype)
                self._views = {key: view for key, view in self._views.items() if key[0] != use}
            self._views[use, shape] = self._memory[use][:size].reshape(shape)
        return self._views[use, shape]


@dataclass(frozen=True)
class Network:
    """Widths of all layers from the features to the outputs, the activation between them and the task at the end."""

    widths: tuple[int, ...]
    activation: Activation
    task: Task

    @property
    def layers(self) -> int:
        return len(self.widths) - 1

    @property
    def outputs(self) -> int:
        return self.widths[-1]

    @property
    def parameters(self) -> int:
        """How many numbers the params hold."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False))

    def activate(self, z: np.ndarray, out: np.ndarray) -> None:
        """a(z) into ``out``, which may be ``z``."""
        if self.activation == "relu":
            np.maximum(z, np.zeros(z.shape[-1], z.dtype), out=out)  # twice as fast as with the number 0
        else:
            np.tanh(z, out=out)

    def through(self, delta: np.ndarray, h: np.ndarray) -> None:
        """``delta * a'``, in place, with a' from the activation's value ``h``."""
        if self.activation == "relu":
            np.multiply(delta, h > 0, out=delta)
        else:
            delta *= 1 - h * h

    def forward(self, params: Params, x: np.ndarray, room: Room = fresh) -> list[np.ndarray]:
        """[h_0, ..., h_L]: the input, the hidden activations, and the output before softmax."""
        values = [x]
        for layer in range(self.layers):
            w = params[f"layer{layer}.weight"]
            z = np.matmul(values[-1], w, out=room(f"h{layer}", (*x.shape[:-1], w.shape[-1]), x.dtype))
            z += params[f"layer{layer}.bias"][..., None, :]
            if layer < self.layers - 1:
                self.activate(z, out=z)
            values.append(z)
        return values

    def targets(self, y: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """What the output is compared with, (..., outputs): one-hot rows for class numbers, the numbers themselves otherwise."""
        if self.task == "regression":
            return y[..., None].astype(dtype, copy=False)
        hot = np.zeros((*y.shape, self.outputs), dtype)
        hot.reshape(-1, self.outputs)[np.arange(y.size), y.ravel()] = 1
        return hot

    def slope(self, z: np.ndarray, y: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(``scale * dloss/dz``, loss per row), of shapes (..., rows, outputs) and (..., rows); ``y`` and ``scale`` are (..., rows).
        ``z`` may be overwritten."""
        if self.task == "regression":
            z -= y[..., None]
            loss = 0.5 * np.square(z[..., 0])
            z *= scale[..., None]
            return z, loss
        delta = np.ascontiguousarray(z.reshape(y.size, self.outputs).T)  # sums over a few outputs are fast along the rows
        at_label = y.ravel(), np.arange(y.size)
        delta -= delta.max(axis=0)
        loss = -delta[at_label]
        np.exp(delta, out=delta)
        total = delta.sum(axis=0)
        loss += np.log(total)
        delta *= scale.ravel() / total
        delta[at_label] -= scale.ravel()
        return delta.T.reshape(z.shape), loss.reshape(y.shape)

    def backward(
        self,
        params: Params,
        values: list[np.ndarray],
        delta: np.ndarray,
        add: Callable[[str, np.ndarray], None],
        room: Room = fresh,
    ) -> None:
        """Hand the gradient of every entry to ``add(name, gradient)``, last layer first.

        ``values`` are those of :meth:`forward`; ``delta`` is dloss/dz of the output, each row already times its share of the mean.
        An entry is not read again once its gradient was handed over, so ``add`` may change it.
        """
        for layer in reversed(range(self.layers)):
            weight = f"layer{layer}.weight"
            h = values[layer]
            if layer:
                before = np.matmul(delta, np.swapaxes(params[weight], -1, -2), out=room(f"d{layer}", h.shape, h.dtype))
                self.through(before, h)
            add(weight, np.matmul(np.swapaxes(h, -1, -2), delta, out=room(f"g{layer}", params[weight].shape, h.dtype)))
            add(f"layer{layer}.bias", delta.sum(axis=-2))
            if layer:
                delta = before
