"""Plain SGD on a large perceptron, one client after another, without ever forming a gradient.

The mini-batches of several steps are known in advance, and so are the inputs of the first layer, which is usually the largest. After j
steps of SGD its weights are W_j = W_0 + sum_{i<j} x_i' v_i, with v_i the rows' deltas times minus the learning rate, and therefore

    x_j W_j = x_j W_0 + sum_{i<j} (x_j x_i') v_i.

So for a window of steps X W_0 and the Gram matrix X X' are computed once, the steps only correct by the small second term, and the
weights move once at the end, W_0 += X' V. It is the same step in exact arithmetic (delayed updates, as in blocked factorisations), but
the large matrix is read and written once per window instead of once per step, by products that are tall enough for the processor's
peak. The other layers move at each step by a product in place (BLAS gemm with beta = 1). A layer's bias is one more row of its
weights, and after the first layer one more column of ones at its input, so that the products add it and move it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hansa.core.blocks import Table
from hansa.core.local import Schedule
from hansa.core.params import Params
from hansa.learners.mlp_batches import lanes
from hansa.learners.mlp_network import Network

WINDOW = 40
"""Rows of a window. The Gram matrix costs as much more per row as there are rows, and products gain little beyond this height."""


def train_delayed(
    network: Network, params: Params, tables: Sequence[Table], times: Schedule, rate: float
) -> tuple[Params, np.ndarray]:
    """Train every client by ``w -= rate * g``. Returns the params stacked (clients, ...), and each client's sum of losses."""
    stacked = [
        np.repeat(np.concatenate([params[f"layer{k}.weight"], params[f"layer{k}.bias"][None]])[None], len(tables), axis=0)
        for k in range(network.layers)
    ]
    run = _Run(network, int(times.batch.max(initial=1)), stacked[0].dtype)
    losses = np.zeros(len(tables))
    for k, table in enumerate(tables):
        chosen, count = lanes(times, np.array([k]))
        losses[k] = run.train([layer[k] for layer in stacked], table, chosen[0], count[0], rate)
    moved = {}
    for k, layer in enumerate(stacked):
        moved[f"layer{k}.weight"], moved[f"layer{k}.bias"] = layer[:, :-1], layer[:, -1]
    return moved, losses


