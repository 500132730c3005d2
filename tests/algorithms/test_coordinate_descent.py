"""Block coordinate descent over clients that hold columns: scikit-learn's solution on the whole table, whoever holds what."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hansa
from hansa import opening, training
from hansa.algorithms.coordinate_descent import CoordinateDescent
from hansa.algorithms.quadratic import minimise, violation
from hansa.data.builtin import BuiltIn
from hansa.data.features import Features
from hansa.data.preparation import Standard
from tests.algorithms.by_features import assert_as_scikit_learn, assert_equal, dealt, fit, sparse_logistic, table

EXACT = {"tol": 1e-14, "max_iter": 10**6}
NEWTON = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 1000}
CASES: dict[str, tuple[Any, Any, str]] = {
    "ridge": (Ridge(alpha=3.0), Ridge(alpha=3.0), "diabetes"),
    "least squares": (LinearRegression(), LinearRegression(), "diabetes"),
    "no intercept": (Ridge(fit_intercept=False), Ridge(fit_intercept=False), "diabetes"),
    "lasso": (Lasso(alpha=0.5), Lasso(alpha=0.5, **EXACT), "diabetes"),
    "elastic net": (ElasticNet(alpha=0.1, l1_ratio=0.8), ElasticNet(alpha=0.1, l1_ratio=0.8, **EXACT), "diabetes"),
    "logistic": (LogisticRegression(C=0.5), LogisticRegression(C=0.5, **NEWTON), "breast_cancer"),
    "multinomial": (LogisticRegression(), LogisticRegression(**NEWTON), "iris"),
}


@pytest.mark.parametrize("clients", [1, 3, "one for each column"])
@pytest.mark.parametrize("case", CASES)
def test_equals_scikit_learn_on_the_whole_table(case: str, clients: Any) -> None:
    ours, theirs, data = CASES[case]
    number = table(data)[0].shape[1] if isinstance(clients, str) else clients
    assert_as_scikit_learn(ours, theirs, data, CoordinateDescent(), Features(parts=number))


@pytest.mark.parametrize("seed", range(3))
def test_it_does_not_matter_whose_the_columns_are(seed: int) -> None:
    theirs = Lasso(alpha=1.0, **EXACT)
    assert_as_scikit_learn(Lasso(alpha=1.0), theirs, "diabetes", CoordinateDescent(), dealt(10, 2 + seed, seed))


@pytest.mark.parametrize("clients", [2, 3])
def test_an_l1_penalty_on_classes(clients: int) -> None:
    x, y = table("breast_cancer")
    ours = LogisticRegression(C=0.3, l1_ratio=1.0, solver="saga")
    theirs = LogisticRegression(C=0.3, l1_ratio=1.0, solver="saga", tol=1e-8, max_iter=20_000).fit(x, y)
    fitted = fit(x, y, ours, CoordinateDescent(), dealt(30, clients, 1))
    assert_equal(fitted.model, *sparse_logistic(x, y, theirs))
    assert np.array_equal(fitted.model.coef_ == 0, theirs.coef_ == 0)


def test_columns_as_they_are_measured() -> None:
    """Means of hundreds beside hundredths: the intercept and the scale of a block are part of its step."""
    x, y = BuiltIn("breast_cancer").read().x, BuiltIn("breast_cancer").read().y
    fitted = fit(x, y, LogisticRegression(), CoordinateDescent(), Features(parts=4))
    theirs = LogisticRegression(**NEWTON).fit(x, y)
    np.testing.assert_allclose(fitted.model.decision_function(x), theirs.decision_function(x), rtol=1e-6, atol=1e-6)
    assert list(fitted.model.feature_names_in_) == list(x.columns)


def test_a_hospital_with_gaps_and_categories() -> None:
    """One hospital's table, the doctors' columns apart from the laboratory's, through each side's own preparation."""
    rows = BuiltIn("heart_disease").read()
    assert rows.client is not None and rows.y is not None
    own = rows.client == np.unique(rows.client)[0]
    x, y = rows.x[own].reset_index(drop=True), rows.y[own]
    x = x.loc[:, [x[name].nunique() > 1 for name in x]]
    half = len(x.columns) // 2
    groups = {"ward": tuple(x.columns[::2]), "laboratory": tuple(x.columns[1::2])}
    fitted = fit(
        x, y, LogisticRegression(C=0.2), CoordinateDescent(), Features(groups=groups, labels="ward"), preparation=Standard()
    )
    assert half > 3
    prepared = fitted.model[:-1].transform(x)
    theirs = LogisticRegression(C=0.2, **NEWTON).fit(prepared, y)
    assert_equal(fitted.model[-1], theirs.coef_, theirs.intercept_)
    np.testing.assert_allclose(fitted.model.predict_proba(x), theirs.predict_proba(prepared), rtol=0, atol=1e-6)


def test_one_block_in_a_round() -> None:
    """Randomised coordinate descent: done when every block has been seen to be at rest since anybody moved."""
    x, y = table("diabetes")
    fitted = fit(x, y, Lasso(alpha=2.0), CoordinateDescent(), Features(parts=5), clients=0.2)
    theirs = Lasso(alpha=2.0, **EXACT).fit(x, y)
    assert fitted.ended.startswith("converged")
    assert_equal(fitted.model, theirs.coef_, theirs.intercept_)


def test_the_objective_never_rises() -> None:
    x, y = table("breast_cancer")
    told: list[float] = []
    job = hansa.Job(
        data=hansa.from_arrays(x, y), learner=LogisticRegression(C=10.0), algorithm=CoordinateDescent(), partition=Features(parts=15),
        split=hansa.Split(test=0.0), rounds=hansa.Rounds(count=40),
    )  # fmt: skip
    setting = opening.open_setting(job, opening.clients_of(job))
    for _, record in training.train(setting, training.prepare(setting)):
        told += [record["train/objective"]] if "train/objective" in record else []
    assert len(told) == 39  # in the first round the labels come
    assert all(after <= before * (1 + 1e-14) for before, after in pairwise(told))


def test_memory_takes_fewer_rounds_than_none() -> None:
    """It is the method of conjugate gradients: as many rounds as there are columns, up to rounding, where plain descent takes many more."""
    x, y = table("diabetes")
    fits = {m: fit(x, y, Ridge(), CoordinateDescent(memory=m), Features(parts=10), count=60) for m in (0, 5)}
    assert fits[5].rounds <= 20
    assert fits[0].ended == "played all 60 rounds"


def test_equal_columns_at_two_clients_do_no_harm() -> None:
    x, y = table("diabetes")
    twice = np.column_stack([x, x[:, 0], x[:, 3]])
    for ours in (Ridge(alpha=1.0), LinearRegression()):
        fitted = fit(twice, y, ours, CoordinateDescent(), Features(parts=4))
        np.testing.assert_allclose(fitted.model.predict(twice), ours.fit(twice, y).predict(twice), rtol=1e-6)


def test_processes_give_the_same_bits() -> None:
    x, y = table("breast_cancer")
    part = dealt(30, 4, 2)
    alone = fit(x, y, LogisticRegression(), CoordinateDescent(), part)
    several = fit(x, y, LogisticRegression(), CoordinateDescent(), part, engine=hansa.Processes(workers=2))
    assert all(np.array_equal(alone.params[name], several.params[name]) for name in alone.params)


@pytest.mark.parametrize("l1", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("rank", [12, 5])
def test_a_block_is_solved_exactly(l1: float, rank: int) -> None:
    """The optimality conditions hold to rounding, for matrices of full rank and of less, in any units."""
    for seed in range(5):
        random = np.random.default_rng(seed)
        units = 10.0 ** random.integers(-2, 3, 12)
        root = random.normal(size=(rank, 12)) * units
        q, linear = root.T @ root, root.T @ random.normal(size=rank)
        v = minimise(q, linear, l1, np.zeros(12))
        rounding = np.abs(linear) + np.abs(q) @ np.abs(v) + l1
        assert (violation(q @ v - linear, l1, v) <= 1e-9 * rounding).all()


def test_the_pipeline_is_the_users_own() -> None:
    rows = BuiltIn("breast_cancer").read()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=2.0))
    fitted = fit(rows.x, rows.y, pipeline, CoordinateDescent(), Features(parts=3))
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=2.0, **NEWTON)).fit(rows.x, rows.y)
    np.testing.assert_allclose(fitted.model.predict_proba(rows.x), theirs.predict_proba(rows.x), rtol=0, atol=1e-6)
