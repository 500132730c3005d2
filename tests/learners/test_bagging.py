"""Bagging: members fitted to rows that every client draws from its own, and scikit-learn's ensemble of them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import BaggingClassifier, BaggingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

import hansa
from hansa.core.blocks import Client
from hansa.core.errors import InputError
from hansa.core.updates import under
from hansa.job import from_table, to_table
from hansa.learners.bagging import Bagging, BoundBagging
from hansa.opening import clients_of
from tests.conformance import problem
from tests.conformance.problem import same_bits

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
OWNER = np.random.default_rng(0).choice(["a", "b", "c"], size=len(X), p=[0.6, 0.3, 0.1])
LOCAL = hansa.Local(learning_rate=0.1, batch_size=8)


def job(learner: Any, x: Any = X, y: Any = NAMES, algorithm: Any = None, **changes: Any) -> hansa.Job:
    given = {"split": hansa.Split(test=0.0), "rounds": hansa.Rounds(count=20, block=2), "seed": 4, **changes}
    data = hansa.from_arrays(x, y, np.resize(OWNER, len(y)))
    return hansa.Job(data=data, learner=learner, algorithm=algorithm or hansa.Newton(), **given)


def run(path: Path, *arguments: Any, **changes: Any) -> hansa.Run:
    return hansa.run(job(*arguments, **changes), directory=path, quiet=True)


def bound(learner: Bagging, data: str = "iris") -> BoundBagging:
    return learner.bind(problem.schema(data))


@pytest.mark.parametrize(("share", "bootstrap"), [(1.0, True), (0.6, True), (0.6, False)])
def test_members_are_scikit_learns_with_the_same_weights(tmp_path: Path, share: float, bootstrap: bool) -> None:
    exact = LogisticRegression(C=0.3, tol=1e-12, solver="newton-cholesky", max_iter=1000)
    learner = Bagging(exact, members=4, share=share, bootstrap=bootstrap)
    ours = run(tmp_path, learner)
    whole = round(share * len(X))
    for member, mine in enumerate(ours.model.estimators_):
        weight = np.zeros(len(X))
        for client in clients_of(ours.job):
            (rows,) = np.nonzero(client.id == OWNER)
            drawn = bound(learner).drawn(client, len(rows), str(member), seed=4)
            # Each client counts for its rows, whatever it draws; the penalty is against `whole` rows.
            np.add.at(weight, rows[drawn], whole / len(X) * len(rows) / len(drawn))
        theirs = clone(exact).fit(X, Y, sample_weight=weight)
        np.testing.assert_allclose(mine.coef_, theirs.coef_, atol=1e-6)
        np.testing.assert_allclose(mine.intercept_, theirs.intercept_, atol=1e-6)
    assert len({estimator.coef_.tobytes() for estimator in ours.model.estimators_}) == 4


@pytest.mark.parametrize(
    "algorithm",
    [hansa.Newton(), hansa.LBFGS(), hansa.GradientDescent(), hansa.FedAvg(local=LOCAL), hansa.Scaffold(local=LOCAL)],
    ids=lambda a: a.name,
)
def test_one_member_with_all_rows_has_the_bits_of_the_learner_alone(tmp_path: Path, algorithm: Any) -> None:
    options = {"algorithm": algorithm, "rounds": hansa.Rounds(count=4, block=2), "split": hansa.Split(test=0.2)}
    ours = run(tmp_path / "ours", Bagging(LogisticRegression(), members=1, bootstrap=False), **options)
    alone = run(tmp_path / "alone", LogisticRegression(), **options)
    assert same_bits(under(ours.params, "0"), alone.params)
    assert (
        ours.metrics["test/loss"] == alone.metrics["test/loss"] and ours.metrics["test/accuracy"] == alone.metrics["test/accuracy"]
    )


def test_a_member_has_the_bits_that_it_has_among_fewer(tmp_path: Path) -> None:
    options = {"algorithm": hansa.FedAvg(local=LOCAL), "rounds": hansa.Rounds(count=3, block=2)}
    perceptron = hansa.MLP(hidden=(4,), dtype="float64")
    many, few = (run(tmp_path / str(count), Bagging(perceptron, members=count), **options).params for count in (3, 2))
    assert all(same_bits(under(many, member), under(few, member)) for member in "01")
    assert not same_bits(under(many, "0"), under(many, "1"))
    processes = run(tmp_path, Bagging(perceptron, members=3), engine=hansa.Processes(workers=2), **options)
    assert same_bits(processes.params, many)


def test_what_is_drawn_follows_from_seed_client_and_member() -> None:
    client, other = (Client(id, dict) for id in ("one", "two"))
    learner = bound(Bagging(LogisticRegression(), share=0.5))
    drawn = learner.drawn(client, 90, "3", seed=1)
    assert np.array_equal(drawn, learner.drawn(client, 90, "3", seed=1))
    others = [learner.drawn(other, 90, "3", 1), learner.drawn(client, 90, "4", 1), learner.drawn(client, 90, "3", 2)]
    assert not any(np.array_equal(drawn, else_) for else_ in others)
    assert len(drawn) == 45 and len(set(drawn)) < 45 and drawn.min() >= 0 and drawn.max() < 90
    assert np.array_equal(learner.drawn(client, 1, "3", 1), [0])
    subset = bound(Bagging(LogisticRegression(), share=0.5, bootstrap=False)).drawn(client, 90, "3", 1)
    assert len(set(subset)) == 45 and subset.max() < 90
    # Of n rows drawn n times a row is left out with a chance of (1 - 1/n)^n.
    whole = bound(Bagging(LogisticRegression()))
    left = [1 - len(np.unique(whole.drawn(client, 200, str(member), 1))) / 200 for member in range(50)]
    assert abs(np.mean(left) - (1 - 1 / 200) ** 200) < 0.01


def test_what_is_judged_is_what_is_given_back(tmp_path: Path) -> None:
    cancer, malignant = load_breast_cancer(return_X_y=True)
    diabetes, progress = load_diabetes(return_X_y=True)
    options = {"algorithm": hansa.FedAvg(local=LOCAL), "split": hansa.Split(test=0.4), "rounds": hansa.Rounds(count=3)}
    for place, (learner, x, y) in enumerate((
        (Bagging(LogisticRegression(), members=3), X, NAMES),
        (Bagging(LinearSVC(), members=4), cancer / cancer.std(axis=0), np.array(["malignant", "benign"])[malignant]),
        (Bagging(OneVsRestClassifier(LinearSVC()), members=3, share=0.5), X, NAMES),
        (hansa.OneVsRest(Bagging(LogisticRegression(), members=2)), X, NAMES),
        (Bagging(Ridge(), members=3), diabetes, progress),
    )):  # fmt: skip
        ours = run(tmp_path / str(place), learner, x, y, **options)
        tests = [client.load()["test"] for client in clients_of(ours.job)]
        said = [ours.model.predict(test.x) for test in tests]
        if y is progress:
            wrong = np.concatenate([(own - test.y) ** 2 for own, test in zip(said, tests, strict=True)])
            np.testing.assert_allclose(ours.metrics["test/mse"], wrong.mean(), rtol=1e-12)
            np.testing.assert_allclose(said[0], np.mean([one.predict(tests[0].x) for one in ours.model.estimators_], axis=0))
        else:
            assert ours.metrics["test/accuracy"] == np.concatenate([s == t.y for s, t in zip(said, tests, strict=True)]).mean()
            assert set(ours.model.classes_) == set(y)


def test_the_vote_is_the_mean_of_probabilities(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["sl", "sw", "pl", "pw"])
    model = run(tmp_path, BaggingClassifier(LogisticRegression(max_iter=1000), 5), frame).model
    mean = np.mean([member.predict_proba(X) for member in model.estimators_], axis=0)
    np.testing.assert_allclose(model.predict_proba(frame), mean, rtol=1e-12)
    assert np.array_equal(model.predict(frame), model.classes_[mean.argmax(axis=1)])
    assert list(model.feature_names_in_) == list(frame.columns) and list(model.classes_) == sorted(set(NAMES))
    again = clone(model).fit(frame, NAMES)
    assert repr(again) == repr(BaggingClassifier(LogisticRegression(max_iter=1000), n_estimators=5)) and len(again.estimators_) == 5


def test_scikit_learns_objects_are_learners() -> None:
    given = BaggingClassifier(LogisticRegression(C=2.0), 5, max_samples=0.5, bootstrap=False)
    assert repr(job(given).learner) == repr(Bagging(LogisticRegression(C=2.0), members=5, share=0.5, bootstrap=False))
    assert repr(job(BaggingRegressor(Ridge())).learner) == repr(Bagging(Ridge()))


def test_a_job_file_can_hold_it() -> None:
    text = """
