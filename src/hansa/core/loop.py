"""The round loop: broadcast -> work -> transform -> reduce -> update, once.

It is a pure step from one state to the next. Who repeats it, saves the state and shows progress stands above (`hansa.run`).

What is played is written as *steps*: a generator that yields each :class:`Exchange` with the clients that it wants, is sent what came
back, and returns its result. It knows no engine. :func:`play` answers the exchanges of one with an engine of its own;
:func:`hansa.core.many.together` those of many, with one engine for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

from hansa.core import metrics as metric
from hansa.core.accounting import Account, Times
from hansa.core.blocks import Block
from hansa.core.contracts import Algorithm, Call, Collective, Context, Engine, Result, Schema, State, Transform
from hansa.core.errors import Diverged, InputError, RunFailed
from hansa.core.metrics import Metrics
from hansa.core.params import size_in_bytes
from hansa.core.reduction import Tree, gather
from hansa.core.synchrony import Assembly
from hansa.core.updates import Failure, Gathered, Total, Update
from hansa.core.worker import EvaluateCall, Weighting, WorkCall

R = TypeVar("R")

Observer = Callable[[str], None]
"""Told the name of each stage of a round as it is reached: "broadcast", "work", "reduce", "update"."""


def unobserved(stage: str) -> None:
    """The observer that does nothing."""


@dataclass(frozen=True)
class Terms:
    """What stays the same over the rounds of a run.

    population: the number of all clients.
    quorum: the least share of a cohort's clients that must give a result. At 1.0 the first failure ends the run.
    """

    seed: int
    population: int
    weighting: Weighting = "examples"
    quorum: float = 1.0
    transforms: tuple[Transform, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """One round's end: the next state, the training metrics (totals), and the failures that the quorum allowed.

    clients:              how many gave a result.
    bytes_down, bytes_up: what the round moves, uncompressed: the message to every client of the cohort, and their updates back.
    """

    state: State
    metrics: Metrics = field(default_factory=dict)
    clients: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A call for every block of a cohort, and how its results meet.

    quorum: as in :class:`Terms`.
    round:  for messages about what failed.
    times:  what its answer took, filled in by whoever answers it.
    """

    call: Call
    blocks: Sequence[Block]
    collective: Collective
    quorum: float
    round: int
    times: Times = field(default_factory=Times, compare=False, repr=False)


Answer: TypeAlias = tuple[Any, tuple[Failure, ...]]
"""What comes back of an exchange: a :class:`Total` or a :class:`Gathered`, and the failures that the quorum allowed."""

Steps: TypeAlias = Generator[Exchange | Assembly, Any, R]
"""An exchange is answered with an :data:`Answer`, the assembly of a gang with what its members give."""


def play(engine: Engine, steps: Steps[R]) -> R:
    """Answer the exchanges of the steps with an engine, one after another; returns their result."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(wanted.answer(engine) if isinstance(wanted, Assembly) else collect(engine, wanted))
    except StopIteration as end:
        result: R = end.value
        return result


def play_round(
    state: State,
    *,
    algorithm: Algorithm,
    engine: Engine,
    blocks: Sequence[Block],
    schema: Schema | None,
    round: int,
    rate: float,
    terms: Terms,
    observe: Observer = unobserved,
) -> Outcome:
    """Play one round: one exchange with the cohort's clients."""
    steps = round_steps(
        state, algorithm=algorithm, blocks=blocks, schema=schema, round=round, rate=rate, terms=terms, observe=observe
    )
    return play(engine, steps)


def round_steps(
    state: State,
    *,
    algorithm: Algorithm,
    blocks: Sequence[Block],
    schema: Schema | None,
    round: int,
    rate: float,
    terms: Terms,
    observe: Observer = unobserved,
) -> Steps[Outcome]:
    """The steps of one round; there is one exchange in it."""
    observe("broadcast")
    state = {**state, "rate": rate, "population": terms.population}
    message = algorithm.broadcast(state, round)
    call = WorkCall(algorithm, message, schema, terms.seed, round, terms.weighting, terms.transforms)
    observe("work")
    exchange = Exchange(call, blocks, algorithm.collective, terms.quorum, round)
    total, failures = yield exchange
    observe("reduce")
    began = perf_counter()
    context = Context(terms.seed, round)
    if isinstance(total, Total):
        for transform in reversed(terms.transforms):
            total = transform.server(total, context)
    observe("update")
    state = algorithm.update(state, total)
    exchange.times.reduce += perf_counter() - began
    down = size_in_bytes(message.params) + _array_bytes(message.extra)
    cohort = sum(len(block.members) for block in blocks)
    if isinstance(total, Total):
        return Outcome(state, total.metrics, total.clients, down * cohort, _array_bytes(total.values) * total.clients, failures)
    clients = len(total.clients)
    return Outcome(state, metric.totals(total.metrics), clients, down * cohort, _array_bytes(total.values), failures)


