"""A round as one would write it by hand on each engine, in the fastest way that is usual there: what an engine costs by itself.

A round is more than a map of empty tasks. The parameters go to all workers, each has its task where its data is, sums come back with what
they count for and a metric, and the next parameters are made of them. Each of the engines yields a function that sends parameters and
returns what comes back; :func:`step` is the round around it. The data was brought to the workers before; the work on it is an addition.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

WORKERS = 2
WIDTH = 664
"""Numbers that go down to a worker, and as many that come up: those of the benchmark's logistic regression."""

Part = tuple[np.ndarray, float, tuple[float, float]]
"""What a worker returns: its sum, what that counts for, and a metric as sum and count."""

Exchange = Callable[[np.ndarray], Iterable[Part]]


def step(exchange: Exchange, params: np.ndarray) -> tuple[np.ndarray, float]:
    """A round: the next parameters, and the mean of the metric."""
    sums, weights, metrics = zip(*exchange(params), strict=True)
    totals, counts = zip(*metrics, strict=True)
    return sum(sums) / sum(weights), sum(totals) / sum(counts)


def load(number: int) -> np.ndarray:
    """The data of a worker."""
    return np.full(1, float(number))


def work(params: np.ndarray, data: np.ndarray) -> Part:
    return params + data, 1.0, (0.5, 1.0)


@contextmanager
def processes() -> Iterator[Exchange]:
    """A process that owns its data and a pipe to it, for each worker."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(WORKERS)]
    started = [context.Process(target=_serve, args=(other, k), daemon=True) for k, (_, other) in enumerate(pairs)]
    for process, (_, other) in zip(started, pairs, strict=True):
        process.start()
        other.close()  # so that a process that is gone is an error here, and not waited for

    def exchange(params: np.ndarray) -> list[Part]:
        for own, _ in pairs:
            own.send(params)
        return [own.recv() for own, _ in pairs]

    try:
        yield exchange
    finally:
        for own, _ in pairs:
            own.send(None)
        for process in started:
            process.join()


def _serve(pipe: Any, number: int) -> None:
    data = load(number)
    while (params := pipe.recv()) is not None:
        pipe.send(work(params, data))


@contextmanager
def dask() -> Iterator[Exchange]:
    """Data as futures, and with each a task that is pinned to the worker it is at, softly, so that it may be done elsewhere after a
    loss. The parameters are an argument, as there is one task for each worker."""
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        homes = sorted(client.scheduler_info()["workers"])
        data = [client.submit(load, k, workers=[home], allow_other_workers=True) for k, home in enumerate(homes)]
        client.gather(data)

        def exchange(params: np.ndarray) -> list[Part]:
            tasks = [
                client.submit(work, params, one, workers=[home], allow_other_workers=True, pure=False)
                for one, home in zip(data, homes, strict=True)
            ]
            return client.gather(tasks)

        yield exchange


@contextmanager
def ray() -> Iterator[Exchange]:
    """An actor that owns its data for each worker. The parameters are an argument: to put so few into the object store takes longer."""
    import ray as framework

    framework.init("local", num_cpus=WORKERS, include_dashboard=False, logging_level="ERROR")
    actors = [framework.remote(Actor).remote(k) for k in range(WORKERS)]
    try:
        yield lambda params: framework.get([actor.work.remote(params) for actor in actors])
    finally:
        framework.shutdown()


class Actor:
    def __init__(self, number: int) -> None:
        self.data = load(number)

    def work(self, params: np.ndarray) -> Part:
        return work(params, self.data)


@contextmanager
def spark() -> Iterator[Exchange]:
    """A cached RDD with a partition for each worker, and a broadcast for each round, which is taken back after it."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master(f"local[{WORKERS}]").config("spark.ui.enabled", "false").getOrCreate()
    context = session.sparkContext
    data = context.parallelize(range(WORKERS), WORKERS).map(load).cache()
    data.count()

    def exchange(params: np.ndarray) -> list[Part]:
        sent = context.broadcast(params)
        results = data.map(lambda one: work(sent.value, one)).collect()
        sent.destroy()
        return results

    try:
        yield exchange
    finally:
        session.stop()


NATIVE: Mapping[str, Callable[[], AbstractContextManager[Exchange]]] = {
    "processes": processes, "dask": dask, "ray": ray, "spark": spark,
}  # fmt: skip
