"""Laws of every engine: the same bits as ``inline``, failures as values, gangs all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hansa.algorithms.coordinate_descent import CoordinateDescent
from hansa.algorithms.fedavg import FedAvg
from hansa.algorithms.fedmedian import FedMedian
from hansa.algorithms.newton import Newton
from hansa.algorithms.scaffold import Scaffold
from hansa.algorithms.sharing_admm import SharingADMM
from hansa.algorithms.synchronous import Synchronous
from hansa.core.contracts import Engine
from hansa.core.errors import RunFailed
from hansa.core.local import Local
from hansa.core.loop import Exchange, collect
from hansa.core.store import DiskStore, MemoryStore
from hansa.core.synchrony import Layout
from hansa.core.updates import Failure, Update
from hansa.engines.dask import Dask
from hansa.engines.inline import Inline, InlineEngine
from hansa.engines.processes import Processes
from hansa.engines.ray import Ray
from hansa.engines.spark import Spark
from hansa.engines.torchrun import Torchrun
from hansa.learners.sklearn import Sklearn
from hansa.options import registry
from tests.conformance import problem
from tests.conformance.deeds import Names, meet, one_raises

ENGINES = {
    "inline": Inline(),
    "processes": Processes(workers=2),
    "dask": Dask(workers=3),
    "ray": Ray(workers=2),
    "spark, rdd": Spark(workers=2, path="rdd"),
    "spark, dataframe": Spark(workers=3, path="dataframe"),
    "torchrun": Torchrun(workers=3),
}
"""Other numbers of workers give the same bits: tests/engines holds each engine to it."""

NEEDS = {"dask": "distributed", "ray": "ray", "torchrun": "torch"}
"""Packages of the engines that are extras: where one is not installed, its engine is skipped."""

LEARNER = Sklearn(estimator=LogisticRegression())
LOCAL = Local(epochs=1, batch_size=8, learning_rate=0.1)


@dataclass
class Running:
    """An engine that is started for all tests here, and again where one of them is about other clients than the last."""

    engine: Any
    folder: Path
    holds: str = ""

    def holding(self, name: str) -> Any:
        if name != self.holds:
            self.engine.start(LEARNER, problem.clients(name), DiskStore(self.folder / f"{name}.sqlite"))
            self.holds = name
        return self.engine


@pytest.fixture(scope="module", params=ENGINES.values(), ids=ENGINES.keys())
def running(request: Any, tmp_path_factory: Any) -> Iterator[Running]:
    needed = NEEDS.get(request.param.name, "hansa")
    if find_spec(needed) is None:  # not imported here: Ray reads what it must keep quiet about when it is imported
        pytest.skip(f"{needed} is not installed; the extra is hansa[{request.param.name}]")
    if request.param.name == "spark":
        request.getfixturevalue("spark")
    with ExitStack() as opened:
        if request.param.name == "ray":  # it lasts as long as an engine is in it, also while the other is started again
            beside: Any = request.param.build()
            beside.start(LEARNER, (), MemoryStore())
            opened.callback(beside.stop)
        made = request.param.build()
        opened.callback(made.stop)
        yield Running(made, tmp_path_factory.mktemp("store"))


@pytest.fixture
def engine(running: Running) -> Engine:
    held: Engine = running.holding("breast_cancer")
    return held


def test_all_registered_engines_are_here() -> None:
    here = {name.split(",")[0] for name in ENGINES}
    # A federation is played by its server: tests/federation holds the same laws for it.
    assert set(registry("engine")) == here | {"federation"}


@pytest.mark.parametrize("algorithm", [FedAvg(local=LOCAL), Newton(), FedMedian(local=LOCAL)], ids=lambda a: a.name)
def test_same_bits_as_inline(engine: Engine, algorithm: Any) -> None:
    here = problem.play(algorithm, LEARNER, "breast_cancer", 3)["params"]
    there = problem.play(algorithm, LEARNER, "breast_cancer", 3, engine=engine)["params"]
    assert problem.same_bits(here, there)


def test_client_state_stays_between_rounds(engine: Engine) -> None:
    algorithm = Scaffold(local=LOCAL)
    here = problem.play(algorithm, LEARNER, "breast_cancer", 3)["params"]
    there = problem.play(algorithm, LEARNER, "breast_cancer", 3, engine=engine)["params"]
    assert problem.same_bits(here, there)


def test_every_block_comes_back_once(engine: Engine) -> None:
    results = dict(engine.map(Names(), problem.blocks("breast_cancer", 2)))
    assert sorted(results) == [0, 1, 2, 3]
    assert [list(results[n].values["member"]) for n in range(4)] == [[0, 1], [2, 3], [4, 5], [6]]


def test_every_result_says_what_its_work_took_and_the_engine_what_it_moved(engine: Engine) -> None:
    exchange = Exchange(Names(), problem.blocks("breast_cancer", 2), "gather", 1.0, 1)
    results = dict(engine.map(exchange.call, exchange.blocks))
    assert all(result.spent.seconds > 0 and result.spent.where for result in results.values())
    collect(engine, exchange)
    times = exchange.times
    assert min(times.wait, times.reduce) >= 0 and 0 < times.compute <= times.work
    assert (times.transfer > 0) == (not isinstance(engine, InlineEngine))


def test_a_failure_is_a_value(engine: Engine) -> None:
    results = dict(engine.map(Names(fail_at=3), problem.blocks("breast_cancer", 2)))
    failure = results[1]
    assert isinstance(failure, Failure)
    assert failure.clients == ("client-2", "client-3")
    assert failure.kind == "ValueError" and "no luck with client 3" in failure.message and "Names" not in failure.message
    assert "raise ValueError" in failure.traceback
    assert all(isinstance(results[n], Update) for n in (0, 2, 3))


def test_a_map_that_is_left_early_does_not_disturb_the_next(engine: Engine) -> None:
    for _ in engine.map(Names(), problem.blocks("breast_cancer", 1)):
        break
    assert sorted(n for n, _ in engine.map(Names(), problem.blocks("breast_cancer", 1))) == list(range(7))


def test_a_gang_shares_collectives(engine: Engine) -> None:
    results = engine.gang(meet, 2)
    assert results == [(0.1 + 0.2, [0, 1], 7)] * 2


def test_a_gang_is_all_or_nothing(engine: Engine) -> None:
    with pytest.raises(RunFailed, match="member one has no luck"):
        engine.gang(one_raises, 2)


def test_a_gang_trains_a_module_as_one_process_does(engine: Engine, tmp_path: Path) -> None:
    """Two members with half of the rows and of every param each; what the optimiser holds comes from one round to the next."""
    pytest.importorskip("torch", reason="gangs of modules need hansa[torch]")
    from hansa.learners.torch import TorchLearner
    from tests.learners.parallel_modules import perceptron

    learner = TorchLearner(module=perceptron, options={"inputs": 30, "outputs": 2}, l2=0.01)
    alone = Synchronous(steps=4, batch_size=50, learning_rate=0.1, arguments={"momentum": 0.9})
    one = Inline().build()
    here = problem.play_gang(alone, learner, "breast_cancer", 2, engine=one, home=str(tmp_path / "one"))
    one.stop()
    algorithm = alone if isinstance(engine, InlineEngine) else replace(alone, parallel=Layout(shard=2))
    there = problem.play_gang(algorithm, learner, "breast_cancer", 2, engine=engine, home=str(tmp_path / "both"))
    assert list(here) == list(there) and not problem.same_bits(here, learner.bind(problem.schema("breast_cancer")).init(5))
    for name, value in here.items():
        np.testing.assert_allclose(there[name], value, rtol=1e-10, atol=1e-12, err_msg=name)


def test_a_model_split_by_columns_has_the_same_bits_as_inline(running: Running) -> None:
    """Every client keeps the weights of its own columns where it is, and only one has labels. The last, as others need other clients."""
    name = "breast_cancer" + problem.BY_FEATURES
    engine = running.holding(name)
    for algorithm in (CoordinateDescent(), SharingADMM()):
        here = problem.play(algorithm, LEARNER, name, 4)["params"]
        there = problem.play(algorithm, LEARNER, name, 4, engine=engine)["params"]
        assert problem.same_bits(here, there) and any(value.any() for value in here.values()), algorithm.name
