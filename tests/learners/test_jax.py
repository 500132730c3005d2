"""The JAX learner: one compiled loop that equals the local step written out, for any tree of params."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

import hansa
from hansa.core.blocks import Client, LoadedBlock, Table
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.local import SGD, Adam, Local, Plan, clip_, direction, schedule
from hansa.core.params import Params

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402  # only where JAX is

from hansa.learners import jax_training, outputs  # noqa: E402
from hansa.learners.jax import JaxLearner  # noqa: E402
from hansa.learners.jax_training import rounded  # noqa: E402

PERCEPTRON = "hansa.learners.jax_models:perceptron"
ROWS = (17, 40, 3, 8)


def schema(features: int = 5, classes: int | None = 3) -> Schema:
    return Schema((), (features,), "float32", None if classes is None else tuple(range(classes)), sum(ROWS))


def block(bound: Any, classes: int | None = 3, features: int = 5) -> LoadedBlock:
    rng = np.random.default_rng(1)
    tables = []
    for rows in ROWS:
        x = rng.standard_normal((rows, features))
        y = x[:, 0] - x[:, 1] if classes is None else np.abs(x).argmax(axis=1) % classes
        tables.append(bound.arrays(Table(x, y)))
    clients = tuple(Client(f"client-{k}", dict) for k in range(len(ROWS)))
    return LoadedBlock(0, clients, tuple(tables), np.array(ROWS, dtype=float), seed=4, round=2)


def net(key: Any, x: Any) -> dict[str, Any]:
    """A nested tree."""
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": 0.5 * jax.random.normal(first, (x.shape[1], 4)), "bias": jnp.zeros(4)},
        "out": [0.5 * jax.random.normal(second, (4, 3)), jnp.zeros(3)],
    }


def applied(params: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"][0] + params["out"][1]


class Module:
    """An object with the two methods, as the modules of flax are."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def init(self, key: Any, x: Any) -> dict[str, Any]:
        return {"params": jax.tree.map(lambda leaf: self.scale * leaf, net(key, x))}

    def apply(self, variables: dict[str, Any], x: Any) -> Any:
        return applied(variables["params"], x)


NET = JaxLearner(model=(net, applied))


def by_hand(bound: Any, params: Params, whole: LoadedBlock, plan: Plan) -> tuple[list[Params], list[float]]:
    """The local step of `hansa.core.local`, one client and one step after another, in NumPy but for the gradient."""
    times, models, losses = schedule(whole, plan.local), [], []
    for k, table in enumerate(whole.tables):
        w = {name: value.copy() for name, value in params.items()}
        state, total = plan.local.optimizer.init(w), 0.0
        for number, rows in enumerate(times.batches(k), 1):
            batch = LoadedBlock(0, whole.clients[:1], (table.take(rows),), np.ones(1), 0, 0)
            told = bound.gradient(w, batch)
            total += float(told.metrics["loss"][0][0])
            gradient = {name: told.values[f"gradient/{name}"][0].copy() for name in w}
            clip_(gradient, plan.local.clip, stacked=False)
            drift = None if plan.drift is None else {n: v[k] if plan.drift_per_client else v for n, v in plan.drift.items()}
            plan.local.optimizer.step(w, direction(gradient, w, params, plan, drift), state, plan.rate, number)
        models.append(w)
        losses.append(total)
    return models, losses


