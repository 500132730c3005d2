"""Columns that are split over clients: who holds what, that rows stay together, and what cannot be split."""

from __future__ import annotations

import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

import hansa
from hansa import judging, opening, training
from hansa.algorithms.coordinate_descent import CoordinateDescent
from hansa.algorithms.fedavg import FedAvg
from hansa.core.blocks import Client
from hansa.core.errors import InputError
from hansa.data import IID, BuiltIn, Split, from_arrays, from_table
from hansa.data.arrangement import ByColumns
from hansa.data.facts import facts_of
from hansa.data.features import Features
from hansa.data.preparation import Standard
from hansa.data.recipes import clients
from hansa.job import from_text
from hansa.privacy.clip import Clip
from tests.conformance.problem import same_bits
from tests.killed import run_killed_at

HEART = BuiltIn("heart_disease").read()
NUMBERS = ["age", "trestbps", "chol", "thalch", "oldpeak", "ca"]
OTHERS = [name for name in HEART.x.columns if name not in NUMBERS]
TWO = Features(groups={"ward": tuple(OTHERS), "laboratory": tuple(NUMBERS)}, labels="laboratory")
HALVES = {
    "heart": (BuiltIn("heart_disease"), TWO),
    "memory": (from_arrays(HEART.x, HEART.y), TWO),
    "parts": (BuiltIn("breast_cancer"), Features(parts=7)),
    "array": (BuiltIn("digits"), Features(parts=5, labels="client-003")),
    "named": (from_arrays(np.eye(6), np.arange(6.0)), Features(groups={"b": ("x0", "x5"), "a": ("x3", "x1", "x2", "x4")})),
}
HOLDERS = {"heart": "laboratory", "memory": "laboratory", "parts": "client-000", "array": "client-003", "named": "b"}


def sent(client: Client) -> Client:
    received = pickle.loads(pickle.dumps(client))  # noqa: S301  # of our own making
    assert isinstance(received, Client)
    return received


@pytest.mark.parametrize("case", HALVES)
def test_every_column_has_one_holder_and_one_client_has_the_labels(case: str) -> None:
    source, partition = HALVES[case]
    population = clients(source, partition, Split(0.1, 0.2), 5)
    loaded = {client.id: client.load() for client in population}
    rows = source.read()
    assert list(loaded) == sorted(loaded)
    assert sum(splits["train"].x.shape[1] for splits in loaded.values()) == rows.x.shape[1]
    assert [id for id, splits in loaded.items() if splits["train"].y is not None] == [HOLDERS[case]]
    for split in ("train", "validation", "test"):
        parts = [splits[split] for splits in loaded.values()]
        labels = next(part.y for part in parts if part.y is not None)
        assert {len(part) for part in parts} == {len(labels)}
        whole = np.hstack([np.asarray(part.x, dtype=object) for part in parts])
        order = np.concatenate([np.array(places) for places in population.holders.places.values()])
        wanted = np.asarray(rows.x, dtype=object)[:, order]
        known = {(*map(repr, row), repr(label)) for row, label in zip(wanted, rows.y, strict=True)}
        assert all((*map(repr, row), repr(label)) in known for row, label in zip(whole, labels, strict=True))
    assert population.rows == population[0].rows == len(loaded[population[0].id]["train"])


@pytest.mark.parametrize("case", HALVES)
def test_recipes_travel(case: str) -> None:
    source, partition = HALVES[case]
    for client in clients(source, partition, Split(0.1, 0.2), 5):
        here, there = client.load(), sent(sent(client)).load()
        for name, table in here.items():
            assert np.array_equal(np.asarray(table.x, dtype=str), np.asarray(there[name].x, dtype=str))
            assert np.array_equal(table.y, there[name].y) if table.y is not None else there[name].y is None


def test_of_data_in_memory_a_client_is_sent_its_own_columns_alone() -> None:
    for client in clients(from_arrays(HEART.x, HEART.y), TWO, Split(), 0):
        travelled = sent(client).arguments["own"].source
        assert set(travelled.x.columns) == set(TWO.groups[client.id])
        assert (travelled.y is None) == (client.id != "laboratory")


def test_rows_go_by_their_ids() -> None:
    """Whatever the order of the source: the same clients, and the id is nobody's feature."""
    number = np.arange(60)
    frame = pd.DataFrame({"who": [f"p{k:03d}" for k in number], "a": 1.0 * number, "b": number**2.0, "y": number % 2})
    shuffled = frame.sample(frac=1.0, random_state=1)
    partition = Features(parts=2, id="who")
    first, second = (clients(from_table(table, "y"), partition, Split(), 0) for table in (frame, shuffled))
    for here, there in zip(first, second, strict=True):
        assert np.array_equal(here.load()["train"].x, there.load()["train"].x)
        assert "who" not in here.load()["train"].x
        assert np.array_equal(sent(there).load()["test"].x, here.load()["test"].x)


