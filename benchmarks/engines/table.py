"""The tables that all contenders read, and what their results are judged by. Needs NumPy, SciPy, pandas and pyarrow; nothing of Hansa.

The flights are cut down to what everybody can use as it is: day and hour of the departure and both airports as text, the distance, and
the delay; and, for clusters and components, eight numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".bench" / "engines"
CATEGORIES = ("day", "hour", "origin", "destination")
GROUP = 250_000
"""Rows of a row group: the unit that readers of Parquet split a file by."""

LATE = 15
"""Minutes of delay from which a flight is late."""

TARGET = 1e-4
"""Relative suboptimality at which a contender's clock is stopped."""

LONGEST = 60.0
"""Seconds after which a fit that tells of its progress is stopped, and no longer one is tried."""

CLUSTERS, COMPONENTS, STEPS = 8, 4, 20
"""Of k-means, of PCA, and the steps of Lloyd's method that every contender takes from the same start."""


def source(rows: int) -> Path:
    return FOLDER / f"flights-{rows}.parquet"


def numbers(rows: int) -> Path:
    return FOLDER / f"numbers-{rows}.parquet"


def reference(rows: int) -> Path:
    return FOLDER / f"reference-{rows}.npz"


def make(rows: int) -> None:
    """Write both tables, where they are not there yet."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source(rows).exists() and numbers(rows).exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    whole = pq.read_table(Path(os.environ["HANSA_DATA_HOME"]) / "flights-3m.parquet").to_pandas()
    # Evenly over the half year, so that a smaller table has the same columns.
    frame = whole.iloc[np.linspace(0, len(whole) - 1, min(rows, len(whole))).astype(int)].reset_index(drop=True)
    when = frame["date"].dt
    made = pd.DataFrame({
        "distance": frame["distance"].astype(float), "day": when.strftime("%m-%d"), "hour": when.strftime("%H"),
        "origin": frame["origin"], "destination": frame["destination"], "delay": frame["delay"].astype(float),
    })  # fmt: skip
    pq.write_table(pa.Table.from_pandas(made, preserve_index=False), source(rows), row_group_size=GROUP)
    hour = 2 * np.pi * (when.hour + when.minute / 60) / 24
    week = 2 * np.pi * when.dayofweek / 7
    plain = pd.DataFrame({
        "delay": frame["delay"].clip(-60, 240), "distance": frame["distance"], "hour_sin": np.sin(hour), "hour_cos": np.cos(hour),
        "week_sin": np.sin(week), "week_cos": np.cos(week), "day": when.dayofyear, "minute": when.minute,
    }).astype(float)  # fmt: skip
    plain = (plain - plain.mean()) / plain.std(ddof=0)
    pq.write_table(pa.Table.from_pandas(plain, preserve_index=False), numbers(rows), row_group_size=GROUP)


def design(rows: int) -> tuple[Any, np.ndarray]:
    """The pooled one-hot matrix as SciPy CSR (scaled distance first, then the categories in alphabetical order), and 0/1 labels."""
    import pyarrow.parquet as pq
    from scipy import sparse

    table = pq.read_table(source(rows))
    distance = table["distance"].to_numpy()
    columns, start = [np.zeros(len(distance), dtype=np.int32)], 1
    for name in CATEGORIES:
        coded = table[name].combine_chunks().dictionary_encode()
        values = np.array(coded.dictionary.to_pylist())
        rank = np.argsort(np.argsort(values))
        columns.append((start + rank[coded.indices.to_numpy()]).astype(np.int32))
        start += len(values)
    entries = np.ones((len(distance), len(columns)))
    entries[:, 0] = (distance - distance.mean()) / distance.std()
    pointers = np.arange(0, entries.size + 1, entries.shape[1], dtype=np.int32)
    x = sparse.csr_matrix((entries.ravel(), np.stack(columns, axis=1).ravel(), pointers), shape=(len(distance), start))
    return x, (table["delay"].to_numpy() > LATE).astype(np.int64)


def objective(x: Any, y: np.ndarray, coef: np.ndarray, intercept: float) -> float:
    """Mean log loss with scikit-learn's penalty for C = 1: 1/n (sum_i log(1 + exp(-t_i s_i)) + |w|^2 / 2)."""
    score = x @ coef + intercept
    loss = np.logaddexp(0.0, np.where(y == 1, -score, score))
    return float((loss.sum() + 0.5 * coef @ coef) / len(y))


