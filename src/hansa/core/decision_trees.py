"""Decision trees as plain arrays: what a forest is between the clients and the server, and what is believed of one that arrives.

The nodes of all trees lie one behind the other, each tree's in the order in which it was grown: a node comes before its children,
which are named by their numbers within the tree. Nothing is ever unpickled. Whoever walks a tree follows its numbers without a
further look, so trees are checked when they arrive (:func:`checked`): a child that is outside would be read beyond the memory, one that
leads back would be followed for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from hansa.core.errors import InputError

Trees: TypeAlias = Mapping[str, np.ndarray]
"""Several trees, by the names of :data:`OF_TREE` and :data:`OF_NODE`."""

OF_TREE = {"nodes": np.int64, "seed": np.int64}
"""One entry a tree: its number of nodes, and the seed from which it was grown."""

OF_NODE = {
    "left": np.int32, "right": np.int32, "feature": np.int32, "threshold": np.float64, "missing_left": np.uint8,
    "impurity": np.float64, "samples": np.int64, "weight": np.float64, "value": np.float64,
}  # fmt: skip
"""One entry a node. ``left`` and ``right`` are -1 for a leaf; ``value`` (nodes, width) has a column for each class, which are shares
that sum to one, or one column for a regression."""

TREES = {**OF_TREE, **OF_NODE}

LEAF = -1


def no_trees(width: int) -> dict[str, np.ndarray]:
    """No trees, for ``width`` columns of values."""
    return {name: np.zeros((0, width) if name == "value" else 0, dtype=kind) for name, kind in TREES.items()}


def joined(several: Sequence[Trees]) -> dict[str, np.ndarray]:
    """The trees of all, one behind the other."""
    return {name: np.concatenate([trees[name] for trees in several]) for name in TREES}


def depths(trees: Trees) -> np.ndarray:
    """The depth of each tree, int64 (trees,), 0 for a single leaf; of trees that were checked."""
    begins = np.cumsum(trees["nodes"]) - trees["nodes"]
    owner = np.repeat(np.arange(len(begins)), trees["nodes"])
    depth, level, found = 0, begins, np.zeros(len(begins), dtype=np.int64)
    while len(level):
        found[owner[level]] = depth
        inner = level[trees["left"][level] != LEAF]
        first = begins[owner[inner]]
        level = np.concatenate([first + trees["left"][inner], first + trees["right"][inner]])
        depth += 1
    return found


def checked(given: Mapping[str, object], features: int, width: int, shares: bool) -> dict[str, np.ndarray]:
    """Trees that may be walked and trusted to end. InputError, in words that follow a subject, for anything else.

    features: columns that a node may ask for; width: columns of values; shares: whether these are shares of classes.
    """
    trees = {name: _array(given, name) for name in TREES}
    sizes, total = trees["nodes"], len(trees["left"])
    if any(len(trees[name]) != total for name in OF_NODE) or len(trees["seed"]) != len(sizes):
        raise InputError("are arrays of different lengths")
    if trees["value"].shape != (total, width):
        raise InputError(f"have values of shape {trees['value'].shape[1:]}, and {width} columns are agreed on")
    if (sizes < 1).any() or (sizes > total).any() or int(sizes.sum()) != total:
        raise InputError(f"have {total} nodes and say that they have other numbers")
    _check_shape(trees, np.repeat(sizes, sizes), np.repeat(np.cumsum(sizes) - sizes, sizes))
    inner = trees["left"] != LEAF
    if inner.any() and (trees["feature"][inner].min() < 0 or trees["feature"][inner].max() >= features):
        raise InputError(f"ask for a column that is none of the {features}")
    numbers = [trees[name] for name in ("impurity", "weight", "value")]
    if np.isnan(trees["threshold"]).any() or not all(np.isfinite(array).all() for array in numbers):
        raise InputError("have numbers that are not finite")
    if (trees["samples"] < 0).any() or (trees["weight"] < 0).any():
        raise InputError("have nodes of fewer than no rows")
    if shares and ((trees["value"] < 0).any() or (np.abs(trees["value"].sum(axis=1) - 1.0) > 1e-6).any()):
        raise InputError("have shares of classes that do not sum to one")
    return trees


def _array(given: Mapping[str, object], name: str) -> np.ndarray:
    value, kind = given.get(name), np.dtype(TREES[name])
    if not isinstance(value, np.ndarray) or value.dtype != kind or value.ndim != (2 if name == "value" else 1):
        raise InputError(f"have no array {name!r} of {kind}")
    return np.require(value, requirements=["A", "C"])


def _check_shape(trees: Trees, size: np.ndarray, begin: np.ndarray) -> None:
    """Every node but the first of each tree has one parent, which comes before it: so each is reached once, and none leads back.

    size, begin: of each node's tree, (nodes,).
    """
    left, right = (trees[name].astype(np.int64) for name in ("left", "right"))
    inner = left != LEAF
    if ((right != LEAF) != inner).any():
        raise InputError("have nodes with a single child")
    own = np.arange(len(left)) - begin
    children = np.concatenate([left[inner], right[inner]])
    if (children <= np.tile(own[inner], 2)).any() or (children >= np.tile(size[inner], 2)).any():
        raise InputError("have children outside of their tree, or before their parents")
    parents = np.bincount(children + np.tile(begin[inner], 2), minlength=len(left))
    if (parents != (own > 0)).any():
        raise InputError("have nodes that belong to no parent, or to several")