IDS = {
    "twice": (["a", "b", "b", "c"], "column 'who' has 'b' in 2 rows and 1 ids more than once"),
    "numbers twice": ([7, 8, 8, 8], "column 'who' has 8 in 3 rows and 1 ids more than once"),
    "missing": (["a", None, "b", "c"], "column 'who' is empty in 1 of 4 rows (first: row 1, counted from 0)"),
}


@pytest.mark.parametrize(("ids", "message"), IDS.values(), ids=IDS.keys())
def test_rows_that_cannot_be_matched_are_refused(ids: list[Any], message: str) -> None:
    frame = pd.DataFrame({"who": ids, "a": np.arange(4.0), "b": np.arange(4.0), "y": [0, 1, 0, 1]})
    with pytest.raises(InputError) as error:
        clients(from_table(frame, "y"), Features(parts=2, id="who"), Split(), 0)[0]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "give parts or groups"),
    "both": ({"parts": 2, "groups": {"a": ("age",)}}, "give only one of parts and groups"),
    "text": ({"groups": {"a": "age"}}, "client a has 'age', and a list of columns is needed; write a = ['age']"),
    "too many": ({"parts": 99}, "parts=99 needs as many columns, and the data has 13"),
    "unknown": ({"groups": {"a": ("agee",)}}, "client a has a column 'agee' that the data has not (did you mean 'age'?)"),
    "twice": ({"groups": {"a": ("age", "sex"), "b": ("sex",)}}, "column 'sex' is given twice, to a and b"),
    "left": ({"groups": {"a": tuple(HEART.x.columns[1:])}}, "column 'age' belongs to no client"),
    "empty": ({"groups": {"a": tuple(HEART.x.columns), "b": ()}}, "client b has no columns"),
    "labels": ({"parts": 2, "labels": "bank"}, "partition.labels = 'bank': there is no such client"),
    "no id": ({"parts": 2, "id": "name"}, "the data has no column 'name'"),
    "id as feature": ({"groups": {"a": tuple(HEART.x.columns)}, "id": "age"}, "'age' of client a is the id of the rows"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_split_that_is_none_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        clients(BuiltIn("heart_disease"), Features(**options), Split(), 0)[0]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_images_have_no_columns() -> None:
    with pytest.raises(InputError, match=r"features of shape \(2, 2\) have no columns to split"):
        clients(from_arrays(np.zeros((5, 2, 2)), np.arange(5)), Features(parts=2), Split(), 0)[0]


def job_with(**changed: Any) -> hansa.Job:
    parts = {
        "data": BuiltIn("diabetes"), "learner": Lasso(alpha=1.0), "algorithm": CoordinateDescent(), "partition": Features(parts=2),
    }  # fmt: skip
    return hansa.Job(**{**parts, **changed})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"partition": IID(clients=3)}, "is for columns that are split over the clients"),
    "averaging": (
        {"learner": LogisticRegression(), "algorithm": FedAvg()},
        "partition 'features' gives every client other columns",
    ),
    "gradients of L1": ({"algorithm": FedAvg(), "partition": IID(clients=3)}, "the L1 penalty of Lasso() is not smooth"),
    "transforms": ({"transforms": (Clip(norm=1.0),)}, "sums of partial predictions must be exact"),
    "evaluation": ({"evaluation": hansa.Evaluation(clients=0.5)}, "every client holds a part of each prediction"),
}


