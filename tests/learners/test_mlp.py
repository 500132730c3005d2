"""The perceptron: its gradients are those of its objective, its training is the common step, its export predicts the same."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.blocks import Client, LoadedBlock, Table
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.local import SGD, Adam, Local, Plan, schedule
from hansa.core.params import Params, flatten, unflatten
from hansa.learners import mlp_training
from hansa.learners.mlp import MLP, BoundMLP

CLASSES = tuple(range(10))


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16, y


def block_of(learner: BoundMLP, rows: tuple[int, ...], first: int = 0) -> LoadedBlock:
    """Clients with so many rows of the digits each; client k has the id k and always the same rows."""
    x, y = digits()
    target = y if learner.schema.classes is not None else x.sum(axis=1)
    tables = [Table(x[(k + first) * 130 :][:n], target[(k + first) * 130 :][:n]) for k, n in enumerate(rows)]
    clients = tuple(Client(str(k + first), dict, rows=n) for k, n in enumerate(rows))
    return LoadedBlock(0, clients, tuple(learner.arrays(t) for t in tables), np.array(rows, dtype=float), seed=3, round=2)


def bound(**options: object) -> BoundMLP:
    model = MLP(**options)  # type: ignore[arg-type]  # options of several types
    return model.bind(Schema(shape=(64,), classes=CLASSES if model.task == "classification" else None, rows=1000))


@pytest.fixture(params=["stacked", "one by one"])
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both regimes, whatever the size of the model."""
    monkeypatch.setattr(mlp_training, "LARGE", 1 if request.param == "one by one" else 1 << 60)
    return request.param