class _Run:
    """The working memory of a client's training, used again for the next client."""

    def __init__(self, network: Network, width: int, dtype: np.dtype) -> None:
        from scipy.linalg.blas import dgemm, sgemm

        self.network = network
        self.gemm = sgemm if dtype == np.float32 else dgemm
        pays = min(network.widths[:2]) >= 2 * WINDOW
        self.span = max(1, WINDOW // width) if pays else 1
        n, outputs = self.span * width, network.outputs
        self.x = np.empty((n, network.widths[0]), dtype)
        self.product = np.empty((n, network.widths[1]), dtype)
        self.v = np.zeros((n, network.widths[1]), dtype)
        self.gram = np.empty((n, n) if self.span > 1 else (0, 0), dtype)
        self.correction = np.empty((width, network.widths[1]), dtype)
        self.hidden = [np.ones((width, size + 1), dtype) for size in network.widths[1:-1]]
        self.delta = [np.empty((width, size), dtype) for size in network.widths[1:]]
        self.z = np.zeros((n, outputs), dtype)
        self.high, self.total = np.zeros((n, 1), dtype), np.ones((n, 1), dtype)

    def train(self, layers: list[np.ndarray], table: Table, chosen: np.ndarray, count: np.ndarray, rate: float) -> float:
        """One client: ``chosen`` (steps, width) are the rows of its mini-batches, the first ``count`` (steps,) of each being real."""
        steps, width = chosen.shape
        loss = 0.0
        real = np.arange(width) < count[:, None]
        scale = (real * (-rate / np.maximum(count, 1)[:, None])).astype(self.x.dtype)
        for first in range(0, steps, self.span):
            window = slice(first, min(first + self.span, steps))
            rows = chosen[window].reshape(-1)
            loss += self._window(
                layers, table, rows, count[window].tolist(), scale[window].reshape(-1, 1), real[window].reshape(-1)
            )
        return loss

    def _window(
        self, layers: list[np.ndarray], table: Table, rows: np.ndarray, counts: list[int], scale: np.ndarray, real: np.ndarray
    ) -> float:
        n, width = len(rows), len(rows) // len(counts)
        x, product, v = self.x[:n], self.product[:n], self.v[:n]
        weight, bias = layers[0][:-1], layers[0][-1]
        table.x.take(rows, axis=0, out=x, mode="clip")
        targets = self.network.targets(table.y[rows], x.dtype)
        np.matmul(x, weight, out=product)
        product += bias
        if len(counts) > 1:
            gram = np.matmul(x, x.T, out=self.gram[:n, :n])
            gram += 1  # the bias is the weight of an input that is always one
        aim = targets * scale
        for step, size in enumerate(counts):
            low = step * width
            here = slice(low, low + size)
            z = product[here]
            if step:
                z += np.matmul(gram[here, :low], v[:low], out=self.correction[:size])
            hidden = self._forward(layers, z, here)
            delta = self._slope(here, aim[here], scale[here])
            self._backward(layers, hidden, delta, v[here])
            v[low + size : low + width] = 0
        self._move(weight, x, v)
        bias += v.sum(axis=0)
        return self._loss(targets, real)

    def _forward(self, layers: list[np.ndarray], z: np.ndarray, here: slice) -> list[np.ndarray]:
        """From the first layer's ``z`` to the output, which goes to ``self.z[here]``; returns the hidden activations with their ones."""
        if len(layers) == 1:
            self.z[here] = z
            return []
        hidden = [values[: len(z)] for values in self.hidden]
        self.network.activate(z, out=hidden[0][:, :-1])
        for layer in range(1, len(layers) - 1):
            z = np.matmul(hidden[layer - 1], layers[layer], out=hidden[layer][:, :-1])
            self.network.activate(z, out=z)
        np.matmul(hidden[-1], layers[-1], out=self.z[here])
        return hidden

    def _slope(self, here: slice, aim: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """``scale * (softmax(z) - onehot)``, or ``scale * (z - y)``; ``aim`` is the targets times scale."""
        z, delta = self.z[here], self.delta[-1][: len(aim)]
        if self.network.task == "regression":
            np.multiply(z, scale, out=delta)
        else:
            high, total = self.high[here], self.total[here]
            np.maximum.reduce(z, axis=1, keepdims=True, out=high)
            np.subtract(z, high, out=delta)
            np.exp(delta, out=delta)
            np.add.reduce(delta, axis=1, keepdims=True, out=total)
            delta *= scale / total
        delta -= aim
        return delta

    def _backward(self, layers: list[np.ndarray], hidden: list[np.ndarray], delta: np.ndarray, v: np.ndarray) -> None:
        """Move all layers but the first, and put the first one's delta into ``v``."""
        if not hidden:
            v[:] = delta
        for layer in range(len(layers) - 1, 0, -1):
            h = hidden[layer - 1]
            before = v if layer == 1 else self.delta[layer - 1][: len(v)]
            np.matmul(delta, layers[layer][:-1].T, out=before)
            self._move(layers[layer], h, delta)
            self.network.through(before, h[:, :-1])
            delta = before

    def _move(self, w: np.ndarray, h: np.ndarray, delta: np.ndarray) -> None:
        """w += h' delta in place. BLAS counts columns first, so it is given the transposes, which cost nothing."""
        self.gemm(1.0, delta.T, h.T, 1.0, w.T, 0, 1, 1)

    def _loss(self, targets: np.ndarray, real: np.ndarray) -> float:
        """Sum of the losses of the window's real rows."""
        z = self.z[: len(targets)]
        if self.network.task == "regression":
            return 0.5 * float(np.square(z - targets)[real].sum())
        rows = np.log(self.total[: len(targets)]) + self.high[: len(targets)] - np.einsum("ro,ro->r", z, targets)[:, None]
        return float(rows[real].sum())