def _array_bytes(values: Any) -> int:
    if isinstance(values, Mapping):
        return sum(_array_bytes(value) for value in values.values())
    if isinstance(values, list):
        return sum(_array_bytes(value) for value in values)
    return math.prod(values.shape) * values.dtype.itemsize if hasattr(values, "dtype") else 0


def collect(engine: Engine, exchange: Exchange) -> Answer:
    """Do an exchange's call on every block and bring the results together."""
    harvest, account = Harvest(exchange), Account(engine)
    for number, result in engine.map(exchange.call, exchange.blocks):
        with account.reduce:
            harvest.add(number, result)
        account.add(result.spent)
    with account.reduce:
        answer = harvest.answer()
    exchange.times.add(account.close())
    return answer


class Harvest:
    """The results of one exchange, brought together in the job's order, whatever the order of arrival."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._failures: dict[int, Failure] = {}
        self._updates: dict[int, Update] = {}
        self._tree = Tree(len(exchange.blocks))

    def add(self, number: int, result: Result) -> None:
        """Take the result of a block; where it is absorbed, that of another block has it in it.

        Raises the run's error for the first failure where every client is needed.
        """
        if isinstance(result, Failure):
            self._failures[number] = result
            if self.exchange.quorum >= 1.0:
                raise_failure(result, self.exchange.round)
        if self.exchange.collective == "gather":
            if isinstance(result, Update):
                self._updates[number] = result
        else:
            self._tree.add(number, result if isinstance(result, Total) else None)

    def answer(self) -> Answer:
        """All results together; every block must have been added. Raises RunFailed where the quorum was not met."""
        quorum, failures = self.exchange.quorum, self._failures
        members = sum(len(block.members) for block in self.exchange.blocks)
        lost = sum(len(failure.clients) for failure in failures.values())
        ordered = tuple(failures[number] for number in sorted(failures))
        if members - lost < max(1, quorum * members):
            first = ordered[0]
            raise RunFailed(
                f"round {self.exchange.round}: {members - lost} of {members} clients gave a result, the quorum is {quorum:.0%}; "
                f"the first failure, of client {first.clients[0]}: {first.kind}: {first.message}\n{first.traceback}".rstrip()
            )
        if self.exchange.collective == "sum":
            return self._tree.result(), ordered
        return gather([self._updates[number] for number in sorted(self._updates)]), ordered


def raise_failure(failure: Failure, round: int) -> None:
    """Turn the failure that ends a run into its error, with the client's traceback."""
    if failure.bad_input:
        raise InputError(failure.message)
    if failure.kind == "Diverged":
        raise Diverged(failure.message)
    who = failure.clients[0] if len(failure.clients) == 1 else f"{failure.clients[0]} ... {failure.clients[-1]}"
    raise RunFailed(f"round {round}, client {who}: {failure.kind}: {failure.message}\n{failure.traceback}".rstrip())


def evaluate_steps(call: EvaluateCall, blocks: Sequence[Block], quorum: float = 1.0) -> Steps[tuple[Gathered, Metrics]]:
    """The steps of an evaluation; there is one exchange in it. They return the metrics of each client that answered, and the total."""
    gathered, _ = yield Exchange(call, blocks, "gather", quorum, call.round)
    assert isinstance(gathered, Gathered)
    return gathered, metric.totals(gathered.metrics)


def evaluate(engine: Engine, call: EvaluateCall, blocks: Sequence[Block]) -> tuple[Gathered, Metrics]:
    """Metrics of one split: of each client, and the total."""
    return play(engine, evaluate_steps(call, blocks))