SIDE_BY_SIDE, IN_TURN, NO_LOOP = get_args(jax_training.Loops)
CASES: dict[str, tuple[str, Plan, str]] = {
    "plain": (IN_TURN, Plan(Local(epochs=2, batch_size=7), rate=0.1), ""),
    "plain, side by side": (SIDE_BY_SIDE, Plan(Local(epochs=2, batch_size=7), rate=0.1), ""),
    "everything": (
        IN_TURN,
        Plan(Local(batch_size=4, optimizer=SGD(momentum=0.5, nesterov=True), clip=0.3), rate=0.05, proximal=0.4),
        "of each client",
    ),
    "everything, side by side": (
        SIDE_BY_SIDE,
        Plan(Local(batch_size=4, optimizer=SGD(momentum=0.9), clip=0.3), rate=0.05, proximal=0.4),
        "of each client",
    ),
    "adam, all rows": (IN_TURN, Plan(Local(epochs=3, batch_size=0, optimizer=Adam()), rate=0.01), "of all"),
    "everything, no loop": (
        NO_LOOP,
        Plan(Local(batch_size=4, optimizer=SGD(momentum=0.5, nesterov=True), clip=0.3), rate=0.05, proximal=0.4),
        "of each client",
    ),
    "adam, no loop": (NO_LOOP, Plan(Local(epochs=2, batch_size=7, optimizer=Adam()), rate=0.01), "of all"),
    "a batch larger than any client": (SIDE_BY_SIDE, Plan(Local(epochs=2, batch_size=100), rate=0.1), ""),
}


@pytest.mark.parametrize(("loops", "plan", "drift"), CASES.values(), ids=CASES.keys())
def test_the_compiled_loop_is_the_local_step(loops: str, plan: Plan, drift: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_training, "_loops", lambda *_: loops)
    bound = JaxLearner(model=(net, applied), l2=0.02).bind(schema())
    params, whole = bound.init(0), block(bound)
    if drift:
        rng, each = np.random.default_rng(3), drift == "of each client"
        shape = (len(ROWS),) if each else ()
        added = {name: 0.2 * rng.standard_normal(shape + v.shape).astype(np.float32) for name, v in params.items()}
        plan = replace(plan, drift=added, drift_per_client=each)
    trained = bound.train(params, whole, plan)
    models, losses = by_hand(bound, params, whole, plan)
    assert trained.steps.tolist() == schedule(whole, plan.local).steps.tolist()
    np.testing.assert_allclose(trained.metrics["loss"][0], losses, rtol=1e-4)
    for name in params:
        assert trained.params[name].flags.writeable
        for k, model in enumerate(models):
            np.testing.assert_allclose(trained.params[name][k], model[name], rtol=2e-4, atol=1e-5)


def convolved(params: Any, x: Any) -> Any:
    from jax import lax

    return jax.jit(lambda x, w: lax.conv(x, w, (1, 1), "SAME"))(x[:, None, :, None], params["w"])[:, 0, :, 0]


def test_only_loops_without_convolutions_are_compiled_on_a_cpu() -> None:
    learner = JaxLearner(model=(lambda key, x: {"w": np.ones((1, 1, 3, 1), np.float32)}, convolved))
    model, x = learner.bind(schema(classes=5)).model, np.ones((1, 5), np.float32)
    assert jax_training._loops(model, model.flat(model.init(jax.random.key(0), x)), x) == NO_LOOP
    dense = JaxLearner(model=(net, applied)).bind(schema())
    assert jax_training._loops(dense.model, dense.init(0), x) == SIDE_BY_SIDE
    assert jax_training._loops(dense.model, {**dense.init(0), "more": np.zeros(10**6)}, x) == IN_TURN


def test_a_perceptron_is_that_of_the_numpy_learner() -> None:
    plan = Plan(Local(epochs=2, batch_size=8, optimizer=SGD(momentum=0.9)), rate=0.05)
    ours = hansa.MLP(hidden=(6, 4), l2=0.0).bind(schema())
    theirs = JaxLearner(model=PERCEPTRON, options={"widths": (6, 4, 3)}).bind(schema())
    params, whole = ours.init(0), block(ours)
    assert {name: value.shape for name, value in theirs.init(0).items()} == {n: v.shape for n, v in params.items()}
    first, second = ours.train(params, whole, plan), theirs.train(params, block(theirs), plan)
    for name in params:
        np.testing.assert_allclose(first.params[name], second.params[name], rtol=1e-4, atol=1e-5)
    told, other = ours.evaluate(params, whole), theirs.evaluate(params, block(theirs))
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(told[name][0], other[name][0], rtol=1e-5)


