"""Forests: scikit-learn's own trees, grown where the rows are, and nothing believed of one that cannot be walked."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

import hansa
from hansa.algorithms.forest import Forest
from hansa.core.decision_trees import TREES, checked, depths, joined, no_trees
from hansa.core.errors import InputError
from hansa.core.randomness import combine, derive
from hansa.core.updates import Gathered
from hansa.job import from_table, to_table
from hansa.learners.forest import Forests
from tests.conformance import problem
from tests.conformance.problem import same_bits

X, Y = load_iris(return_X_y=True)
CANCER, MALIGNANT = load_breast_cancer(return_X_y=True)
DIABETES, PROGRESS = load_diabetes(return_X_y=True)
OWNER = np.random.default_rng(0).choice(["a", "b", "c"], size=len(X), p=[0.6, 0.3, 0.1])
OWNER[Y == 2] = "c"  # so that "a" and "b" lack a class


def job(estimator: Any, x: Any = X, y: Any = Y, owner: Any = OWNER, **changes: Any) -> hansa.Job:
    given = {"split": hansa.Split(test=0.0), "seed": 4, **changes}
    return hansa.Job(data=hansa.from_arrays(x, y, owner), learner=estimator, algorithm=Forest(), **given)


def grown(path: Path, *arguments: Any, **changes: Any) -> hansa.Run:
    return hansa.run(job(*arguments, **changes), directory=path, quiet=True)


def state_of(client: str, seed: int = 4, given: int = -1) -> int:
    """A client's random state: it follows from the job's seed, the client and the estimator's own."""
    return int(combine(np.array([derive("client", client)], dtype=np.uint64), derive(seed, "forest", given))[0] >> np.uint64(32))


FORESTS = [
    (RandomForestClassifier(7, max_depth=4, class_weight="balanced"), X, Y),
    (ExtraTreesClassifier(7, bootstrap=True, max_samples=0.5, max_features="log2"), CANCER, MALIGNANT),
    (RandomForestRegressor(7, max_features=0.5), DIABETES, PROGRESS),
    (ExtraTreesRegressor(7, min_samples_leaf=3, random_state=9), DIABETES, PROGRESS),
]


@pytest.mark.parametrize(("estimator", "x", "y"), FORESTS, ids=lambda value: type(value).__name__)
def test_one_client_grows_scikit_learns_own_forest(tmp_path: Path, estimator: Any, x: Any, y: Any) -> None:
    ours = grown(tmp_path, estimator, x, y, np.full(len(x), "one")).model
    given = -1 if estimator.random_state is None else estimator.random_state
    theirs = clone(estimator).set_params(random_state=state_of("one", given=given)).fit(x, y)
    assert np.array_equal(ours.predict(x), theirs.predict(x)) and np.array_equal(ours.apply(x), theirs.apply(x))
    assert np.array_equal(ours.feature_importances_, theirs.feature_importances_)
    for mine, their in zip(ours.estimators_, theirs.estimators_, strict=True):
        assert (mine.random_state, mine.max_features_) == (their.random_state, their.max_features_)
        assert (mine.get_depth(), mine.get_n_leaves()) == (their.get_depth(), their.get_n_leaves())
        states = mine.tree_.__getstate__(), their.tree_.__getstate__()
        assert all(np.array_equal(states[0]["nodes"][name], states[1]["nodes"][name]) for name in states[0]["nodes"].dtype.names)
        assert np.array_equal(states[0]["values"], states[1]["values"])
    assert type(ours) is type(theirs) and ours.get_params() == estimator.get_params()


