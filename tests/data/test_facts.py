"""Facts: what pandas and NumPy say of the same rows, as plain JSON."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from hansa.core.blocks import Table
from hansa.core.errors import InputError
from hansa.data import BuiltIn, Column, Split, facts_of
from hansa.data.recipes import clients

HOSPITALS = clients(BuiltIn("heart_disease"), Column(), Split(0.1, 0.2), 0)


@pytest.mark.parametrize("client", HOSPITALS, ids=lambda client: client.id)
def test_a_table_is_told_as_pandas_tells_it(client: object) -> None:
    splits = client.load()  # type: ignore[attr-defined]  # a client; pytest gives objects
    facts = facts_of(splits)
    train, whole = splits["train"].x, pd.concat([table.x for table in splits.values()])
    assert facts["rows"] == {name: len(table) for name, table in splits.items()}
    assert list(facts["columns"]) == list(train.columns)
    for name, told in facts["columns"].items():
        assert told["missing"] == whole[name].isna().sum()
        if told["kind"] == "number":
            expected = [train[name].min(), train[name].max(), train[name].mean(), train[name].std(ddof=0)]
            given = [np.nan if told[fact] is None else told[fact] for fact in ("min", "max", "mean", "std")]
            assert np.allclose(given, expected, rtol=1e-12, equal_nan=True)
        else:
            assert told["values"] == train[name].value_counts().to_dict()
            assert told["distinct"] == train[name].nunique()
    for name, counts in facts["labels"]["counts"].items():
        assert dict(counts) == pd.Series(splits[name].y).value_counts().to_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_an_array_is_told_as_a_whole() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4, 4)).astype(np.float32)
    x[0, 0, 0], x[1, 0, 0], x[29, 3, 3] = np.inf, np.nan, np.nan
    facts = facts_of({"train": Table(x[:20], np.arange(20) % 3), "test": Table(x[20:], np.arange(10) % 3)})
    finite = x[:20][np.isfinite(x[:20])]
    assert facts["columns"] == {
        "x": {
            "kind": "number",
            "shape": [4, 4],
            "dtype": "float32",
            "missing": 2,
            "infinite": 1,
            "min": float(finite.min()),
            "max": float(finite.max()),
        }
    }
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_targets_are_told_by_their_moments() -> None:
    y = np.array([1.0, 2.0, 4.0, np.nan, np.inf])
    labels = facts_of({"train": Table(np.zeros((5, 1)), y)})["labels"]
    assert labels == {
        "dtype": "float64",
        "missing": 1,
        "infinite": 1,
        "min": 1.0,
        "max": 4.0,
        "mean": pytest.approx(7 / 3),
        "std": pytest.approx(np.std([1, 2, 4])),
    }


def test_raw_columns_of_a_callers_own_loader_are_told_apart() -> None:
    frame = pd.DataFrame(
        {"b": [True, False], "i": pd.array([1, None], dtype="Int64"), "c": pd.Categorical(["u", "v"]), "e": [None, None]}
    )
    columns = facts_of({"train": Table(frame)})["columns"]
    assert {name: told["kind"] for name, told in columns.items()} == {
        "b": "number",
        "i": "number",
        "c": "category",
        "e": "category",
    }
    assert columns["i"]["missing"] == 1
    assert columns["b"]["kind"] == "number" and columns["b"]["mean"] == 0.5
    assert columns["e"]["distinct"] == 0


@pytest.mark.parametrize("distinct", [20, 21, 100, 101])
def test_texts_that_name_rows_are_told_neither_as_features_nor_as_labels(distinct: int) -> None:
    """More than 20 different ones, of which most rows have their own; however small the part that is for training."""
    texts = np.array([f"Anna {k % distinct} Meyer" for k in range(200)])
    columns = facts_of({"train": Table(pd.DataFrame({"who": texts}))})["columns"]
    small = {"train": texts[:15], "test": texts[15:]}
    parted = facts_of({name: Table(pd.DataFrame({"who": part})) for name, part in small.items()})["columns"]
    assert ("identifier" in columns["who"]) == ("identifier" in parted["who"]) == (distinct > 100)
    assert bool(columns["who"]["values"]) == bool(parted["who"]["values"]) == (distinct <= 100)
    for parts in ({"train": texts}, small):
        tables = {name: Table(np.zeros((len(part), 1)), part) for name, part in parts.items()}
        if distinct <= 100:
            assert facts_of(tables)["labels"]["counts"].keys() == parts.keys()
            continue
        with pytest.raises(InputError, match=f"{distinct} different texts in 200 rows") as told:
            facts_of(tables)
        assert "Anna" not in str(told.value)
