"""A round as one would write it by hand on each engine, in the fastest way that is usual there: what an engine costs by itself.

A round is more than a map of empty tasks. The parameters go to all workers, each has its task where its data is, and the results come back
and are added up. Each of these yields a function that plays one such round and returns the sum. The data was brought to the workers
before; the work on it is an addition.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

WORKERS = 2
WIDTH = 664
"""Numbers that go down to a worker, and as many that come up: those of the benchmark's logistic regression."""

Round = Callable[[], np.ndarray]


def load(number: int) -> np.ndarray:
    """The data of a worker."""
    return np.full(1, float(number))


def work(params: np.ndarray, data: np.ndarray) -> np.ndarray:
    return params + data


@contextmanager
def processes() -> Iterator[Round]:
    """A process that owns its data and a pipe to it, for each worker."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(WORKERS)]
    started = [context.Process(target=_serve, args=(other, k), daemon=True) for k, (_, other) in enumerate(pairs)]
    for process in started:
        process.start()
    params = np.zeros(WIDTH)

    def once() -> np.ndarray:
        for own, _ in pairs:
            own.send(params)
        return sum(own.recv() for own, _ in pairs)

    try:
        yield once
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
def dask() -> Iterator[Round]:
    """Data as futures, and with each a task that is pinned to the worker it is at, softly, so that it may be done elsewhere after a
    loss. The parameters are an argument, as there is one task for each worker."""
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        homes = sorted(client.scheduler_info()["workers"])
        data = [client.submit(load, k, workers=[home], allow_other_workers=True) for k, home in enumerate(homes)]
        client.gather(data)
        params = np.zeros(WIDTH)

        def once() -> np.ndarray:
            tasks = [
                client.submit(work, params, one, workers=[home], allow_other_workers=True, pure=False)
                for one, home in zip(data, homes, strict=True)
            ]
            return sum(client.gather(tasks))

        yield once


@contextmanager
def ray() -> Iterator[Round]:
    """An actor that owns its data for each worker. The parameters are an argument: to put so few into the object store takes longer."""
    import ray as framework

    framework.init("local", num_cpus=WORKERS, include_dashboard=False, logging_level="ERROR")
    actors = [framework.remote(Actor).remote(k) for k in range(WORKERS)]
    params = np.zeros(WIDTH)
    try:
        yield lambda: sum(framework.get([actor.work.remote(params) for actor in actors]))
    finally:
        framework.shutdown()


class Actor:
    def __init__(self, number: int) -> None:
        self.data = load(number)

    def work(self, params: np.ndarray) -> np.ndarray:
        return work(params, self.data)


@contextmanager
def spark() -> Iterator[Round]:
    """A cached RDD with a partition for each worker, and a broadcast for each round, which is taken back after it."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master(f"local[{WORKERS}]").config("spark.ui.enabled", "false").getOrCreate()
    context = session.sparkContext
    data = context.parallelize(range(WORKERS), WORKERS).map(load).cache()
    data.count()
    params = np.zeros(WIDTH)

    def once() -> np.ndarray:
        sent = context.broadcast(params)
        results = data.map(lambda one: work(sent.value, one)).collect()
        sent.destroy()
        return sum(results)

    try:
        yield once
    finally:
        session.stop()


NATIVE: Mapping[str, Callable[[], AbstractContextManager[Round]]] = {
    "processes": processes, "dask": dask, "ray": ray, "spark": spark,
}  # fmt: skip