@pytest.mark.parametrize(("changed", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_go_with_split_columns_is_refused_before_any_data_is_read(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        job_with(**changed)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def facts(*tables: tuple[list[str], int, bool]) -> dict[str, Any]:
    told = {}
    for k, (names, rows, labelled) in enumerate(tables):
        x = pd.DataFrame({name: np.arange(rows, dtype=float) + j for j, name in enumerate(names)})
        told[f"c{k}"] = facts_of({"train": hansa.core.blocks.Table(x, np.arange(rows, dtype=float) if labelled else None)})
    return told


APART = {
    "labels twice": (facts((["a"], 5, True), (["b"], 5, True)), "clients c0 and c1 have labels, and exactly one client must"),
    "no labels": (facts((["a"], 5, False), (["b"], 5, False)), "none of the clients has labels"),
    "rows": (facts((["a"], 5, True), (["b"], 6, False)), "clients c0 and c1: one has 5 train rows and the other 6 train"),
    "columns": (facts((["a"], 5, True), (["b", "a"], 5, False)), "clients c0 and c1 both have a column 'a'"),
}


@pytest.mark.parametrize(("told", "message"), APART.values(), ids=APART.keys())
def test_tables_that_do_not_stand_side_by_side_are_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        ByColumns().describe(told, task="regression", needs=frozenset({"numbers"}), prepared=False)
    assert message in str(error.value)


def test_a_preparation_is_the_one_of_the_whole_table() -> None:
    """Each client fits its own columns; what is put together transforms as scikit-learn's own fit on all rows does."""
    job = job_with(
        data=BuiltIn("heart_disease"), learner=LogisticRegression(C=0.1), partition=TWO, preparation=Standard(), split=Split(test=0.0),
        rounds=hansa.Rounds(count=1),
    )  # fmt: skip
    setting = opening.open_setting(job, opening.clients_of(job))
    state = training.prepare(setting)
    model = judging.exported(setting, state["preparation"], judging.chosen_params(job, state))
    numeric = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
    np.testing.assert_allclose(
        model[:-1].transform(HEART.x)[:, : len(NUMBERS)], numeric.fit_transform(HEART.x[NUMBERS]), rtol=1e-10, atol=1e-12
    )
    assert model[:-1].get_feature_names_out()[0] == "laboratory__age"
    schema, _ = setting.bound(state["preparation"])
    for client in setting.clients:
        own = schema.of(client.id)
        table = own.preparer.prepare(client.load()["train"], own.preparation)
        assert np.array_equal(table.x, model[:-1].transform(HEART.x)[:, own.places])


def test_a_users_column_transformer_is_dealt_out_by_name() -> None:
    composite = ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(), MinMaxScaler()), NUMBERS),
        ("codes", OneHotEncoder(handle_unknown="ignore"), ["sex", "cp"]),
    ])  # fmt: skip
    job = job_with(
        data=BuiltIn("heart_disease"), learner=make_pipeline(composite, LogisticRegression(C=0.1)), split=Split(test=0.0),
        partition=Features(groups={"a": tuple(HEART.x.columns[::2]), "b": tuple(HEART.x.columns[1::2])}), rounds=hansa.Rounds(count=1),
    )  # fmt: skip
    setting = opening.open_setting(job, opening.clients_of(job))
    state = training.prepare(setting)
    model = judging.exported(setting, state["preparation"], judging.chosen_params(job, state))
    whole = composite.fit(HEART.x)
    ours = {name.split("__")[-1]: k for k, name in enumerate(model[:-1].get_feature_names_out())}
    theirs = [name.split("__")[-1] for name in whole.get_feature_names_out()]
    assert set(ours) == set(theirs)
    given = model[:-1].transform(HEART.x)[:, [ours[name] for name in theirs]]
    np.testing.assert_allclose(given, np.asarray(whole.transform(HEART.x)), rtol=1e-10, atol=1e-12)


TEXT = """
name = "split"
[data]
name = "breast_cancer"
[partition]
name = "features"
parts = 3
[preparation]
name = "standard"
[learner]
name = "sklearn"
options = {C = 0.5}
[algorithm]
name = "%s"
[rounds]
count = 6
block = 2
"""


def test_kill_9_then_resume_gives_the_same_bits(tmp_path: Path) -> None:
    job = TEXT % "coordinate_descent"
    whole = hansa.run(from_text(job), directory=tmp_path / "whole", quiet=True)
    assert run_killed_at(job, "save", 3, tmp_path / "killed") == -signal.SIGKILL
    (folder,) = (tmp_path / "killed").iterdir()
    run = hansa.resume(folder, quiet=True)
    assert same_bits(whole.params, run.params)
    assert run.metrics == whole.metrics


def test_a_run_is_judged_on_the_rows_that_all_clients_hold_out(tmp_path: Path) -> None:
    """Its metrics are those of the exported model on the joined test rows; the report counts each row once."""
    run = hansa.run(from_text(TEXT % "coordinate_descent", ("rounds.count=40",)), directory=tmp_path, quiet=True)
    tables = [client.load()["test"] for client in opening.clients_of(run.job)]
    x, y = pd.concat([table.x for table in tables], axis=1), next(table.y for table in tables if table.y is not None)
    assert run.metrics["test/accuracy"] == np.mean(run.model.predict(x) == y)
    assert run.by_client == {}
    report = (run.directory / "report.html").read_text("utf-8")
    assert "114 test rows" in report
    assert "from which its label can be told" in report
