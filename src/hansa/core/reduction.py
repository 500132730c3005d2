"""The sum, in an order that belongs to the job.

A block is reduced in client order where its work was done; block totals are added in a fixed pairwise tree over block numbers
where they meet. Floating-point addition is not associative, so it is this order, and not the engine, that decides the bits.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from array_api_compat import array_namespace

from hansa.core import metrics as metric
from hansa.core.params import Array
from hansa.core.updates import Gathered, Total, Update

SLICE = 1 << 16
"""Entries of a large array that are summed over all clients before the next ones are."""

LARGE = 1 << 20
"""Bytes from which a total in files is added there; smaller ones are added in memory as they arrive."""

FILES = 256
"""Totals in files that one sum is made of: a process may not have many files open."""

SMALL = 64
"""Entries from which an array is summed by :func:`numpy.einsum`, whose inner loop is then surely the one over the entries."""


def weighted_sum(values: Array, weight: Array) -> Array:
    """``sum_k weight[k] * values[k]`` from the first client to the last, in the dtype of ``values``.

    values: (clients, ...); weight: (clients,). An integer entry is summed as float64.
    """
    # What needs no namespace is not asked for one: that takes as long as a sum.
    if not (isinstance(values, np.ndarray) and values.dtype.kind == "f"):
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
        weight=float(sum(update.weight.tolist())),
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


@dataclass(frozen=True)
class _Later:
    """The sum of two nodes whose values lie in files, to be made when it is needed.

    rest:   all of it but the values.
    leaves: totals in it.
    """

    left: Total | _Later
    right: Total | _Later
    rest: Total
    leaves: int


class Tree:
    """Adds block totals pairwise by block number, as they arrive, in any order of arrival.

    Node ``i`` of a level is the sum of nodes ``2i`` and ``2i + 1`` below it; a node without a sibling moves up unchanged.
    A block that failed is passed as ``None``, and so are, where the sum of a whole node was made elsewhere and is passed for one of
    its blocks, the others of them. Only totals whose sibling is still missing are kept, so memory grows with the
    logarithm of the number of blocks when they arrive in order.

    Large totals whose values lie in read-only files (:class:`numpy.memmap`) take no memory: they are kept, :data:`FILES` at a time, and
    then added slice by slice, in the same order and so to the same bits. Their files may be removed meanwhile, and must not change.
    """

    def __init__(self, blocks: int) -> None:
        self._widths = [blocks]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self._waiting: dict[tuple[int, int], Total | _Later | None] = {}

    def add(self, number: int, total: Total | None) -> None:
        level, node, own = 0, number, cast("Total | _Later | None", total)
        while level < len(self._widths) - 1:
            sibling = node ^ 1
            if sibling < self._widths[level]:
                if (level, sibling) not in self._waiting:
                    break
                other = self._waiting.pop((level, sibling))
                left, right = (other, own) if sibling < node else (own, other)
                own = _joined(left, right) if left is not None and right is not None else left if right is None else right
            level, node = level + 1, node // 2
        self._waiting[level, node] = own

    def result(self) -> Total | None:
        """The sum of all blocks, or None when every block failed. All blocks must have been added."""
        whole = self._waiting[len(self._widths) - 1, 0]
        return None if whole is None else _made(whole)


def _joined(left: Total | _Later, right: Total | _Later) -> Total | _Later:
    leaves = sum(node.leaves if isinstance(node, _Later) else 1 for node in (left, right))
    if leaves <= FILES and _in_files(left) and _in_files(right):
        return _Later(left, right, add(_bare(left), _bare(right)), leaves)
    return add(_made(left), _made(right))


def _in_files(node: Total | _Later) -> bool:
    if isinstance(node, _Later):
        return True
    values = list(node.values.values())
    mapped = [value for value in values if isinstance(value, np.memmap)]
    # Numbers and empty arrays are never mapped.
    small = all(isinstance(value, np.memmap | np.generic) or (isinstance(value, np.ndarray) and not value.size) for value in values)
    return small and sum(value.nbytes for value in mapped) >= LARGE


def _bare(node: Total | _Later) -> Total:
    return node.rest if isinstance(node, _Later) else replace(node, values={})


def _made(node: Total | _Later) -> Total:
    if not isinstance(node, _Later):
        return node
    values = {name: _sum_of(node, name) for name in _leaves(node)[0].values}
    return replace(node.rest, values=values)


def _leaves(node: Total | _Later) -> list[Total]:
    return [*_leaves(node.left), *_leaves(node.right)] if isinstance(node, _Later) else [node]


def _sum_of(node: _Later, name: str) -> Array:
    leaves = [leaf.values[name] for leaf in _leaves(node)]
    first = leaves[0]
    if not isinstance(first, np.memmap) or not first.ndim:
        return _added(node, lambda total: total.values[name])
    if any(leaf.shape != first.shape for leaf in leaves):
        raise ValueError(f"totals of {name!r} have different shapes and cannot be added")
    total = np.empty(first.size, dtype=np.result_type(*(leaf.dtype for leaf in leaves)))
    for start in range(0, total.size, SLICE):
        part = slice(start, start + SLICE)
        total[part] = _added(node, lambda one, part=part: one.values[name].reshape(-1)[part])  # type: ignore[misc]  # mypy has no type for a lambda's default
    return total.reshape(first.shape)


def _added(node: Total | _Later, part: Callable[[Total], Array]) -> Array:
    if not isinstance(node, _Later):
        return part(node)
    left, right = _added(node.left, part), _added(node.right, part)
    total = left + right
    release(left)
    release(right)
    return total


def release(array: Array) -> None:
    """Let the system take back the memory in which it keeps a part of a read-only mapped file; it is read again when it is needed.

    Does nothing for any other array.
    """
    mapped = getattr(array, "_mmap", None)
    if mapped is None or getattr(array, "mode", "") != "r" or not array.size or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = array.ctypes.data - np.frombuffer(mapped, dtype=np.uint8).ctypes.data
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)


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
