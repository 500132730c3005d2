"""scikit-learn with all rows in one process: every solver on the same CSR matrix."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from scipy import optimize
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, _logistic
from threadpoolctl import threadpool_limits

from benchmarks.engines import table

LADDERS = {"newton-cholesky": (1, 2, 3, 4, 5, 6, 8, 12), "saga": (5, 10, 20, 40)}
"""Iterations that are tried one after another where a solver tells nobody what it has found on the way."""


def main() -> None:
    given = table.arguments()
    warnings.simplefilter("ignore")
    with threadpool_limits(1):
        if given.work == "logistic":
            x, y = table.design(given.rows)
            prepared = time.time()
            results = logistic(given, x, y)
        else:
            rows = table.plain(given.rows)
            prepared = time.time()
            results = unlabelled(given, rows)
    table.report(given, prepared, results)


def logistic(given: Any, x: Any, y: np.ndarray) -> dict[str, dict[str, Any]]:
    solver = given.engine
    if solver == "lbfgs":
        marks = lbfgs(x, y)
        return {"": table.Judge(given.rows).first(marks)}
    judge = table.Judge(given.rows)
    result: dict[str, Any] = {}
    for iterations in given.iterations.get("", LADDERS[solver]):
        began = time.perf_counter()
        model = LogisticRegression(solver=solver, tol=0.0 if solver == "saga" else 1e-12, max_iter=iterations, random_state=0).fit(
            x, y
        )
        seconds = time.perf_counter() - began
        result = {**judge.first([(seconds, model.coef_[0], model.intercept_[0])]), "iterations": iterations}
        if result["fit"] is not None or seconds > table.LONGEST:
            break
    return {"": result}


def lbfgs(x: Any, y: np.ndarray) -> list[tuple[float, Any, float]]:
    """One fit; what SciPy has found after each iteration is written down as it goes."""
    marks: list[tuple[float, Any, float]] = []
    original = optimize.minimize

    def watched(*args: Any, **options: Any) -> Any:
        options["callback"] = lambda w: marks.append((time.perf_counter() - began, w[:-1].copy(), float(w[-1])))
        return original(*args, **options)

    _logistic.optimize.minimize = watched
    began = time.perf_counter()
    LogisticRegression(solver="lbfgs", tol=1e-6, max_iter=150).fit(x, y)
    _logistic.optimize.minimize = original
    return marks


def unlabelled(given: Any, x: np.ndarray) -> dict[str, dict[str, Any]]:
    began = time.perf_counter()
    if given.work == "kmeans":
        model = KMeans(table.CLUSTERS, init=table.start(x), n_init=1, max_iter=table.STEPS, tol=0.0).fit(x)
        found, iterations = model.cluster_centers_, model.n_iter_
    else:
        found, iterations = PCA(table.COMPONENTS).fit(x).components_, 1
    seconds = time.perf_counter() - began
    return {"": {"fit": seconds, "iterations": iterations, **table.checked(given.work, given.rows, found)}}


if __name__ == "__main__":
    main()
