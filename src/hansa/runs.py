"""A run: what was done, with its folder. Saved after every round, so that it can go on after any crash, to the same bits."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from hansa import job as jobs
from hansa import judging, opening, training
from hansa.core import metrics as metric
from hansa.core.blocks import Client
from hansa.core.contracts import State
from hansa.core.errors import HansaError, InputError
from hansa.core.loop import Observer, unobserved
from hansa.core.params import Params
from hansa.core.store import DiskStore
from hansa.job import Job
from hansa.opening import Setting
from hansa.resumed import job_of, rounds_played
from hansa.tracking.advice import LEAST, advice
from hansa.tracking.folder import RunFolder
from hansa.tracking.progress import Progress
from hansa.tracking.report import write_report

LAUNCH = "launch"
"""The file in a run folder that names the launch that began the run, where there is one."""

EVERY = 1.0
"""Seconds between two writes of how a run stands while it goes on: a process that is killed leaves the last one."""

RECENT = 20
"""Rounds by whose times a run is told what would serve it better."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    params:     of the fitted model, by name.
    history:    one record a round, as in ``metrics.jsonl``.
    metrics:    of the model that is given back, name -> value, such as ``test/accuracy``.
    by_client:  the metrics of each client's own test rows, client -> name -> value.
    directory:  the run folder.
    ended:      one sentence on why no further round was played.
    export:     makes the fitted model of the params.
    """

    job: Job
    params: Params = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    metrics: dict[str, float]
    by_client: dict[str, dict[str, float]] = field(repr=False)
    directory: Path
    ended: str
    seconds: float
    export: Callable[[], Any] = field(repr=False)

    @cached_property
    def model(self) -> Any:
        """The fitted model, an ordinary object of its own library: an estimator or pipeline, an ``nn.Module``.

        Made when it is first asked for: its library may be large, and training have done without it.
        """
        return self.export()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "export": None, "model": self.model}  # what makes it holds the clients and their data


def run(job: Job | str | Path, *, directory: str | Path = "runs", quiet: bool = False, observe: Observer = unobserved) -> Run:
    """Do a job, and keep everything about it in a new folder below ``directory``.

    job:      a :class:`hansa.Job`, or the path of its TOML file.
    quiet:    no progress; without a terminal there is none anyway.
    observe:  called with the name of each stage as it is reached.

    Raises InputError before any training for what cannot work, Diverged and RunFailed during it; the folder then holds the last
    good state.
    """
    job = job if isinstance(job, Job) else jobs.load(job)
    launch = opening.launch(job)
    begun = _begun_by(launch, Path(directory), jobs.to_text(job)) if launch else None
    if begun is not None:
        return resume(begun, job, quiet=quiet, observe=observe)
    name = job.name or f"{getattr(job.data, 'name', 'data')}-{job.algorithm.name}"
    began = time.perf_counter()
    clients = opening.clients_of(job)
    folder = RunFolder.create(Path(directory), name, jobs.to_text(job))
    if launch:
        folder.write_text(LAUNCH, launch)
    return play(job, folder, clients, began, quiet, observe)


def resume(directory: str | Path, job: Job | None = None, *, quiet: bool = False, observe: Observer = unobserved) -> Run:
    """Go on with a run that was interrupted, failed or killed, from its last saved round; the end is the same to the last bit.

    ``job`` is needed only where the run was started from objects that its ``job.toml`` cannot hold (data in memory, a module), and
    where it shall go on elsewhere: on another engine, or with another layout of a gang (then the same up to rounding).

    It must be the job that was started, and so must ``job.toml`` where none is given: InputError names the first options that differ. But
    for the engine and the layout ``rounds.count`` may be another one, to end earlier or later, unless the rates of rounds that were
    played depend on it, or more were played.
    """
    folder = RunFolder.open(Path(directory))
    if folder.has("search.toml"):
        raise InputError(f"{directory}: it is a search, not a run; write hansa.resume_search({str(directory)!r})")
    if folder.has("each.toml"):
        raise InputError(f"{directory}: it holds models per client, and is no run; write hansa.resume_each({str(directory)!r})")
    given, job = job, job_of(folder, job, "run", "resume", played=rounds_played(folder))
    opening.launch(job)
    clients = opening.clients_of(job)
    folder.lock()
    if given is not None:
        folder.write_text("job.toml", jobs.to_text(job))
    return play(job, folder, clients, time.perf_counter(), quiet, observe)


def _begun_by(launch: str, directory: Path, text: str) -> Path | None:
    """The newest run of a job that this launch began and did not finish, before the launcher started all its processes again."""
    for mark in sorted(directory.glob(f"*/{LAUNCH}"), reverse=True):
        folder = RunFolder(mark.parent)
        if mark.read_text() == launch and folder.job_text() == text and folder.status()["status"] != "finished":
            return mark.parent
    return None


def play(job: Job, folder: RunFolder, clients: Sequence[Client], began: float, quiet: bool, observe: Observer) -> Run:
    """Play a job in a folder whose lock is held, from its saved state where it has one."""
    with _recorded(folder, began) as played, threadpool_limits(1):
        # A run that is new, or was killed before its first round was saved, has no state yet.
        state = folder.load_state() if folder.has("state.safetensors") else None
        setting = opening.open_setting(
            job, clients, DiskStore(folder.path / "clients.sqlite"), observe, home=str((folder.path / "checkpoints").resolve())
        )
        progress = Progress(_headline(setting), quiet)
        try:
            _check_same_data(folder, setting, state)
            state = training.prepare(setting, state, folder.save_state)
            folder.rewind(state["round"])
            played(state["round"])
            progress.start(job.rounds.count, state["round"])
            tell = _advised_once(folder, job, progress)
            for new, record in training.train(setting, state):
                observe("save")
                folder.append_metrics(record)
                folder.save_state(new)
                observe("saved")
                state = new
                played(state["round"])
                progress.update(record)
                tell(record)
            done = _conclude(folder, setting, state, began)
        finally:
            progress.stop()
            setting.engine.stop()
        folder.set_status("finished", rounds=state["round"], seconds=done.seconds)
        write_report(folder)
        return done


def _advised_once(folder: RunFolder, job: Job, progress: Progress) -> Callable[[Mapping[str, Any]], None]:
    """Told the records of the rounds; says above the progress, once a run, what would serve it better."""
    if job.engine.name == "inline":
        return lambda record: None
    table, cores = jobs.to_table(job), folder.read_json("environment.json").get("usable_cores") or 1
    records = folder.metrics()
    over = bool(advice(records, table, cores))

    def tell(record: Mapping[str, Any]) -> None:
        nonlocal over
        records.append(dict(record))
        del records[:-RECENT]
        if not over and record["round"] % LEAST == 1:
            said = advice(records, table, cores)
            over = bool(said)
            if said:
                progress.note(said)

    return tell


def _headline(setting: Setting) -> str | None:
    """The metric that a progress line shows; None, for what there is, with a learner that looks at no labels."""
    if not setting.job.learner.needs:
        return None
    split = (
        "central"
        if setting.central is not None
        else "test"
        if setting.job.split.test
        else "validation"
        if setting.job.split.validation
        else "train"
    )
    return f"{split}/{'loss' if split == 'train' else 'accuracy' if setting.description.task == 'classification' else 'mse'}"


def _check_same_data(folder: RunFolder, setting: Setting, state: State | None) -> None:
    plain = setting.description.plain()
    digest = hashlib.sha256(json.dumps([plain, setting.description.facts], sort_keys=True, default=str).encode()).hexdigest()
    known = folder.has("description.json")  # not where another machine goes on with the run
    if state is not None and known and folder.read_json("description.json").get("digest") != digest:
        raise InputError(f"run {folder.path}: the data has changed since the run began (restore it, or start a new run)")
    folder.write_json("description.json", {**plain, "digest": digest})


@contextmanager
def _recorded(folder: RunFolder, began: float) -> Iterator[Callable[[int], None]]:
    """Write how the run stands into its folder, whatever way it ends; gives what is to be told each round that is saved."""
    before = folder.status()
    folder.set_status("running")
    rounds, written = int(before["rounds"]), time.perf_counter()

    def played(round: int) -> None:
        nonlocal rounds, written
        rounds, now = round, time.perf_counter()
        if now - written >= EVERY:
            folder.set_status("running", rounds=rounds, seconds=now - began)
            written = now

    try:
        yield played
    except KeyboardInterrupt as stop:
        folder.set_status("interrupted", rounds=rounds, seconds=time.perf_counter() - began)
        stop.add_note(f"go on with: {folder.go_on}")
        raise
    except HansaError as error:
        # What could not be resumed stays what it was.
        if isinstance(error, InputError) and before["status"] != "running":
            folder.write_json("status.json", before)
        else:
            folder.set_status("failed", rounds=rounds, seconds=time.perf_counter() - began, error=str(error))
            write_report(folder)
            if not isinstance(error, InputError):
                error.add_note(f"its last good state is in {folder.path}")
        raise
    finally:
        folder.close()


def _conclude(folder: RunFolder, setting: Setting, state: State, began: float) -> Run:
    """Judge the chosen model, write what is left to write."""
    job, params = setting.job, judging.chosen_params(setting.job, state)
    schema, learner = setting.bound(state["preparation"])
    metrics = judging.judge(setting, schema, learner, params, state["round"])
    by_client: dict[str, dict[str, float]] = {}
    overall: dict[str, float] = {}
    if job.split.test:
        each, total_of_all = judging.per_client(setting, schema, params, "test", state["round"])
        overall = metric.values(total_of_all)
        for place, client in enumerate(each.clients):
            by_client[client] = metric.values({name: (total[place], count[place]) for name, (total, count) in each.metrics.items()})
    ended = training.why_stopped(job, state)
    folder.write_json("clients.json", {"split": "test", "metrics": by_client, "overall": overall, "ended": ended})
    folder.write_json("sharing.json", _sharing(setting))
    folder.save_params(params)
    return Run(
        job=job,
        params=params,
        history=folder.metrics(),
        metrics=metrics,
        by_client=by_client,
        directory=folder.path,
        ended=ended,
        seconds=time.perf_counter() - began,
        export=partial(judging.exported, setting, state["preparation"], params),
    )


def _sharing(setting: Setting) -> dict[str, Any]:
    """What left the clients and what did not, in words."""
    job = setting.job
    left = [
        "once, to agree on the data: column names and types, row and label counts, and per column its range, mean and categories"
    ]
    if setting.fit is not None:
        left.append("to fit the preparation: per column sums, counts and category counts")
    trained, stayed = setting.arrangement.sharing(job.algorithm, job.algorithm.name)
    shown = getattr(job.algorithm, "shows", "")  # single rows that the server sees
    if shown:
        trained, stayed = [shown, *trained], [line.replace("every row", "every other row") for line in stayed]
    left += trained
    return {
        "left_the_clients": left,
        "stayed": stayed,
        "guarantees": [{"transform": transform.name, "guarantee": transform.guarantee} for transform in job.transforms],
    }
