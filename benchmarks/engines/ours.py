"""Hansa on one of its engines."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

import hansa
from benchmarks.engines import table
from hansa import opening, training
from hansa.algorithms.lbfgs import LBFGS
from hansa.algorithms.lloyd import Lloyd
from hansa.algorithms.principal_components import PrincipalComponents
from hansa.core.loop import evaluate
from hansa.core.worker import EvaluateCall
from hansa.data import Parts
from hansa.learners.kmeans import KMeans
from hansa.learners.pca import PCA
from hansa.options import build

WORKERS = 2


def jobs(work: str, rows: int, engine: str) -> dict[str, hansa.Job]:
    """One job for each of our algorithms, on the same clients."""
    options: dict[str, Any] = {"name": engine} | ({} if engine == "inline" else {"workers": WORKERS})
    # A block for each worker: its parts are added up before anything is sent.
    block = -(-rows // table.GROUP // WORKERS)
    common: dict[str, Any] = {
        "split": hansa.Split(test=0.0), "rounds": hansa.Rounds(count=120, block=block), "engine": build("engine", options),
    }  # fmt: skip
    if work == "logistic":
        encoded = [("distance", StandardScaler(), ["distance"]), ("categories", OneHotEncoder(), list(table.CATEGORIES))]
        learner = make_pipeline(ColumnTransformer(encoded, sparse_threshold=1.0), LogisticRegression(C=1.0))
        data = Parts(path=str(table.source(rows)), label="delay", above=table.LATE, rows=table.GROUP)
        both = {"Newton": hansa.Newton(tolerance=1e-12), "L-BFGS": LBFGS(tolerance=1e-6)}
        return {name: hansa.Job(data=data, learner=learner, algorithm=algorithm, **common) for name, algorithm in both.items()}
    data = Parts(path=str(table.numbers(rows)), rows=table.GROUP)
    if work == "pca":
        return {"": hansa.Job(data=data, learner=PCA(components=table.COMPONENTS), algorithm=PrincipalComponents(), **common)}
    first = tuple(map(tuple, table.start(table.plain(rows)).tolist()))
    common["rounds"] = hansa.Rounds(count=table.STEPS, block=block)
    return {
        "": hansa.Job(data=data, learner=KMeans(clusters=table.CLUSTERS), algorithm=Lloyd(tolerance=0.0, centers=first), **common)
    }


def main() -> None:
    given = table.arguments()
    with threadpool_limits(1):
        wanted = jobs(given.work, given.rows, given.engine)
        first = next(iter(wanted.values()))
        setting = opening.open_setting(first, opening.clients_of(first))
        try:
            state = training.prepare(setting)
            schema, _ = setting.bound(state["preparation"])
            # What every worker loads and encodes before the clock of the fit runs, as the others' do.
            params = state["algorithm"]["params"]
            evaluate(setting.engine, EvaluateCall(params, schema, 0, 0, "train"), setting.all_blocks)
            prepared = time.time()
            results, kept = {}, {}
            for name, job in wanted.items():
                own = replace(setting, job=job)
                begun = training.begin(own, state["preparation"])
                marks, start = [], time.perf_counter()
                for after, _ in training.train(own, begun):
                    marks.append((time.perf_counter() - start, after["algorithm"]["params"]))
                kept[name] = marks
        finally:
            setting.engine.stop()
        for name, marks in kept.items():
            results[name] = judged(given.work, given.rows, marks)
    table.report(given, prepared, results)


def judged(work: str, rows: int, marks: list[tuple[float, Any]]) -> dict[str, Any]:
    if work == "logistic":
        judge = table.Judge(rows)
        return judge.first([(seconds, params["coef"][0], params["intercept"][0]) for seconds, params in marks])
    seconds, params = marks[-1]
    return {
        "fit": seconds,
        "iterations": len(marks),
        **table.checked(work, rows, params["centers" if work == "kmeans" else "components"]),
    }


if __name__ == "__main__":
    main()
