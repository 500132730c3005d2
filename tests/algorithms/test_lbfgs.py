"""L-BFGS: exact where scikit-learn is, one gradient an iteration, and a line search that is never lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.svm import LinearSVC

from hansa.algorithms import wolfe
from hansa.algorithms.lbfgs import LBFGS, two_loop
from hansa.core.updates import Total
from hansa.learners.mlp import MLP
from hansa.learners.sklearn import Sklearn
from tests.conformance import problem

ESTIMATORS = {
    "logistic": (LogisticRegression(C=0.5), LogisticRegression(C=0.5, tol=1e-10, max_iter=5000), "breast_cancer"),
    "multinomial": (LogisticRegression(), LogisticRegression(tol=1e-10, max_iter=5000), "iris"),
    "no intercept": (
        LogisticRegression(fit_intercept=False),
        LogisticRegression(fit_intercept=False, tol=1e-10, max_iter=5000),
        "breast_cancer",
    ),
    "ridge": (Ridge(alpha=3.0), Ridge(alpha=3.0), "diabetes"),
    "svm": (LinearSVC(), LinearSVC(tol=1e-13, max_iter=10**6, dual=False), "breast_cancer"),
    "poisson": (PoissonRegressor(alpha=0.1), PoissonRegressor(alpha=0.1, solver="newton-cholesky", tol=1e-12), "counts"),
}


@pytest.mark.parametrize(("ours", "theirs", "data"), ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_equals_scikit_learn_on_pooled_rows(ours: Any, theirs: Any, data: str) -> None:
    tables = [client.load()["train"] for client in problem.clients(data)]
    theirs.fit(np.concatenate([t.x for t in tables]), np.concatenate([t.y for t in tables]))
    state = problem.play(LBFGS(tolerance=1e-10), Sklearn(estimator=ours), data, 200)
    assert state["done"]
    np.testing.assert_allclose(np.ravel(state["params"]["coef"]), np.ravel(theirs.coef_), rtol=0, atol=1e-6)
    if "intercept" in state["params"]:
        np.testing.assert_allclose(np.ravel(state["params"]["intercept"]), np.ravel(theirs.intercept_), rtol=0, atol=1e-6)


def descend(value: Any, slope: Any, start: np.ndarray, rounds: int, algorithm: LBFGS) -> tuple[dict[str, Any], list[float]]:
    """L-BFGS on any function, as its server half sees it; returns the state and the value at ``params`` after each round."""
    state, values = algorithm.init({"w": start}, {"w": "weight"}), []
    for number in range(1, rounds + 1):
        w = algorithm.broadcast(state, number).params["w"]
        told = value(w)
        infinite = float(not np.isfinite(told))
        total = Total(
            {"objective": np.array(0.0 if infinite else told), "infinite": np.array(infinite), "gradient/w": slope(w)}, 1.0, 1
        )
        state = algorithm.update(state, total)
        values.append(float(value(state["params"]["w"])))
        if state["done"]:
            break
    return state, values


def test_rosenbrock_is_descended_in_about_as_many_gradients_as_scipy_takes() -> None:
    start = np.array([-1.2, 1.0, -1.2, 1.0])
    theirs = minimize(rosen, start, jac=rosen_der, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 0})
    state, values = descend(rosen, rosen_der, start, 500, LBFGS())
    assert state["done"]
    np.testing.assert_allclose(state["params"]["w"], np.ones(4), atol=1e-7)
    assert len(values) < 1.5 * theirs.nfev
    assert all(after <= before + 1e-12 for before, after in pairwise(values))


def test_the_two_loops_apply_the_bfgs_matrix() -> None:
    """With all pairs kept, H g equals the product with the matrix of the BFGS formula (Nocedal and Wright 2006, equation 6.17)."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((5, 5))
    hessian, s = a @ a.T + np.eye(5), rng.standard_normal((3, 5))
    y, g = s @ hessian, rng.standard_normal(5)
    h = np.eye(5) * (s[-1] @ y[-1]) / (y[-1] @ y[-1])
    for one, other in zip(s, y, strict=True):
        v = np.eye(5) - np.outer(other, one) / (one @ other)
        h = v.T @ h @ v + np.outer(one, one) / (one @ other)
    np.testing.assert_allclose(two_loop(g, s, y), h @ g, rtol=1e-10)


def test_a_quadratic_in_few_params_needs_few_rounds() -> None:
    scale = np.array([1.0, 10.0, 100.0])
    state, values = descend(lambda w: 0.5 * float(scale @ (w * w)), lambda w: scale * w, np.ones(3), 60, LBFGS())
    assert state["done"]
    assert len(values) < 30


def test_a_step_to_where_nothing_is_finite_is_taken_back() -> None:
    """-log(w) + w, which has no value at and below zero."""
    value, slope = lambda w: float(np.sum(w - np.log(w))) if (w > 0).all() else np.inf, lambda w: 1 - 1 / w
    with np.errstate(all="ignore"):
        state, _ = descend(value, slope, np.array([0.01]), 100, LBFGS())
    np.testing.assert_allclose(state["params"]["w"], [1.0], atol=1e-7)


def test_clients_with_an_infinite_loss_say_so_and_nothing_diverges() -> None:
    """A Poisson model whose first params are far off: exp(score) overflows at the clients."""
    learner = Sklearn(estimator=PoissonRegressor(alpha=0.1))
    bound = learner.bind(problem.schema("counts"))
    block = problem.loaded(bound, "counts", (0, 1, 2))
    far = {name: np.full_like(value, 1e6) for name, value in bound.init(0).items()}
    with np.errstate(all="ignore"):
        update = LBFGS().work(bound, LBFGS().broadcast({"trial": far}, 1), block)
    assert update.values["infinite"].sum() > 0
    assert all(np.isfinite(value).all() for value in update.values.values())


@pytest.mark.parametrize("first", [1e-6, 0.1, 1.0, 50.0, 1e5])
def test_a_search_ends_at_a_point_that_fulfils_both_conditions(first: float) -> None:
    """log(cosh(t - 3)) with a ripple, from steps far too short to far too long."""
    phi = lambda t: float(np.log(np.cosh(min(t - 3, 300.0))) + max(t - 303, 0) + 0.05 * np.sin(5 * t))  # noqa: E731
    slope = lambda t: float(np.tanh(t - 3) + 0.25 * np.cos(5 * t))  # noqa: E731
    search = wolfe.begin(phi(0), slope(0), first)
    for _ in range(wolfe.TRIES):
        t = search["t"]
        accepted, following = wolfe.advance(search, phi(t), slope(t))
        if accepted:
            break
        assert following is not None
        search = following
    assert accepted
    assert phi(t) <= phi(0) + wolfe.ARMIJO * t * slope(0)
    assert abs(slope(t)) <= wolfe.CURVATURE * abs(slope(0))


def test_networks_can_be_trained_too() -> None:
    learner = MLP(hidden=(8,), activation="tanh", l2=0.01, dtype="float64")
    first, later = (problem.play(LBFGS(), learner, "iris", rounds) for rounds in (2, 60))
    assert later["search"]["start"][0] < first["search"]["start"][0] / 3
