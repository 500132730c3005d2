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
from hansa.learners.mlp_batches import batches
from hansa.learners.mlp_network import Network

WINDOW = 64
"""Most rows of a window. The Gram matrix costs the more per row the more rows there are, and taller products gain little more."""


def train_delayed(
    network: Network, params: Params, tables: Sequence[Table], times: Schedule, rate: float
) -> tuple[Params, np.ndarray]:
    """Train every client by ``w -= rate * g``. Returns the params stacked (clients, ...), and each client's sum of losses."""
    stacked = [
        np.repeat(np.concatenate([params[f"layer{k}.weight"], params[f"layer{k}.bias"][None]])[None], len(tables), axis=0)
        for k in range(network.layers)
    ]
    memory = _Memory(network, int(times.batch.max(initial=1)), stacked[0].dtype)
    losses = np.zeros(len(tables))
    for k, table in enumerate(tables):
        todo = batches(times, np.array([k]))
        losses[k] = _train_client(memory, [layer[k] for layer in stacked], table, todo.rows[0], todo.count[0], rate)
    moved = {}
    for k, layer in enumerate(stacked):
        moved[f"layer{k}.weight"], moved[f"layer{k}.bias"] = layer[:, :-1], layer[:, -1]
    return moved, losses


class _Memory:
    """The working memory of a window, used again for all windows and clients."""

    def __init__(self, network: Network, width: int, dtype: np.dtype) -> None:
        from scipy.linalg.blas import dgemm, sgemm

        self.network = network
        self.gemm = sgemm if dtype == np.float32 else dgemm
        # The Gram matrix adds rows / (2 outputs) to the cost of the first layer's products, the corrections rows / (2 inputs).
        self.rows = min(WINDOW, min(network.widths[:2]) // 2)
        n = max(self.rows, width)
        self.x = np.empty((n, network.widths[0]), dtype)
        self.product, self.v = np.zeros((2, n, network.widths[1]), dtype)
        self.gram = np.empty((self.rows, self.rows), dtype)
        self.z, self.aim = np.zeros((2, n, network.outputs), dtype)
        self.high, self.scale, self.total = np.zeros((n, 1), dtype), np.zeros((n, 1), dtype), np.ones((n, 1), dtype)
        self._width, self._slots = 0, dict[tuple[int, int], _Slot]()

    def slot(self, step: int, width: int, size: int) -> _Slot:
        """The memory of a window's step, of which the first ``size`` of ``width`` rows are real."""
        if width != self._width:  # with full batches every client has its own width, and their slots would add up
            self._width = width
            self._slots.clear()
        if (step, size) not in self._slots:
            self._slots[step, size] = _Slot(self, step, width, size)
        return self._slots[step, size]


class _Slot:
    """One step's part of the working memory: views that are made once, because making them costs as much as using them."""

    def __init__(self, memory: _Memory, step: int, width: int, size: int) -> None:
        low, widths, dtype = step * width, memory.network.widths, memory.x.dtype
        here = slice(low, low + size)
        self.product, self.v, self.rest = memory.product[here], memory.v[here], memory.v[low + size : low + width]
        self.gram = memory.gram[here, :low] if low else None
        self.before, self.correction = memory.v[:low], np.empty((size, widths[1]), dtype)
        self.hidden = [np.ones((size, units + 1), dtype) for units in widths[1:-1]]
        self.inner = [h[:, :-1] for h in self.hidden]
        self.delta = [self.v, *(np.empty((size, units), dtype) for units in widths[2:])]
        self.zeros = [np.zeros((size, units), dtype) for units in widths[1:-1]]
        self.mask = [np.empty((size, units), bool) for units in widths[1:-1]]
        self.z, self.aim, self.high, self.scale, self.total = (
            part[here] for part in (memory.z, memory.aim, memory.high, memory.scale, memory.total)
        )


def _train_client(
    memory: _Memory, layers: list[np.ndarray], table: Table, chosen: np.ndarray, count: np.ndarray, rate: float
) -> float:
    """One client: ``chosen`` (steps, width) are the rows of its mini-batches, the first ``count`` (steps,) of each being real."""
    steps, width = chosen.shape
    real = np.arange(width) < count[:, None]
    scale = real * (-rate / np.maximum(count, 1)[:, None])
    loss, span = 0.0, max(1, memory.rows // max(width, 1))
    for first in range(0, steps, span):
        part = slice(first, min(first + span, steps))
        rows = chosen[part].reshape(-1)
        memory.scale[: len(rows), 0] = scale[part].reshape(-1)
        loss += _window(memory, layers, table, rows, count[part].tolist(), real[part].reshape(-1))
    return loss


def _window(
    memory: _Memory, layers: list[np.ndarray], table: Table, rows: np.ndarray, counts: list[int], real: np.ndarray
) -> float:
    n, width, weight, bias = len(rows), len(rows) // len(counts), layers[0][:-1], layers[0][-1]
    x, product, v = memory.x[:n], memory.product[:n], memory.v[:n]
    table.x.take(rows, axis=0, out=x, mode="clip")
    targets = memory.network.targets(table.y.take(rows), x.dtype)
    np.multiply(targets, memory.scale[:n], out=memory.aim[:n])
    np.matmul(x, weight, out=product)
    product += bias
    if len(counts) > 1:
        gram = np.matmul(x, x.T, out=memory.gram[:n, :n])
        gram += 1  # the bias is the weight of an input that is always one
    for step, size in enumerate(counts):
        slot = memory.slot(step, width, size)
        if slot.gram is not None:
            np.matmul(slot.gram, slot.before, out=slot.correction)
            slot.product += slot.correction
        _forward(memory.network, layers, slot)
        _slope(memory.network, slot)
        _backward(memory, layers, slot)
        slot.rest[:] = 0
    _move(memory, weight, x, v)
    bias += v.sum(axis=0)
    return _loss(memory, targets, real)


def _forward(network: Network, layers: list[np.ndarray], slot: _Slot) -> None:
    """From the first layer's product to the output ``slot.z``."""
    z = slot.product
    for layer in range(network.layers - 1):
        if layer:
            z = np.matmul(slot.hidden[layer - 1], layers[layer], out=slot.inner[layer])
        if network.activation == "relu":
            np.maximum(z, slot.zeros[layer], out=slot.inner[layer])  # three times as fast as with the number 0
        else:
            np.tanh(z, out=slot.inner[layer])
    if network.layers > 1:
        np.matmul(slot.hidden[-1], layers[-1], out=slot.z)
    else:
        slot.z[:] = z


def _slope(network: Network, slot: _Slot) -> None:
    """``scale * (softmax(z) - onehot)``, or ``scale * (z - y)``, into the last delta; ``aim`` is the targets times ``scale``."""
    z, delta = slot.z, slot.delta[-1]
    if network.task == "regression":
        np.multiply(z, slot.scale, out=delta)
    else:
        np.maximum.reduce(z, axis=1, keepdims=True, out=slot.high)
        np.subtract(z, slot.high, out=delta)
        np.exp(delta, out=delta)
        np.add.reduce(delta, axis=1, keepdims=True, out=slot.total)
        delta *= slot.scale / slot.total
    delta -= slot.aim


def _backward(memory: _Memory, layers: list[np.ndarray], slot: _Slot) -> None:
    """The deltas of all layers; all but the first layer move."""
    for layer in range(len(layers) - 1, 0, -1):
        delta, before = slot.delta[layer], slot.delta[layer - 1]
        np.matmul(delta, layers[layer][:-1].T, out=before)
        _move(memory, layers[layer], slot.hidden[layer - 1], delta)
        h = slot.inner[layer - 1]
        if memory.network.activation == "relu":
            before *= np.greater(h, slot.zeros[layer - 1], out=slot.mask[layer - 1])
        else:
            before *= 1 - h * h


def _move(memory: _Memory, w: np.ndarray, h: np.ndarray, delta: np.ndarray) -> None:
    """w += h' delta in place. BLAS counts columns first, so it is given the transposes, which cost nothing."""
    memory.gemm(1.0, delta.T, h.T, 1.0, w.T, 0, 1, 1)


def _loss(memory: _Memory, targets: np.ndarray, real: np.ndarray) -> float:
    """Sum of the losses of the window's real rows."""
    n = len(targets)
    z = memory.z[:n]
    if memory.network.task == "regression":
        return 0.5 * float(np.square(z - targets)[real].sum())
    rows = np.log(memory.total[:n, 0]) + memory.high[:n, 0] - np.einsum("ro,ro->r", z, targets)
    return float(rows[real].sum())
