"""Many fits at once: each a job of its own, all on one started engine and one loaded data set."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from hansa import judging, opening, training
from hansa.core import metrics as metric
from hansa.core.blocks import Client
from hansa.core.contracts import ClientStore, Engine
from hansa.core.errors import HansaError
from hansa.core.loop import Steps, play
from hansa.core.many import AT_ONCE, Task, together
from hansa.core.metrics import Metrics
from hansa.core.params import Params
from hansa.core.store import MemoryStore
from hansa.core.worker import Learners
from hansa.data.rules import Facts
from hansa.job import Job

R = TypeVar("R")

Told = Callable[[str, dict[str, Any]], None]
"""Told the name of a fit and the record of each round that it has played."""


@dataclass(frozen=True)
class Fit:
    """One fit among many.

    name:          unlike that of any other.
    clients:       the fit's own, in order; number k of them is number ``start + k * stride`` of the engine's.
    judged:        the split on which the model is judged in the end; none where it is empty.
    alone:         the clients are one that learns for itself: constant columns are allowed, and there is no clock.
    export:        whether the model is wanted, or its metrics and params alone.
    """

    name: str
    job: Job
    clients: Sequence[Client] = field(repr=False)
    start: int = 0
    stride: int = 1
    judged: str = ""
    alone: bool = False
    export: bool = True

    @property
    def basis(self) -> tuple[Any, ...]:
        """What decides on what the clients tell of their data and on the fitted preparation; equal ones are found once."""
        return (self.start, self.stride, id(self.job.preparation), self.job.rounds.block, self.alone)


@dataclass(frozen=True)
class _Basis:
    """What the clients told of their data, and the fitted preparation."""

    facts: Facts
    preparation: Any


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    model:   as in :class:`hansa.runs.Run`; None where it was not wanted.
    metrics: of the split on which the fit is judged, (sum, count) over all its clients.
    rounds:  that were played.
    ended:   one sentence on why no further one was.
    facts:   what the clients told of their data.
    preparation: the fitted one, None for none.
    """

    params: Params = field(repr=False)
    model: Any = field(repr=False)
    metrics: Metrics
    rounds: int
    ended: str
    facts: Facts = field(repr=False)
    preparation: Any = field(repr=False)

    @property
    def data(self) -> str:
        """Digest of what the clients told of their data."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def scores(self) -> dict[str, float]:
        """The metrics as numbers."""
        return metric.values(self.metrics)


@dataclass(frozen=True)
class Failed:
    """Why a fit came to nothing: the error's class name and its message in one line; ``traceback`` tells where, if it is not in the
    message of a client's own error."""

    kind: str
    message: str
    traceback: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    @classmethod
    def of(cls, error: Exception) -> Failed:
        message, _, client = str(error).partition("\n")  # RunFailed brings a client's traceback
        own = "" if isinstance(error, HansaError) else "".join(traceback.format_exception(error))
        return cls(type(error).__name__, message, client or own)


def fit_many(
    engine: Engine,
    clients: Sequence[Client],
    fits: Sequence[Fit],
    *,
    store: ClientStore | None = None,
    at_once: int = AT_ONCE,
    tell: Told = lambda name, record: None,
) -> Iterator[tuple[str, Fitted | Failed]]:
    """Do many fits with one engine, at most ``at_once`` at the same time; yields each by its name as it ends.

    clients: the engine's: all of every fit. What is raised in one fit is its :class:`Failed`; what the engine itself raises (it
             cannot be started, a recipe cannot be sent) ends all.
    """
    learners = list[Any]()
    for fit in fits:
        if not any(fit.job.learner is known for known in learners):
            learners.append(fit.job.learner)
    places = {id(learner): place for place, learner in enumerate(learners)}

    def task(fit: Fit, steps: Steps[R]) -> Task[R]:
        return Task(fit.name, steps, fit.start, fit.stride, places[id(fit.job.learner)])

    with threadpool_limits(1):
        engine.start(Learners(tuple(learners)), clients, MemoryStore() if store is None else store)
        try:
            shared = _shared(fits)
            found = together(engine, (task(fit, _basis_steps(fit, engine)) for fit in shared.values()), at_once)
            # Where a basis cannot be found, each fit tries by itself: it may be the one learner that cannot take the data.
            bases = {ended.name: ended.result for ended in found if ended.error is None}
            known = {basis: bases.get(fit.name) for basis, fit in shared.items()}
            for ended in together(engine, (task(fit, _steps(fit, engine, known.get(fit.basis), tell)) for fit in fits), at_once):
                if ended.error is not None:
                    yield ended.name, Failed.of(ended.error)
                elif ended.result is not None:
                    yield ended.name, ended.result
        finally:
            engine.stop()


def _shared(fits: Sequence[Fit]) -> dict[tuple[Any, ...], Fit]:
    """The bases that several fits have, each with the first of them."""
    first, several = dict[tuple[Any, ...], Fit](), dict[tuple[Any, ...], Fit]()
    for fit in fits:
        if first.setdefault(fit.basis, fit) is not fit:
            several[fit.basis] = first[fit.basis]
    return several


def _basis_steps(fit: Fit, engine: Engine) -> Steps[_Basis]:
    setting = yield from opening.setting_steps(fit.job, fit.clients, engine, lenient=fit.alone)
    state = yield from training.prepare_steps(setting)
    return _Basis(setting.description.facts, state["preparation"])


def _steps(fit: Fit, engine: Engine, basis: _Basis | None, tell: Told) -> Steps[Fitted]:
    facts = None if basis is None else basis.facts
    setting = yield from opening.setting_steps(fit.job, fit.clients, engine, lenient=fit.alone, facts=facts)
    setting = replace(setting, central=None)  # the data set's own test rows are for the one model that is chosen
    if basis is None:
        state = yield from training.prepare_steps(setting)
    else:
        state = training.begin(setting, basis.preparation)
    state = yield from training.train_steps(setting, state, lambda record: tell(fit.name, record))
    params = judging.chosen_params(fit.job, state)
    metrics: Metrics = {}
    if fit.judged:
        schema, _ = setting.bound(state["preparation"])
        _, metrics = yield from judging.per_client_steps(setting, schema, params, fit.judged, state["round"])
    ended = training.why_stopped(setting.job, state)
    model = judging.exported(setting, state["preparation"], params) if fit.export else None
    return Fitted(params, model, metrics, state["round"], ended, setting.description.facts, state["preparation"])


def restored(fit: Fit, facts: Facts, preparation: Any, params: Params) -> Any:
    """The model of a fit that has ended, from what is kept of it; no client is asked."""
    engine = fit.job.engine.build()  # it is not started
    setting = play(engine, opening.setting_steps(fit.job, fit.clients, engine, lenient=fit.alone, facts=facts))
    return judging.exported(setting, preparation, params)


def quietly_evaluated(job: Job) -> Job:
    """The job without evaluations on the way, where nothing depends on them."""
    if job.evaluation.best or job.evaluation.patience:
        return job
    return replace(job, evaluation=replace(job.evaluation, every=job.rounds.count))
