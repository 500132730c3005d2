"""Laws of order statistics from sums: the very value that sorting all rows together would give."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from hansa.core.errors import RunFailed
from hansa.data.preparing.order import BYTES, Order, from_keys, order_question, order_values, to_keys
from hansa.data.preparing.questions import Known

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e308, -1e308, 1.0])


def select(tables: list[np.ndarray], ranks: np.ndarray) -> tuple[np.ndarray, int]:
    """The values at ``ranks`` of each column, and how many exchanges that took."""
    known: Known = {}
    rounds = 0
    while (question := order_question(known, ranks)) is not None:
        known = question.learn(known, {"bytes": sum(question.measure(x)["bytes"] for x in tables)})  # type: ignore[dict-item]  # sum is 0 only where there are no tables
        rounds += 1
    return order_values(known), rounds


@given(st.lists(numbers, min_size=1))
def test_keys_have_the_order_of_the_numbers(values: list[float]) -> None:
    x = np.array(values)
    assert np.array_equal(from_keys(to_keys(x)), x)
    assert np.array_equal(np.argsort(to_keys(x), kind="stable"), np.argsort(x, kind="stable"))


@settings(deadline=None)
@given(st.lists(st.lists(numbers | st.just(float("nan")), max_size=7), min_size=1, max_size=4))
def test_every_rank_is_the_value_of_the_sorted_rows(clients: list[list[float]]) -> None:
    tables = [np.array(values, dtype=float)[:, None] for values in clients]
    pooled = np.concatenate(tables)[:, 0]
    ordered = np.sort(pooled[~np.isnan(pooled)]) + 0.0
    ranks = np.arange(max(len(ordered), 1))[None] if len(ordered) else np.array([[-1]])
    found, rounds = select(tables, ranks)
    assert rounds == BYTES
    expected = ordered if len(ordered) else np.array([np.nan])
    assert found[0].tobytes() == expected.tobytes()


def test_several_columns_at_once() -> None:
    x = np.random.default_rng(0).normal(size=(101, 5)) * 10.0 ** np.arange(-2, 3)
    found, _ = select([x[:40], x[40:41], x[41:]], np.tile([0, 50, 100], (5, 1)))
    assert np.array_equal(found, np.stack([x.min(axis=0), np.median(x, axis=0), x.max(axis=0)], axis=1))


def test_rows_that_change_between_rounds_are_noticed() -> None:
    question = Order.first(np.array([[2]]))
    with pytest.raises(RunFailed, match="rows changed"):
        question.learn({}, question.measure(np.array([[1.0], [2.0]])))
