"""Small real problems on which every implementation of a contract is held to the same laws."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from hansa.core.blocks import Block, Client, LoadedBlock, Splits, Table, blocks_of
from hansa.core.contracts import Algorithm, Engine, Learner, Schema, State
from hansa.core.loop import Terms, play_round
from hansa.core.params import Params
from hansa.core.store import MemoryStore
from hansa.core.synchrony import Assembly, Basis, GangCall
from hansa.engines.inline import Inline

SIZES = (17, 64, 5, 40, 23, 31, 9)
"""Rows of the clients: ragged on purpose, smaller and larger than a mini-batch."""


@cache
def rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # not needed where only the rows of a client arrive
    from sklearn.preprocessing import StandardScaler

    x, y = getattr(datasets, f"load_{'iris' if name == 'counts' else name}")(return_X_y=True)
    order = np.random.default_rng(7).permutation(len(x))
    x, y = StandardScaler().fit_transform(x)[order], y[order]
    return x, (y - y.mean()) / y.std() if name == "diabetes" else y


def load(x: np.ndarray, y: np.ndarray) -> Splits:
    middle = len(x) - max(1, len(x) // 4)
    return {"train": Table(x[:middle], y[:middle]), "test": Table(x[middle:], y[middle:])}


BY_FEATURES = " by features"
"""After the name of a problem: the training rows of all its clients, whose columns are dealt to as many clients instead."""


def data_for(algorithm: Any, name: str) -> str:
    """The problem in the form that an algorithm is for."""
    return name + BY_FEATURES if "parts" in algorithm.needs else name


def _columns(name: str) -> dict[str, tuple[int, ...]]:
    """Client -> its columns: ragged, and in no order."""
    order = np.random.default_rng(3).permutation(rows(name)[0].shape[1])
    cuts = np.cumsum(SIZES)[:-1] * len(order) // sum(SIZES) if len(order) > 2 * len(SIZES) else np.arange(1, len(order))
    return {f"client-{place}": tuple(piece.tolist()) for place, piece in enumerate(np.split(order, cuts))}


def load_columns(x: np.ndarray, y: np.ndarray | None) -> Splits:
    return {"train": Table(x, y)}


@cache
def clients(name: str) -> tuple[Client, ...]:
    if name.endswith(BY_FEATURES):
        whole = name.removesuffix(BY_FEATURES)
        tables = [client.load()["train"] for client in clients(whole)]
        x, y = np.concatenate([table.x for table in tables]), np.concatenate([table.y for table in tables])
        dealt = {
            id: {"x": np.ascontiguousarray(x[:, own]), "y": y if id == "client-1" else None} for id, own in _columns(whole).items()
        }
        return tuple(Client(id, load_columns, arguments, rows=len(x)) for id, arguments in dealt.items())
    x, y = rows(name)
    scale = len(x) / sum(SIZES)
    ends = np.cumsum([0, *(max(5, int(size * min(1.0, scale))) for size in SIZES)])
    made = []
    for place, (start, stop) in enumerate(pairwise(ends)):
        arguments = {"x": x[start:stop], "y": y[start:stop]}
        made.append(Client(f"client-{place}", load, arguments, rows=len(load(**arguments)["train"])))
    return tuple(made)


@cache
def schema(name: str) -> Schema:
    if name.endswith(BY_FEATURES):
        whole = schema(name.removesuffix(BY_FEATURES))
        dealt = _columns(name.removesuffix(BY_FEATURES))
        parts = {
            id: Schema((), (len(own),), classes=whole.classes if id == "client-1" else None, places=own)
            for id, own in dealt.items()
        }
        return replace(whole, parts=parts)
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
    algorithm = algorithm.knowing(bound) if hasattr(algorithm, "knowing") else algorithm
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


def play_gang(algorithm: Any, learner: Any, name: str, rounds: int, *, engine: Any, home: str) -> Params:
    """Rounds that members play together, from the same params; returns those after the last."""
    basis = Basis(learner, clients(name), schema(name))
    bound = learner.bind(schema(name))
    state = algorithm.init(bound.init(5), bound.kinds())
    for number in range(1, rounds + 1):
        message = algorithm.broadcast(state, number)
        call = GangCall(basis, algorithm, algorithm.parallel, 11, number, 1.0, home, message.params or None)
        state = algorithm.update(state, Assembly(call).answer(engine))
    return state["params"]


def blocks(name: str, size: int = 3) -> list[Block]:
    return blocks_of(range(len(clients(name))), size)


def same_bits(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return list(first) == list(second) and all(np.array_equal(first[name], second[name]) for name in first)


__all__ = ["Engine", "blocks", "clients", "data_for", "load", "loaded", "play", "play_gang", "rows", "same_bits", "schema"]