def test_params_have_the_names_of_their_places_in_the_tree() -> None:
    bound = NET.bind(schema())
    assert list(bound.init(0)) == ["hidden.bias", "hidden.kernel", "out.0", "out.1"]
    flax_like = JaxLearner(model=Module()).bind(schema())
    assert list(flax_like.init(0)) == list(bound.init(0))
    for name, value in bound.init(0).items():
        np.testing.assert_array_equal(value, flax_like.init(0)[name])
        assert value.flags.writeable


def test_what_is_exported_is_a_function_of_jax_with_the_users_own_tree() -> None:
    bound = JaxLearner(model=Module()).bind(schema())
    params, x = bound.init(0), block(bound).tables[0].x
    model = bound.export(params)
    assert set(model.params["params"]) == {"hidden", "out"}
    np.testing.assert_allclose(jax.jit(model)(x), applied(model.params["params"], x), rtol=1e-5, atol=1e-6)
    assert jax.jacobian(model)(x[0][None]).shape == (1, 3, 1, 5)
    np.testing.assert_array_equal(bound.predict(params, x), np.asarray(model(x)).argmax(axis=1))


def test_a_model_may_be_made_by_a_function_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import jax.numpy as jnp\n"
        "def linear(outputs=2, start=0.0):\n"
        "    return lambda key, x: {'w': jnp.full((x.shape[1], outputs), start)}, lambda params, x: x @ params['w']\n"
    )
    bound = JaxLearner(model=f"{path}:linear", options={"outputs": 3, "start": 0.5}).bind(schema())
    assert bound.init(0)["w"].shape == (5, 3)
    assert (bound.init(0)["w"] == 0.5).all()
    again = pickle.loads(pickle.dumps(bound))  # noqa: S301  # of our own making
    assert again.init(1)["w"].shape == (5, 3)


def test_a_model_that_is_bound_again_is_not_compiled_again() -> None:
    def compiled() -> int:
        return int(jax_training._compiled(jax_training._train)._cache_size())

    learner = JaxLearner(model=PERCEPTRON, options={"widths": (7, 3)})
    plan = Plan(Local(batch_size=7), rate=0.1)
    bound = learner.bind(schema())
    bound.train(bound.init(0), block(bound), plan)
    before = compiled()
    for seed, rate in ((1, 0.1), (2, 0.05)):
        again = JaxLearner(model=PERCEPTRON, options={"widths": (7, 3)}).bind(schema())
        again.train(again.init(seed), block(again), Plan(Local(batch_size=7, learning_rate=rate), rate=rate))
    assert compiled() == before


@given(st.integers(0, 10**7))
def test_sizes_are_rounded_up_to_few_others(size: int) -> None:
    assert size <= rounded(size) <= max(1, size * 1.125)
    assert rounded(rounded(size)) == rounded(size)
    assert rounded(size) <= rounded(size + 1)


def test_at_most_eight_sizes_lie_between_powers_of_two() -> None:
    for exponent in range(4, 14):
        assert len({rounded(size) for size in range(2**exponent, 2 ** (exponent + 1))}) <= 9


