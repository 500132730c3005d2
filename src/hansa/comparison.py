"""Ways to learn, side by side: each client alone, all rows pooled, and the job's own algorithm, over repeated splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from hansa import job as jobs
from hansa import judging, opening, training
from hansa.algorithms.newton import LARGEST, Newton
from hansa.core import metrics as metric
from hansa.core.blocks import Client
from hansa.core.contracts import Schema, State
from hansa.core.errors import InputError, RunFailed
from hansa.core.metrics import Metrics
from hansa.core.params import Params
from hansa.core.store import MemoryStore
from hansa.data import recipes
from hansa.each import fit_alone
from hansa.engines.inline import Inline
from hansa.fits import Failed, Fitted
from hansa.job import Job, Rounds
from hansa.options import field_value
from hansa.runs import Run, run
from hansa.tracking.folder import RunFolder
from hansa.tracking.live import Tell, live
from hansa.tracking.report import write_report

OVERALL = "overall"
Scores = dict[str, dict[str, float]]
"""metric -> client or "overall" -> value"""


@dataclass(frozen=True)
class Row:
    """One way to learn. values: metric -> client or "overall" -> (mean, standard error over the repeats)."""

    name: str
    values: dict[str, dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class Comparison:
    """The table: a row per way to learn, a column per client's own test rows and one over all of them.

    run: of the job itself, with the comparison in its folder and its report; None where none was asked for.
    """

    clients: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    repeats: int
    sentence: str
    run: Run | None = field(default=None, repr=False, compare=False)

    def plain(self) -> dict[str, Any]:
        """As JSON-plain values."""
        rows = [
            {"name": row.name, "values": {m: {c: list(v) for c, v in by.items()} for m, by in row.values.items()}}
            for row in self.rows
        ]
        return {
            "metrics": list(self.metrics), "clients": list(self.clients), "rows": rows, "repeats": self.repeats, "sentence": self.sentence,
        }  # fmt: skip


def compare(
    job: Job | str | Path,
    *,
    repeats: int = 5,
    algorithms: Sequence[Any] = (),
    directory: str | Path | None = None,
    quiet: bool = False,
    progress: Tell | None = None,
) -> Comparison:
    """Train in every way on ``repeats`` different splits (seeds job.seed, job.seed + 1, ...) and compare on held-out rows.

    job:        a :class:`hansa.Job`, or the path of its TOML file.
    directory:  the job is also run as it is, in a new folder below it that keeps the comparison; None keeps nothing.
    quiet:      no progress; without a terminal there is none anyway.
    progress:   told the trainings done, all of them, and the name of the last; there is no other progress then.

    Alone and pooled are trained to the optimum by Newton's method where the learner offers a Hessian, else by the job's own algorithm
    with one client. ``algorithms`` are further ones to compare; without any, Newton's method is added where it can be used.
    """
    job = job if isinstance(job, Job) else jobs.load(job)
    if getattr(job.partition, "name", "") == "features":
        raise InputError(
            "compare: only one of the clients has labels, so that the others cannot learn alone (compare runs of jobs instead, one of "
            "them with the columns of that client)"
        )
    opening.launch(job)
    done = None if directory is None else run(job, directory=directory, quiet=quiet)
    comparison = live(partial(_compared, job, repeats, algorithms), quiet, "comparing ways to learn", progress)
    if done is None:
        return comparison
    folder = RunFolder.open(done.directory)
    folder.write_json("comparison.json", comparison.plain())
    write_report(folder)
    return replace(comparison, run=done)


def _compared(job: Job, repeats: int, algorithms: Sequence[Any], progress: Tell) -> Comparison:
    extra = tuple(field_value(Job, "algorithm", algorithm) for algorithm in algorithms) or (
        (Newton(),) if "hessian" in job.learner.can and job.algorithm.name != "newton" else ()
    )
    names = ["each client alone", "all rows pooled", *(_title(algorithm) for algorithm in (job.algorithm, *extra))]
    results: dict[str, list[Scores]] = {name: [] for name in names}
    with threadpool_limits(1):
        for repeat in range(repeats):
            one = replace(job, seed=job.seed + repeat, evaluation=replace(job.evaluation, every=job.rounds.count))
            clients = opening.clients_of(one)
            ways = _ways(one, clients, (job.algorithm, *extra))
            for place, (name, scores) in enumerate(zip(names, ways, strict=True)):
                progress(repeat * len(names) + place + 1, repeats * len(names), name)
                results[name].append(scores)
    shown = tuple(name for name in ("auc", "accuracy", "mse", "loss") if name in results[names[1]][0])[:2]
    ids = tuple(client.id for client in opening.clients_of(job))
    rows = tuple(
        Row(
            name,
            {m: {c: _mean_and_error([r[m].get(c, float("nan")) for r in results[name]]) for c in (*ids, OVERALL)} for m in shown},
        )
        for name in names
    )
    return Comparison(ids, shown, rows, repeats, sentence_on(rows, ids, shown[0]))


def _title(algorithm: Any) -> str:
    titles = {"fedavg": "federated averaging", "newton": "exact federated Newton", "fedprox": "federated averaging, proximal"}
    return titles.get(algorithm.name, algorithm.name.replace("_", " "))


def _ways(job: Job, clients: Sequence[Client], algorithms: Sequence[Any]) -> Iterator[Scores]:
    """The scores of each way to learn, in the order of the table."""
    best = _optimum(job, clients)
    yield _scores([client.id for client in clients], _alone(best, clients))
    pooled = replace(best, engine=Inline())  # one client has no work for several processes
    with _prepared(pooled, recipes.pooled(clients), lenient=True) as (setting, state):
        schema, params = _trained(setting, state)
        setting.engine.start(job.learner, clients, MemoryStore())
        yield _by_client(replace(setting, clients=clients), schema, params)
    with _prepared(job, clients, lenient=False) as (setting, state):
        for algorithm in algorithms:
            rounds = job.rounds if algorithm is job.algorithm else _enough(job)
            with_it = replace(setting, job=replace(job, algorithm=algorithm, rounds=rounds))
            yield _by_client(with_it, *_trained(with_it, training.begin(with_it, state["preparation"])))


def _alone(job: Job, clients: Sequence[Client]) -> list[Metrics]:
    """What each client reaches with its own rows; nothing where they are of one class, or its test rows of one they lack: from them
    no model can be fitted, or none be judged. RunFailed where a fit goes wrong."""
    found: dict[str, Metrics] = {}
    for client, result in fit_alone(job, clients):
        if isinstance(result, Failed) and result.kind != "InputError":
            raise RunFailed(f"client {client.id} alone: {result}")
        found[client.id] = result.metrics if isinstance(result, Fitted) else {}
    return [found[client.id] for client in clients]


@contextmanager
def _prepared(job: Job, clients: Sequence[Client], lenient: bool) -> Iterator[tuple[opening.Setting, State]]:
    """A setting with the state in which training begins; its engine is stopped in the end."""
    setting = opening.open_setting(job, clients, lenient=lenient)
    try:
        yield setting, training.prepare(setting)
    finally:
        setting.engine.stop()


def _trained(setting: opening.Setting, state: State) -> tuple[Schema, Params]:
    for after, _ in training.train(setting, state):
        state = after
    schema, _ = setting.bound(state["preparation"])
    return schema, judging.chosen_params(setting.job, state)


def _optimum(job: Job, clients: Sequence[Client]) -> Job:
    """The job that finds the best model of its own data, alone or pooled: Newton's method where the model allows it."""
    x = clients[0].load()["train"].x
    if "hessian" not in job.learner.can or int(np.prod(x.shape[1:])) > LARGEST // 10:
        return job
    return replace(job, algorithm=Newton(), rounds=_enough(job))