@pytest.mark.parametrize("weighting", ["examples", "equal"])
def test_every_client_grows_its_share_on_its_own_rows(tmp_path: Path, weighting: Any) -> None:
    run = grown(tmp_path, RandomForestClassifier(20), rounds=hansa.Rounds(weighting=weighting, block=2))
    rows = {client: int((client == OWNER).sum()) for client in "abc"}
    expected = {"examples": {client: 20 * n / 150 for client, n in rows.items()}, "equal": dict.fromkeys("abc", 20 / 3)}[weighting]
    begin = 0
    for client, exact in expected.items():
        own = client == OWNER
        alone = RandomForestClassifier(20, random_state=state_of(client)).fit(X[own], Y[own])
        seeds = [one.random_state for one in alone.estimators_]
        count = sum(seed in seeds for seed in run.params["seed"].tolist())
        assert abs(count - exact) < 1 and list(run.params["seed"][begin : begin + count]) == seeds[:count]
        for ours, theirs in zip(run.model.estimators_[begin : begin + count], alone.estimators_, strict=False):
            columns = alone.classes_.astype(int)
            assert np.array_equal(ours.predict_proba(X.astype(np.float32))[:, columns], theirs.predict_proba(X.astype(np.float32)))
        begin += count
    assert begin == 20 == len(run.model.estimators_)
    assert list(run.model.classes_) == [0, 1, 2] and run.model.predict_proba(X).shape == (150, 3)
    assert run.ended == "converged after 2 rounds"


@pytest.mark.parametrize("engine", [hansa.Processes(workers=2)], ids=lambda engine: engine.name)
def test_a_forest_has_the_same_bits_everywhere_and_after_a_resume(tmp_path: Path, engine: Any) -> None:
    one = job(RandomForestClassifier(9), rounds=hansa.Rounds(block=1))
    here = hansa.run(one, directory=tmp_path, quiet=True)
    assert same_bits(here.params, hansa.run(replace(one, engine=engine), directory=tmp_path, quiet=True).params)

    class Stop(Exception):
        pass

    def stop(stage: str) -> None:
        stages.append(stage)
        if stages.count("work") == 3:  # the description, the weights, the trees
            raise Stop

    stages: list[str] = []
    with pytest.raises(Stop):
        hansa.run(one, directory=tmp_path / "stopped", quiet=True, observe=stop)
    (folder,) = (tmp_path / "stopped").iterdir()
    assert same_bits(here.params, hansa.resume(folder, one, quiet=True).params)


def test_metrics_are_scikit_learns(tmp_path: Path) -> None:
    everybody = {"split": hansa.Split(test=0.3), "owner": None, "partition": hansa.IID(clients=1)}
    for estimator, x, y in ((RandomForestClassifier(5), CANCER, MALIGNANT), (RandomForestRegressor(5), DIABETES, PROGRESS)):
        run = grown(tmp_path, estimator, x, y, **everybody)
        (client,) = hansa.opening.clients_of(run.job)
        test = client.load()["test"]
        said = run.model.predict(test.x)
        if y is PROGRESS:
            mse = mean_squared_error(test.y, said)
            expected = {"loss": mse, "mse": mse, "mae": mean_absolute_error(test.y, said)}
        else:
            shares = run.model.predict_proba(test.x)
            area = roc_auc_score(test.y, shares[:, 1])
            expected = {"loss": log_loss(test.y, shares), "accuracy": accuracy_score(test.y, said), "auc": area}
        assert run.metrics == pytest.approx({f"test/{name}": value for name, value in expected.items()}, rel=1e-12)


def test_a_client_that_fails_is_asked_again(tmp_path: Path) -> None:
    class Once(Forest):
        def work(self, learner: Any, message: Any, block: Any) -> Any:
            if block.round == 2 and block.clients[0].id == "b":
                raise OSError("no luck today")
            return super().work(learner, message, block)

    quorum = hansa.Rounds(quorum=0.5, block=1)
    whole = grown(tmp_path, RandomForestClassifier(20), rounds=quorum)
    run = hansa.run(replace(job(RandomForestClassifier(20), rounds=quorum), algorithm=Once()), directory=tmp_path, quiet=True)
    assert run.ended == "converged after 3 rounds" and [len(record["failures"]) for record in run.history] == [0, 1, 0]
    assert sorted(run.params["seed"]) == sorted(whole.params["seed"])
    assert list(run.params["seed"]) != list(whole.params["seed"])  # those that came later stand behind