algorithm = "fedavg"
data = "digits"
partition = { name = "iid", clients = 3 }
[learner]
name = "bagging"
learner = { name = "sklearn", estimator = "LinearSVC", options = { C = 0.5 } }
members = 7
share = 0.5
"""
    read = from_table(tomllib.loads(text))
    assert read.learner == from_table(tomllib.loads(tomli_w.dumps(to_table(read)))).learner
    assert (read.learner.learner.unfitted.C, read.learner.members) == (0.5, 7)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: Bagging(RandomForestClassifier()), "a forest is an ensemble of trees already"),
        (lambda: Bagging(Bagging(LogisticRegression())), "gives no estimator of scikit-learn"),
        (lambda: job(BaggingClassifier()), r"estimator = None is a decision tree \(write RandomForestClassifier\(\)\)"),
        (lambda: job(BaggingClassifier(DecisionTreeClassifier())), "'DecisionTreeClassifier' is not a linear model"),
        (lambda: job(BaggingClassifier(LogisticRegression(), max_samples=50)), "max_samples = 50 counts rows"),
        (lambda: job(BaggingClassifier(LogisticRegression(), max_features=0.5)), "max_features = 0.5 leaves columns out"),
        (lambda: job(BaggingClassifier(LogisticRegression(), max_features=1)), "max_features = 1 leaves columns out"),
        (lambda: job(BaggingClassifier(LogisticRegression(), oob_score=True)), "needs the rows of all clients"),
        (lambda: job(BaggingClassifier(LogisticRegression(), random_state=1)), "follow from the job's seed"),
        (lambda: job(Bagging(LogisticRegression(), members=0)), "learner.members = 0"),
        (lambda: job(Bagging(LogisticRegression(), share=1.5)), "learner.share = 1.5"),
    ],
)
def test_what_cannot_be_a_member_is_refused(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        given()
