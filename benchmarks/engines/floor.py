"""What a round costs beyond its work: through Hansa's loop, and written by hand on the engine (:mod:`benchmarks.engines.natively`), with
as many workers, and as many numbers down and up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.engines import table
from benchmarks.engines.natively import NATIVE, WIDTH, WORKERS, step
from hansa.core.blocks import Client, LoadedBlock, Splits, Table, blocks_of
from hansa.core.contracts import Collective, Message, State
from hansa.core.loop import Terms, play_round
from hansa.core.store import MemoryStore
from hansa.core.updates import Total, Update
from hansa.learners.sklearn import Sklearn
from hansa.options import build

ROUNDS, FIRST = 60, 10
"""Rounds that are timed, and rounds before these."""

TURNS = 3
"""How often each of the two is started and timed, one after the other: a machine is not as fast at one time as at another."""


@dataclass(frozen=True)
class Plain:
    """The algorithm that does as little as :func:`benchmarks.engines.natively.work`, and makes the next parameters as its round does."""

    collective: Collective = field(default="sum", init=False)
    needs: frozenset[str] = frozenset()

    def init(self, params: Any, kinds: Any) -> State:
        return {"params": params}

    def broadcast(self, state: State, round: int) -> Message:
        return Message(state["params"])

    def work(self, learner: Any, message: Message, block: LoadedBlock) -> Update:
        data = np.array([table.x[0] for table in block.tables])
        return Update({"w": message.params["w"] + data}, block.weight, {"loss": (0.5 * block.weight, block.weight)})

    def update(self, state: State, total: Total) -> State:
        return {"params": {"w": total.mean("w")}}


def load(number: int) -> Splits:
    return {"train": Table(np.full((1, 1), float(number)), np.zeros(1))}


@contextmanager
def ours(name: str) -> Iterator[Callable[[], None]]:
    """A function that plays a round with Hansa."""
    engine = build("engine", {"name": name} | ({} if name == "inline" else {"workers": WORKERS})).build()
    clients = [Client(f"client-{k}", load, {"number": k}, 1) for k in range(WORKERS)]
    engine.start(Sklearn(estimator=LogisticRegression()), clients, MemoryStore())
    algorithm, blocks, terms = Plain(), blocks_of(range(WORKERS), 1), Terms(0, WORKERS)
    numbers, state = count(1), algorithm.init({"w": np.zeros(WIDTH)}, {})

    def once() -> None:
        nonlocal state
        outcome = play_round(
            state, algorithm=algorithm, engine=engine, blocks=blocks, schema=None, round=next(numbers), rate=1.0, terms=terms
        )
        state = outcome.state

    try:
        yield once
    finally:
        engine.stop()


@contextmanager
def native(name: str) -> Iterator[Callable[[], None]]:
    """A function that plays a round by hand."""
    params = np.zeros(WIDTH)
    with NATIVE[name]() as exchange:

        def once() -> None:
            nonlocal params
            params, _ = step(exchange, params)

        yield once


def timed(once: Callable[[], None]) -> float:
    """Milliseconds of a round, the median."""
    seconds = []
    for number in range(FIRST + ROUNDS):
        began = time.perf_counter()
        once()
        if number >= FIRST:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def measured(name: str) -> dict[str, float]:
    """Milliseconds of a round on an engine, of Hansa and by hand where one writes any: the median over the turns."""
    contenders = {"ours": ours} | ({"native": native} if name in NATIVE else {})
    times: dict[str, list[float]] = {kind: [] for kind in contenders}
    for _ in range(TURNS):
        for kind, contender in contenders.items():
            with contender(name) as once:
                times[kind].append(timed(once))
    return {kind: statistics.median(turns) for kind, turns in times.items()}


def main() -> None:
    given = table.arguments()
    table.report(given, time.time(), {"": measured(given.engine)})


if __name__ == "__main__":
    main()
