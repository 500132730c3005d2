"""The work that all contenders do: the same rows, models, cohort sizes and hyper-parameters. Needs NumPy and nothing else."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Workload:
    """One federated job on Fashion-MNIST, split evenly and at random (W4: on synthetic rows); E = 1, SGD with rate 0.1.

    rounds: timed rounds of a run, after one that warms up.
    """

    name: str
    clients: int
    cohort: int
    model: str
    batch: int
    rounds: int

    @property
    def rows(self) -> int:
        return max(60, 60_000 // self.clients)

    @property
    def synthetic(self) -> bool:
        """Whether clients' rows are drawn when they are loaded, because no data set has so many."""
        return self.clients > 60_000


RATE = 0.1
WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", clients=100, cohort=10, model="2nn", batch=10, rounds=12),
        Workload("W2", clients=1000, cohort=100, model="softmax", batch=20, rounds=40),
        Workload("W3", clients=100, cohort=10, model="cnn", batch=10, rounds=2),
        Workload("W4", clients=1_000_000, cohort=1000, model="softmax", batch=20, rounds=3),
    )
}


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x (60000, 784) float32 in [0, 1], y int64; then the 10,000 test rows."""
    with np.load(Path(os.environ["HANSA_DATA_HOME"]) / "fashion_mnist.npz", allow_pickle=False) as file:
        x, y = file["x"].reshape(70_000, 784).astype(np.float32), file["y"].astype(np.int64)
    if x.max() > 1:
        x /= 255
    return x[:60_000], y[:60_000], x[60_000:], y[60_000:]


def shards(w: Workload) -> np.ndarray:
    """Row numbers of each client, (clients, rows)."""
    return np.random.default_rng(0).permutation(60_000).reshape(w.clients, w.rows)


def cohort(w: Workload, round: int) -> np.ndarray:
    return np.random.default_rng([1, round]).choice(w.clients, w.cohort, replace=False)


def drawn(client: int, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A client of W4, as Synthetic(iid) of Li et al. 2020 draws it: x (rows, 784) float32 ~ N(0, diag(j^-1.2)), y = argmax(W x + b)."""
    weight, bias = _truth()
    x = np.random.default_rng([2, client]).standard_normal((rows, 784), dtype=np.float32)
    x *= (np.arange(1, 785) ** -0.6).astype(np.float32)
    return x, (x @ weight + bias).argmax(axis=1)


@cache
def _truth() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    return random.standard_normal((784, 10)).astype(np.float32), random.standard_normal(10).astype(np.float32)


def unseen(w: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Rows of W4's clients that nobody trains on."""
    x, y = zip(*(drawn(w.clients + k) for k in range(100)), strict=True)
    return np.concatenate(x), np.concatenate(y)


class Clock:
    """Marks the end of every round; prints what the harness reads."""

    def __init__(self) -> None:
        self.began = float(os.environ.get("BENCH_START", time.time()))
        self.marks: list[float] = []

    def mark(self) -> None:
        self.marks.append(time.time())

    def report(self, accuracy: float, **more: object) -> None:
        seconds = np.diff(self.marks).tolist()
        print(
            "RESULT " + json.dumps({"first_round": self.marks[0] - self.began, "seconds": seconds, "accuracy": accuracy, **more}),
            flush=True,
        )
