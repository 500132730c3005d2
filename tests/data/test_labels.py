"""Labels that are true and false stay so: in what clients tell, on their way to others, in a run's folder, and in the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier

import hansa
from hansa.core.contracts import Message, Schema
from hansa.core.errors import InputError
from hansa.core.worker import WorkCall
from hansa.data import IID, Column, File, Parts, Split, check, from_arrays
from hansa.data.recipes import clients
from hansa.federation import parcels
from hansa.federation.calls import decode_call, encode_call
from hansa.federation.told import check_facts
from tests.data.test_describe import described

WINE = hansa.BuiltIn("wine").read()
X = (np.asarray(WINE.x) - np.asarray(WINE.x).mean(axis=0)) / np.asarray(WINE.x).std(axis=0)
TRUE = WINE.y == 1


def network() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Linear(13, 2)


PLAYS: dict[str, tuple[Any, Any]] = {
    "newton": (LogisticRegression, hansa.Newton),
    "sgd": (lambda: SGDClassifier(loss="log_loss"), hansa.FedAvg),
    "mlp": (lambda: hansa.MLP(hidden=(3,)), hansa.FedAvg),
    "forest": (lambda: RandomForestClassifier(n_estimators=3, max_depth=2), hansa.Forest),
    "one_vs_rest": (lambda: hansa.OneVsRest(hansa.Sklearn(LogisticRegression())), hansa.FedAvg),
    "bagging": (lambda: hansa.Bagging(hansa.MLP(hidden=(3,)), members=2), hansa.FedAvg),
}


@pytest.mark.parametrize("name", PLAYS)
def test_a_model_of_true_and_false_is_that_of_one_and_zero_and_says_true_and_false(name: str, tmp_path: Path) -> None:
    learner, algorithm = PLAYS[name]

    def run(y: Any) -> Any:
        job = hansa.Job(
            data=from_arrays(X, y), partition=IID(clients=3), learner=learner(), algorithm=algorithm(), rounds=hansa.Rounds(count=2)
        )
        return hansa.run(job, directory=tmp_path, quiet=True)

    flags, numbers = run(TRUE), run(TRUE.astype(int))
    assert flags.metrics == numbers.metrics
    assert flags.model.classes_.dtype == bool
    said = flags.model.predict(X)
    assert said.dtype == bool
    assert np.array_equal(said, numbers.model.predict(X).astype(bool))
    assert json.loads((flags.directory / "description.json").read_text())["classes"] == [False, True]


def test_facts_and_schemas_of_true_and_false_survive_their_way_to_others(tmp_path: Path) -> None:
    facts = described(from_arrays(X, TRUE), IID(clients=3), 2)
    plain = json.loads(json.dumps(facts))
    for own in plain.values():
        check_facts(own)
    found = [check(told, task="classification", needs=frozenset(), prepared=False) for told in (facts, plain)]
    assert found[0].classes == found[1].classes
    schema = Schema((), found[0].shape, found[0].dtype, found[0].classes, found[0].rows)
    parcels.write(tmp_path / "call", encode_call(WorkCall(hansa.Newton(), Message(), schema, 0, 1)))
    arrived = decode_call(parcels.read(tmp_path / "call")).schema
    assert arrived == schema
    for classes in (found[0].classes, found[1].classes, arrived.classes):  # equality alone would not tell True from 1
        assert [type(label) for label in classes or ()] == [bool, bool]


def test_a_run_on_true_and_false_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    pd.DataFrame(X).assign(y=TRUE).to_csv(tmp_path / "a.csv", index=False)
    job = hansa.Job(
        data=File(path=str(tmp_path / "a.csv"), label="y"), partition=IID(clients=3), learner=LogisticRegression(),
        algorithm=hansa.FedAvg(), rounds=hansa.Rounds(count=3),
    )  # fmt: skip
    whole = hansa.run(job, directory=tmp_path / "whole", quiet=True)

    def interrupt(stage: str) -> None:
        if stage == "saved":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hansa.run(job, directory=tmp_path / "cut", quiet=True, observe=interrupt)
    (folder,) = (tmp_path / "cut").iterdir()
    resumed = hansa.resume(folder, quiet=True)
    assert resumed.model.classes_.tolist() == whole.model.classes_.tolist() == [False, True]
    assert resumed.model.classes_.dtype == bool
    assert np.array_equal(resumed.model.coef_, whole.model.coef_)


@pytest.mark.parametrize("order", [("ab", "c"), ("c", "ab")])
def test_classes_are_numbers_where_one_client_has_numbers(order: tuple[str, str]) -> None:
    sources = {"ab": TRUE, "c": TRUE.astype(int)}
    facts = {}
    for k, name in enumerate(order):
        one = described(from_arrays(X, sources[name], clients=np.full(len(X), f"client-{k}")), Column(), 1)
        facts |= dict(one)
    classes = check(facts, task="classification", needs=frozenset(), prepared=False).classes or ()
    assert classes == (0, 1)
    assert [type(label) for label in classes] == [int, int]


def test_labels_are_numbers_where_one_file_has_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,True\n2,False\n")
    (tmp_path / "b.csv").write_text("x,y\n3,0\n4,1\n")
    y = File(path=str(tmp_path / "*.csv"), label="y").read().y
    assert y is not None
    assert (y.tolist(), y.dtype) == ([1, 0, 0, 1], np.int64)


@pytest.mark.parametrize("held", ["array", "objects", "nullable", "frame", "csv", "parquet", "parts"])
def test_true_and_false_are_read_as_they_are_from_everywhere(held: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(5.0), "y": [True, False, False, True, True]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    source: Any = {
        "array": lambda: from_arrays(frame[["x"]], frame.y.to_numpy()),
        "objects": lambda: from_arrays(frame[["x"]], frame.y.astype(object)),
        "nullable": lambda: from_arrays(frame[["x"]], frame.y.astype("boolean")),
        "frame": lambda: hansa.from_table(frame, "y"),
        "csv": lambda: File(path=str(tmp_path / "a.csv"), label="y"),
        "parquet": lambda: File(path=str(tmp_path / "a.parquet"), label="y"),
        "parts": lambda: Parts(path=str(tmp_path / "a.parquet"), label="y"),
    }[held]()
    y = source.table(0, 0).y if held == "parts" else source.read().y
    assert y.dtype == bool
    assert y.tolist() == frame.y.tolist()
    partition = Column() if held == "parts" else IID(clients=2)
    classes = clients(source, partition, Split(test=0), 0).classes or ()
    assert [type(label) for label in classes] == [bool, bool]


@pytest.mark.parametrize(("positive", "ones"), [(True, [1, 0]), (False, [0, 1]), ("True", [1, 0]), (0, [0, 1])])
def test_a_positive_label_makes_ones_of_true_or_of_false(positive: Any, ones: list[int]) -> None:
    y = hansa.from_table(pd.DataFrame({"x": [1.0, 2.0], "y": [True, False]}), "y", positive=positive).read().y
    assert y is not None
    assert (y.tolist(), y.dtype) == (ones, np.int64)


def test_a_regression_on_true_and_false_is_one_on_ones_and_zeros() -> None:
    rows = from_arrays(X, TRUE, task="regression").read()
    assert rows.y is not None
    assert (rows.task, rows.y.dtype) == ("regression", np.float64)
    assert np.array_equal(rows.y, TRUE)


def test_options_about_labels_need_a_label() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0], "owner": ["a", "b"]})
    rows = hansa.from_table(frame, client="owner").read()
    assert (rows.y, rows.task, list(rows.x.columns)) == (None, "unlabelled", ["x"])
    for options in ({"positive": 1}, {"task": "classification"}):
        with pytest.raises(InputError, match=rf"data.{next(iter(options))}: says what labels mean, and data.label names none"):
            hansa.from_table(frame, client="owner", **options)
