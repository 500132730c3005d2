"""A federation on one machine: the server and every client are real processes with real certificates, on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tomli_w

from hansa import job as jobs
from hansa import opening, runs
from hansa.core.errors import InputError, RunFailed
from hansa.data import recipes
from hansa.data.elsewhere import Elsewhere
from hansa.data.partition import Column
from hansa.engines.inline import Inline
from hansa.federated.client import Client
from hansa.federated.foreign import named_code
from hansa.federated.server import Server
from hansa.federation.options import Federation
from hansa.job import Job
from hansa.options import describe
from hansa.runs import Run


@dataclass(frozen=True)
class Simulated:
    """run: as the server played it. same: whether its params have the bits of the job played here; None where that was not asked."""

    run: Run
    same: bool | None = None


def simulate(
    job: Job | str | Path, *, home: Path | str | None = None, runs: Path | str = "runs", compare: bool = False, quiet: bool = False
) -> Simulated:
    """Play a job with a process for each of its clients.

    job:     whose data are on this machine; every client process reads them and takes the rows of its own client alone.
    home:    where server and clients keep everything; a folder that is removed by default.
    runs:    where the run folder goes.
    compare: play the job here as well, with blocks of one client, and compare the params bit by bit.

    Raises InputError for a job that TOML cannot hold, or that no server can play.
    """
    loaded = job if isinstance(job, Job) else jobs.load(job)
    if not jobs.is_plain(loaded):
        raise InputError("simulate: the clients are told their data as TOML, and this job holds objects that TOML cannot name")
    ids = [client.id for client in opening.clients_of(loaded)]
    with (
        _home(home) as place,
        Server(_served(loaded, len(ids)), home=place / "server", listen="127.0.0.1:0", quiet=quiet) as server,
    ):
        folders = [_member(server, place, loaded, id) for id in ids]
        with _running(folders, quiet):
            done = server.train(again=True)
        kept = Path(runs) / done.directory.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(done.directory, kept, ignore=shutil.ignore_patterns("lock"))
    done = replace(done, directory=kept)
    return Simulated(done, _same(done, loaded) if compare else None)


def _served(job: Job, clients: int) -> Job:
    """The job as a server has it: the rows are elsewhere."""
    engine = job.engine if isinstance(job.engine, Federation) else Federation()
    data = Elsewhere(task=recipes.task_of(job.data))
    return replace(job, data=data, partition=Column(), engine=replace(engine, clients=clients))


def _member(server: Server, place: Path, job: Job, id: str) -> Path:
    folder = place / "clients" / id
    Client.join(server.address, server.token(id), folder)
    mine = {"data": describe(job.data), "partition": describe(job.partition), "client": id}
    (folder / "mine.toml").write_text(tomli_w.dumps(mine))
    if code := list(named_code(describe(job.learner))):  # here the job's author and the client are the same person
        (folder / "policy.toml").write_text(tomli_w.dumps({"learners": [job.learner.name, *code]}))
    return folder


@contextlib.contextmanager
def _home(home: Path | str | None) -> Iterator[Path]:
    if home is not None:
        yield Path(home)
        return
    with tempfile.TemporaryDirectory(prefix="hansa-federation-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _running(folders: Sequence[Path], quiet: bool) -> Iterator[None]:
    """A client process for each folder, ended at the end."""
    level = ["--quiet"] if quiet else []
    started = []
    try:
        for folder in folders:
            log = (folder / "log.jsonl").open("ab")
            command = [
                sys.executable,
                "-m",
                "hansa.cli.main",
                "client",
                "--home",
                str(folder),
                "--data",
                str(folder / "mine.toml"),
                *level,
            ]
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}))
            log.close()
        yield
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 5
        for process in started:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _same(done: Run, job: Job) -> bool:
    """Whether the same job, played here with blocks of one client, gives the same bits."""
    here = replace(job, engine=Inline(), rounds=replace(job.rounds, block=1))
    with tempfile.TemporaryDirectory() as folder:
        params = runs.run(here, directory=folder, quiet=True).params
    if params.keys() != done.params.keys():
        raise RunFailed("simulate: the federation's model has other params than the simulation's")
    return all(np.asarray(params[name]).tobytes() == np.asarray(done.params[name]).tobytes() for name in params)