def test_a_forest_that_did_not_grow_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rounds.count = 1: .* the second they grow trees \(set rounds.count to 2 or more\)"):
        grown(tmp_path, RandomForestClassifier(5), rounds=hansa.Rounds(count=1))
    asked = job(RandomForestClassifier(5))
    setting = hansa.opening.open_setting(asked, hansa.opening.clients_of(asked))
    _, learner = setting.bound()
    with pytest.raises(InputError, match="the run ended before the clients grew some"):
        learner.export(learner.init(0))


def test_class_weights_are_those_of_the_labels(tmp_path: Path) -> None:
    words = np.array(["rose", "iris", "tulip"])[Y]  # other numbers than their places: iris, rose, tulip
    weights = {"iris": 5.0, "tulip": 0.5, "rose": 1.0}
    run = grown(tmp_path, RandomForestClassifier(9, class_weight=weights, max_depth=2), X, words)
    own = OWNER == "a"
    alone = RandomForestClassifier(9, class_weight={"iris": 5.0, "rose": 1.0}, max_depth=2, random_state=state_of("a"))
    alone.fit(X[own], words[own])
    assert np.array_equal(
        run.model.estimators_[0].predict_proba(X.astype(np.float32))[:, :2],
        alone.estimators_[0].predict_proba(X.astype(np.float32)),
    )
    assert list(run.model.classes_) == ["iris", "rose", "tulip"]


def test_what_a_forest_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="oob_score = True needs the rows of all clients"):
        job(RandomForestClassifier(oob_score=True))
    with pytest.raises(InputError, match="random_state = RandomState"):
        job(RandomForestClassifier(random_state=np.random.RandomState(0)))
    with pytest.raises(InputError, match="'GradientBoostingClassifier' is not a forest"):
        job(Forests(estimator="GradientBoostingClassifier"))
    with pytest.raises(InputError, match="n_trees: RandomForestClassifier has no such argument"):
        job(Forests(options={"n_trees": 5}))
    with pytest.raises(InputError, match="needs a learner that offers train"):
        replace(job(RandomForestClassifier()), algorithm=hansa.FedAvg())
    with pytest.raises(InputError, match="needs a learner that offers trees"):
        job(hansa.Sklearn())


def test_a_job_file_can_hold_a_forest() -> None:
    table = to_table(job(RandomForestClassifier(40, max_depth=3)))
    assert table["learner"] == {
        "name": "forest", "estimator": "RandomForestClassifier", "options": {"n_estimators": 40, "max_depth": 3}
    }  # fmt: skip
    read = from_table({**tomllib.loads(tomli_w.dumps(table)), "data": {"name": "digits"}})
    assert read.learner.unfitted.get_params() == RandomForestClassifier(40, max_depth=3).get_params()


# What is believed of trees that arrive


def some_trees() -> dict[str, np.ndarray]:
    learner = Forests(RandomForestClassifier(3, max_depth=3)).bind(problem.schema("iris"))
    grown = learner.trees(problem.loaded(learner, "iris", (1, 3)), [2, 1])
    return joined([{name: values[k] for name, values in grown.items()} for k in (0, 1)])


def test_good_trees_are_believed_as_they_are() -> None:
    trees = some_trees()
    assert same_bits(checked(trees, 4, 3, shares=True), trees)
    begins = np.cumsum(trees["nodes"]) - trees["nodes"]
    assert depths(trees).tolist() == [depth_below(trees, int(begin), 0) for begin in begins]
    assert same_bits(checked(no_trees(3), 4, 3, shares=True), no_trees(3)) and depths(no_trees(3)).size == 0


def depth_below(trees: dict[str, np.ndarray], begin: int, node: int) -> int:
    children = [int(trees[side][begin + node]) for side in ("left", "right")]
    return 0 if children[0] == -1 else 1 + max(depth_below(trees, begin, child) for child in children)


def inner(trees: dict[str, np.ndarray]) -> int:
    """A node with children that is not the first."""
    return int(np.flatnonzero(trees["left"] != -1)[1])


