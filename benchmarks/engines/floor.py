"""What a round costs beyond its work: through Hansa's loop, and written by hand on the engine (:mod:`benchmarks.engines.natively`), with
as many workers, and as many numbers down and up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.engines import table
from benchmarks.engines.natively import NATIVE, WIDTH, WORKERS
from hansa.core.blocks import Client, LoadedBlock, Splits, Table, blocks_of
from hansa.core.contracts import Collective, Message, State
from hansa.core.loop import Terms, play_round
from hansa.core.store import MemoryStore
from hansa.core.updates import Total, Update
from hansa.learners.sklearn import Sklearn
from hansa.options import build

ROUNDS, FIRST = 60, 10
"""Rounds that are timed, and rounds before these."""


@dataclass(frozen=True)
class Nothing:
    """The algorithm that does nothing but send its parameters there and back."""

    collective: Collective = field(default="sum", init=False)
    needs: frozenset[str] = frozenset()

    def init(self, params: Any, kinds: Any) -> State:
        return {"params": params}

    def broadcast(self, state: State, round: int) -> Message:
        return Message(state["params"])

    def work(self, learner: Any, message: Message, block: LoadedBlock) -> Update:
        sent = np.asarray(message.params["w"])
        return Update({"w": np.stack([sent + table.x[0, 0] for table in block.tables])}, np.ones(len(block)))

    def update(self, state: State, total: Total) -> State:
        return state


def load(number: int) -> Splits:
    return {"train": Table(np.full((1, 1), float(number)), np.zeros(1))}


def ours(name: str) -> float:
    """Milliseconds of a round, the median."""
    engine = build("engine", {"name": name} | ({} if name == "inline" else {"workers": WORKERS})).build()
    clients = [Client(f"client-{k}", load, {"number": k}, 1) for k in range(WORKERS)]
    engine.start(Sklearn(estimator=LogisticRegression()), clients, MemoryStore())
    algorithm, blocks = Nothing(), blocks_of(range(WORKERS), 1)
    state = algorithm.init({"w": np.zeros(WIDTH)}, {})
    try:
        return timed(
            lambda: play_round(
                state, algorithm=algorithm, engine=engine, blocks=blocks, schema=None, round=1, rate=1.0, terms=Terms(0, WORKERS)
            )
        )
    finally:
        engine.stop()


def timed(once: Callable[[], Any]) -> float:
    seconds = []
    for number in range(FIRST + ROUNDS):
        began = time.perf_counter()
        once()
        if number >= FIRST:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def main() -> None:
    given = table.arguments()
    result = {"ours": ours(given.engine)}
    if given.engine in NATIVE:
        with NATIVE[given.engine]() as once:
            result["native"] = timed(once)
    table.report(given, time.time(), {"": result})


if __name__ == "__main__":
    main()
