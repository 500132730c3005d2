"""Recipes: they travel, and give the same bytes wherever and however often they are loaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from hansa.core.blocks import Client, Splits
from hansa.core.errors import InputError
from hansa.data import IID, BuiltIn, Column, Dirichlet, File, Partition, Source, Split, from_arrays, from_table, pooled
from hansa.data.recipes import central, clients

SPLIT = Split(0.1, 0.2)
IMAGES = np.random.default_rng(0).random((120, 4, 4)).astype(np.float32)
HEART = BuiltIn("heart_disease").read()
CASES: list[tuple[Source, Partition]] = [
    (BuiltIn("heart_disease"), Column()),
    (BuiltIn("iris"), Dirichlet(clients=5, alpha=1.0)),
    (BuiltIn("diabetes"), IID(clients=7)),
    (from_arrays(IMAGES, np.arange(120) % 3, clients=np.arange(120) % 4), Column()),
    (from_table(HEART.x.assign(ill=HEART.y, site=HEART.client), label="ill", client="site"), Column()),
]


def same(first: Splits, second: Splits) -> None:
    assert list(first) == list(second)
    for name, table in first.items():
        if isinstance(table.x, pd.DataFrame):
            assert_frame_equal(table.x.reset_index(drop=True), second[name].x.reset_index(drop=True))
        else:
            assert table.x.tobytes() == second[name].x.tobytes()
            assert table.x.dtype == second[name].x.dtype
        assert np.array_equal(table.y, second[name].y)
        assert table.y.dtype == second[name].y.dtype


def sent(client: Client) -> Client:
    received = pickle.loads(pickle.dumps(client))  # noqa: S301  # of our own making
    assert isinstance(received, Client)
    return received


@pytest.mark.parametrize(("source", "partition"), CASES)
def test_recipes_survive_a_journey_and_load_the_same_bytes(source: Source, partition: Partition) -> None:
    for client in clients(source, partition, SPLIT, 3):
        loaded = client.load()
        same(client.load(), loaded)
        same(sent(client).load(), loaded)
        same(sent(sent(client)).load(), loaded)
        assert client.rows == len(loaded["train"])


@pytest.mark.parametrize(("source", "partition"), CASES)
def test_clients_hold_every_row_once_and_are_sorted(source: Source, partition: Partition) -> None:
    found = clients(source, partition, SPLIT, 3)
    assert [client.id for client in found] == sorted(client.id for client in found)
    labels = np.concatenate([table.y for client in found for table in client.load().values()])
    whole = source.read()
    assert np.array_equal(np.sort(labels), np.sort(whole.y))  # type: ignore[arg-type]  # a table, which has labels
    assert len(labels) == len(whole)


@pytest.mark.parametrize(("source", "partition"), CASES)
def test_pooled_is_every_split_put_together(source: Source, partition: Partition) -> None:
    found = clients(source, partition, SPLIT, 3)
    (one,) = pooled(found)
    loaded, parts = one.load(), [client.load() for client in found]
    assert one.id == "pooled"
    assert one.rows == len(loaded["train"])
    for name, table in loaded.items():
        assert np.array_equal(table.y, np.concatenate([part[name].y for part in parts]))
        if isinstance(table.x, pd.DataFrame):
            assert_frame_equal(table.x, pd.concat([part[name].x for part in parts], ignore_index=True))
            assert (table.x.dtypes == parts[0][name].x.dtypes).all()
        else:
            assert np.array_equal(table.x, np.concatenate([part[name].x for part in parts]))
    same(sent(one).load(), loaded)


def test_a_client_splits_alone_as_it_does_among_others() -> None:
    source = BuiltIn("heart_disease")
    rows = source.read()
    mine = rows.client == "Hungary"
    alone = from_arrays(rows.x[mine], rows.y[mine], clients=rows.client[mine])  # type: ignore[index]  # a table whose rows name their clients
    among = next(client for client in clients(source, Column(), SPLIT, 5) if client.id == "Hungary")
    same(clients(alone, Column(), SPLIT, 5)[0].load(), among.load())


def test_a_recipe_of_data_in_memory_carries_its_own_rows_only() -> None:
    found = clients(from_arrays(IMAGES, np.arange(120) % 3), IID(clients=10), Split(), 0)
    size = len(pickle.dumps(found[0]))
    assert size < IMAGES.nbytes / 10 + 4000


def test_a_recipe_of_a_built_in_set_carries_no_rows() -> None:
    found = clients(BuiltIn("digits"), IID(clients=10), Split(), 0)
    assert len(pickle.dumps(found[0])) < 180 * 8 + 2000  # eight bytes a row number


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "1,0\n2,1\n" * 10)
    (client,) = clients(File(path=str(path), label="y"), IID(clients=1), Split(), 0)
    path.write_text("x,y\n" + "1,0\n2,1\n" * 9)
    with pytest.raises(InputError, match="the source has 18 rows and had 20 when the job began"):
        client.load()


def test_the_central_test_set_is_that_of_the_source() -> None:
    held: Any = (IMAGES[:5], np.arange(5) % 3)
    table = central(from_arrays(IMAGES, np.arange(120) % 3, test=held))
    assert table is not None
    assert table.x.tobytes() == IMAGES[:5].tobytes()
    assert central(BuiltIn("iris")) is None


def test_rows_without_labels_have_splits_too() -> None:
    (client,) = clients(from_arrays(IMAGES, None), IID(clients=1), Split(), 0)
    loaded = client.load()
    assert (len(loaded["train"]), len(loaded["test"])) == (96, 24)
    assert loaded["train"].y is None
    assert pooled([client])[0].load()["train"].y is None


@pytest.mark.parametrize(("source", "partition"), CASES)
def test_a_population_survives_a_journey(source: Source, partition: Partition) -> None:
    found = clients(source, partition, SPLIT, 3)
    received = pickle.loads(pickle.dumps(found))  # noqa: S301  # of our own making
    assert [client.id for client in received] == [client.id for client in found]
    same(received[1].load(), found[1].load())
    assert found.rows == sum(client.rows for client in found)
    assert [client.id for client in found[1:3]] == [found[1].id, found[2].id]
    assert found[-1].id == found[len(found) - 1].id


def test_a_population_of_a_built_in_set_is_sent_as_its_options() -> None:
    assert len(pickle.dumps(clients(BuiltIn("digits"), IID(clients=300), Split(), 0))) < 1000
