"""The round loop: broadcast -> work -> transform -> reduce -> update, once.

It is a pure step from one state to the next. Who repeats it, saves the state and shows progress stands above (`hansa.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.core import metrics as metric
from hansa.core.blocks import Block
from hansa.core.contracts import Algorithm, Call, Context, Engine, Schema, State, Transform
from hansa.core.errors import Diverged, InputError, RunFailed
from hansa.core.metrics import Metrics
from hansa.core.params import size_in_bytes
from hansa.core.reduction import Tree, gather
from hansa.core.updates import Failure, Gathered, Total, Update
from hansa.core.worker import EvaluateCall, Weighting, WorkCall

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
    observe("broadcast")
    state = {**state, "rate": rate, "population": terms.population}
    message = algorithm.broadcast(state, round)
    call = WorkCall(algorithm, message, schema, terms.seed, round, terms.weighting, terms.transforms)
    observe("work")
    total, failures = collect(engine, call, blocks, algorithm.collective, terms.quorum, round)
    observe("reduce")
    context = Context(terms.seed, round)
    if isinstance(total, Total):
        for transform in reversed(terms.transforms):
            total = transform.server(total, context)
    observe("update")
    state = algorithm.update(state, total)
    down = size_in_bytes(message.params) + _array_bytes(message.extra)
    cohort = sum(len(block.members) for block in blocks)
    if isinstance(total, Total):
        return Outcome(state, total.metrics, total.clients, down * cohort, _array_bytes(total.values) * total.clients, failures)
    clients = len(total.clients)
    return Outcome(state, metric.totals(total.metrics), clients, down * cohort, _array_bytes(total.values), failures)


def _array_bytes(values: Any) -> int:
    if isinstance(values, Mapping):
        return sum(_array_bytes(value) for value in values.values())
    return int(np.prod(values.shape)) * values.dtype.itemsize if hasattr(values, "dtype") else 0


def collect(
    engine: Engine, call: Call, blocks: Sequence[Block], collective: str, quorum: float, round: int
) -> tuple[Any, tuple[Failure, ...]]:
    """Do a call on every block and bring the results together in the job's order, whatever the order of arrival."""
    failures: dict[int, Failure] = {}
    updates: dict[int, Update] = {}
    tree = Tree(len(blocks))
    for number, result in engine.map(call, blocks):
        if isinstance(result, Failure):
            failures[number] = result
            if quorum >= 1.0:
                raise_failure(result, round)
        if collective == "gather":
            if isinstance(result, Update):
                updates[number] = result
        else:
            tree.add(number, result if isinstance(result, Total) else None)
    members = sum(len(block.members) for block in blocks)
    lost = sum(len(failure.clients) for failure in failures.values())
    ordered = tuple(failures[number] for number in sorted(failures))
    if members - lost < max(1, quorum * members):
        first = ordered[0]
        raise RunFailed(
            f"round {round}: {members - lost} of {members} clients gave a result, the quorum is {quorum:.0%}; "
            f"the first failure, of client {first.clients[0]}: {first.kind}: {first.message}\n{first.traceback}".rstrip()
        )
    if collective == "sum":
        return tree.result(), ordered
    return gather([updates[number] for number in sorted(updates)]), ordered


def raise_failure(failure: Failure, round: int) -> None:
    """Turn the failure that ends a run into its error, with the client's traceback."""
    if failure.bad_input:
        raise InputError(failure.message)
    if failure.kind == "Diverged":
        raise Diverged(failure.message)
    who = failure.clients[0] if len(failure.clients) == 1 else f"{failure.clients[0]} ... {failure.clients[-1]}"
    raise RunFailed(f"round {round}, client {who}: {failure.kind}: {failure.message}\n{failure.traceback}".rstrip())


def evaluate(engine: Engine, call: EvaluateCall, blocks: Sequence[Block]) -> tuple[Metrics, Metrics]:
    """Metrics of one split: (per client, shape (clients,); total)."""
    gathered, _ = collect(engine, call, blocks, "gather", 1.0, call.round)
    assert isinstance(gathered, Gathered)
    return gathered.metrics, metric.totals(gathered.metrics)
