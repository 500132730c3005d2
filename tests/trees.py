"""Trees of arrays and plain values for laws of what is written and read again."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
LEAVES = PLAIN | ARRAYS | ARRAYS.filter(lambda a: a.ndim == 0).map(lambda a: a[()])


def trees_with(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    """Dictionaries of anything that a tree may hold, among their keys some that a format could take for its own."""
    key = st.text(alphabet=st.sampled_from('ab/~01."\\é医@')) | st.sampled_from(["__metadata__", "dict", "array", "float", *keys])
    inner = st.recursive(LEAVES, lambda one: st.lists(one) | st.dictionaries(key, one) | st.tuples(one, one), max_leaves=12)
    return st.dictionaries(key, inner)


def same_bits(first: Any, second: Any) -> bool:
    """Equal to the last bit, in the same order, with the same types and dtypes."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(same_bits(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same_bits, first, second))
    if isinstance(first, np.ndarray | np.generic):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    return repr(first) == repr(second)  # tells -0.0 from 0.0, and nan is nan