LOSSES = {
    "mse": lambda z, y: (z - y) ** 2,
    "l1": lambda z, y: np.abs(z - y),
    "huber": lambda z, y: np.where(np.abs(z - y) < 1, 0.5 * (z - y) ** 2, np.abs(z - y) - 0.5),
    "poisson_nll": lambda z, y: np.exp(z) - y * z,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_numbers(loss: str) -> None:
    bound = JaxLearner(model=PERCEPTRON, options={"widths": (1,)}, loss=loss).bind(schema(classes=None))
    params, whole = bound.init(0), block(bound, None)
    measured = bound.evaluate(params, whole)
    for k, table in enumerate(whole.tables):
        z = (table.x @ params["layer0.weight"] + params["layer0.bias"])[:, 0].astype(float)
        number = np.exp(z) if loss == "poisson_nll" else z
        told = {name: total[k] / count[k] for name, (total, count) in measured.items()}
        assert told["loss"] == pytest.approx(LOSSES[loss](z, table.y).mean(), rel=1e-4)  # type: ignore[no-untyped-call]  # a function without types
        assert told["mse"] == pytest.approx(mean_squared_error(table.y, number), rel=1e-4)
        assert told["mae"] == pytest.approx(mean_absolute_error(table.y, number), rel=1e-4)
        np.testing.assert_allclose(bound.predict(params, table.x), number, rtol=1e-4, atol=1e-6)


def test_losses_of_classes() -> None:
    bound = NET.bind(schema())
    params, whole = bound.init(0), block(bound)
    total, count = bound.evaluate(params, whole)["loss"]
    for k, table in enumerate(whole.tables):
        p = jax.nn.softmax(bound.outputs(params, table.x).astype(float))
        assert total[k] / count[k] == pytest.approx(log_loss(table.y, p, labels=[0, 1, 2]), rel=1e-4)
    binary = JaxLearner(model=PERCEPTRON, options={"widths": (1,)}, loss="binary_cross_entropy").bind(schema(classes=2))
    params, whole = binary.init(0), block(binary, 2)
    told = binary.evaluate(params, whole)
    for k, table in enumerate(whole.tables):
        z = binary.outputs(params, table.x)[:, 0].astype(float)
        assert told["loss"][0][k] / told["loss"][1][k] == pytest.approx(
            log_loss(table.y, 1 / (1 + np.exp(-z)), labels=[0, 1]), rel=1e-4
        )
        assert told["accuracy"][0][k] == np.sum((z > 0) == table.y)
        if len(np.unique(table.y)) == 2:
            assert told["auc"][0][k] / told["auc"][1][k] == pytest.approx(roc_auc_score(table.y, z))


def cubed(output: Any, target: Any) -> Any:
    return jnp.abs(output[:, 0] - target) ** 3


def test_a_loss_and_a_metric_of_ones_own() -> None:
    bound = JaxLearner(model=PERCEPTRON, options={"widths": (1,)}, loss=cubed, metrics=(cubed, "mae")).bind(schema(classes=None))
    params, whole = bound.init(0), block(bound, None)
    told = bound.evaluate(params, whole)
    assert list(told) == ["loss", "cubed", "mae"]
    np.testing.assert_array_equal(told["loss"][0], told["cubed"][0])
    after = bound.train(params, whole, Plan(Local(epochs=5, batch_size=0), rate=0.02)).params
    for k in range(len(ROWS)):
        own = {name: value[k] for name, value in after.items()}
        assert bound.evaluate(own, whole.only(k))["loss"][0][0] < told["loss"][0][k]


def test_many_rows_pass_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = NET.bind(schema())
    params, whole = bound.init(0), block(bound)
    at_once = bound.evaluate(params, whole), bound.gradient(params, whole), bound.outputs(params, whole.tables[1].x)
    monkeypatch.setattr("hansa.learners.jax_bound.ROWS_AT_ONCE", 6)
    in_parts = bound.evaluate(params, whole), bound.gradient(params, whole), bound.outputs(params, whole.tables[1].x)
    np.testing.assert_allclose(at_once[0]["loss"][0], in_parts[0]["loss"][0], rtol=1e-5)
    np.testing.assert_allclose(at_once[2], in_parts[2], rtol=1e-5, atol=1e-6)
    for name, value in at_once[1].values.items():
        np.testing.assert_allclose(value, in_parts[1].values[name], rtol=1e-4, atol=1e-6)


def test_a_client_without_rows_stays_where_it_is() -> None:
    bound = NET.bind(schema())
    params, whole = bound.init(0), block(bound)
    empty = Table(whole.tables[0].x[:0], whole.tables[0].y[:0])
    one = LoadedBlock(0, whole.clients[:2], (empty, whole.tables[1]), np.ones(2), 4, 2)
    trained = bound.train(params, one, Plan(Local(batch_size=7), rate=0.1))
    assert trained.steps.tolist() == [0, 6]
    for name, value in params.items():
        np.testing.assert_array_equal(trained.params[name][0], value)
        assert not np.array_equal(trained.params[name][1], value)


def test_a_job_learns_digits_and_repeats_bit_by_bit(tmp_path: Path) -> None:
    text = """
    data = "digits"
    partition = { name = "iid", clients = 8 }
    learner = { name = "jax", model = "hansa.learners.jax_models:perceptron", options = { widths = [32, 10] } }
    algorithm = { name = "fedavg", local = { epochs = 2, batch_size = 20, learning_rate = 0.5 } }
    rounds = { count = 6, block = 3 }
    """
    (tmp_path / "job.toml").write_text(text)
    first, second = (hansa.run(tmp_path / "job.toml", directory=tmp_path / name, quiet=True) for name in "ab")
    assert first.metrics["test/accuracy"] > 0.9
    for name, value in first.params.items():
        np.testing.assert_array_equal(value, second.params[name])
    assert first.model(np.zeros((2, 64), np.float32)).shape == (2, 10)


def keeps_more(key: Any, x: Any) -> dict[str, Any]:
    return {"params": net(key, x), "batch_stats": {"mean": jnp.zeros(3)}}


def counts(key: Any, x: Any) -> dict[str, Any]:
    return {"steps": jnp.zeros(3, dtype=int)}


def wants_more(params: Any, x: Any) -> Any:
    return x @ jnp.zeros((7, 3))


def gives_two(params: Any, x: Any) -> Any:
    return x, x


MANY = Schema((), (5,), "float32", tuple(range(4)), 10)
BAD: list[tuple[JaxLearner, Schema, str]] = [
    (NET, schema(classes=None), "the labels are numbers, not classes"),
    (JaxLearner(model=(net, applied), loss="mse"), schema(), "the labels are 3 classes, not numbers"),
    (NET, MANY, r"the model gives outputs of shape \(3,\) per row and the data has 4 classes"),
    (
        JaxLearner(model=(net, wants_more)),
        schema(),
        r"the model cannot take rows of shape \(5,\) and type float32: dot_general requires",
    ),
    (JaxLearner(model=(keeps_more, applied)), schema(), "the model keeps batch_stats beside its params"),
    (JaxLearner(model=(counts, lambda p, x: x)), schema(), "its params cannot be trained: 'steps' is not of a floating type"),
    (JaxLearner(model=(net, gives_two)), schema(), "gives a tuple of outputs; it must give one array"),
    (JaxLearner(model=PERCEPTRON, options={"width": 3}), schema(), "do not fit .*: missing a required argument: 'widths'"),
    (JaxLearner(model=(net, applied), options={"a": 1}), schema(), "the model given is ready-made: leave them out"),
    (JaxLearner(model=3), schema(), "learner.model = int is a int; it must be a pair of functions"),
    (JaxLearner(model=lambda: 3), schema(), "made a int; it must make a pair of functions"),
    (JaxLearner(model="nowhere:thing"), schema(), "nowhere cannot be imported"),
    (JaxLearner(model="perceptron"), schema(), "names no factory; write 'package.module:factory'"),
]


@pytest.mark.parametrize(("learner", "given", "sentence"), BAD, ids=[sentence[:30] for _, _, sentence in BAD])
def test_what_cannot_work_is_said_when_the_learner_is_bound(learner: JaxLearner, given: Schema, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        learner.bind(given)
    assert "\n" not in str(caught.value)


def test_options_that_do_not_exist_are_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"learner.loss = 'cros_entropy' is unknown \(did you mean 'cross_entropy'"):
        JaxLearner(model=PERCEPTRON, loss="cros_entropy")
    with pytest.raises(InputError, match="metrics: 'acuracy' is unknown"):
        JaxLearner(model=PERCEPTRON, metrics=("acuracy",))
    bound = NET.bind(schema())
    with pytest.raises(InputError, match="JAX takes numbers only; add a preparation"):
        bound.arrays(Table(np.array([["a"] * 5]), np.zeros(1)))
    with pytest.raises(InputError, match="for this metric they must agree"):
        outputs.measure("mse", np.zeros((3, 2)), np.zeros(3), "mse")
