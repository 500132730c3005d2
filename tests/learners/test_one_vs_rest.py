"""One against the rest: scikit-learn's classifier, and for each class the problem that it has alone."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hansa
from hansa.core.errors import InputError
from hansa.core.updates import under
from hansa.job import from_table, to_table
from hansa.learners.one_vs_rest import OneVsRest
from tests.conformance.problem import same_bits

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
OWNER = np.random.default_rng(0).choice(["a", "b", "c"], size=len(X))
MIXED = OWNER.copy()
OWNER[Y == 2] = "c"  # so that "a" and "b" lack a class
LOCAL = hansa.Local(learning_rate=0.1, batch_size=8)


def run(
    path: Path, learner: Any, x: Any = X, y: Any = NAMES, algorithm: Any = None, owner: Any = OWNER, **changes: Any
) -> hansa.Run:
    given = {"split": hansa.Split(test=0.0), "rounds": hansa.Rounds(count=20, block=2), **changes}
    data = hansa.from_arrays(x, y, np.resize(owner, len(y)))
    job = hansa.Job(data=data, learner=learner, algorithm=algorithm or hansa.Newton(), **given)
    return hansa.run(job, directory=path, quiet=True)


def exact(C: float = 1.0) -> OneVsRestClassifier:
    return OneVsRestClassifier(LogisticRegression(C=C, tol=1e-12, solver="newton-cholesky", max_iter=1000))


def test_it_is_scikit_learns_on_all_rows(tmp_path: Path) -> None:
    x, y = load_wine(return_X_y=True)
    ours = run(tmp_path, make_pipeline(StandardScaler(), exact(C=0.3)), x, y).model
    theirs = make_pipeline(StandardScaler(), exact(C=0.3)).fit(x, y)
    for mine, their in zip(ours[-1].estimators_, theirs[-1].estimators_, strict=True):
        np.testing.assert_allclose(mine.coef_, their.coef_, atol=1e-6)
        np.testing.assert_allclose(mine.intercept_, their.intercept_, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)
    assert np.array_equal(ours.predict(x), theirs.predict(x))
    assert repr(ours[-1]) == repr(theirs[-1]) and list(ours[-1].classes_) == [0, 1, 2]


@pytest.mark.parametrize("algorithm", [hansa.FedAvg(local=LOCAL), hansa.Scaffold(local=LOCAL)], ids=lambda a: a.name)
@pytest.mark.parametrize("learner", [LogisticRegression(), hansa.MLP(hidden=(4,), dtype="float64")], ids=["linear", "mlp"])
def test_the_problem_of_a_class_has_the_bits_that_it_has_alone(tmp_path: Path, algorithm: Any, learner: Any) -> None:
    options = {"algorithm": algorithm, "rounds": hansa.Rounds(count=3, block=2), "owner": MIXED}
    together = run(tmp_path, OneVsRest(learner), **options)
    for number, name in enumerate(["setosa", "versicolor", "virginica"]):
        alone = run(tmp_path, learner, y=(name == NAMES).astype(int), **options)
        assert same_bits(under(together.params, str(number)), alone.params)


def test_two_classes_are_one_problem(tmp_path: Path) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    words = np.array(["malignant", "benign"])[y]
    options = {"preparation": hansa.Standard(), "split": hansa.Split(test=0.2)}
    ours, plain = (
        run(tmp_path, learner, x, words, **options) for learner in (OneVsRest(LogisticRegression()), LogisticRegression())
    )
    assert same_bits(under(ours.params, "1"), plain.params) and len(ours.params) == 2
    assert ours.metrics == plain.metrics and "test/auc" in ours.metrics
    assert np.array_equal(ours.model.predict(x), plain.model.predict(x))
    assert len(ours.model[-1].estimators_) == 1


def test_what_is_judged_is_what_is_given_back(tmp_path: Path) -> None:
    for learner in (OneVsRest(LogisticRegression()), OneVsRest(hansa.MLP(hidden=(6,), dtype="float64"))):
        algorithm = hansa.FedAvg(local=LOCAL)
        ours = run(tmp_path, learner, algorithm=algorithm, split=hansa.Split(test=0.4), rounds=hansa.Rounds(count=5))
        clients = hansa.opening.clients_of(ours.job)
        tests = [client.load()["test"] for client in clients]
        right = np.concatenate([ours.model.predict(test.x) == test.y for test in tests])
        assert ours.metrics["test/accuracy"] == right.mean()


def test_columns_keep_their_names(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["sl", "sw", "pl", "pw"])
    ours = run(tmp_path, exact(), frame)
    assert list(ours.model.feature_names_in_) == list(frame.columns)
    assert np.array_equal(ours.model.predict(frame), exact().fit(frame, NAMES).predict(frame))
    assert clone(ours.model).fit(frame, NAMES).n_features_in_ == 4


def test_a_job_file_can_hold_it(tmp_path: Path) -> None:
    text = """
algorithm = "fedavg"
[data]
name = "digits"
[partition]
name = "iid"
clients = 3
[learner]
name = "one_vs_rest"
learner = { name = "sklearn", estimator = "LinearSVC", options = { C = 0.5 } }
"""
    job = from_table(tomllib.loads(text))
    assert job.learner == from_table(tomllib.loads(tomli_w.dumps(to_table(job)))).learner
    assert job.learner.learner.unfitted.C == 0.5
    assert from_table({**tomllib.loads(text), "learner": {"name": "one_vs_rest", "learner": "mlp"}}).learner == OneVsRest(
        hansa.MLP()
    )


def test_what_cannot_be_one_of_several_is_refused() -> None:
    with pytest.raises(InputError, match="it is for numbers"):
        OneVsRest(Ridge())
    with pytest.raises(InputError, match="gives no classifier of scikit-learn"):
        OneVsRest(OneVsRest(LogisticRegression()))
    with pytest.raises(InputError, match=r"learner.learner: unknown key 'estimater'"):
        from_table({"data": "digits", "algorithm": "newton", "learner": {
            "name": "one_vs_rest", "learner": {"name": "sklearn", "estimater": "Ridge"}
        }})  # fmt: skip
    with pytest.raises(InputError, match="learner is missing"):
        from_table({"data": "digits", "algorithm": "newton", "learner": "one_vs_rest"})
