"""Laws of every learner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge, SGDClassifier, SGDRegressor
from sklearn.svm import LinearSVC

from hansa.core.local import SGD, Adam, Local, Plan
from hansa.core.params import flatten, unflatten
from hansa.learners.bagging import Bagging
from hansa.learners.kmeans import KMeans
from hansa.learners.mlp import MLP
from hansa.learners.one_vs_rest import OneVsRest
from hansa.learners.pca import PCA
from hansa.learners.sklearn import Sklearn
from hansa.options import registry
from tests.conformance import problem

torch = pytest.importorskip("torch")
pytest.importorskip("jax")
from hansa.learners.jax import JaxLearner  # noqa: E402  # only where both are
from hansa.learners.torch import TorchLearner  # noqa: E402


def net(features: int, outputs: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(features, 6), torch.nn.Tanh(), torch.nn.Linear(6, outputs))


LEARNERS = {
    "LogisticRegression": (Sklearn(estimator=LogisticRegression()), "breast_cancer"),
    "LogisticRegression, 3 classes": (Sklearn(estimator=LogisticRegression(C=3.0)), "iris"),
    "SGDClassifier": (Sklearn(estimator=SGDClassifier(loss="modified_huber")), "iris"),
    "LinearSVC": (Sklearn(estimator=LinearSVC()), "breast_cancer"),
    "LinearRegression": (Sklearn(estimator=LinearRegression()), "diabetes"),
    "Ridge": (Sklearn(estimator=Ridge(fit_intercept=False)), "diabetes"),
    "SGDRegressor": (Sklearn(estimator=SGDRegressor(loss="huber", epsilon=0.5)), "diabetes"),
    "PoissonRegressor": (Sklearn(estimator=PoissonRegressor()), "counts"),
    "MLP": (MLP(hidden=(8,), activation="tanh", dtype="float64"), "iris"),
    "one against the rest": (OneVsRest(LogisticRegression(C=3.0)), "iris"),
    "one MLP against the rest": (OneVsRest(MLP(hidden=(5,), activation="tanh", l2=0.1, dtype="float64")), "iris"),
    "one of two classes": (OneVsRest(SGDClassifier(loss="log_loss")), "breast_cancer"),
    "bagging": (Bagging(LogisticRegression(C=3.0), members=3), "iris"),
    "bagging a share": (
        Bagging(MLP(hidden=(5,), activation="tanh", task="regression", dtype="float64"), members=2, share=0.7),
        "diabetes",
    ),
    "softmax": (MLP(hidden=(), dtype="float64"), "iris"),
    "MLP regression": (MLP(hidden=(8,), activation="tanh", task="regression", l2=0.1, dtype="float64"), "diabetes"),
    "torch": (TorchLearner(module=net(4, 3)), "iris"),
    "jax": (JaxLearner(model="hansa.learners.jax_models:perceptron", options={"widths": (6, 3), "activation": "tanh"}), "iris"),
    "jax regression": (
        JaxLearner(
            model="hansa.learners.jax_models:perceptron",
            options={"widths": (6, 1), "activation": "tanh"},
            loss="mse",
            metrics=("mse",),
            l2=0.1,
        ),
        "diabetes",
    ),
    "torch regression": (TorchLearner(module=net(10, 1), loss="mse", metrics=("mse",), l2=0.1), "diabetes"),
}
every = pytest.mark.parametrize(("learner", "data"), LEARNERS.values(), ids=LEARNERS.keys())
UNLABELLED = {"kmeans": (KMeans(clusters=3), "iris"), "pca": (PCA(components=2), "diabetes")}
"""Learners that look at no labels: they have no loss, and so none of the laws of gradients."""

GROWN = {"forest"}
"""Learners that have no params to train from: laws of their own hold them, in tests/algorithms/test_forest.py."""

any_kind = pytest.mark.parametrize(("learner", "data"), (LEARNERS | UNLABELLED).values(), ids=(LEARNERS | UNLABELLED).keys())
MEMBERS = (0, 1, 2, 4)


def bound_block(learner: Any, data: str, members: tuple[int, ...] = MEMBERS, split: str = "train") -> tuple[Any, Any, Any]:
    schema = problem.schema(data)
    bound = learner.bind(schema)
    params = bound.init(1)
    rng = np.random.default_rng(0)
    params = {name: value + 0.1 * rng.standard_normal(value.shape).astype(value.dtype) for name, value in params.items()}
    return bound, params, problem.loaded(bound, data, members, split=split)


def tolerance(params: Any) -> float:
    return 1e-9 if all(value.dtype == np.float64 for value in params.values()) else 2e-5


def test_all_registered_learners_are_here() -> None:
    assert set(registry("learner")) == {learner.name for learner, _ in (LEARNERS | UNLABELLED).values()} | GROWN


@any_kind
def test_init_depends_on_the_seed_alone(learner: Any, data: str) -> None:
    (bound, _, _), (again, _, _) = bound_block(learner, data), bound_block(learner, data)
    assert problem.same_bits(bound.init(3), again.init(3))
    assert set(bound.kinds().values()) <= {"weight", "buffer", "counter"}


@every
def test_gradient_is_that_of_the_loss(learner: Any, data: str) -> None:
    """Central differences of the mean loss along random directions."""
    bound, params, block = bound_block(learner, data)
    gradient = bound.gradient(params, block)
    single = tolerance(params) > 1e-8
    step = 1e-2 if single else 1e-5
    rng = np.random.default_rng(1)
    for _ in range(3):
        along = rng.standard_normal(flatten(params).size)
        along /= np.linalg.norm(along)
        ends = [unflatten(flatten(params) + sign * step * along, params) for sign in (1, -1)]
        plus, minus = bound.losses(ends, block).values["losses"].T
        slope = np.array([
            flatten({n: gradient.values[f"gradient/{n}"][k] for n in params}) @ along for k in range(len(block))
        ])  # fmt: skip
        np.testing.assert_allclose((plus - minus) / (2 * step), slope, rtol=2e-2 if single else 1e-5, atol=2e-3 if single else 1e-6)


@every
def test_hessian_is_the_derivative_of_the_gradient(learner: Any, data: str) -> None:
    bound, params, block = bound_block(learner, data, (1, 3))
    if "hessian" not in bound.can:
        assert "hessian" not in learner.can
        pytest.skip("this learner offers no Hessian")
    told = bound.hessian(params, block)
    step = 1e-5
    for place in (0, flatten(params).size - 1):
        unit = np.eye(flatten(params).size)[place]
        plus, minus = (bound.gradient(unflatten(flatten(params) + s * step * unit, params), block) for s in (1, -1))
        for k in range(len(block)):
            up, down = (flatten({n: g.values[f"gradient/{n}"][k] for n in params}) for g in (plus, minus))
            np.testing.assert_allclose(told.values["hessian"][k][place], (up - down) / (2 * step), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(told.values["objective"], bound.losses([params], block).values["losses"][:, 0], rtol=1e-12)


@every
def test_one_full_batch_step_is_gradient_descent(learner: Any, data: str) -> None:
    bound, params, block = bound_block(learner, data)
    trained = bound.train(params, block, Plan(Local(epochs=1, batch_size=0, learning_rate=0.05), rate=0.05))
    gradient = bound.gradient(params, block)
    for name in params:
        expected = params[name] - 0.05 * gradient.values[f"gradient/{name}"]
        np.testing.assert_allclose(trained.params[name], expected, rtol=1e-5, atol=tolerance(params))
    assert list(trained.steps) == [1] * len(block)


@every
def test_the_local_step_is_g_plus_drift_plus_proximal(learner: Any, data: str) -> None:
    """Two full-batch steps with drift and proximal term, against the formula."""
    bound, params, block = bound_block(learner, data)
    rng = np.random.default_rng(2)
    drift = {n: 0.1 * rng.standard_normal((len(block), *v.shape)).astype(v.dtype) for n, v in params.items()}
    plan = Plan(Local(epochs=2, batch_size=0), rate=0.05, proximal=0.3, drift=drift, drift_per_client=True)
    trained = bound.train(params, block, plan)
    for k in range(len(block)):
        w = params
        for _ in range(2):
            g = bound.gradient(w, block.only(k))
            w = {n: w[n] - 0.05 * (g.values[f"gradient/{n}"][0] + drift[n][k] + 0.3 * (w[n] - params[n])) for n in w}
        for name in params:
            np.testing.assert_allclose(trained.params[name][k], w[name], rtol=1e-4, atol=tolerance(params))


@every
@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0.9, nesterov=True), Adam()], ids=["sgd", "nesterov", "adam"])
def test_a_client_trains_the_same_alone_as_in_a_block(learner: Any, data: str, optimizer: Any) -> None:
    """Ragged clients, short last mini-batches, different numbers of steps."""
    bound, params, block = bound_block(learner, data)
    plan = Plan(Local(epochs=2, batch_size=7, optimizer=optimizer, clip=1.0), rate=0.03, proximal=0.1)
    together = bound.train(params, block, plan)
    assert len(set(together.steps)) > 1
    for k in range(len(block)):
        alone = bound.train(params, block.only(k), plan)
        assert alone.steps[0] == together.steps[k]
        for name in params:
            np.testing.assert_allclose(alone.params[name][0], together.params[name][k], rtol=1e-4, atol=1e-5)


@every
def test_training_twice_gives_the_same_bits_and_leaves_the_params_alone(learner: Any, data: str) -> None:
    bound, params, block = bound_block(learner, data)
    before = {name: value.copy() for name, value in params.items()}
    plan = Plan(Local(epochs=2, batch_size=7), rate=0.05)
    first, second = (bound.train(params, block, plan).params for _ in range(2))
    assert problem.same_bits(first, second)
    assert problem.same_bits(before, params)


@any_kind
def test_metrics_add_up(learner: Any, data: str) -> None:
    """The metrics of a block are those of its clients; losses are sums over rows."""
    bound, params, block = bound_block(learner, data, split="test")
    together = bound.evaluate(params, block)
    for k in range(len(block)):
        alone = bound.evaluate(params, block.only(k))
        for name, (total, count) in together.items():
            np.testing.assert_allclose([alone[name][0][0], alone[name][1][0]], [total[k], count[k]], rtol=1e-5, atol=1e-6)
    assert tuple(together) == bound.metric_names
    if (learner, data) in LEARNERS.values():
        assert list(together["loss"][1]) == [float(n) for n in block.rows]


@every
def test_the_exported_model_predicts_the_same_without_hansa(learner: Any, data: str) -> None:
    bound, params, block = bound_block(learner, data)
    trained = bound.train(params, block, Plan(Local(epochs=3, batch_size=8), rate=0.05)).params
    own = {name: value[1] for name, value in trained.items()}
    x = block.tables[1].x
    model, predicted = bound.export(own), bound.predict(own, x)
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            out = model(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(predicted, out.argmax(axis=1) if out.shape[1] > 1 else out[:, 0], rtol=1e-5, atol=1e-6)
    elif callable(model):
        out = np.asarray(model(x))
        np.testing.assert_allclose(predicted, out.argmax(axis=1) if out.shape[1] > 1 else out[:, 0], rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_allclose(
            np.asarray(model.predict(x), dtype=float), np.asarray(predicted, dtype=float), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize(("learner", "data"), UNLABELLED.values(), ids=UNLABELLED.keys())
def test_what_finds_structure_alone_predicts_the_same_without_hansa(learner: Any, data: str) -> None:
    bound, params, block = bound_block(learner, data)
    model, x = bound.export(params), block.tables[1].x
    theirs = model.transform(x) if hasattr(model, "components_") else model.predict(x)
    np.testing.assert_allclose(bound.predict(params, x), theirs, rtol=1e-6, atol=1e-9)