def _enough(job: Job) -> Rounds:
    """Rounds in which a method that is not the job's own can finish, with all clients: the job's count is chosen for its own."""
    return replace(job.rounds, count=max(50, job.rounds.count), clients=1.0)


def _by_client(setting: opening.Setting, schema: Any, params: Params) -> Scores:
    each, _ = judging.per_client(setting, schema, params, "test")
    own = [{name: (total[k], count[k]) for name, (total, count) in each.metrics.items()} for k in range(len(each.clients))]
    return _scores(each.clients, own)


def _scores(ids: Sequence[str], own: Sequence[Metrics]) -> Scores:
    total: Metrics = {}
    for one in own:
        total = metric.add(total, one)
    scores: Scores = {name: {OVERALL: value} for name, value in metric.values(total).items()}
    for client, one in zip(ids, own, strict=True):
        for name, value in metric.values(one).items():
            scores[name][client] = value
    return scores


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error over repeats, of those in which the metric exists (a test split may lack a class)."""
    known = [value for value in values if value == value]  # NaN is not equal to itself
    if not known:
        return float("nan"), float("nan")
    return fmean(known), stdev(known) / sqrt(len(known)) if len(known) > 1 else float("nan")


def sentence_on(rows: Sequence[Row], clients: Sequence[str], by: str) -> str:
    """What the clients gained and what they did not share, in one sentence of figures."""
    alone, pooled, together = rows[0], rows[1], rows[-1]
    sign = 1.0 if by in metric.HIGHER_IS_BETTER else -1.0
    gains = {c: sign * (together.values[by][c][0] - alone.values[by][c][0]) for c in clients}
    gains = {c: gain for c, gain in gains.items() if gain == gain}
    label = {"auc": "AUC", "mse": "mean squared error"}.get(by, by)
    figures = (
        f"Learning together ({together.name}) gives a mean held-out {label} of {together.values[by][OVERALL][0]:.3f}, against "
        f"{alone.values[by][OVERALL][0]:.3f} alone and {pooled.values[by][OVERALL][0]:.3f} on pooled rows"
    )
    best, worst = (choose(gains, key=gains.__getitem__, default=None) for choose in (max, min))
    most = f"; {best} gains most ({sign * gains[best]:+.3f})" if best is not None and gains[best] > 0 else ""
    least = (
        f"{' and' if most else ';'} {worst} loses most ({sign * gains[worst]:+.3f})"
        if worst is not None and gains[worst] < 0
        else ""
    )
    return f"{figures}{most}{least}; no row left its client, only counts, ranges and sums of rows did."
