"""A job under way, in memory: describe the data, prepare it, play the rounds, judge the model. No files, no terminal.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from hansa.core import metrics as metric
from hansa.core.accounting import timed
from hansa.core.blocks import Block, Client, LoadedBlock, Table, blocks_of
from hansa.core.clock import Turnout, turnout
from hansa.core.contracts import Algorithm, Engine, Learner, Schema, State
from hansa.core.errors import InputError, did_you_mean
from hansa.core.fleet import Fleet, Known, Load
from hansa.core.gang_round import gang_steps
from hansa.core.loop import Observer, Outcome, Steps, Terms, play, round_steps, unobserved
from hansa.core.metrics import Metrics
from hansa.core.params import Params, size_in_bytes
from hansa.core.sampling import cohort, cohort_size, sample
from hansa.core.store import MemoryStore
from hansa.core.synchrony import Basis
from hansa.core.updates import Gathered
from hansa.data import recipes
from hansa.data.arrangement import Arrangement, ByRows, arrangement_of
from hansa.data.describe import Describe, Description
from hansa.data.elsewhere import Elsewhere
from hansa.data.rules import Facts
from hansa.data.sources import Holders
from hansa.job import Evaluation, Job, model_apart
from hansa.tracking.labels import duration


@dataclass(frozen=True)
class Setting:
    """A job whose engine runs and whose clients have described their data.

    home: folder in which a gang keeps its checkpoints; empty where there is no run folder.
    """

    job: Job
    engine: Engine
    clients: Sequence[Client]
    description: Description
    schema: Schema
    transformer: Any
    fit: Algorithm | None
    central: Table | None
    terms: Terms
    arrangement: Arrangement = field(default_factory=ByRows)
    observe: Observer = unobserved
    fleet: Fleet | None = None
    home: str = ""

    @property
    def all_blocks(self) -> list[Block]:
        return blocks_of(range(len(self.clients)), self.job.rounds.block)

    @cached_property
    def judges(self) -> list[int]:
        """Positions of the clients on whose rows models are judged, ascending: the same ones at every evaluation."""
        size = cohort_size(len(self.clients), self.job.evaluation.clients)
        return [int(position) for position in sample(len(self.clients), size, self.job.seed, "evaluation")]

    def bound(self, preparation: Any = None) -> tuple[Schema, Learner]:
        """The schema with the fitted preparation, and the learner that knows it."""
        schema = self.schema if self.fit is None else self.arrangement.prepared(self.schema, preparation)
        return schema, self.job.learner.bind(schema)


def launch(job: Job) -> str:
    """Where a launcher has started this program several times, only one goes on from here: the others work for it, and end with it.

    Returns what identifies the launch over its restarts, empty for none.
    """
    serve = getattr(job.engine, "serve", None)
    return "" if serve is None else str(serve())


def clients_of(job: Job) -> Sequence[Client]:
    """The recipes of a job's clients, in canonical order, sorted by id; each is made when it is asked for."""
    return recipes.clients(job.data, job.partition, job.split, job.seed)


def open_setting(
    job: Job, clients: Sequence[Client], store: Any = None, observe: Observer = unobserved, lenient: bool = False, home: str = ""
) -> Setting:
    """Start the engine and let the clients describe their data. InputError for data that cannot work.

    Of many clients a sample describes them, unless a preparation has to visit all of them anyway.

    ``lenient`` accepts what one client alone may have, but all together may not: constant columns, a single class. It leaves the
    clock out: nobody waits for a client that is alone. ``home`` is as in :class:`Setting`.
    """
    engine = job.engine.build()
    engine.start(job.learner, clients, MemoryStore() if store is None else store)
    try:
        return replace(play(engine, setting_steps(job, clients, engine, observe, lenient)), home=home)
    except BaseException:
        engine.stop()  # whoever asked for the setting will never get hold of it
        raise


def setting_steps(
    job: Job, clients: Sequence[Client], engine: Engine, observe: Observer = unobserved, lenient: bool = False,
    facts: Facts | None = None,
) -> Steps[Setting]:  # fmt: skip
    """As :func:`open_setting`, for an engine that has been started; with what the clients told of their data if they already did."""
    job = replace(job, clock=None) if lenient else job
    fleet = None if job.clock is None else job.clock.open(client.id for client in clients)
    terms = Terms(job.seed, len(clients), job.rounds.weighting, job.rounds.quorum, job.transforms)
    arrangement = arrangement_of(job.partition, clients)
    everybody = job.preparation is not None or isinstance(job.data, Elsewhere)  # whose rows no index tells
    some = range(len(clients)) if everybody else arrangement.asked(len(clients), job.seed)
    if facts is None:
        told = yield from round_steps(
            {"params": {}}, algorithm=Describe(), blocks=blocks_of(some, job.rounds.block), schema=None, round=0, rate=1.0,
            terms=Terms(job.seed, len(clients)), observe=observe,
        )  # fmt: skip
        facts = told.state["facts"]
    holders = isinstance(job.data, Holders)
    natural = getattr(job.partition, "name", "") == "column" and not holders
    description = arrangement.describe(
        facts,
        task=recipes.task_of(job.data),
        needs=job.learner.needs,
        prepared=job.preparation is not None,
        constant="allow" if lenient else "refuse",
        single_class="refuse" if natural and not lenient else "allow",
        everyone=recipes.everyone(clients) if holders or len(some) < len(clients) else None,
    )
    schema = arrangement.schema(description)
    transformer, _ = model_apart(job.preparation)
    transformer, fit = (None, None) if transformer is None else arrangement.preparation(transformer, description)
    return Setting(
        job, engine, clients, description, schema, transformer, fit, recipes.central(job.data), terms, arrangement, observe, fleet
    )  # fmt: skip


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
    _refuse_unknown_metric(job, learner)
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
        state = _watch(job, state, record)
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


