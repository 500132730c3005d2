"""Tasks that share an engine: each is what it would be alone, and one that fails leaves the others alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

import hansa
from hansa.core.blocks import Client, Splits, Table
from hansa.core.contracts import Engine, Schema, State
from hansa.core.errors import InputError
from hansa.core.loop import Steps, Terms, round_steps
from hansa.core.many import Ended, Many, Part, Task, part_of, together
from hansa.core.store import MemoryStore
from hansa.core.worker import Learners, Worker
from hansa.engines.inline import Inline
from hansa.engines.processes import Processes
from tests.conformance.problem import blocks, clients, play, same_bits, schema

LOCAL = hansa.Local(learning_rate=0.05, batch_size=8)


def steps(algorithm: Any, learner: Any, rounds: int, block: int) -> Steps[State]:
    """The rounds that `play` of the conformance suite plays alone."""
    bound = learner.bind(schema("breast_cancer"))
    state, terms = algorithm.init(bound.init(5), bound.kinds()), Terms(seed=11, population=len(clients("breast_cancer")))
    for number in range(1, rounds + 1):
        outcome = yield from round_steps(
            state, algorithm=algorithm, blocks=blocks("breast_cancer", block), schema=schema("breast_cancer"), round=number,
            rate=1.0, terms=terms,
        )  # fmt: skip
        state = outcome.state
    return state


@pytest.fixture(params=["inline", "processes"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = (Inline() if request.param == "inline" else Processes(workers=2)).build()
    yield made
    made.stop()


SEVERAL = {
    "scaffold": (hansa.Scaffold(local=LOCAL), 0, 3, 2),
    "scaffold again": (hansa.Scaffold(local=hansa.Local(learning_rate=0.2, batch_size=8)), 0, 2, 3),
    "newton": (hansa.Newton(), 0, 4, 1),
    "weak newton": (hansa.Newton(), 1, 4, 1),
    "fedavg": (hansa.FedAvg(local=LOCAL), 1, 1, 7),
}
"""Algorithm, learner, rounds and clients a block: tasks of one engine, with blocks of different sizes, that end at different times."""


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_tasks_have_the_bits_that_they_have_alone(engine: Engine, at_once: int) -> None:
    learners = (hansa.Sklearn(estimator=LogisticRegression()), hansa.Sklearn(estimator=LogisticRegression(C=0.01)))
    engine.start(Learners(learners), clients("breast_cancer"), MemoryStore())
    tasks = [Task(name, steps(a, learners[k], n, b), learner=k) for name, (a, k, n, b) in SEVERAL.items()]
    ended = {one.name: one for one in together(engine, tasks, at_once)}
    for name, (algorithm, learner, rounds, block) in SEVERAL.items():
        alone = play(algorithm, learners[learner], "breast_cancer", rounds, block=block)
        result = ended[name].result
        assert result is not None and same_bits(result["params"], alone["params"]), name


class Unlucky(hansa.FedAvg):
    """FedAvg that raises at one client in its second round."""

    def work(self, learner, message, block):  # type: ignore[no-untyped-def]  # as a user writes it
        if block.round == 2 and block.clients[0].id == "client-3":
            raise OSError("no luck today")
        return super().work(learner, message, block)


class Clumsy(hansa.FedAvg):
    """FedAvg whose server raises."""

    def update(self, state, total):  # type: ignore[no-untyped-def]  # as a user writes it
        raise ZeroDivisionError("at the server")


def test_what_one_task_raises_ends_no_other(engine: Engine) -> None:
    learner = hansa.Sklearn()
    engine.start(Learners((learner,)), clients("breast_cancer"), MemoryStore())
    good, bad, worse = hansa.FedAvg(local=LOCAL), Unlucky(local=LOCAL), Clumsy(local=LOCAL)
    tasks = [Task(a.__class__.__name__, steps(a, learner, 3, 1)) for a in (bad, good, worse)]
    ended: dict[str, Ended[State]] = {one.name: one for one in together(engine, tasks)}
    assert isinstance(ended["Unlucky"].error, hansa.RunFailed) and "no luck today" in str(ended["Unlucky"].error)
    assert isinstance(ended["Clumsy"].error, ZeroDivisionError)
    result = ended["FedAvg"].result
    assert result is not None
    assert same_bits(result["params"], play(good, learner, "breast_cancer", 3, block=1)["params"])


def test_what_the_engine_raises_ends_all() -> None:
    engine = Processes(workers=1).build()
    engine.start(Learners((hansa.Sklearn(),)), clients("breast_cancer"), MemoryStore())

    class Local(hansa.FedAvg):  # no other process can import it
        pass

    try:
        with pytest.raises(InputError, match="cannot be sent"):
            list(together(engine, [Task("a", steps(Local(), hansa.Sklearn(), 1, 1))]))
    finally:
        engine.stop()


def test_no_tasks_need_no_engine() -> None:
    assert list(together(Inline().build(), [])) == []


def test_a_call_knows_whose_block_it_does() -> None:
    calls = [object(), object()]
    many = Many((Part(calls[0], "a", 0), Part(calls[1], "b", 3, 1)))  # type: ignore[arg-type]  # they are only passed on
    found = [part_of(many, block).task for block in blocks("breast_cancer", 1)]
    assert found == ["a", "a", "a", "b", "b", "b", "b"]
    assert part_of(calls[0], blocks("breast_cancer", 1)[5]) == Part(calls[0], "", 0)  # type: ignore[arg-type]  # as above


# What a worker holds for several tasks


@dataclass(frozen=True)
class AsItIs:
    """A learner that takes tables as they are, and says who it is."""

    name: str

    def bind(self, schema: Schema) -> AsItIs:
        BOUND.append(self.name)
        return self

    def arrays(self, table: Table) -> Table:
        return table


BOUND: list[str] = []
LOADED: list[int] = []


def load(place: int) -> Splits:
    LOADED.append(place)
    return {"train": Table(np.zeros((20, 5)), np.zeros(20, dtype=np.int64))}


def worker() -> Worker:
    BOUND.clear()
    LOADED.clear()
    recipes = [Client(f"client-{place}", load, {"place": place}) for place in range(3)]
    return Worker(Learners((AsItIs("a"), AsItIs("b"))), recipes, MemoryStore())  # type: ignore[arg-type]  # enough of learners


def test_tasks_with_the_same_learner_and_schema_share_learner_and_tables() -> None:
    one = worker()
    for task, place, classes in (("s", 0, (0, 1)), ("t", 0, (0, 1)), ("u", 1, (0, 1)), ("v", 0, (0, 2)), ("s", 0, (0, 1))):
        one.seat(task, place, ("s", "t", "u", "v")).table(0, "train", Schema(shape=(5,), classes=classes))
    assert BOUND == ["a", "b", "a"]
    assert LOADED == [0, 0, 0]


def test_what_no_task_under_way_uses_is_dropped() -> None:
    one, same = worker(), Schema(shape=(5,), classes=(0, 1))
    one.seat("s", 0, ("s", "t")).table(0, "train", same)
    one.seat("t", 0, ("s", "t")).table(0, "train", same)
    one.seat("t", 0, ("t",)).table(0, "train", same)
    assert LOADED == [0]
    one.seat("u", 1, ("u",)).table(0, "train", same)
    one.seat("t", 0, ("t",)).table(0, "train", same)
    assert LOADED == [0, 0, 0]


def test_raw_rows_are_loaded_once_for_all_tasks() -> None:
    one = worker()
    for task, place in (("s", 0), ("t", 1)):
        one.seat(task, place, ("s", "t")).table(0, "train", None)
        one.seat(task, place, ("s", "t")).table(0, "train", Schema(shape=(5,), classes=(0, 1)))
    assert LOADED == [0]


def test_each_task_has_client_state_of_its_own() -> None:
    one = worker()
    for task in ("s", "t"):
        one.seat(task, 0, ("s", "t")).store.write(1, {"client-0": {"c": np.array([ord(task)])}})
    for task in ("s", "t"):
        entry = one.seat(task, 0, ("s", "t")).store.read("client-0", 2)
        assert entry is not None and entry["c"] == [ord(task)]
    assert one.store.read("client-0", 2) is None


def test_the_first_learner_speaks_for_several() -> None:
    several = Learners((hansa.Sklearn(estimator=Ridge()), hansa.Sklearn()))
    assert several.needs == several.all[0].needs and several.can == several.all[0].can
