"""dask-ml on a local cluster of two workers with one thread each.

The one-hot matrix is given to it in dense blocks of float32: in float64, 3,000,000 rows take 16 GB. Blocks of the `sparse` package were
tried once, on 300,000 rows of a busy machine: four iterations were not done after two minutes. Why is not known.
"""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.engines import table

WORKERS = 2


def main() -> None:
    import dask
    from distributed import Client, LocalCluster

    given = table.arguments()
    warnings.simplefilter("ignore")
    # The tables are on this machine: workers that are told to hold them must not be stopped for it.
    dask.config.set({f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause", "terminate")})
    with (
        threadpool_limits(1),
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        prepared, results = (logistic if given.work == "logistic" else unlabelled)(given)
    table.report(given, prepared, results)


def blocks(rows: int, load: Any, *more: Any) -> Any:
    """One delayed block for every row group, loaded at the workers."""
    import dask

    edges = [*range(0, rows, table.GROUP), rows]
    return [dask.delayed(load)(rows, start, stop, *more) for start, stop in pairwise(edges)], np.diff(edges)


@cache
def _design(rows: int) -> tuple[Any, np.ndarray]:
    return table.design(rows)  # once for each worker


def dense_block(rows: int, start: int, stop: int) -> np.ndarray:
    return _design(rows)[0][start:stop].astype(np.float32).toarray()


def labels_block(rows: int, start: int, stop: int) -> np.ndarray:
    return _design(rows)[1][start:stop].astype(np.float64)


def plain_block(rows: int, start: int, stop: int) -> np.ndarray:
    return table.plain(rows)[start:stop]


class _Late(Exception):
    """The fit has taken long enough."""


def logistic(given: Any) -> tuple[float, dict[str, dict[str, Any]]]:
    import dask.array as da
    from dask_glm import algorithms
    from dask_ml.linear_model import LogisticRegression
    from distributed import wait

    with np.load(table.reference(given.rows)) as file:
        width = int(file["width"])
    parts, sizes = blocks(given.rows, dense_block)
    x = da.concatenate([da.from_delayed(p, (int(n), width), dtype=np.float32) for p, n in zip(parts, sizes, strict=True)])
    parts, sizes = blocks(given.rows, labels_block)
    y = da.concatenate([da.from_delayed(p, (int(n),), dtype=float) for p, n in zip(parts, sizes, strict=True)])
    x, y = x.persist(), y.persist()
    wait([x, y])
    prepared = time.time()
    marks: list[tuple[float, Any, float]] = []
    original = algorithms.fmin_l_bfgs_b

    def mark(w: np.ndarray) -> None:
        marks.append((time.perf_counter() - began, w[:-1].copy(), float(w[-1])))
        if marks[-1][0] > table.LONGEST:
            raise _Late

    algorithms.fmin_l_bfgs_b = lambda *args, **options: original(*args, **options, callback=mark)
    began = time.perf_counter()
    with suppress(_Late):
        LogisticRegression(solver="lbfgs", C=1.0, max_iter=200, tol=1e-6).fit(x, y)
    algorithms.fmin_l_bfgs_b = original
    return prepared, {"": table.Judge(given.rows).first(marks)}


def unlabelled(given: Any) -> tuple[float, dict[str, dict[str, Any]]]:
    import dask.array as da
    from dask_ml.cluster import KMeans
    from dask_ml.decomposition import PCA
    from distributed import wait

    parts, sizes = blocks(given.rows, plain_block)
    x = da.concatenate([da.from_delayed(p, (int(n), 8), dtype=float) for p, n in zip(parts, sizes, strict=True)]).persist()
    wait(x)
    prepared = time.time()
    first = table.start(table.plain(given.rows))
    began = time.perf_counter()
    if given.work == "kmeans":
        model = KMeans(table.CLUSTERS, init=first, max_iter=table.STEPS, tol=0.0).fit(x)
        found, iterations = model.cluster_centers_, model.n_iter_
    else:
        found, iterations = PCA(table.COMPONENTS, svd_solver="full").fit(x).components_, 1
    seconds = time.perf_counter() - began
    return prepared, {"": {"fit": seconds, "iterations": iterations, **table.checked(given.work, given.rows, found)}}


if __name__ == "__main__":
    main()
