"""The sum, in an order that belongs to the job.

A block is reduced in client order where its work was done; block totals are added in a fixed pairwise tree over block numbers
where they meet. Floating-point addition is not associative, so it is this order, and not the engine, that decides the bits.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from hansa.core import metrics as metric
from hansa.core.params import Array
from hansa.core.updates import Gathered, Total, Update

SLICE = 1 << 16
"""Entries of a large array that are summed over all clients before the next ones are."""

SMALL = 64
"""Entries from which an array is summed by :func:`numpy.einsum`, whose inner loop is then surely the one over the entries."""


def weighted_sum(values: Array, weight: Array) -> Array:
    """``sum_k weight[k] * values[k]`` from the first client to the last, in the dtype of ``values``.

    values: (clients, ...); weight: (clients,). An integer entry is summed as float64.
    """
    xp = array_namespace(values)
    if not xp.isdtype(values.dtype, "real floating"):
        values = xp.astype(values, xp.float64)
    if not isinstance(values, np.ndarray) or values[0].size < SMALL:
        return _in_order(values, [float(w) for w in weight])
    # One pass without temporaries. It runs over the clients in order for every entry, so that the bits are those of the plain loop
    # (of its fused form, where the processor has one and NumPy uses it); entries do not meet, so slices do not change them.
    flat, total = values.reshape(len(values), -1), np.empty(values[0].size, dtype=values.dtype)
    scale = np.asarray(weight, dtype=values.dtype)
    for start in range(0, total.size, SLICE):
        part = slice(start, start + SLICE)
        np.einsum("k,kn->n", scale, flat[:, part], out=total[part])
    return total.reshape(values.shape[1:])


def _in_order(values: Array, scale: list[float]) -> Array:
    total = values[0] * scale[0]
    for k in range(1, len(scale)):
        total += values[k] * scale[k]
    return total


def reduce_block(update: Update) -> Total:
    """The total of one block, clients in order."""
    return Total(
        values={name: weighted_sum(value, update.weight) for name, value in update.values.items()},
        weight=sum(float(w) for w in update.weight),
        clients=len(update),
        metrics=metric.totals(update.metrics),
    )


def add(first: Total, second: Total) -> Total:
    """The sum of two totals, which must name the same values."""
    return Total(
        values={name: value + second.values[name] for name, value in first.values.items()},
        weight=first.weight + second.weight,
        clients=first.clients + second.clients,
        metrics=metric.add(first.metrics, second.metrics),
    )


class Tree:
    """Adds block totals pairwise by block number, as they arrive, in any order of arrival.

    Node ``i`` of a level is the sum of nodes ``2i`` and ``2i + 1`` below it; a node without a sibling moves up unchanged.
    A block that failed is passed as ``None``. Only totals whose sibling is still missing are kept, so memory grows with the
    logarithm of the number of blocks when they arrive in order.
    """

    def __init__(self, blocks: int) -> None:
        self._widths = [blocks]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self._waiting: dict[tuple[int, int], Total | None] = {}

    def add(self, number: int, total: Total | None) -> None:
        level, node = 0, number
        while level < len(self._widths) - 1:
            sibling = node ^ 1
            if sibling < self._widths[level]:
                if (level, sibling) not in self._waiting:
                    break
                other = self._waiting.pop((level, sibling))
                left, right = (other, total) if sibling < node else (total, other)
                total = add(left, right) if left is not None and right is not None else left if right is None else right
            level, node = level + 1, node // 2
        self._waiting[level, node] = total

    def result(self) -> Total | None:
        """The sum of all blocks, or None when every block failed. All blocks must have been added."""
        return self._waiting[len(self._widths) - 1, 0]


def gather(updates: list[Update]) -> Gathered:
    """Put the updates of consecutive blocks one behind the other."""
    first = updates[0]
    xp_weight = array_namespace(first.weight)
    values = {}
    for name, value in first.values.items():
        parts = [update.values[name] for update in updates]
        values[name] = (
            [item for part in parts for item in part] if isinstance(value, list) else array_namespace(value).concat(parts)
        )
    metrics = {
        name: tuple(xp_weight.concat([update.metrics[name][side] for update in updates]) for side in (0, 1))
        for name in first.metrics
    }
    return Gathered(
        clients=tuple(client for update in updates for client in update.clients),
        values=values,
        weight=xp_weight.concat([update.weight for update in updates]),
        metrics=metrics,
    )
