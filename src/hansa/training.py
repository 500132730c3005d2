"""A job under way, in memory: prepare the data, play the rounds. No files, no terminal.

Every stage is a sequence of the same rounds (`hansa.core.loop`). It is written once, as steps that know no engine (``..._steps``):
a job alone plays them with its engine, many jobs at once play theirs with one engine for all (`hansa.fits`). The state between two
rounds is one tree:

    stage        "preparing" | "training"
    round        rounds of the stage that are done
    algorithm    the state of the stage's algorithm, with ``params``
    preparation  the fitted preparation, once it is
    best         {"round", "value", "params"} of the best model so far, for jobs that ask for it
    since        evaluations without an improvement
    clock        for jobs with a clock: {"elapsed", "down", "up", "devices"}: virtual seconds of all rounds, bytes of a client's last
                 message and update, and the digest of the devices
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from hansa.core import metrics as metric
from hansa.core.accounting import timed
from hansa.core.blocks import blocks_of
from hansa.core.clock import Turnout, turnout
from hansa.core.contracts import Algorithm, Learner, Schema, State
from hansa.core.errors import InputError
from hansa.core.fleet import Fleet, Known, Load
from hansa.core.gang_round import gang_steps
from hansa.core.loop import Outcome, Steps, Terms, play, round_steps
from hansa.core.params import size_in_bytes
from hansa.core.sampling import cohort, cohort_size
from hansa.core.synchrony import Basis
from hansa.job import Job
from hansa.judging import judge_steps, refuse_unknown_metric, watched
from hansa.opening import Setting
from hansa.tracking.labels import duration


def prepare(setting: Setting, state: State | None = None, save: Callable[[State], None] = lambda state: None) -> State:
    """Fit the preparation, from the start or from a saved state; returns the state in which training begins."""
    return play(setting.engine, prepare_steps(setting, state, save))


def prepare_steps(setting: Setting, state: State | None = None, save: Callable[[State], None] = lambda state: None) -> Steps[State]:
    """The steps of :func:`prepare`."""
    if state is not None and state["stage"] == "training":
        return state
    fit, job = setting.fit, setting.job
    if fit is not None:
        run = state or {"stage": "preparing", "round": 0, "algorithm": fit.init({}, {})}
        while not run["algorithm"]["done"]:
            number = run["round"] + 1
            outcome = yield from round_steps(
                run["algorithm"], algorithm=fit, blocks=setting.all_blocks, schema=None, round=number, rate=1.0,
                terms=Terms(job.seed, len(setting.clients)), observe=setting.observe,
            )  # fmt: skip
            run = {**run, "round": number, "algorithm": outcome.state}
            save(run)
        preparation = run["algorithm"]["fitted"]
    else:
        preparation = None
    state = begin(setting, preparation)
    save(state)
    return state


def at_server(algorithm: Algorithm, learner: Learner) -> Algorithm:
    """The algorithm as the server plays it: one that computes with the model there too takes it along."""
    knowing = getattr(algorithm, "knowing", None)
    return algorithm if knowing is None else knowing(learner)


def begin(setting: Setting, preparation: Any) -> State:
    """The state before the first round of training, with a fitted preparation (None where the job has none).

    InputError for a metric to watch that the learner does not measure.
    """
    job, (_, learner) = setting.job, setting.bound(preparation)
    refuse_unknown_metric(job, learner)
    algorithm = at_server(job.algorithm, learner).init(learner.init(job.seed), learner.kinds())
    state = {"stage": "training", "round": 0, "algorithm": algorithm, "preparation": preparation, "best": None, "since": 0}
    if setting.fleet is None:
        return state
    size = size_in_bytes(algorithm["params"])
    return {**state, "clock": {"elapsed": 0.0, "down": size, "up": size, "devices": setting.fleet.digest}}


Played: TypeAlias = tuple[State, dict[str, Any]]
"""The state after a round, and its record.

