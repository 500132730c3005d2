"""Laws of every algorithm."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from hansa.algorithms.coordinate_descent import CoordinateDescent
from hansa.algorithms.fedavg import FedAvg, FedProx
from hansa.algorithms.fedmedian import FedMedian
from hansa.algorithms.forest import Forest
from hansa.algorithms.gradient_descent import GradientDescent
from hansa.algorithms.lbfgs import LBFGS
from hansa.algorithms.lloyd import Lloyd
from hansa.algorithms.newton import Newton
from hansa.algorithms.principal_components import PrincipalComponents
from hansa.algorithms.scaffold import Scaffold
from hansa.algorithms.server_optimizers import SGD, AdaGrad, Adam, Momentum, RMSprop, Yogi
from hansa.algorithms.sharing_admm import SharingADMM
from hansa.core.contracts import Algorithm
from hansa.core.local import SGD as LocalSGD
from hansa.core.local import Adam as LocalAdam
from hansa.core.local import Local
from hansa.core.store import DiskStore
from hansa.learners.forest import Forests
from hansa.learners.kmeans import KMeans
from hansa.learners.pca import PCA
from hansa.learners.sklearn import Sklearn
from hansa.options import find, registry
from hansa.tracking.tree import load_tree, save_tree
from tests.conformance import problem

LOCAL = Local(epochs=2, batch_size=8, learning_rate=0.1)
ALGORITHMS = {
    "fedavg": FedAvg(local=LOCAL),
    "fedavg, momentum": FedAvg(local=Local(batch_size=8, optimizer=LocalSGD(momentum=0.9, nesterov=True), learning_rate=0.02)),
    "fedavg, local adam": FedAvg(local=Local(batch_size=8, optimizer=LocalAdam(), learning_rate=0.01, clip=1.0)),
    "fedprox": FedProx(local=LOCAL, mu=0.1),
    "scaffold": Scaffold(local=LOCAL),
    "fedmedian": FedMedian(local=LOCAL),
    "gradient_descent": GradientDescent(server=SGD(learning_rate=0.5)),
    "newton": Newton(),
    "coordinate_descent": CoordinateDescent(),
    "sharing_admm": SharingADMM(),
    "forest": Forest(),
    "lbfgs": LBFGS(),
    "lloyd": Lloyd(),
    "principal_components": PrincipalComponents(),
    **{f"fedavg, server {s.name}": FedAvg(local=LOCAL, server=s) for s in (Momentum(0.3), AdaGrad(), Adam(), RMSprop(), Yogi())},
}
every = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())
UNLABELLED = {"lloyd": (KMeans(clusters=3), "inertia"), "principal_components": (PCA(components=2), "explained_variance")}
"""Learner and metric of the algorithms that look at no labels."""


def learner_of(algorithm: Any) -> Any:
    if algorithm.name == "forest":
        return Forests(estimator=RandomForestClassifier(n_estimators=10))
    return UNLABELLED[algorithm.name][0] if algorithm.name in UNLABELLED else Sklearn(estimator=LogisticRegression())


IN_GANGS = {"synchronous", "diloco"}
"""Algorithms whose rounds are no exchange with clients: their laws are in tests/learners/test_parallel.py."""


def test_all_registered_algorithms_are_here() -> None:
    assert set(registry("algorithm")) - IN_GANGS == {algorithm.name for algorithm in ALGORITHMS.values()}
    assert {name for name in registry("algorithm") if find("algorithm", name).collective == "gang"} == IN_GANGS


@every
def test_fulfils_the_contract(algorithm: Any) -> None:
    assert isinstance(algorithm, Algorithm)


@every
def test_learns(algorithm: Any) -> None:
    learner = learner_of(algorithm)
    bound = learner.bind(problem.schema("breast_cancer"))
    block = problem.loaded(bound, "breast_cancer", tuple(range(7)), split="test")
    params = problem.play(algorithm, learner, problem.data_for(algorithm, "breast_cancer"), 15)["params"]
    if algorithm.name in UNLABELLED:
        told, metric = bound.evaluate(params, block), UNLABELLED[algorithm.name][1]
        value, variance = (float(np.divide(*map(np.sum, pair))) for pair in (told[metric], _variance(block)))
        assert (variance - value if metric == "inertia" else value * variance) > 0.35 * variance
        return
    right, asked = bound.evaluate(params, block)["accuracy"]
    assert right.sum() / asked.sum() > 0.9


def _variance(block: Any) -> tuple[float, int]:
    x = np.concatenate([table.x for table in block.tables])
    return float(((x - x.mean(axis=0)) ** 2).sum()), len(x)


@every
def test_same_job_same_bits(algorithm: Any) -> None:
    first, second = (
        problem.play(algorithm, learner_of(algorithm), problem.data_for(algorithm, "iris"), 4)["params"] for _ in range(2)
    )
    assert problem.same_bits(first, second)


@every
def test_state_can_be_saved_between_any_two_rounds(algorithm: Any, tmp_path: Any) -> None:
    """Through a file, and with client state on disk: the end is the same to the last bit."""
    whole = problem.play(algorithm, learner_of(algorithm), problem.data_for(algorithm, "breast_cancer"), 5)["params"]
    state, path = None, tmp_path / "state.safetensors"
    for number in range(1, 6):
        store = DiskStore(tmp_path / "clients.sqlite")
        state = problem.play(
            algorithm,
            learner_of(algorithm),
            problem.data_for(algorithm, "breast_cancer"),
            1,
            state=state,
            first=number,
            store=store,
        )
        save_tree(path, state)
        state = load_tree(path)
    assert problem.same_bits(whole, state["params"])


@every
def test_a_repeated_round_reads_the_client_state_from_before_it(algorithm: Any, tmp_path: Any) -> None:
    """A crash after the clients have written and before the server has saved: the round is played again, to the same bits."""
    whole = problem.play(algorithm, learner_of(algorithm), problem.data_for(algorithm, "breast_cancer"), 3)["params"]
    store = DiskStore(tmp_path / "clients.sqlite")
    after_one = problem.play(algorithm, learner_of(algorithm), problem.data_for(algorithm, "breast_cancer"), 1, store=store)
    problem.play(
        algorithm, learner_of(algorithm), problem.data_for(algorithm, "breast_cancer"), 1, state=after_one, first=2, store=store
    )
    state = problem.play(
        algorithm,
        learner_of(algorithm),
        problem.data_for(algorithm, "breast_cancer"),
        2,
        state=after_one,
        first=2,
        store=DiskStore(tmp_path / "clients.sqlite"),
    )
    assert problem.same_bits(whole, state["params"])


@every
def test_broadcast_and_work_change_nothing_that_they_were_given(algorithm: Any) -> None:
    data = problem.data_for(algorithm, "iris")
    bound = learner_of(algorithm).bind(problem.schema(data))
    state = {**algorithm.init(bound.init(0), bound.kinds()), "rate": 1.0, "population": 7}
    before = deepcopy(state)
    message = algorithm.broadcast(state, 1)
    block = problem.loaded(bound, data, (0, 1))
    if message.keeps is not None:
        block = type(block)(**{**vars(block), "state": {n: np.stack([v, v]) for n, v in message.keeps.items()}})
    algorithm.work(bound, message, block)
    assert problem.same_bits(before["params"], state["params"])


@every
def test_update_has_a_leading_client_axis(algorithm: Any) -> None:
    data = problem.data_for(algorithm, "iris")
    bound = learner_of(algorithm).bind(problem.schema(data))
    message = algorithm.broadcast({**algorithm.init(bound.init(0), bound.kinds()), "rate": 1.0, "population": 7}, 1)
    block = problem.loaded(bound, data, (0, 2, 3))
    if message.keeps is not None:
        block = type(block)(**{**vars(block), "state": {n: np.stack([v] * 3) for n, v in message.keeps.items()}})
    update = algorithm.work(bound, message, block)
    assert all(len(value) == 3 for value in update.values.values())
    assert len(update.weight) == 3
