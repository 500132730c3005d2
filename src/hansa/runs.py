"""A run: what was done, with its folder. Saved after every round, so that it can go on after any crash, to the same bits."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from hansa import job as jobs
from hansa import training
from hansa.core import metrics as metric
from hansa.core.blocks import Client
from hansa.core.contracts import State
from hansa.core.errors import HansaError, InputError
from hansa.core.loop import Observer, unobserved
from hansa.core.params import Params
from hansa.core.store import DiskStore
from hansa.job import Job
from hansa.tracking.folder import RunFolder
from hansa.tracking.progress import Progress
from hansa.tracking.report import write_report
from hansa.training import Setting

LAUNCH = "launch"
"""The file in a run folder that names the launch that began the run, where there is one."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    model:      the fitted model, an ordinary object of its own library: an estimator or pipeline, an ``nn.Module``.
    params:     its params by name.
    history:    one record a round, as in ``metrics.jsonl``.
    metrics:    of the model that is given back, name -> value, such as ``test/accuracy``.
    by_client:  the metrics of each client's own test rows, client -> name -> value.
    directory:  the run folder.
    ended:      one sentence on why no further round was played.
    """

    job: Job
    model: Any = field(repr=False)
    params: Params = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    metrics: dict[str, float]
    by_client: dict[str, dict[str, float]] = field(repr=False)
    directory: Path
    ended: str
    seconds: float


def run(job: Job | str | Path, *, directory: str | Path = "runs", quiet: bool = False, observe: Observer = unobserved) -> Run:
    """Do a job, and keep everything about it in a new folder below ``directory``.

    job:      a :class:`hansa.Job`, or the path of its TOML file.
    quiet:    no progress; without a terminal there is none anyway.
    observe:  called with the name of each stage as it is reached.

    Raises InputError before any training for what cannot work, Diverged and RunFailed during it; the folder then holds the last
    good state.
    """
    job = job if isinstance(job, Job) else jobs.load(job)
    launch = training.launch(job)
    begun = _begun_by(launch, Path(directory), text_of(job)) if launch else None
    if begun is not None:
        return resume(begun, job, quiet=quiet, observe=observe)
    name = job.name or f"{getattr(job.data, 'name', 'data')}-{job.algorithm.name}"
    began = time.perf_counter()
    clients = training.clients_of(job)
    folder = RunFolder.create(Path(directory), name, text_of(job))
    if launch:
        folder.write_text(LAUNCH, launch)
    return _play(job, folder, clients, began, quiet, observe)


def resume(directory: str | Path, job: Job | None = None, *, quiet: bool = False, observe: Observer = unobserved) -> Run:
    """Go on with a run that was interrupted, failed or killed, from its last saved round; the end is the same to the last bit.

    ``job`` is needed only where the run was started from objects that its ``job.toml`` cannot hold (data in memory, a module).
    """
    folder = RunFolder.open(Path(directory))
    if folder.has("search.toml"):
        raise InputError(f"{directory}: it is a search, not a run; write hansa.resume_search({str(directory)!r})")
    text = folder.job_text()
    if job is None:
        try:
            job = jobs.from_text(text, where=f"{directory}/job.toml")
        except InputError as error:
            raise InputError(
                f"run {directory}: its job.toml cannot be read back ({error}); if the run was started from Python objects, "
                f"write hansa.resume({str(directory)!r}, job) with the same job"
            ) from None
    elif text_of(job) != text:
        raise InputError(f"run {directory}: the job given is not the one of the run (compare it with {directory}/job.toml)")
    training.launch(job)
    clients = training.clients_of(job)
    folder.lock()
    return _play(job, folder, clients, time.perf_counter(), quiet, observe)


def _begun_by(launch: str, directory: Path, text: str) -> Path | None:
    """The newest run of a job that this launch began and did not finish, before the launcher started all its processes again."""
    for mark in sorted(directory.glob(f"*/{LAUNCH}"), reverse=True):
        folder = RunFolder(mark.parent)
        if mark.read_text() == launch and folder.job_text() == text and folder.status()["status"] != "finished":
            return mark.parent
    return None


def text_of(job: Job) -> str:
    """The job as TOML."""
    import tomli_w

    return tomli_w.dumps(jobs.to_table(job))


def _play(job: Job, folder: RunFolder, clients: Sequence[Client], began: float, quiet: bool, observe: Observer) -> Run:
    with _recorded(folder, began), threadpool_limits(1):
        # A run that is new, or was killed before its first round was saved, has no state yet.
        state = folder.load_state() if folder.has("state.safetensors") else None
        setting = training.open_setting(job, clients, DiskStore(folder.path / "clients.sqlite"), observe)
        progress = Progress(_headline(setting), quiet)
        try:
            _check_same_data(folder, setting, state)
            state = training.prepare(setting, state, folder.save_state)
            folder.rewind(state["round"])
            progress.start(job.rounds.count, state["round"])
            for new, record in training.train(setting, state):
                observe("save")
                folder.append_metrics(record)
                folder.save_state(new)
                observe("saved")
                state = new
                progress.update(record)
            done = _conclude(folder, setting, state, began)
        finally:
            progress.stop()
            setting.engine.stop()
        folder.set_status("finished", rounds=state["round"], seconds=done.seconds)
        write_report(folder)
        return done


def _headline(setting: Setting) -> str:
    """The metric that a progress line shows."""
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
    if state is not None and folder.read_json("description.json").get("digest") != digest:
        raise InputError(f"run {folder.path}: the data has changed since the run began (restore it, or start a new run)")
    folder.write_json("description.json", {**plain, "digest": digest})


@contextmanager
def _recorded(folder: RunFolder, began: float) -> Iterator[None]:
    """Write how the run stands into its folder, whatever way it ends."""
    before = folder.status()
    folder.set_status("running")
    try:
        yield
    except KeyboardInterrupt as stop:
        folder.set_status("interrupted", seconds=time.perf_counter() - began)
        stop.add_note(f"go on with: hansa resume {folder.path}")
        raise
    except HansaError as error:
        # What could not be resumed stays what it was.
        if isinstance(error, InputError) and before["status"] != "running":
            folder.write_json("status.json", before)
        else:
            folder.set_status("failed", seconds=time.perf_counter() - began, error=str(error))
            write_report(folder)
            if not isinstance(error, InputError):
                error.add_note(f"its last good state is in {folder.path}")
        raise
    finally:
        folder.close()


def _conclude(folder: RunFolder, setting: Setting, state: State, began: float) -> Run:
    """Judge the chosen model, write what is left to write."""
    job, params = setting.job, training.chosen_params(setting.job, state)
    schema, learner = setting.bound(state["preparation"])
    metrics = training.judge(setting, schema, learner, params, state["round"])
    by_client: dict[str, dict[str, float]] = {}
    overall: dict[str, float] = {}
    if job.split.test:
        each, total_of_all = training.per_client(setting, schema, params, "test", state["round"])
        overall = metric.values(total_of_all)
        for place, position in enumerate(setting.judges):
            by_client[setting.clients[position].id] = metric.values(
                {name: (total[place], count[place]) for name, (total, count) in each.items()}
            )
    ended = training.why_stopped(job, state)
    folder.write_json("clients.json", {"split": "test", "metrics": by_client, "overall": overall, "ended": ended})
    folder.write_json("sharing.json", _sharing(setting))
    folder.save_params(params)
    return Run(
        job=job,
        model=training.exported(setting, state),
        params=params,
        history=folder.metrics(),
        metrics=metrics,
        by_client=by_client,
        directory=folder.path,
        ended=ended,
        seconds=time.perf_counter() - began,
    )


def _sharing(setting: Setting) -> dict[str, Any]:
    """What left the clients and what did not, in words."""
    job = setting.job
    left = [
        "once, to agree on the data: column names and types, row and label counts, and per column its range, mean and categories"
    ]
    if setting.fit is not None:
        left.append("to fit the preparation: per column sums, counts and category counts")
    left.append(
        f"every round: {'the sum over a block of clients' if job.algorithm.collective == 'sum' else 'each single client'}"
        f" of what {job.algorithm.name} needs, and the training loss"
    )
    left.append("at every evaluation: per metric a sum and a count")
    return {
        "left_the_clients": left,
        "stayed": ["every row: no patient, picture or record was sent", "every client's validation and test rows"],
        "guarantees": [{"transform": transform.name, "guarantee": transform.guarantee} for transform in job.transforms],
    }
