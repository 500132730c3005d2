"""What a round costs beyond its work: an empty round of Hansa, and an empty map in the engine's own way, with two tasks each."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.engines import table
from hansa.core.blocks import Client, LoadedBlock, Splits, Table, blocks_of
from hansa.core.contracts import Collective, Message, State
from hansa.core.loop import Terms, play_round
from hansa.core.store import MemoryStore
from hansa.core.updates import Total, Update
from hansa.learners.sklearn import Sklearn
from hansa.options import build

TASKS, ROUNDS, FIRST = 2, 60, 10
"""Tasks of a round, rounds that are timed, and rounds before these."""


@dataclass(frozen=True)
class Nothing:
    """The algorithm that does nothing."""

    collective: Collective = field(default="sum", init=False)
    needs: frozenset[str] = frozenset()

    def init(self, params: Any, kinds: Any) -> State:
        return {"params": params}

    def broadcast(self, state: State, round: int) -> Message:
        return Message(state["params"])

    def work(self, learner: Any, message: Message, block: LoadedBlock) -> Update:
        return Update({"x": np.zeros((len(block), 1))}, np.ones(len(block)))

    def update(self, state: State, total: Total) -> State:
        return state


def load() -> Splits:
    return {"train": Table(np.zeros((1, 1)), np.zeros(1))}


def ours(name: str) -> float:
    """Milliseconds of an empty round, the median."""
    engine = build("engine", {"name": name} | ({} if name == "inline" else {"workers": TASKS})).build()
    clients = [Client(f"client-{k}", load, {}, 1) for k in range(TASKS)]
    engine.start(Sklearn(estimator=LogisticRegression()), clients, MemoryStore())
    algorithm, blocks = Nothing(), blocks_of(range(TASKS), 1)
    state = algorithm.init({"w": np.zeros(1)}, {})
    try:
        return timed(
            lambda: play_round(
                state, algorithm=algorithm, engine=engine, blocks=blocks, schema=None, round=1, rate=1.0, terms=Terms(0, TASKS)
            )
        )
    finally:
        engine.stop()


def timed(once: Callable[[], Any]) -> float:
    seconds = []
    for number in range(FIRST + ROUNDS):
        began = time.perf_counter()
        once()
        if number >= FIRST:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def nothing(number: int) -> int:
    return number


def echo(pipe: Any) -> None:
    while (asked := pipe.recv()) is not None:
        pipe.send(asked)


@contextmanager
def processes() -> Iterator[Callable[[], Any]]:
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(TASKS)]
    started = [context.Process(target=echo, args=(other,), daemon=True) for _, other in pairs]
    for process in started:
        process.start()

    def once() -> None:
        for own, _ in pairs:
            own.send(0)
        for own, _ in pairs:
            own.recv()

    try:
        yield once
    finally:
        for own, _ in pairs:
            own.send(None)
        for process in started:
            process.join()


@contextmanager
def dask() -> Iterator[Callable[[], Any]]:
    from distributed import Client as Scheduler
    from distributed import LocalCluster

    with LocalCluster(n_workers=TASKS, threads_per_worker=1, dashboard_address=None) as cluster, Scheduler(cluster) as client:
        yield lambda: client.gather(client.map(nothing, range(TASKS), pure=False))


@contextmanager
def ray() -> Iterator[Callable[[], Any]]:
    import ray as framework

    framework.init(num_cpus=TASKS, include_dashboard=False, logging_level="ERROR")
    actor = framework.remote(Actor)
    actors = [actor.remote() for _ in range(TASKS)]
    try:
        yield lambda: framework.get([one.nothing.remote(0) for one in actors])
    finally:
        framework.shutdown()


class Actor:
    def nothing(self, number: int) -> int:
        return number


@contextmanager
def spark() -> Iterator[Callable[[], Any]]:
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master(f"local[{TASKS}]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        context = session.sparkContext
        yield lambda: context.parallelize(range(TASKS), TASKS).map(nothing).collect()
    finally:
        session.stop()


NATIVE = {"processes": processes, "dask": dask, "ray": ray, "spark": spark}


def main() -> None:
    given = table.arguments()
    own = ours(given.engine)
    result = {"ours": own}
    if given.engine in NATIVE:
        with NATIVE[given.engine]() as once:
            result["native"] = timed(once)
    table.report(given, time.time(), {"": result})


if __name__ == "__main__":
    main()
