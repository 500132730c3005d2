"""Splits: disjoint covers of a client's rows that depend on nothing but the client."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hansa.core.errors import InputError
from hansa.data import Split

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
fractions = st.floats(0, 0.45)


def nearest(value: float) -> int:
    return int(np.floor(value + 0.5))


def cut(split: Split, y: np.ndarray, client: str = "a", task: str = "classification") -> dict[str, np.ndarray]:
    assume(len(y) - nearest(len(y) * split.test) - nearest(len(y) * split.validation) >= 1)
    return split.indices(y, (7, client), task)  # type: ignore[arg-type]  # a task, as text


@given(
    y=labels, validation=fractions, test=fractions, stratify=st.booleans(), task=st.sampled_from(["classification", "regression"])
)
def test_the_parts_are_a_disjoint_cover(y: np.ndarray, validation: float, test: float, stratify: bool, task: str) -> None:
    parts = cut(Split(validation, test, stratify), y, task=task)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(y)))
    assert len(parts["train"]) >= 1
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts.values())
    assert ("test" in parts, "validation" in parts) == (test > 0, validation > 0)


@given(y=labels, validation=fractions, test=fractions)
def test_sizes_are_exact_without_classes(y: np.ndarray, validation: float, test: float) -> None:
    parts = cut(Split(validation, test, stratify=False), y)
    for name, fraction in (("test", test), ("validation", validation)):
        assert len(parts.get(name, [])) == nearest(len(y) * fraction)


@given(y=labels, validation=fractions, test=fractions)
def test_every_class_keeps_a_training_row(y: np.ndarray, validation: float, test: float) -> None:
    parts = cut(Split(validation, test), y)
    for label, count in zip(*np.unique(y, return_counts=True), strict=True):
        if count >= 2:
            assert (y[parts["train"]] == label).any()


@given(counts=st.lists(st.integers(4, 30), min_size=1, max_size=5), test=st.floats(0.05, 0.5), validation=st.floats(0, 0.2))
def test_classes_keep_their_shares(counts: list[int], test: float, validation: float) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    parts = cut(Split(validation, test), y)
    assert len(parts["test"]) == nearest(len(y) * test)
    exact = np.array(counts) * len(parts["test"]) / len(y)
    assert (np.abs(np.bincount(y[parts["test"]], minlength=len(counts)) - exact) < 1).all()


@given(y=labels)
def test_a_split_depends_on_the_seed_the_client_and_its_labels(y: np.ndarray) -> None:
    split = Split(0.2, 0.2)
    first, names = cut(split, y), cut(split, np.array([f"label {label}" for label in y]))
    assert all(np.array_equal(first[name], names[name]) for name in first)  # the classes' names do not matter
    assert all(np.array_equal(first[name], cut(split, y)[name]) for name in first)


def test_other_clients_and_seeds_split_differently() -> None:
    y = np.arange(40) % 2
    drawn = {tuple(Split().indices(y, key, "classification")["test"]) for key in ((0, "a"), (0, "b"), (1, "a"))}
    assert len(drawn) == 3


def test_ties_between_classes_favour_none_over_many_clients() -> None:
    # Each client may hold out one of two rows' classes; over many clients both are held out alike.
    y = np.array([0, 0, 1, 1])
    held = [y[Split(0.0, 0.25).indices(y, (0, f"client {k}"), "classification")["test"]][0] for k in range(400)]
    assert 160 < sum(held) < 240


def test_rows_without_labels_are_split_by_their_number() -> None:
    parts = Split(0.1, 0.2).indices(50, (0, "a"), "regression")
    assert {name: len(part) for name, part in parts.items()} == {"train": 35, "validation": 5, "test": 10}


def test_single_rows_of_a_class_stay_for_training_while_others_can_go() -> None:
    y = np.array([0] * 8 + [1, 2])
    for seed in range(20):
        parts = Split(0.0, 0.3).indices(y, (seed, "a"), "classification")
        assert {8, 9} <= set(parts["train"].tolist())
    lone = Split(0.0, 0.4).indices(np.arange(5), (0, "a"), "classification")
    assert len(lone["test"]) == 2


def test_what_cannot_work_is_said_in_one_sentence() -> None:
    with pytest.raises(InputError, match=r"validation=0.5 and test=0.5 leave nothing for training; their sum must be below 1"):
        Split(0.5, 0.5)
    with pytest.raises(
        InputError, match=r"client a: has 2 rows, and split.validation=0.3 with split.test=0.4 leaves none for training"
    ):
        Split(0.3, 0.4).indices(np.array([0, 1]), (0, "a"), "classification")
    with pytest.raises(InputError, match="client a: has 0 rows"):
        Split().indices(np.array([], dtype=int), (0, "a"), "classification")
