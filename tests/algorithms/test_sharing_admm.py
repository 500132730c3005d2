"""Sharing ADMM over clients that hold columns: scikit-learn's solution on the whole table, and the paper's updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import hansa
from hansa.algorithms.score_space import proximal
from hansa.algorithms.sharing_admm import SharingADMM
from hansa.core.contracts import Schema
from hansa.core.errors import RunFailed
from hansa.data.features import Features
from hansa.learners.sklearn import Sklearn
from tests.algorithms.by_features import assert_as_scikit_learn, assert_equal, dealt, fit, sparse_logistic, table
from tests.algorithms.test_coordinate_descent import EXACT, NEWTON

CASES: dict[str, tuple[Any, Any, str, int]] = {
    "ridge": (Ridge(alpha=3.0), Ridge(alpha=3.0), "diabetes", 4),
    "ridge, one for each column": (Ridge(alpha=3.0), Ridge(alpha=3.0), "diabetes", 10),
    "least squares": (LinearRegression(), LinearRegression(), "diabetes", 5),
    "no intercept": (Ridge(fit_intercept=False), Ridge(fit_intercept=False), "diabetes", 2),
    "one client": (Lasso(alpha=0.5), Lasso(alpha=0.5, **EXACT), "diabetes", 1),
    "lasso": (Lasso(alpha=0.5), Lasso(alpha=0.5, **EXACT), "diabetes", 3),
    "elastic net": (ElasticNet(alpha=0.1, l1_ratio=0.8), ElasticNet(alpha=0.1, l1_ratio=0.8, **EXACT), "diabetes", 5),
    "logistic": (LogisticRegression(C=0.05), LogisticRegression(C=0.05, **NEWTON), "breast_cancer", 3),
    "multinomial": (LogisticRegression(C=0.3), LogisticRegression(C=0.3, **NEWTON), "iris", 2),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_scikit_learn_on_the_whole_table(case: str) -> None:
    ours, theirs, data, clients = CASES[case]
    assert_as_scikit_learn(ours, theirs, data, SharingADMM(), Features(parts=clients))


@pytest.mark.parametrize("seed", range(2))
def test_it_does_not_matter_whose_the_columns_are(seed: int) -> None:
    theirs = Lasso(alpha=2.0, **EXACT)
    assert_as_scikit_learn(Lasso(alpha=2.0), theirs, "diabetes", SharingADMM(), dealt(10, 2 + seed, seed))


def test_an_l1_penalty_on_classes() -> None:
    x, y = table("breast_cancer")
    ours = LogisticRegression(C=0.05, l1_ratio=1.0, solver="saga")
    theirs = LogisticRegression(C=0.05, l1_ratio=1.0, solver="saga", tol=1e-8, max_iter=20_000).fit(x, y)
    fitted = fit(x, y, ours, SharingADMM(tolerance=1e-8), dealt(30, 3, 1))
    assert_equal(fitted.model, *sparse_logistic(x, y, theirs))


def test_the_first_iterations_are_the_papers() -> None:
    """Squared loss, ridge, no intercept, no relaxation, rho as it is: the three lines of the box, written out."""
    x, y = table("diabetes")
    y = y - y.mean()
    n, rho, l2, blocks = len(x), 0.7, 3.0 / len(x), np.array_split(np.arange(10), 3)
    coef, z, u, ax = np.zeros(10), np.zeros(n), np.zeros(n), np.zeros(n)
    # The first round is the labels', and its z- and u-update start from x = 0.
    for _ in range(4):
        z = (y / 3 + rho * (ax + u) / 3) / (1 + rho / 3) if rho else z
        u = u + ax - z
        new = coef.copy()
        for own in blocks:
            a = x[:, own]
            target = a @ coef[own] + z - ax - u
            new[own] = np.linalg.solve(rho * a.T @ a / n + l2 * np.eye(len(own)), rho * a.T @ target / n)
        coef, ax = new, x @ new / 3
    plain = SharingADMM(rho=rho, relaxation=1.0, balance=0, memory=0)
    ours = fit(x, y, Ridge(alpha=3.0, fit_intercept=False), plain, Features(parts=3), count=5)
    np.testing.assert_allclose(ours.params["coef"][0], coef, rtol=1e-10)


@pytest.mark.parametrize("loss", ["squared", "log", "softmax"])
@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
def test_the_step_of_the_loss_is_its_proximal_point(loss: str, c: float) -> None:
    """Where the derivatives by every score and by the intercept vanish, also for scores that are far off."""
    random, classes = np.random.default_rng(2), {"squared": None, "log": (0, 1), "softmax": (0, 1, 2)}[loss]
    estimator = LogisticRegression() if classes else Ridge()
    model = Sklearn(estimator=estimator).bind(Schema(shape=(3,), classes=classes, rows=60))
    y = random.integers(0, len(classes), 60) if classes else random.normal(size=60)
    targets = model.targets(y)
    near = 30 * random.normal(size=(60, 3 if loss == "softmax" else 1))
    b, q = proximal(model, near, c, targets, np.zeros(near.shape[1]))
    slopes = model.slopes(q, targets)
    np.testing.assert_allclose(slopes + c * (q - b - near), 0.0, atol=1e-9 * max(1.0, 30 * c))
    np.testing.assert_allclose(slopes.mean(axis=0), 0.0, atol=1e-9)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**16), clients=st.integers(2, 8), alone=st.sampled_from([1.0, 0.1, 0.03]), spread=st.floats(0, 3),
    estimator=st.sampled_from([Ridge(alpha=0.1), Lasso(alpha=0.02), ElasticNet(alpha=0.02)]),
)  # fmt: skip
def test_columns_may_be_nearly_the_same_and_of_any_scale(
    seed: int, clients: int, alone: float, spread: float, estimator: Any
) -> None:
    """alone: what every column has for itself, beside two that all have in common. The powers of ten of their scales are within spread."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(60, 2)) @ random.normal(size=(2, 8))
    standard = StandardScaler().fit_transform(common + alone * random.normal(size=(60, 8)))
    y = standard @ random.normal(size=8) + 0.3 * random.normal(size=60)
    scale = 10.0 ** random.uniform(-spread, spread, 8)
    theirs = clone(estimator).set_params(tol=1e-14, max_iter=1_000_000).fit(standard * scale, y)
    ours = fit(standard * scale, y, estimator, SharingADMM(), dealt(8, clients, seed))
    assert ours.ended.startswith("converged")
    most = float(np.abs(theirs.coef_ * scale).max(initial=1e-9))
    np.testing.assert_allclose(ours.model.coef_ * scale / most, theirs.coef_ * scale / most, rtol=0, atol=1e-6)


def test_a_part_of_the_clients_is_refused() -> None:
    x, y = table("diabetes")
    with pytest.raises(RunFailed, match="2 of 4 clients gave their share of the scores"):
        fit(x, y, Ridge(), SharingADMM(), Features(parts=4), clients=0.5)


def test_processes_give_the_same_bits() -> None:
    x, y = table("diabetes")
    alone = fit(x, y, Lasso(), SharingADMM(), dealt(10, 3, 2), count=30)
    several = fit(x, y, Lasso(), SharingADMM(), dealt(10, 3, 2), count=30, engine=hansa.Processes(workers=2))
    assert all(np.array_equal(alone.params[name], several.params[name]) for name in alone.params)
