"""Newton's method: exact where scikit-learn is, damped where the full step fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.svm import LinearSVC

from hansa.algorithms.newton import Newton
from hansa.core.errors import InputError
from hansa.core.updates import Total
from hansa.learners.sklearn import Sklearn
from tests.conformance import problem

ESTIMATORS = {
    "logistic": (LogisticRegression(C=0.5), LogisticRegression(C=0.5, solver="newton-cholesky", tol=1e-12, max_iter=1000), "breast_cancer"),
    "unpenalised": (Ridge(alpha=0.0), LinearRegression(), "diabetes"),
    "multinomial": (LogisticRegression(), LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=1000), "iris"),
    "no intercept": (
        LogisticRegression(fit_intercept=False),
        LogisticRegression(fit_intercept=False, tol=1e-12, solver="newton-cholesky"),
        "breast_cancer",
    ),
    "linear": (LinearRegression(), LinearRegression(), "diabetes"),
    "ridge": (Ridge(alpha=3.0), Ridge(alpha=3.0), "diabetes"),
    "svm": (LinearSVC(), LinearSVC(tol=1e-13, max_iter=10**6, dual=False), "breast_cancer"),
    "poisson": (PoissonRegressor(alpha=0.1), PoissonRegressor(alpha=0.1, solver="newton-cholesky", tol=1e-12), "counts"),
}  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "data"), ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_equals_scikit_learn_on_pooled_rows(ours: Any, theirs: Any, data: str) -> None:
    learner = Sklearn(estimator=ours)
    tables = [client.load()["train"] for client in problem.clients(data)]
    x, y = np.concatenate([t.x for t in tables]), np.concatenate([t.y for t in tables])
    theirs.fit(x, y)
    params = problem.play(Newton(), learner, data, 40)["params"]
    np.testing.assert_allclose(np.ravel(params["coef"]), np.ravel(theirs.coef_), rtol=0, atol=1e-6)
    if "intercept" in params:
        np.testing.assert_allclose(np.ravel(params["intercept"]), np.ravel(theirs.intercept_), rtol=0, atol=1e-6)


def test_least_squares_takes_one_step() -> None:
    state = problem.play(Newton(), Sklearn(estimator=LinearRegression()), "diabetes", 2)
    assert state["done"]


def play_by_hand(loss: Any, slope: Any, curve: Any, start: float, rounds: int) -> tuple[float, list[str]]:
    """Newton's method on a function of one number, as its server half sees it."""
    newton, phases = Newton(), []
    state = newton.init({"w": np.array([start])}, {"w": "weight"})
    for number in range(1, rounds + 1):
        message = newton.broadcast(state, number)
        w = float(message.params["w"][0])
        if "step" in message.extra:
            losses = [loss(w + t * float(message.extra["step"][0])) for t in (2.0**-h for h in range(1, 31))]
            total = Total({"losses": np.array(losses)}, 1.0, 1)
        else:
            total = Total(
                {"objective": np.array(loss(w)), "gradient/w": np.array([slope(w)]), "hessian": np.array([[curve(w)]])}, 1.0, 1
            )
        phases.append(state["phase"])
        state = newton.update(state, total)
        if state["done"]:
            break
    return float(state["params"]["w"][0]), phases


def test_a_step_that_goes_too_far_is_searched() -> None:
    """log(cosh(w)): the full Newton step overshoots for |w| > 1.09 and diverges without damping."""
    found, phases = play_by_hand(lambda w: np.log(np.cosh(w)), np.tanh, lambda w: 1 / np.cosh(w) ** 2, 3.0, 40)
    assert abs(found) < 1e-6
    assert "search" in phases


def test_large_models_are_refused_with_figures() -> None:
    with pytest.raises(InputError, match="6,000 params"):
        Newton().init({"w": np.zeros((60, 100))}, {"w": "weight"})