SHAPES: list[dict[str, object]] = [
    {"hidden": ()},
    {"hidden": (7,), "activation": "tanh"},
    {"hidden": (9, 8)},
    {"hidden": (90, 8), "activation": "tanh"},
    {"hidden": (), "task": "regression"},
    {"hidden": (6,), "task": "regression", "activation": "tanh"},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_gradient_is_the_slope_of_the_objective(shape: dict[str, object], l2: float) -> None:
    learner = bound(**shape, l2=l2, dtype="float64")
    block, params = block_of(learner, (30,)), learner.init(1)
    gradient = flatten({name: learner.gradient(params, block).values[f"gradient/{name}"][0] for name in params})
    centre, rng = flatten(params), np.random.default_rng(0)
    for _ in range(5):
        towards = rng.normal(size=len(centre))
        step = 1e-6
        ahead, behind = (unflatten(centre + side * step * towards, params) for side in (1, -1))
        up, down = learner.losses([ahead, behind], block).values["losses"][0]
        assert (up - down) / (2 * step) == pytest.approx(gradient @ towards, rel=1e-5, abs=1e-7)


def reference(learner: BoundMLP, params: Params, block: LoadedBlock, plan: Plan, client: int) -> Params:
    """The common step, written out with the full-gradient function on each mini-batch."""
    w = {name: value.copy() for name, value in params.items()}
    state = plan.local.optimizer.init(w)
    own = block.only(client)
    for count, rows in enumerate(schedule(block, plan.local).batches(client), start=1):
        values = learner.gradient(w, replace(own, tables=(block.tables[client].take(rows),))).values
        g = {name: values[f"gradient/{name}"][0] for name in w}
        if plan.local.clip:
            norm = np.sqrt(sum(float(np.sum(v * v)) for v in g.values()))
            g = {name: v * min(1.0, plan.local.clip / norm) for name, v in g.items()}
        for name in g:
            g[name] = g[name] + plan.proximal * (w[name] - params[name])
            if plan.drift is not None:
                g[name] += plan.drift[name][client] if plan.drift_per_client else plan.drift[name]
        plan.local.optimizer.step(w, g, state, plan.rate, count)
    return w


PLANS = {
    "plain": Plan(Local(epochs=2, batch_size=8), 0.1),
    "full batch": Plan(Local(epochs=3, batch_size=0), 0.1),
    "proximal": Plan(Local(batch_size=8), 0.1, proximal=0.5),
    "clip": Plan(Local(batch_size=8, clip=0.2), 0.1),
    "momentum": Plan(Local(epochs=2, batch_size=8, optimizer=SGD(momentum=0.9)), 0.05),
    "nesterov": Plan(Local(epochs=2, batch_size=8, optimizer=SGD(momentum=0.9, nesterov=True)), 0.05),
    "adam": Plan(Local(epochs=2, batch_size=8, optimizer=Adam()), 0.01),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("shape", [*SHAPES[:4], SHAPES[5], {"hidden": (9,), "l2": 0.1}], ids=str)
def test_training_is_the_common_step_for_ragged_clients(shape: dict[str, object], plan: Plan, regime: str) -> None:
    learner = bound(**shape, dtype="float64")
    block, params = block_of(learner, (13, 40, 5, 40, 29)), learner.init(1)
    before = {name: value.copy() for name, value in params.items()}
    trained = learner.train(params, block, plan)
    for client in range(len(block)):
        expected = reference(learner, params, block, plan, client)
        for name in params:
            np.testing.assert_allclose(trained.params[name][client], expected[name], rtol=1e-9, atol=1e-9, err_msg=name)
    assert list(trained.params) == list(params)
    np.testing.assert_array_equal(trained.steps, schedule(block, plan.local).steps)
    assert all(np.array_equal(before[name], params[name]) for name in params)


@pytest.mark.parametrize("per_client", [False, True])
def test_drift_is_added_to_every_gradient(per_client: bool, regime: str) -> None:
    learner = bound(hidden=(6,), dtype="float64")
    block, params = block_of(learner, (20, 33, 8)), learner.init(1)
    rng = np.random.default_rng(5)
    drift = {name: rng.normal(size=(3, *v.shape) if per_client else v.shape) for name, v in params.items()}
    plan = Plan(Local(batch_size=8), 0.1, drift=drift, drift_per_client=per_client)
    trained = learner.train(params, block, plan)
    for client in range(3):
        expected = reference(learner, params, block, plan, client)
        for name in params:
            np.testing.assert_allclose(trained.params[name][client], expected[name], rtol=1e-9, atol=1e-9)


def test_one_full_batch_step_is_gradient_descent(regime: str) -> None:
    learner = bound(hidden=(9, 8))
    block, params = block_of(learner, (50, 31)), learner.init(1)
    trained, gradient = learner.train(params, block, Plan(Local(batch_size=0), 0.5)), learner.gradient(params, block).values
    for name, w in params.items():
        np.testing.assert_allclose(trained.params[name], w - 0.5 * gradient[f"gradient/{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (16,), (100, 16)])
def test_a_client_does_not_depend_on_its_block(hidden: tuple[int, ...], regime: str) -> None:
    learner = bound(hidden=hidden)
    block, params, plan = block_of(learner, (61, 20, 64, 7, 40)), learner.init(1), PLANS["plain"]
    together = learner.train(params, block, plan)
    for client in range(len(block)):
        alone = learner.train(params, block.only(client), plan)
        for name in params:
            np.testing.assert_allclose(together.params[name][client], alone.params[name][0], atol=1e-5)
            assert regime == "stacked" or np.array_equal(together.params[name][client], alone.params[name][0])
        assert together.metrics["loss"][0][client] == pytest.approx(alone.metrics["loss"][0][0], rel=1e-5)


def test_the_training_loss_is_what_the_model_had_before_each_step(regime: str) -> None:
    for options in SHAPES:
        learner = bound(**options)
        block, params = block_of(learner, (33, 12)), learner.init(1)
        total, count = learner.train(params, block, Plan(Local(batch_size=5), 1e-12)).metrics["loss"]
        expected, rows = learner.evaluate(params, block)["loss"]
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        np.testing.assert_array_equal(count, rows)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    batch=st.integers(0, 25),
    epochs=st.integers(1, 3),
    hidden=st.sampled_from([(), (5,), (81, 4)]),
)
def test_both_regimes_agree(rows: list[int], batch: int, epochs: int, hidden: tuple[int, ...]) -> None:
    learner = bound(hidden=hidden, dtype="float64")
    block, params, plan = block_of(learner, tuple(rows)), learner.init(1), Plan(Local(epochs=epochs, batch_size=batch), 0.1)
    results = []
    for large in (1, 1 << 60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlp_training, "LARGE", large)
            results.append(learner.train(params, block, plan))
    one, other = results
    for name in params:
        np.testing.assert_allclose(one.params[name], other.params[name], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(one.metrics["loss"], other.metrics["loss"], rtol=1e-9)


def test_the_same_bits_every_time(regime: str) -> None:
    learner = bound(hidden=(100, 20))
    block, params = block_of(learner, (61, 20, 64)), learner.init(1)
    first, second = (learner.train(params, block, PLANS["plain"]) for _ in range(2))
    assert all(np.array_equal(first.params[name], second.params[name]) for name in params)
    assert all(np.array_equal(v, learner.init(1)[name]) for name, v in params.items())
    assert not np.array_equal(params["layer0.weight"], learner.init(2)["layer0.weight"])


def test_equals_a_plain_torch_loop(regime: str) -> None:
    torch = pytest.importorskip("torch")
    learner = bound(hidden=(90, 12))
    block, params, plan = block_of(learner, (61, 45)), learner.init(1), Plan(Local(epochs=2, batch_size=10), 0.1)
    trained = learner.train(params, block, plan)
    for client, table in enumerate(block.tables):
        w = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
        optimiser = torch.optim.SGD(w.values(), lr=plan.rate)
        for rows in schedule(block, plan.local).batches(client):
            h = torch.from_numpy(table.x[rows])
            for layer in range(3):
                h = h @ w[f"layer{layer}.weight"] + w[f"layer{layer}.bias"]
                h = torch.relu(h) if layer < 2 else h
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(h, torch.from_numpy(table.y[rows])).backward()
            optimiser.step()
        for name in params:
            np.testing.assert_allclose(trained.params[name][client], w[name].detach().numpy(), atol=2e-6)


@pytest.mark.filterwarnings("ignore:.*penalty.*:FutureWarning")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("classes", [CLASSES, (0, 1), ("no", "yes")], ids=str)
def test_the_exported_estimator_predicts_the_same(shape: dict[str, object], classes: tuple[object, ...]) -> None:
    model = MLP(**shape)  # type: ignore[arg-type]  # as above
    x, y = digits()
    labels = np.asarray(classes)[y % len(classes)]
    regression = model.task == "regression"
    learner = model.bind(Schema(shape=(64,), classes=None if regression else classes, rows=300))
    table = learner.arrays(Table(x[:300], x[:300].sum(axis=1) if regression else labels[:300]))
    block = LoadedBlock(0, (Client("a", dict, rows=300),), (table,), np.ones(1), 0, 1)
    rate = 0.01 if regression else 0.1
    params = {
        name: v[0] for name, v in learner.train(learner.init(0), block, Plan(Local(epochs=3, batch_size=10), rate)).params.items()
    }
    estimator = learner.export(params)
    new = np.asarray(x[300:], dtype=np.float32)
    expected = learner.predict(params, new)
    if regression:
        np.testing.assert_allclose(estimator.predict(new), expected, rtol=1e-5, atol=1e-5)
        return
    np.testing.assert_array_equal(estimator.predict(new), expected)
    z = learner.network.forward(params, new)[-1].astype(float)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    np.testing.assert_allclose(estimator.predict_proba(new), z / z.sum(axis=1, keepdims=True), atol=1e-6)
    assert estimator.score(new, labels[300:]) == np.mean(expected == labels[300:])


def test_evaluation_adds_up_over_clients() -> None:
    learner = bound(hidden=(9,))
    params, block = learner.init(4), block_of(learner, (40, 25))
    whole = Table(np.concatenate([t.x for t in block.tables]), np.concatenate([t.y for t in block.tables]))
    pooled = learner.evaluate(params, LoadedBlock(0, block.clients[:1], (whole,), np.ones(1), 0, 1))
    for name, (total, count) in learner.evaluate(params, block).items():
        assert total.sum() == pytest.approx(pooled[name][0][0], rel=1e-6)
        assert count.sum() == pooled[name][1][0]
    right = learner.predict(params, whole.x) == whole.y
    assert pooled["accuracy"][0][0] == right.sum()


def test_regression_measures() -> None:
    learner = bound(hidden=(5,), task="regression")
    block, params = block_of(learner, (40,)), learner.init(1)
    error = learner.predict(params, block.tables[0].x) - block.tables[0].y.astype(np.float64)
    measured = {name: float(total[0] / count[0]) for name, (total, count) in learner.evaluate(params, block).items()}
    assert measured["mse"] == pytest.approx(np.mean(error**2), rel=1e-5)
    assert measured["mae"] == pytest.approx(np.mean(np.abs(error)), rel=1e-5)
    assert measured["loss"] == pytest.approx(measured["mse"] / 2, rel=1e-5)


def test_labels_and_task_must_agree() -> None:
    with pytest.raises(InputError, match=r"write learner\.task = 'regression'"):
        MLP().bind(Schema(shape=(3,), classes=None))
    with pytest.raises(InputError, match=r"2 classes.*write learner\.task = 'classification'"):
        MLP(task="regression").bind(Schema(shape=(3,), classes=("a", "b")))
    with pytest.raises(InputError, match=r"label 11 is in no client"):
        bound().arrays(Table(np.zeros((2, 64)), np.array([1, 11])))


def test_learns_fashion_mnist() -> None:
    home = os.environ.get("HANSA_DATA_HOME")
    path = Path(home or ".") / "fashion_mnist.npz"
    if not home or not path.exists():
        pytest.skip("needs fashion_mnist.npz in $HANSA_DATA_HOME")
    with np.load(path) as data:
        x, y = data["x"][:4000] / np.float32(255), data["y"][:4000]
    learner = MLP(hidden=(100,)).bind(Schema(shape=(28, 28), classes=CLASSES, rows=3000))
    table, held_out = learner.arrays(Table(x[:3000], y[:3000])), learner.arrays(Table(x[3000:], y[3000:]))
    client = (Client("a", dict, rows=3000),)
    trained = learner.train(
        learner.init(0), LoadedBlock(0, client, (table,), np.ones(1), 0, 1), Plan(Local(epochs=3, batch_size=20), 0.1)
    )
    params = {name: value[0] for name, value in trained.params.items()}
    right, rows = learner.evaluate(params, LoadedBlock(0, client, (held_out,), np.ones(1), 0, 1))["accuracy"]
    assert right[0] / rows[0] > 0.75