A record has ``round``, ``clients``, ``seconds``, ``bytes_down``, ``bytes_up``, ``failures`` and the metrics of the round as
``train/loss``, ``validation/...``, ``test/...`` (clients' own rows) and ``central/...`` (the data set's own test rows). Of its seconds,
``time/wait``, ``time/transfer``, ``time/compute`` and ``time/reduce`` are those of the exchanges with the clients, and ``time/work`` the
seconds that all workers together computed (:class:`hansa.core.accounting.Times`). With a
clock it also has ``invited``, ``dropped``, ``late``, ``clock/seconds`` and ``clock/elapsed``; messages then count for all who were
invited, updates for those that are used.
"""


def train(setting: Setting, state: State) -> Iterator[Played]:
    """Play the rounds that are left; yields the state after each with its record."""
    bound = _bound_for(setting, state)
    while _unfinished(setting.job, state):
        state, record = play(setting.engine, _round_of_training(setting, bound, state))
        yield state, record


def train_steps(setting: Setting, state: State, tell: Callable[[dict[str, Any]], None]) -> Steps[State]:
    """The steps of :func:`train`; they return the last state, and each record is told."""
    bound = _bound_for(setting, state)
    while _unfinished(setting.job, state):
        state, record = yield from _round_of_training(setting, bound, state)
        tell(record)
    return state


def _bound_for(setting: Setting, state: State) -> tuple[Schema, Learner]:
    if setting.fleet is not None and state["clock"]["devices"] != setting.fleet.digest:
        raise InputError("clock.path: the file has changed since the run began (restore it, or start a new run)")
    return setting.bound(state["preparation"])


def _round_of_training(setting: Setting, bound: tuple[Schema, Learner], state: State) -> Steps[Played]:
    began = time.perf_counter()
    (state, record), times = yield from timed(_untimed_round(setting, bound, state))
    return state, {**record, **times.plain(), "seconds": time.perf_counter() - began}


def _untimed_round(setting: Setting, bound: tuple[Schema, Learner], state: State) -> Steps[Played]:
    job, rounds, (schema, learner) = setting.job, setting.job.rounds, bound
    size = cohort_size(len(setting.clients), rounds.clients)
    number = state["round"] + 1
    called = None if setting.fleet is None else _call(setting, setting.fleet, state, size, number)
    members = cohort(len(setting.clients), size, job.seed, number) if called is None else called.used
    terms = setting.terms if called is None else replace(setting.terms, quorum=called.quorum)
    rate = rounds.schedule.factor(number, rounds.count)
    if job.algorithm.collective == "gang":
        outcome = yield from _gang_round(setting, schema, state, number, rate)
    else:
        outcome = yield from round_steps(
            state["algorithm"], algorithm=at_server(job.algorithm, learner), blocks=blocks_of(members.tolist(), rounds.block),
            schema=schema, round=number, rate=rate, terms=terms, observe=setting.observe,
        )  # fmt: skip
    state = {**state, "round": number, "algorithm": outcome.state}
    record = _record(number, outcome)
    if called is not None:
        state, told = _ticked(state, called, outcome)
        record |= told
    if number % job.evaluation.every == 0 or number == rounds.count or outcome.state.get("done"):
        setting.observe("evaluate")
        record |= yield from judge_steps(setting, schema, learner, outcome.state["params"], number)
        state = watched(job, state, record)
    return state, record


def _gang_round(setting: Setting, schema: Schema, state: State, number: int, rate: float) -> Steps[Outcome]:
    job = setting.job
    layout = job.algorithm.parallel.filled(job.engine.name, getattr(job.engine, "slots", None))
    basis = Basis(job.learner, setting.clients, schema)
    return gang_steps(
        state["algorithm"], algorithm=job.algorithm, basis=basis, layout=layout, seed=job.seed,
        home=setting.home, round=number, rate=rate, observe=setting.observe,
    )  # fmt: skip


def _call(setting: Setting, fleet: Fleet, state: State, size: int, number: int) -> Turnout:
    """Who takes part in a round of a job with a clock.

    How long it takes depends on the bytes moved, and an update's size is known when it has been made. So the sizes are those that
    were measured in the round before, which for most algorithms are those of every round; before the first round, those of the params.
    """
    job, clients, now = setting.job, setting.clients, state["clock"]
    assert job.clock is not None
    epochs = getattr(getattr(job.algorithm, "local", None), "epochs", 1)
    return turnout(
        job.clock, fleet, lambda positions: Known.of([clients[int(position)] for position in positions]), population=len(clients),
        size=size, seed=job.seed, round=number, now=now["elapsed"], load=Load(epochs, now["down"], now["up"]), quorum=job.rounds.quorum,
    )  # fmt: skip


def _ticked(state: State, called: Turnout, outcome: Outcome) -> tuple[State, dict[str, Any]]:
    """The state after a round of a job with a clock, and what its record tells beyond that of a job without."""
    elapsed, down = state["clock"]["elapsed"] + called.seconds, outcome.bytes_down // len(called.used)
    clock = {**state["clock"], "elapsed": elapsed, "down": down, "up": outcome.bytes_up // outcome.clients}
    told = {
        "bytes_down": down * called.invited, "invited": called.invited, "dropped": called.dropped, "late": called.late,
        "clock/seconds": called.seconds, "clock/elapsed": elapsed,
    }  # fmt: skip
    return {**state, "clock": clock}, told


def _unfinished(job: Job, state: State) -> bool:
    patience = job.evaluation.patience
    done = state["algorithm"].get("done") or (patience and state["since"] >= patience)
    return state["round"] < job.rounds.count and not done


def why_stopped(job: Job, state: State) -> str:
    """One sentence on why no further round is played."""
    rounds = f"{state['round']} rounds"
    if job.clock is not None:
        rounds += f" and {duration(state['clock']['elapsed'])} of virtual time"
    if state["algorithm"].get("done"):
        return f"converged after {rounds}"
    if job.evaluation.patience and state["since"] >= job.evaluation.patience:
        return f"no better {job.evaluation.watch} on the validation rows for {state['since']} evaluations; stopped after {rounds}"
    return f"played all {rounds}"


def _record(number: int, outcome: Outcome) -> dict[str, Any]:
    return {
        "round": number,
        "clients": outcome.clients,
        "bytes_down": outcome.bytes_down,
        "bytes_up": outcome.bytes_up,
        "failures": [{"clients": list(f.clients), "kind": f.kind, "message": f.message} for f in outcome.failures],
    } | {f"train/{name}": value for name, value in (outcome.state.get("metrics", {}) | metric.values(outcome.metrics)).items()}
