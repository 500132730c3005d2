"""The page that the benchmark of the engines writes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.engines import table

Results = Mapping[str, Mapping[str, list[dict[str, Any]]]]
ENGINES = ("inline", "processes", "dask", "ray", "spark")


def page(results: Results, rows: int, versions: dict[str, str], machine: str, command: str) -> str:
    """Markdown: a table per kind of work, the targets, and how it was measured."""
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    parts = [
        "# Benchmarks of the engines",
        f"Written by `make bench-engines` (`{command}`); do not edit. {rows:,} flights of 2001, read from one Parquet file.",
        f"Machine: {machine}. Versions: {listed}. One BLAS thread a process; Hansa, dask-ml and Spark have two workers, inline and "
        "scikit-learn one process.",
        "Contenders take turns (A B C A B C ...), each in processes of its own; figures are medians over the repetitions, with the "
        "smallest and the largest in brackets. *Fit* is the time from data that is loaded and encoded at the workers to the result; "
        "*ready* is the time before that, from the start of the process on: starting the engine, reading, encoding. *Peak memory* is that "
        "of all the contender's processes together (proportional set size).",
    ]
    for work in ("logistic", "kmeans", "pca"):
        if work in results:
            parts += [f"## {TITLES[work]}", _about(work, rows), _table(results[work], work)]
            parts += [_targets(results[work], rows)] if work == "logistic" else []
    if "floor" in results:
        parts += ["## What a round costs", FLOOR, _floors(results["floor"])]
    return "\n\n".join(parts) + "\n"


TITLES = {"logistic": "Logistic regression", "kmeans": "k-means", "pca": "Principal components"}
FLOOR = (
    "A round of two workers through Hansa's loop, and one written by hand on the engine in the fastest way that is usual there "
    "(`benchmarks/engines/natively.py`), timed in turns: 664 numbers go to each worker, its task runs where its data is, as many "
    "come back with what they count for and a metric, and the next parameters are made of them. By hand that is two processes with a "
    "pipe each; on Dask a task for each future of data, pinned softly to its worker; on Ray a method of two actors; on Spark a "
    "broadcast, a map over a cached RDD and `collect`. A map of empty tasks would be less than a round: it brings nothing to where the "
    "data is. The target is at most 1.3 times."
)


def _width(rows: int) -> int:
    import numpy as np

    with np.load(table.reference(rows)) as file:
        return int(file["width"])


def _about(work: str, rows: int) -> str:
    if work == "logistic":
        width = _width(rows)
        return (
            f"Is a flight more than {table.LATE} minutes late? From day, hour, origin and destination as one-hot columns and the "
            f"distance: {width} columns, {rows * width * 8 / 1e9:.2f} GB as a dense matrix. All minimise the objective of scikit-learn's "
            f"`LogisticRegression(C=1)`; the clock stops when the objective is within {table.TARGET:g} (relative) of the optimum, which "
            "an independent Newton method has found beforehand. *Agreement* is the largest difference of a coefficient from the optimum's "
            "at the end of the fit: at the target for solvers that were stopped there. dask-ml gets dense blocks "
            f"of float32, and its fit is stopped after {table.LONGEST:g} s. MLlib and scikit-learn's newton-cholesky and "
            "saga tell nobody what they have found on the way; timed is a fit with as many iterations as the target takes."
        )
    if work == "kmeans":
        return (
            f"Eight scaled numbers a row, {table.CLUSTERS} clusters, {table.STEPS} steps of Lloyd's method from the same centres (MLlib "
            "takes none to begin from, and draws its own). *Agreement* is the largest difference from NumPy's centres with all rows in "
            "one place."
        )
    return (
        f"The first {table.COMPONENTS} components of the same eight numbers. *Agreement* is up to sign, with NumPy's eigenvectors."
    )


def _rows_of(by_name: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Figures of every contender and algorithm, with what its process as a whole took."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, runs in by_name.items():
        for run in runs:
            for algorithm, figures in run.get("results", {"": {}}).items():
                label = f"{name}, {algorithm}" if algorithm else name
                found.setdefault(label, []).append({**figures, **{k: run.get(k) for k in ("prepare", "peak", "error")}})
    return found


def _spread(values: list[float], digits: int) -> str:
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


def _table(by_name: Mapping[str, list[dict[str, Any]]], work: str) -> str:
    lines = ["| | fit, s | iterations | ready, s | peak memory, MB | agreement |", "|---|---:|---:|---:|---:|---:|"]
    for name, runs in _rows_of(by_name).items():
        good = [run for run in runs if run.get("fit") is not None]
        rest = [run for run in runs if run.get("fit") is None]
        if not good:
            last = rest[-1]
            if last.get("last_fit") is None:
                lines.append(f"| {name} | failed: {last.get('error')} | | | | |")
                continue
            fit, steps = f"not within {last['last_fit']:.0f} (gap {last['last_gap']:.1e})", ""
        else:
            fit, steps = _spread([run["fit"] for run in good], 3 if work == "pca" else 2), f"{good[-1]['iterations']}"
        every = good or [run for run in rest if run.get("last_fit") is not None]
        agreement = statistics.median(run["agreement"] for run in every)
        lines.append(
            f"| {name} | {fit} | {steps} | {_spread([run['prepare'] for run in every], 1)} "
            f"| {_spread([run['peak'] / 1e6 for run in every], 0)} | {'–' if agreement != agreement else f'{agreement:.1e}'} |"
        )
    return "\n".join(lines)


def _targets(by_name: Mapping[str, list[dict[str, Any]]], rows: int) -> str:
    """Each target, and whether this run met it."""
    figures = _rows_of(by_name)
    fits = {name: [run["fit"] for run in runs if run.get("fit") is not None] for name, runs in figures.items()}
    middle = {name: statistics.median(values) for name, values in fits.items() if values}

    def best(prefix: str) -> tuple[str, float] | None:
        found = {name: value for name, value in middle.items() if name.startswith(prefix)}
        return min(found.items(), key=lambda item: item[1]) if found else None

    def least(name: str) -> tuple[float, bool] | None:
        """The fit of a peer, or how long it was at it without reaching the target (True)."""
        if name in middle:
            return middle[name], False
        tried = [run["last_fit"] for run in figures.get(name, []) if run.get("last_fit")]
        return (max(tried), True) if tried else None

    lines = []
    for engine, peer, target in (("dask", "dask-ml", 5.0), ("spark", "Spark MLlib", 3.0)):
        own, other = best(f"Hansa, {engine}"), least(peer)
        if own and other:
            ratio, bound = other[0] / own[1], "at least " if other[1] else ""
            met = "met" if ratio >= target else "missed"
            lines.append(f"{own[0]} is {bound}{ratio:.1f} times as fast as {peer} (target: {target:g} times; {met}).")
    own, other_best = best("Hansa, inline"), best("scikit-learn")
    if own and other_best:
        ratio = own[1] / other_best[1]
        lines.append(
            f"{own[0]} takes {ratio:.2f} of the time of {other_best[0]}, its best solver (target: at most 1; "
            f"{'met' if ratio <= 1 else 'missed'})."
        )
    for engine, peer in (("inline", "scikit-learn, lbfgs"), ("dask", "dask-ml"), ("spark", "Spark MLlib")):
        ours, theirs = middle.get(f"Hansa, {engine}, L-BFGS"), least(peer)
        if ours and theirs:
            bound = "more than " if theirs[1] else ""
            lines.append(f"The same method on both sides: L-BFGS takes {ours:.2f} s on {engine}, {peer} {bound}{theirs[0]:.2f} s.")
    dense = rows * _width(rows) * 8
    for engine in ENGINES:
        peaks = [
            run["peak"] for name, runs in figures.items() if name.startswith(f"Hansa, {engine}") for run in runs if run.get("peak")
        ]
        if peaks:
            lines.append(
                f"Peak memory on {engine}: {max(peaks) / dense:.2f} of the dense matrix (target: below 1; "
                f"{'met' if max(peaks) < dense else 'missed'})."
            )
    return "\n".join(f"- {line}" for line in lines)


def _floors(by_name: Mapping[str, list[dict[str, Any]]]) -> str:
    lines = ["| engine | a round of Hansa, ms | a round by hand, ms | ratio |", "|---|---:|---:|---:|"]
    for name, runs in by_name.items():
        told = [run["results"][""] for run in runs if "results" in run]
        if not told:
            lines.append(f"| {name} | failed: {runs[-1].get('error') if runs else 'not run'} | | |")
            continue
        own, native = [t["ours"] for t in told], [t["native"] for t in told if "native" in t]
        if not native:
            lines.append(f"| {name} | {_spread(own, 2)} | | |")
            continue
        ratio = statistics.median(own) / statistics.median(native)
        lines.append(f"| {name} | {_spread(own, 2)} | {_spread(native, 2)} | {ratio:.2f} ({'met' if ratio <= 1.3 else 'missed'}) |")
    return "\n".join(lines)
