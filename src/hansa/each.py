"""Many models: one for each client, from its own rows alone, all fitted at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa import job as jobs
from hansa import training
from hansa.core.blocks import Client
from hansa.core.params import Params
from hansa.fits import Failed, Fit, Fitted, fit_many, quietly_evaluated
from hansa.job import Job

AT_ONCE = 1024
"""Fits under way at the same time: each has one client, and so one block in every step."""


@dataclass(frozen=True)
class Own:
    """One client's row of the table.

    rows:     training rows of the client.
    rounds:   that were played, 0 where the fit failed.
    metrics:  of the client's own test rows, name -> value; empty where the job keeps none, and where the fit failed.
    ended:    why no further round was played, or why the fit failed.
    """

    client: str
    rows: int
    rounds: int
    metrics: Mapping[str, float]
    status: str
    ended: str


@dataclass(frozen=True)
class Models:
    """What :func:`fit_each` gives.

    table:   a row for each client, in the order of their ids.
    models:  client -> fitted model, an ordinary object of its own library; a client whose fit failed has none.
    params:  client -> params by name.
    """

    job: Job
    table: tuple[Own, ...]
    models: Mapping[str, Any] = field(repr=False)
    params: Mapping[str, Params] = field(repr=False)


def fit_each(
    job: Job | str | Path,
    *,
    at_once: int = AT_ONCE,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Models:
    """Fit the job once for every client, with that client alone: what a model per key of a table is.

    The data is loaded once and all fits share the job's engine; each gives the bits that it would give by itself. What belongs to
    a cohort (``rounds.clients``, ``clock``) has no meaning here and is left out. A fit that fails (it diverges, its labels are of
    one class) is a row that says so, and no other fit is touched by it.

    progress: told how many of the fits have ended, and how many there are.

    Raises InputError for a job that cannot work.
    """
    job = job if isinstance(job, Job) else jobs.load(job)
    training.launch(job)
    clients = training.clients_of(job)
    rows, models, params = dict[str, Own](), dict[str, Any](), dict[str, Params]()
    for client, result in fit_alone(job, clients, at_once):
        if isinstance(result, Fitted):
            models[client.id], params[client.id] = result.model, result.params
            rows[client.id] = Own(client.id, client.rows, result.rounds, result.scores, "finished", result.ended)
        else:
            rows[client.id] = Own(client.id, client.rows, 0, {}, "failed", str(result))
        progress(len(rows), len(clients))
    return Models(job, tuple(rows[id] for id in sorted(rows)), *({id: of[id] for id in sorted(of)} for of in (models, params)))


def fit_alone(job: Job, clients: Sequence[Client], at_once: int = AT_ONCE) -> Iterator[tuple[Client, Fitted | Failed]]:
    """Each client's own fit as it ends, judged on its own test rows where the job keeps any."""
    job = quietly_evaluated(job)
    judged = "test" if job.split.test else ""
    fits = [Fit(str(k), job, clients[k : k + 1], k, judged=judged, alone=True) for k in range(len(clients))]
    for name, result in fit_many(job.engine.build(), clients, fits, at_once=at_once):
        yield clients[int(name)], result
