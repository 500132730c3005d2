"""Laws of every transform."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hansa.core.contracts import Context
from hansa.core.reduction import reduce_block
from hansa.core.updates import Update
from hansa.options import registry
from hansa.privacy.clip import Clip

TRANSFORMS = {"clip": Clip(norm=0.7)}
every = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
numbers = st.floats(-1e6, 1e6, width=32)


def update_of(values: np.ndarray) -> Update:
    return Update({"delta/w": values[:, :3].reshape(-1, 3), "delta/b": values[:, 3:]}, np.arange(1.0, len(values) + 1))


def test_all_registered_transforms_are_here() -> None:
    assert set(registry("transform")) == set(TRANSFORMS)


@every
@given(values=arrays(np.float64, (4, 5), elements=numbers))
def test_keeps_names_shapes_dtypes_and_weights(transform: Any, values: np.ndarray) -> None:
    before = update_of(values)
    after = transform.client(before, Context(0, 1))
    assert list(after.values) == list(before.values)
    assert all(after.values[n].shape == v.shape and after.values[n].dtype == v.dtype for n, v in before.values.items())
    assert np.array_equal(after.weight, before.weight)
    total = transform.server(reduce_block(after), Context(0, 1))
    assert list(total.values) == list(before.values)


@every
@given(values=arrays(np.float64, (4, 5), elements=numbers))
def test_a_client_does_not_depend_on_its_neighbours(transform: Any, values: np.ndarray) -> None:
    together = transform.client(update_of(values), Context(0, 1)).values["delta/w"]
    alone = [transform.client(update_of(values[k : k + 1]), Context(0, 1)).values["delta/w"][0] for k in range(4)]
    assert np.array_equal(together, np.stack(alone))


@every
def test_says_what_it_promises(transform: Any) -> None:
    assert transform.guarantee in ("none", "heuristic") or "delta" in transform.guarantee


@given(values=arrays(np.float64, (4, 5), elements=numbers))
def test_clip_bounds_the_norm_and_leaves_small_updates_alone(values: np.ndarray) -> None:
    after = Clip(norm=0.7).client(update_of(values), Context(0, 1))
    norms = np.sqrt(sum((value**2).sum(axis=1) for value in after.values.values()))
    assert (norms <= 0.7 * (1 + 1e-12)).all()
    small = np.linalg.norm(values, axis=1) <= 0.7
    assert np.array_equal(after.values["delta/w"][small], values[small, :3])
