"""Laws of every engine: the same bits as ``inline``, failures as values, gangs all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hansa.algorithms.fedavg import FedAvg
from hansa.algorithms.fedmedian import FedMedian
from hansa.algorithms.newton import Newton
from hansa.algorithms.scaffold import Scaffold
from hansa.core.blocks import Block
from hansa.core.contracts import Collectives, Engine
from hansa.core.errors import RunFailed
from hansa.core.local import Local
from hansa.core.loop import Exchange, collect
from hansa.core.store import DiskStore
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

ENGINES = {
    "inline": Inline(),
    "processes, 1": Processes(workers=1),
    "processes, 3": Processes(workers=3),
    "dask, 2": Dask(workers=2),
    "dask, 3": Dask(workers=3),
    "ray, 2": Ray(workers=2),
    "spark, rdd": Spark(workers=2, path="rdd"),
    "spark, dataframe": Spark(workers=3, path="dataframe"),
    "torchrun, 2": Torchrun(workers=2),
    "torchrun, 3": Torchrun(workers=3),
}
NEEDS = {"dask": "distributed", "ray": "ray", "torchrun": "torch"}
"""Packages of the engines that are extras: where one is not installed, its engine is skipped."""

LEARNER = Sklearn(estimator=LogisticRegression())
LOCAL = Local(epochs=1, batch_size=8, learning_rate=0.1)


@pytest.fixture(scope="module", params=ENGINES.values(), ids=ENGINES.keys())
def engine(request: Any, tmp_path_factory: Any) -> Iterator[Engine]:
    needed = NEEDS.get(request.param.name, "hansa")
    if find_spec(needed) is None:  # not imported here: Ray reads what it must keep quiet about when it is imported
        pytest.skip(f"{needed} is not installed; the extra is hansa[{request.param.name}]")
    if request.param.name == "spark":
        request.getfixturevalue("spark")
    running = request.param.build()
    running.start(LEARNER, problem.clients("breast_cancer"), DiskStore(tmp_path_factory.mktemp("store") / "clients.sqlite"))
    yield running
    running.stop()


@dataclass(frozen=True)
class Names:
    """Returns the members of a block; raises at a given one."""

    fail_at: int = -1

    def __call__(self, worker: Any, block: Block) -> Update:
        if self.fail_at in block.members:
            raise ValueError(f"no luck with client {self.fail_at}")
        return Update({"member": np.array(block.members)}, np.ones(len(block.members)))


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


def meet(gang: Collectives) -> tuple[float, list[int], int]:
    total = gang.all_reduce(np.full(3, 0.1 * (gang.rank + 1)))
    ranks = gang.all_gather(gang.rank)
    gang.barrier()
    return float(total[0]), ranks, gang.broadcast(gang.rank * 7, root=1)


def one_raises(gang: Collectives) -> None:
    if gang.rank == 1:
        raise ValueError("member one has no luck")
    gang.barrier()


def test_a_gang_shares_collectives(engine: Engine) -> None:
    results = engine.gang(meet, 2)
    assert results == [(0.1 + 0.2, [0, 1], 7)] * 2


def test_a_gang_is_all_or_nothing(engine: Engine) -> None:
    with pytest.raises(RunFailed, match="member one has no luck"):
        engine.gang(one_raises, 2)
