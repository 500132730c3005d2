"""Partitions: exact covers, equal on every call, and skewed as their sources say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import InputError
from hansa.data import IID, BuiltIn, Column, Dirichlet, Partition, Shards
from hansa.data.partition import Assignment
from hansa.data.sources import Rows


def rows_of(y: Any, client: Any = None, task: str = "classification") -> Rows:
    y = np.asarray(y)
    return Rows(np.zeros((len(y), 1)), y, None if client is None else np.asarray(client), None, task)  # type: ignore[arg-type]  # a task, as text


def partitions() -> st.SearchStrategy[Partition]:
    clients = st.integers(1, 8)
    return st.one_of(
        st.builds(IID, clients=clients),
        st.builds(Dirichlet, clients=clients, alpha=st.sampled_from([0.5, 1.0, 10.0, 1e6])),
        st.builds(Shards, clients=clients, shards=st.integers(1, 3)),
        st.just(Column()),
    )


@settings(deadline=None)
@given(partition=partitions(), y=st.lists(st.integers(0, 4), min_size=40, max_size=80), seed=st.integers(0, 2**32))
def test_every_row_has_one_client(partition: Partition, y: list[int], seed: int) -> None:
    rows = rows_of(y, [f"site {label % 3}" for label in y])
    assigned = partition.assign(rows, seed)
    ids = [name for name, _ in assigned]
    assert ids == sorted(set(ids))
    assert sorted(np.concatenate([indices for _, indices in assigned]).tolist()) == list(range(len(y)))
    for _, indices in assigned:
        assert indices.dtype == np.int64
        assert len(indices) >= 1
        assert (np.diff(indices) > 0).all()
    again = partition.assign(rows_of(y, rows.client), seed)
    assert all(a == b and np.array_equal(i, j) for (a, i), (b, j) in zip(assigned, again, strict=True))


def sizes(assigned: Assignment) -> np.ndarray:
    return np.array([len(indices) for _, indices in assigned])


@given(rows=st.integers(1, 300), data=st.data())
def test_iid_sizes_differ_by_one_at_most(rows: int, data: st.DataObject) -> None:
    clients = data.draw(st.integers(1, rows))
    found = sizes(IID(clients=clients).assign(rows_of(np.zeros(rows, int)), 0))
    assert found.max() - found.min() <= 1


def test_another_seed_gives_other_clients() -> None:
    rows = rows_of(np.arange(200) % 5)
    for partition in (IID(clients=4), Dirichlet(clients=4, alpha=1.0), Shards(clients=4)):
        first, second = partition.assign(rows, 0), partition.assign(rows, 1)
        assert any(not np.array_equal(i, j) for (_, i), (_, j) in zip(first, second, strict=True))


def test_ids_are_padded_so_that_text_sorts_like_numbers() -> None:
    ids = [name for name, _ in IID(clients=1001).assign(rows_of(np.zeros(1001, int)), 0)]
    assert ids == sorted(ids)
    assert (ids[0], ids[7], ids[-1]) == ("client-0000", "client-0007", "client-1000")
    assert IID(clients=8).assign(rows_of(np.zeros(8, int)), 0)[7][0] == "client-007"


def test_natural_clients_are_those_of_the_source() -> None:
    rows = BuiltIn("heart_disease").read()
    for name, indices in Column().assign(rows, 0):
        assert rows.client is not None
        assert np.array_equal(indices, np.flatnonzero(rows.client == name))


@settings(deadline=None)
@given(
    y=st.lists(st.integers(0, 5), min_size=30, max_size=90),
    clients=st.integers(1, 6),
    shards=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_shards_cut_the_sorted_rows(y: list[int], clients: int, shards: int, seed: int) -> None:
    labels = np.array(y)
    assigned = Shards(clients=clients, shards=shards).assign(rows_of(labels), seed)
    distinct = np.array([len(np.unique(labels[indices])) for _, indices in assigned])
    # Every boundary between two classes lies inside at most one shard, to which it adds one label.
    assert distinct.sum() <= clients * shards + len(np.unique(labels)) - 1
    assert sizes(assigned).max() - sizes(assigned).min() <= shards


def test_shards_of_equal_classes_hold_one_label_each() -> None:
    labels = np.repeat(np.arange(10), 20)[np.random.default_rng(0).permutation(200)]
    assigned = Shards(clients=10, shards=2).assign(rows_of(labels), 3)
    assert all(len(np.unique(labels[indices])) <= 2 for _, indices in assigned)
    assert (sizes(assigned) == 20).all()


def test_shards_sort_the_targets_of_a_regression() -> None:
    y = np.random.default_rng(0).normal(size=60)
    assigned = Shards(clients=6, shards=1).assign(rows_of(y, task="regression"), 0)
    spans = sorted((y[indices].min(), y[indices].max()) for _, indices in assigned)
    assert all(before[1] < after[0] for before, after in pairwise(spans))


def _shares(alpha: float, seed: int) -> np.ndarray:
    labels = np.arange(6000) % 3
    assigned = Dirichlet(clients=5, alpha=alpha).assign(rows_of(labels), seed)
    return np.array([np.bincount(labels[indices], minlength=3) for _, indices in assigned]) / 2000


def test_dirichlet_with_a_large_alpha_is_iid() -> None:
    assert np.allclose(_shares(1e8, 0), 1 / 5, atol=1e-3)


def test_dirichlet_shares_have_the_moments_of_the_distribution() -> None:
    # Dir(alpha) over J clients: mean 1/J, variance (1/J)(1 - 1/J) / (J alpha + 1).
    draws = np.stack([_shares(0.5, seed) for seed in range(300)])
    assert np.allclose(draws.mean(axis=0), 0.2, atol=0.05)
    assert np.allclose(draws.var(axis=0), 0.2 * 0.8 / (5 * 0.5 + 1), atol=0.02)


def test_dirichlet_draws_until_every_client_has_the_least() -> None:
    labels = np.arange(400) % 4
    assert sizes(Dirichlet(clients=8, alpha=0.3, least=10).assign(rows_of(labels), 5)).min() >= 10


@pytest.mark.parametrize(
    ("partition", "rows", "sentence"),
    [
        (
            Column(),
            rows_of([0, 1]),
            r'the data names no clients of its own; .* set partition.name to "iid", "dirichlet" or "shards"',
        ),
        (IID(clients=3), rows_of([0, 1]), '"iid" with clients=3 needs 3 rows, and the data has 2'),
        (Shards(clients=2), rows_of([0, 1, 2]), '"shards" with clients=2 times shards=2 needs 4 rows, and the data has 3'),
        (Dirichlet(clients=2, alpha=1.0, least=2), rows_of([0, 1]), '"dirichlet" with clients=2 with least=2 rows each needs 4'),
        (Dirichlet(clients=2, alpha=1.0), rows_of([0.5, 1.5], task="regression"), "skews classes, and this data has none"),
        (Shards(clients=2), Rows(np.eye(4), None, None, None, "regression"), "sorts by label, and this data has none"),
        (
            Dirichlet(clients=20, alpha=1e-3),
            rows_of(np.arange(60) % 3),
            r"alpha=0.001, none of 1,000 draws gives each of 20 clients at least 1 of 60 rows \(the best leaves one with 0\); raise alpha",
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(partition: Partition, rows: Rows, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        partition.assign(rows, 0)