def judge(setting: Setting, schema: Schema, learner: Learner, params: Params, number: int) -> dict[str, float]:
    """The metrics of given params: on every split that the job keeps back, over all clients, and on the central test rows."""
    return play(setting.engine, judge_steps(setting, schema, learner, params, number))


def judge_steps(setting: Setting, schema: Schema, learner: Learner, params: Params, number: int) -> Steps[dict[str, float]]:
    """The steps of :func:`judge`."""
    record: dict[str, float] = {}
    for split in ("validation", "test"):
        if getattr(setting.job.split, split):
            _, total = yield from per_client_steps(setting, schema, params, split, number)
            record |= {f"{split}/{name}": value for name, value in metric.values(total).items()}
    if setting.central is not None:
        record |= {f"central/{name}": value for name, value in metric.values(central(setting, schema, learner, params)).items()}
    return record


def per_client(setting: Setting, schema: Schema, params: Params, split: str, number: int = 0) -> tuple[Gathered, Metrics]:
    """Metrics of one split under given params, of the clients ``setting.judges`` that answer: (of each, over all)."""
    return play(setting.engine, per_client_steps(setting, schema, params, split, number))


def per_client_steps(
    setting: Setting, schema: Schema, params: Params, split: str, number: int = 0
) -> Steps[tuple[Gathered, Metrics]]:
    """The steps of :func:`per_client`."""
    blocks, learner = blocks_of(setting.judges, setting.job.rounds.block), setting.job.learner.bind(schema)
    return setting.arrangement.evaluation(
        learner, params, schema, blocks=blocks, seed=setting.job.seed, round=number, split=split,
        quorum=setting.terms.quorum,
    )  # fmt: skip


def central(setting: Setting, schema: Schema, learner: Learner, params: Params) -> Metrics:
    """Metrics on the data set's own test rows, which are the server's."""
    assert setting.central is not None
    table = setting.central
    if schema.preparer is not None:
        table = schema.preparer.prepare(table, schema.preparation)
    table = learner.arrays(table)
    server = Client("server", dict, {}, len(table))
    block = LoadedBlock(0, (server,), (table,), np.ones(1), setting.job.seed, 0)
    return metric.totals(learner.evaluate(params, block))


def _refuse_unknown_metric(job: Job, learner: Learner) -> None:
    """InputError where the model shall be chosen, or training be stopped, by a metric that there is not, or the job names one."""
    e, known = job.evaluation, learner.metric_names
    if e.watch not in known and (e.best or e.patience or e.watch != Evaluation.watch):
        said = did_you_mean(e.watch, known)
        raise InputError(f"evaluation.watch = {e.watch!r}: learner {job.learner.name!r} measures no such metric{said}")


def _watch(job: Job, state: State, record: dict[str, Any]) -> State:
    """Remember the best model, count the evaluations since."""
    if not (job.evaluation.best or job.evaluation.patience):
        return state
    value, best = record[f"validation/{job.evaluation.watch}"], state["best"]
    sign = 1.0 if job.evaluation.watch in metric.HIGHER_IS_BETTER else -1.0
    if best is None or sign * (value - best["value"]) > job.evaluation.least:
        kept = {"round": state["round"], "value": value, "params": state["algorithm"]["params"] if job.evaluation.best else {}}
        return {**state, "best": kept, "since": 0}
    return {**state, "since": state["since"] + 1}


def chosen_params(job: Job, state: State) -> Params:
    """The params that the run gives back: those of the best round where the job asks for them, else the last."""
    if job.evaluation.best and state["best"] is not None:
        return dict(state["best"]["params"])
    return dict(state["algorithm"]["params"])


def exported(setting: Setting, state: State) -> Any:
    """The fitted model, with the fitted preparation before it where there is one: ordinary objects of their own libraries."""
    _, learner = setting.bound(state["preparation"])
    model = learner.export(chosen_params(setting.job, state))
    if setting.fit is None:
        return model
    from sklearn.pipeline import Pipeline, make_pipeline

    fitted = setting.arrangement.fitted(setting.transformer, state["preparation"])
    steps = list(fitted.steps) if isinstance(fitted, Pipeline) else make_pipeline(fitted).steps
    _, name = model_apart(setting.job.preparation)
    name = name or make_pipeline(model).steps[0][0]
    while name in dict(steps):
        name += "_"
    return Pipeline([*steps, (name, model)])
