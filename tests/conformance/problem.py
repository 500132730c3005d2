"""Small real problems on which every implementation of a contract is held to the same laws."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.preprocessing import StandardScaler

from hansa.core.blocks import Block, Client, LoadedBlock, Splits, Table, blocks_of
from hansa.core.contracts import Algorithm, Engine, Learner, Schema, State
from hansa.core.loop import Terms, play_round
from hansa.core.store import MemoryStore
from hansa.engines.inline import Inline

SIZES = (17, 64, 5, 40, 23, 31, 9)
"""Rows of the clients: ragged on purpose, smaller and larger than a mini-batch."""

LOADERS = {"breast_cancer": load_breast_cancer, "iris": load_iris, "diabetes": load_diabetes, "counts": load_iris}


@cache
def rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = LOADERS[name](return_X_y=True)
    order = np.random.default_rng(7).permutation(len(x))
    x, y = StandardScaler().fit_transform(x)[order], y[order]
    return x, (y - y.mean()) / y.std() if name == "diabetes" else y


def load(name: str, start: int, stop: int) -> Splits:
    x, y = rows(name)
    middle = stop - max(1, (stop - start) // 4)
    return {"train": Table(x[start:middle], y[start:middle]), "test": Table(x[middle:stop], y[middle:stop])}


@cache
def clients(name: str) -> tuple[Client, ...]:
    scale = len(rows(name)[0]) / sum(SIZES)
    ends = np.cumsum([0, *(max(5, int(size * min(1.0, scale))) for size in SIZES)])
    made = []
    for place, (start, stop) in enumerate(pairwise(ends)):
        arguments = {"name": name, "start": int(start), "stop": int(stop)}
        made.append(Client(f"client-{place}", load, arguments, rows=len(load(**arguments)["train"])))
    return tuple(made)


@cache
def schema(name: str) -> Schema:
    x, y = rows(name)
    classes = None if name in ("diabetes", "counts") else tuple(int(label) for label in np.unique(y))
    return Schema((), x.shape[1:], "float64", classes, sum(client.rows for client in clients(name)))


def loaded(learner: Learner, name: str, members: tuple[int, ...], round: int = 1, split: str = "train") -> LoadedBlock:
    """The block that a bound learner would be given."""
    chosen = tuple(clients(name)[member] for member in members)
    tables = tuple(learner.arrays(client.load()[split]) for client in chosen)
    weight = np.array([len(table) for table in tables], dtype=np.float64)
    return LoadedBlock(0, chosen, tables, weight, seed=3, round=round)


def play(
    algorithm: Algorithm, learner: Any, name: str, rounds: int, *, engine: Any = None, block: int = 3, state: State | None = None,
    first: int = 1, transforms: tuple[Any, ...] = (), store: Any = None,
) -> State:  # fmt: skip
    """Rounds of an algorithm over all clients; returns the state."""
    bound, running, own = learner.bind(schema(name)), engine, engine is None
    if own:
        running = Inline().build()
        running.start(learner, clients(name), MemoryStore() if store is None else store)
    terms = Terms(seed=11, population=len(clients(name)), transforms=transforms)
    state = algorithm.init(bound.init(5), bound.kinds()) if state is None else state
    for number in range(first, first + rounds):
        outcome = play_round(
            state,
            algorithm=algorithm,
            engine=running,
            blocks=blocks(name, block),
            schema=schema(name),
            round=number,
            rate=1.0,
            terms=terms,
        )
        state = outcome.state
    if own:
        running.stop()
    return state


def blocks(name: str, size: int = 3) -> list[Block]:
    return blocks_of(range(len(clients(name))), size)


def same_bits(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return list(first) == list(second) and all(np.array_equal(first[name], second[name]) for name in first)


__all__ = ["Engine", "blocks", "clients", "load", "loaded", "play", "rows", "same_bits", "schema"]
