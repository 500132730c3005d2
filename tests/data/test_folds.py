"""Folds: every training row is held out once, nobody else's rows matter, and the number of rows is known without making the cut."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import hansa
from hansa.core.blocks import Client
from hansa.data import recipes
from hansa.data.folds import Fold, Interleaved
from hansa.data.split import Split


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 40, 101])
@pytest.mark.parametrize("stratify", [True, False])
def test_each_training_row_is_held_out_exactly_once(rows: int, stratify: bool) -> None:
    y = np.random.default_rng(rows).integers(0, 3, rows)
    whole = Split(validation=0.1, test=0.2, stratify=stratify)
    parts = whole.indices(y, (3, "a"), "classification")
    folds = [Fold.of(whole, number, 4).indices(y, (3, "a"), "classification") for number in range(4)]
    for fold in folds:
        assert fold.keys() == {"train", "fold", "validation"}
        assert np.array_equal(np.sort(np.concatenate([fold["train"], fold["fold"]])), parts["train"])
        assert np.array_equal(fold["validation"], parts["validation"])
    held = np.concatenate([fold["fold"] for fold in folds])
    assert np.array_equal(np.sort(held), parts["train"] if len(parts["train"]) > 1 else [])


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 40, 101])
def test_the_number_of_training_rows_is_known_beforehand(rows: int) -> None:
    for number in range(5):
        fold = Fold.of(Split(test=0.2), number, 5)
        made = len(fold.indices(rows, (0, "a"), "regression")["train"])
        assert fold.training_rows(rows) == made
        assert fold.training_rows(np.array([rows, rows])).tolist() == [made, made]


def test_folds_of_a_client_keep_the_shares_of_the_classes() -> None:
    y = np.repeat([0, 1, 2], [50, 30, 20])
    for number in range(5):
        held = Fold.of(Split(test=0.0), number, 5).indices(y, (1, "a"), "classification")["fold"]
        assert np.bincount(y[held]).tolist() == [10, 6, 4]


def test_the_cut_depends_on_the_seed_and_the_client() -> None:
    def held(*key: int | str) -> list[int]:
        return Fold.of(Split(test=0.0), 0, 5).indices(50, key, "regression")["fold"].tolist()  # type: ignore[arg-type]  # a key may be of any length

    assert held(1, "a") == held(1, "a")
    assert held(1, "a") != held(1, "b")
    assert held(1, "a") != held(2, "a")


def test_populations_are_interleaved_and_send_data_in_memory_once() -> None:
    x, y = np.random.default_rng(0).standard_normal((400, 50)), np.arange(400) % 2
    data = hansa.from_arrays(x, y)
    folds = [recipes.clients(data, hansa.IID(clients=4), Fold.of(Split(), number, 5), 0) for number in range(5)]
    together = Interleaved(tuple(folds))
    assert len(together) == 20
    assert [client.id for client in together] == [f"client-{k:03}" for k in range(4) for _ in range(5)]

    def same(first: Client, second: Client) -> bool:
        loaded, own = first.load(), second.load()
        return first.rows == second.rows and all(np.array_equal(loaded[part].x, own[part].x) for part in own)

    sent = pickle.loads(pickle.dumps(together[0:20]))  # noqa: S301  # made here
    for position in range(20):
        own = folds[position % 5][position // 5]
        assert same(together[position], own) and same(sent[position], own)
    assert len(pickle.dumps(together[0:20])) < 1.2 * x.nbytes
