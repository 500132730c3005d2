"""Params: what a model is, as a flat, ordered dictionary of named arrays.

Each entry has a kind, and each kind its own rule of aggregation:

========  ==============================================  ==========================================
kind      examples                                        aggregated as
========  ==============================================  ==========================================
weight    coefficients, kernels, biases                   the algorithm's rule (a server optimiser)
buffer    running mean and variance of a batch norm       weighted mean of the clients' values
counter   number of batches tracked                       weighted mean, rounded to a whole number
========  ==============================================  ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from array_api_compat import array_namespace

Array: TypeAlias = Any
"""An array of any library that `array_api_compat` knows: NumPy, PyTorch, JAX, CuPy."""

Params: TypeAlias = dict[str, Array]
Kind = Literal["weight", "buffer", "counter"]
Kinds: TypeAlias = Mapping[str, Kind]


def map_params(function: Callable[..., Array], first: Params, *others: Params) -> Params:
    """Apply ``function`` entry by entry; the names and their order are those of ``first``."""
    return {name: function(value, *(other[name] for other in others)) for name, value in first.items()}


def zeros_like(params: Params) -> Params:
    """Zeros of the same names, shapes and dtypes."""
    return map_params(lambda value: array_namespace(value).zeros_like(value), params)


def flatten(params: Params) -> np.ndarray:
    """All entries as one float64 vector, in name order of the dictionary, each in C order."""
    return np.concatenate([np.asarray(value, dtype=np.float64).ravel() for value in params.values()])


def unflatten(vector: np.ndarray, like: Params) -> Params:
    """The inverse of :func:`flatten`, with the shapes and dtypes of ``like``."""
    result, start = {}, 0
    for name, value in like.items():
        size = int(np.prod(value.shape))
        result[name] = vector[start : start + size].reshape(value.shape).astype(value.dtype)
        start += size
    return result


def size_in_bytes(params: Params) -> int:
    """Bytes of all entries: what one uncompressed copy costs on a wire."""
    return sum(math.prod(value.shape) * value.dtype.itemsize for value in params.values())


def with_kind(params: Params, kinds: Kinds, *wanted: Kind) -> Params:
    """The entries whose kind is one of ``wanted``; a name that ``kinds`` does not list is a weight."""
    return {name: value for name, value in params.items() if kinds.get(name, "weight") in wanted}
