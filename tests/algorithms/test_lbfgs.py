"""L-BFGS: exact where scikit-learn is, one gradient an iteration, and a line search that is never lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, rosen, rosen_der
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge, SGDClassifier, SGDRegressor
from sklearn.svm import LinearSVC

from hansa.algorithms import preconditioner, wolfe
from hansa.algorithms.lbfgs import LBFGS, two_loop
from hansa.core.blocks import Client, LoadedBlock, Table
from hansa.core.contracts import Schema
from hansa.core.reduction import reduce_block
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
    np.testing.assert_allclose(two_loop(g, s, y, np.array), h @ g, rtol=1e-10)


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
        update = LBFGS().work(bound, LBFGS().broadcast({"trial": far, "gradient": None}, 1), block)
    assert update.values["infinite"].sum() > 0
    assert all(np.isfinite(value).all() for value in update.values.values())


@pytest.mark.parametrize("first", [1e-6, 0.1, 1.0, 50.0, 1e5])
def test_a_search_ends_at_a_point_that_fulfils_both_conditions(first: float) -> None:
    """log(cosh(t - 3)) with a ripple, from steps far too short to far too long."""
    phi = lambda t: float(np.log(np.cosh(min(t - 3, 300.0))) + max(t - 303, 0) + 0.05 * np.sin(5 * t))  # noqa: E731  # a formula, beside its derivative
    slope = lambda t: float(np.tanh(t - 3) + 0.25 * np.cos(5 * t))  # noqa: E731  # its derivative
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


def pooled(
    x: np.ndarray, y: np.ndarray, estimator: Any, rounds: int, tolerance: float = 1e-8
) -> tuple[dict[str, Any], list[float]]:
    """L-BFGS on rows in two places: the state, and the objective at ``params`` after each round."""
    schema = Schema(shape=(x.shape[1],), classes=(0, 1) if y.dtype.kind == "i" else None, rows=len(x))
    bound, algorithm = Sklearn(estimator=estimator).bind(schema), LBFGS(tolerance=tolerance)
    tables = tuple(bound.arrays(Table(x[k::2], y[k::2])) for k in range(2))
    clients = tuple(Client(str(k), dict, {}, len(table)) for k, table in enumerate(tables))
    block = LoadedBlock(0, clients, tables, np.array([float(len(table)) for table in tables]), 0, 1)
    state, values = algorithm.init(bound.init(0), bound.kinds()), []
    for number in range(1, rounds + 1):
        state = algorithm.update(state, reduce_block(algorithm.work(bound, algorithm.broadcast(state, number), block)))
        values.append(float(block.weight @ bound.losses([state["params"]], block).values["losses"][:, 0]) / len(x))
        if state["done"]:
            break
    return state, values


def late(rows: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of different units, and groups of one-hot columns, as a pipeline would make them."""
    random = np.random.default_rng(5)
    groups = [np.eye(size)[np.minimum(random.geometric(0.2, rows) - 1, size - 1)] for size in (8, 12)]
    x = np.hstack([random.normal(size=(rows, 3)), *groups])
    score = x @ random.normal(size=x.shape[1])
    return x, (score + random.logistic(size=rows) > 0).astype(np.int64)


@settings(max_examples=10)
@given(st.lists(st.integers(-30, 30), min_size=23, max_size=23))
def test_the_unit_of_a_column_changes_no_bit(powers: list[int]) -> None:
    """Without a penalty, and with units that are powers of two: each iterate is the same, in these units."""
    x, y = late(200)
    unit = 2.0 ** np.array(powers)
    plain, scaled = (pooled(rows, y, LogisticRegression(C=np.inf), 12, 0.0)[0]["params"] for rows in (x, x * unit))
    assert np.array_equal(plain["coef"], scaled["coef"] * unit)
    assert np.array_equal(plain["intercept"], scaled["intercept"])


def test_neither_unit_nor_zero_of_a_column_changes_the_rounds_that_it_takes() -> None:
    x, y = late()
    random = np.random.default_rng(1)
    moved = x * 10 ** random.uniform(-3, 3, x.shape[1]) + random.normal(size=x.shape[1])
    plain, other = (np.array(pooled(rows, y, LogisticRegression(C=np.inf), 12, 0.0)[1]) for rows in (x, moved))
    np.testing.assert_allclose(other, plain, rtol=1e-6)


@pytest.mark.parametrize("estimator", [LogisticRegression(C=1.0), Ridge(alpha=1.0), LinearSVC(), PoissonRegressor(alpha=1e-3)])
def test_far_fewer_rounds_than_without_curvature_to_the_same_optimum(estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = late()
    x = x * np.geomspace(0.1, 10, x.shape[1])
    if not isinstance(estimator, LogisticRegression | LinearSVC):
        y = y.astype(np.float64)
    ours, told = pooled(x, y, estimator, 400)
    monkeypatch.setattr(preconditioner, "of", lambda total: None)
    theirs, without = pooled(x, y, estimator, 400)
    assert ours["preconditioner"] is not None and theirs["preconditioner"] is None
    reached = [next(k for k, value in enumerate(values) if value <= told[-1] * (1 + 1e-6)) for values in (told, without)]
    assert reached[0] < reached[1] / 2
    assert told[-1] == pytest.approx(without[-1], rel=1e-9)


def test_it_is_the_hessian_where_centred_columns_are_orthogonal() -> None:
    """Also with a column that is constant, as good as the intercept, and an empty one, which stay where they are."""
    x = np.kron(np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), np.ones((3, 1))) * [2.0, 5.0] + [3.0, -7.0]
    y = np.random.default_rng(0).normal(size=len(x))
    bound = Sklearn(estimator=Ridge(alpha=0.0)).bind(Schema(shape=(2,), rows=len(x)))
    block = LoadedBlock(0, (Client("a", dict, {}, len(x)),), (Table(x, y),), np.ones(1), 0, 1)
    params = bound.init(0)
    own = preconditioner.of(reduce_block(bound.curvature(params, block)))
    assert own is not None
    vector = np.array([0.3, -2.0, 1.0])
    hessian = bound.hessian(params, block).values["hessian"][0]
    np.testing.assert_allclose(preconditioner.applied(own, hessian @ vector, params), vector, rtol=1e-12)
    wide = np.hstack([x, np.full((len(x), 1), 4.0), np.zeros((len(x), 1))])
    state, values = pooled(wide, y, Ridge(alpha=0.0), 50)
    assert state["done"]
    assert values[-1] == pytest.approx(pooled(x, y, Ridge(alpha=0.0), 50)[1][-1], rel=1e-12)
    assert state["params"]["coef"][0, 3] == 0.0


def test_a_loss_without_second_derivative_and_other_learners_tell_nothing() -> None:
    bound = Sklearn(estimator=SGDClassifier(loss="hinge")).bind(problem.schema("breast_cancer"))
    block = problem.loaded(bound, "breast_cancer", (0, 1))
    assert bound.curvature(bound.init(0), block).values == {}
    assert preconditioner.of(Total({}, 1.0, 1)) is None
    flat = Sklearn(estimator=SGDRegressor(loss="huber", epsilon=1e-3)).bind(problem.schema("diabetes"))
    told = flat.curvature(flat.init(0), problem.loaded(flat, "diabetes", (0, 1)))
    assert (told.values["diagonal/coef"] > 0).all()