def solve(rows: int) -> None:
    """Write the solution of the logistic regression to machine precision: Newton's method in SciPy, independent of all contenders."""
    if reference(rows).exists():
        return
    x, y = design(rows)
    n, width = x.shape
    theta = np.zeros(width + 1)
    ridge = np.append(np.ones(width), 0.0)
    for _ in range(30):
        score = x @ theta[:-1] + theta[-1]
        p = 1.0 / (1.0 + np.exp(-score))
        gradient = np.append(x.T @ (p - y), (p - y).sum()) + ridge * theta
        weight = p * (1 - p)
        scaled = x.multiply(weight[:, None]).tocsr()
        hessian = np.zeros((width + 1, width + 1))
        hessian[:-1, :-1] = (x.T @ scaled).toarray()
        hessian[-1, :-1] = hessian[:-1, -1] = np.asarray(scaled.sum(axis=0)).ravel()
        hessian[-1, -1] = weight.sum()
        step = np.linalg.solve(hessian + np.diag(ridge), gradient)
        theta -= step
        if gradient @ step / n < 1e-20:
            break
    best = objective(x, y, theta[:-1], theta[-1])
    np.savez(reference(rows), coef=theta[:-1], intercept=theta[-1], objective=best, late=y.mean(), width=width)


class Judge:
    """Says when a contender was good enough, from what it had found at which time."""

    def __init__(self, rows: int) -> None:
        self.x, self.y = design(rows)
        with np.load(reference(rows)) as file:
            self.coef, self.best = file["coef"], float(file["objective"])

    def suboptimality(self, coef: Any, intercept: float) -> float:
        return objective(self.x, self.y, np.asarray(coef, dtype=np.float64), float(intercept)) / self.best - 1.0

    def first(self, marks: Sequence[tuple[float, Any, float]]) -> dict[str, Any]:
        """marks: (seconds since the fit began, coef, intercept) in order. The first that reached the target, and the last one's
        agreement: the largest difference of a coefficient from the reference."""
        gaps = [self.suboptimality(coef, intercept) for _, coef, intercept in marks]
        reached = next((k for k, gap in enumerate(gaps) if gap <= TARGET), None)
        return {
            "fit": None if reached is None else marks[reached][0], "iterations": None if reached is None else reached + 1,
            "gap": gaps[-1] if reached is None else gaps[reached], "last_fit": marks[-1][0], "last_gap": gaps[-1],
            "agreement": float(np.abs(np.asarray(marks[-1][1]) - self.coef).max()),
        }  # fmt: skip


def start(x: np.ndarray) -> np.ndarray:
    """Where k-means begins for everybody: eight rows spread over the half year."""
    return x[np.linspace(0, len(x) - 1, CLUSTERS + 2).astype(int)[1:-1]]


def checked(work: str, rows: int, found: Any) -> dict[str, float]:
    """The largest difference of centres or components, up to sign, from those that NumPy finds with all rows in one place."""
    kept = FOLDER / f"{work}-{rows}.npy"
    if not kept.exists():
        np.save(kept, _centres(rows) if work == "kmeans" else _components(rows))
    right, own = np.load(kept), np.asarray(found, dtype=np.float64)
    if work == "pca":
        own = own * np.sign((own * right).sum(axis=1))[:, None]
    return {"agreement": float(np.abs(own - right).max())}


def plain(rows: int) -> np.ndarray:
    """The eight numbers, (rows, 8)."""
    import pyarrow.parquet as pq

    read = pq.read_table(numbers(rows))
    return np.column_stack([read[name].to_numpy() for name in read.column_names])


def _centres(rows: int) -> np.ndarray:
    x = plain(rows)
    centres = start(x)
    for _ in range(STEPS):
        distance = np.stack([((x - centre) ** 2).sum(axis=1) for centre in centres])
        labels = distance.argmin(axis=0)
        centres = np.stack([x[labels == k].mean(axis=0) for k in range(CLUSTERS)])
    return centres


def _components(rows: int) -> np.ndarray:
    return np.linalg.eigh(np.cov(plain(rows).T))[1].T[::-1][:COMPONENTS]


def arguments() -> argparse.Namespace:
    """The options of every contender."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--engine", default="")
    parser.add_argument("--iterations", type=json.loads, default={})
    given = parser.parse_args()
    given.began = float(os.environ.get("BENCH_START", time.time()))
    return given


def report(given: argparse.Namespace, prepared: float, results: dict[str, dict[str, Any]]) -> None:
    """Print what the harness reads. prepared: when the data was ready (time.time()); results: name -> figures."""
    whole = {"prepare": prepared - given.began, "results": results}
    print("RESULT " + json.dumps(whole), flush=True)