WRONG = {
    "a child beyond the tree": ("left", lambda t: int(t["nodes"][0]), "outside of their tree"),
    "a child beyond everything": ("right", lambda t: 2**31 - 1, "outside of their tree"),
    "a child far below": ("left", lambda t: -7, "outside of their tree, or before"),
    "itself as its child": ("left", lambda t: inner(t), "before their parents"),
    "its parent as its child": ("right", lambda t: 0, "before their parents"),
    "one child": ("right", lambda t: -1, "a single child"),
    "another's child": ("left", lambda t: int(t["right"][inner(t)]), "no parent, or to several"),
    "a column beyond the table": ("feature", lambda t: 4, "none of the 4"),
    "a column before it": ("feature", lambda t: -1, "none of the 4"),
    "no threshold": ("threshold", lambda t: np.nan, "not finite"),
    "no impurity": ("impurity", lambda t: np.inf, "not finite"),
    "negative rows": ("samples", lambda t: -1, "fewer than no rows"),
    "shares above one": ("value", lambda t: 0.9, "do not sum to one"),
    "a negative share": ("value", lambda t: [2.0, -1.0, 0.0], "do not sum to one"),
}


@pytest.mark.parametrize(("name", "value", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_tree_that_cannot_be_walked_is_refused(name: str, value: Any, said: str) -> None:
    trees = {key: array.copy() for key, array in some_trees().items()}
    trees[name][inner(trees)] = value(trees)
    with pytest.raises(InputError, match=said):
        checked(trees, 4, 3, shares=True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"left": None}, "no array 'left' of int32"),
        ({"left": "pickle"}, "no array 'left'"),
        ({"left": np.zeros(3)}, "no array 'left' of int32"),
        ({"left": np.zeros(3, dtype=np.int32)}, "different lengths"),
        ({"seed": np.zeros(1, dtype=np.int64)}, "different lengths"),
        ({"value": np.zeros((3, 3), dtype=object)}, "no array 'value'"),
        ({"nodes": np.array([1, 1, 1])}, "other numbers"),
        ({"nodes": np.array([2**62, 2**62, 2**62])}, "other numbers"),
        ({"nodes": np.array([-1, 0, 1])}, "other numbers"),
    ],
)
def test_what_are_no_trees_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        checked({**some_trees(), **changed}, 4, 3, shares=True)
    with pytest.raises(InputError, match=r"values of shape \(3,\), and 2 columns"):
        checked(some_trees(), 4, 2, shares=True)


def test_the_server_uses_nothing_of_a_client_that_sends_something_else() -> None:
    learner = Forests(RandomForestClassifier(2)).bind(problem.schema("iris"))
    algorithm, trees = Forest(), {name: [value] for name, value in some_trees().items()}
    state = algorithm.init(learner.init(0), learner.kinds())
    asked = algorithm.update(state, Gathered(("client-1",), {}, np.ones(1)))
    assert asked["due"] == {"client-1": 2}
    with pytest.raises(InputError, match="client client-1: it sent 3 trees and 2 were asked for"):
        algorithm.update(asked, Gathered(("client-1",), trees, np.ones(1)))
    trees["left"][0] = trees["left"][0] + 1
    with pytest.raises(InputError, match=r"client client-1: its trees have .*; they are not used"):
        algorithm.update(asked, Gathered(("client-1",), trees, np.ones(1)))
    nobody = algorithm.update(asked, Gathered(("client-2",), trees, np.ones(1)))
    assert nobody["due"] == {"client-1": 2} and not len(nobody["params"]["nodes"]) and not nobody["done"]


def test_params_that_were_tampered_with_are_not_walked(tmp_path: Path) -> None:
    run = grown(tmp_path, RandomForestClassifier(3))
    bound = run.job.learner.bind(problem.schema("iris"))
    params = {**run.params, "left": run.params["left"] + 1000}
    with pytest.raises(InputError, match="the forest's trees have"):
        bound.predict(params, X)
    assert set(TREES) < set(run.params)
