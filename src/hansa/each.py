"""Many models: one for each client, from its own rows alone, all fitted at the same time.

They have a folder like a run's, with in place of a state

    each.toml    how many fits are under way at once
    fits/        the fits that have ended: params and what is needed to make the models of them, or why they failed
    table.json   the table, table.csv the same for spreadsheets

A fit that has ended is not done again when they are resumed; one that was under way begins anew, and ends with the same bits.
"""

from __future__ import annotations

import csv
import io
import math
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hansa import job as jobs
from hansa import opening
from hansa.core.blocks import Client
from hansa.core.errors import InputError
from hansa.core.params import Params
from hansa.data.files import File
from hansa.data.partition import Column
from hansa.fits import Failed, Fit, Fitted, fit_many, quietly_evaluated, restored
from hansa.job import Job
from hansa.standing import recorded, reopened
from hansa.tracking.folder import RunFolder
from hansa.tracking.live import Tell, live
from hansa.tracking.report import write_report
from hansa.tracking.tree import load_tree, save_tree

AT_ONCE = 1024
"""Fits under way at the same time: each has one client, and so one block in every step."""

PLAN = "each.toml"

EVERY = 0.5
"""Seconds between two writes of the fits that have ended: what a crash may lose of them."""


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

    table:      a row for each client, in the order of their ids.
    models:     client -> fitted model, an ordinary object of its own library; a client whose fit failed has none.
    params:     client -> params by name.
    directory:  their folder.
    seconds:    that this process took.
    """

    job: Job
    table: tuple[Own, ...]
    models: Mapping[str, Any] = field(repr=False)
    params: Mapping[str, Params] = field(repr=False)
    directory: Path
    seconds: float

    def plain(self) -> dict[str, Any]:
        """The table and where it is kept, as JSON-plain values."""
        return {"each": str(self.directory), "table": [asdict(own) for own in self.table], "seconds": self.seconds}


Progress = Callable[[int, int], None]
"""Told how many of the fits have ended, and how many there are."""


def fit_each(
    job: Job | str | Path,
    *,
    by: str = "",
    at_once: int = AT_ONCE,
    directory: str | Path = "runs",
    quiet: bool = False,
    progress: Progress | None = None,
) -> Models:
    """Fit the job once for every client, with that client alone: what a model per key of a table is.

    The data is loaded once and all fits share the job's engine; each gives the bits that it would give by itself. What belongs to
    a cohort (``rounds.clients``, ``clock``) has no meaning here and is left out. A fit that fails (it diverges, its labels are of
    one class) is a row that says so, and no other fit is touched by it.

    by:        the column that names the clients, for a job with a table that names another one, or none.
    at_once:   fits under way at the same time.
    directory: their folder is made below it.
    quiet:     no progress; without a terminal there is none anyway.
    progress:  told how many fits have ended, and how many there are; there is no other progress then.

    Raises InputError for a job that cannot work.
    """
    began = time.perf_counter()
    job = job if isinstance(job, Job) else jobs.load(job)
    job = _keyed(job, by) if by else job
    if at_once < 1:
        raise InputError(f"each: at_once = {at_once} lets nothing begin (write 1 or more)")
    opening.launch(job)
    clients = opening.clients_of(job)
    folder = RunFolder.create(Path(directory), f"{job.name or 'job'}-each", jobs.to_text(job))
    folder.write_text(PLAN, f"at_once = {at_once}\n")
    return _shown(job, clients, at_once, folder, began, quiet, progress)


def resume_each(directory: str | Path, job: Job | None = None, *, quiet: bool = False, progress: Progress | None = None) -> Models:
    """Go on with the fits of every client that were interrupted or killed; with ones that are over, their models are made again.

    ``job`` is needed only where they were started from objects that their ``job.toml`` cannot hold.

    Raises InputError for another folder or job, and for clients that are not those of the start.
    """
    began = time.perf_counter()
    folder, job = reopened(directory, job, "folder of models per client", PLAN, "resume_each")
    try:
        at_once = int(tomllib.loads((folder.path / PLAN).read_text("utf-8"))["at_once"])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"damaged file {folder.path / PLAN}: {error}; write at_once = {AT_ONCE} there") from None
    opening.launch(job)
    clients = opening.clients_of(job)
    folder.lock()
    return _shown(job, clients, at_once, folder, began, quiet, progress)


def fit_alone(job: Job, clients: Sequence[Client], at_once: int = AT_ONCE) -> Iterator[tuple[Client, Fitted | Failed]]:
    """Each client's own fit as it ends, judged on its own test rows where the job keeps any."""
    for position, result in _fitted(job, clients, range(len(clients)), at_once):
        yield clients[position], result


def _fitted(job: Job, clients: Sequence[Client], wanted: Sequence[int], at_once: int) -> Iterator[tuple[int, Fitted | Failed]]:
    """The fits of the clients at these positions, as they end."""
    if wanted:
        job = quietly_evaluated(job)
        fits = [_alone(job, clients, position) for position in wanted]
        for name, result in fit_many(job.engine.build(), clients, fits, at_once=at_once):
            yield int(name), result


def _alone(job: Job, clients: Sequence[Client], position: int) -> Fit:
    judged = "test" if job.split.test else ""
    return Fit(str(position), job, clients[position : position + 1], position, judged=judged, alone=True)


def _keyed(job: Job, by: str) -> Job:
    """The job with the clients that a column of its table names."""
    data = job.data
    if not isinstance(data, File):
        raise InputError(
            f"each: by = {by!r} names a column, and data {getattr(data, 'name', type(data).__name__)!r} is not read from a file that has "
            "one (leave it out: there is a model for each of the job's clients)"
        )
    return replace(job, data=replace(data, client=by), partition=Column())


def _shown(
    job: Job, clients: Sequence[Client], at_once: int, folder: RunFolder, began: float, quiet: bool, progress: Progress | None
) -> Models:
    def work(tell: Tell) -> Models:
        return _play(job, clients, at_once, folder, began, lambda done, of: tell(done, of, ""))

    return live(work, quiet, "fitting each client", None if progress is None else lambda done, of, what: progress(done, of))


def _play(job: Job, clients: Sequence[Client], at_once: int, folder: RunFolder, began: float, progress: Progress) -> Models:
    with recorded(folder, began):
        kept = _Kept(folder.path / "fits")
        rows, models, params = dict[str, Own](), dict[str, Any](), dict[str, Params]()

        def take(client: Client, told: Mapping[str, Any], model: Any) -> None:
            rows[client.id] = Own(*(told[f.name] for f in fields(Own)))
            if told["status"] == "finished":
                models[client.id], params[client.id] = model, told["params"]
            progress(len(rows), len(clients))

        places = {client.id: position for position, client in enumerate(clients)} if kept.before else {}
        for id, told in kept.before.items():
            if id not in places or clients[places[id]].rows != told["rows"]:
                raise InputError(f"{folder.path}: the data has changed since the start (restore it, or fit each client anew)")
            one = _alone(job, clients, places[id])
            fine = told["status"] == "finished"
            take(clients[places[id]], told, restored(one, told["facts"], told["preparation"], told["params"]) if fine else None)
        left = [position for position in range(len(clients)) if not places or clients[position].id not in rows]
        try:
            for position, result in _fitted(job, clients, left, at_once):
                client = clients[position]
                told = _told(client, result)
                kept.add(client.id, told)
                take(client, told, result.model if isinstance(result, Fitted) else None)
        finally:
            kept.write()
        table = tuple(rows[id] for id in sorted(rows))
        _write_table(folder, table)
        seconds = time.perf_counter() - began
        folder.set_status("finished", rounds=sum(own.rounds for own in table), seconds=seconds)
        write_report(folder)
        models, params = ({id: of[id] for id in sorted(of)} for of in (models, params))
        return Models(job, table, models, params, folder.path, seconds)


def _told(client: Client, result: Fitted | Failed) -> dict[str, Any]:
    """What is kept of a fit that has ended: its row, and what its model is made of."""
    told = {"client": client.id, "rows": client.rows}
    if isinstance(result, Failed):
        why = {"traceback": result.traceback}
        return told | {"rounds": 0, "metrics": {}, "status": "failed", "ended": str(result)} | why
    return told | {
        "rounds": result.rounds, "metrics": result.scores, "status": "finished", "ended": result.ended,
        "params": dict(result.params), "facts": result.facts, "preparation": result.preparation,
    }  # fmt: skip


class _Kept:
    """The fits that have ended, in a file for each write.

    before: those of earlier processes, by client.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, exist_ok=True)
        self.before: dict[str, dict[str, Any]] = {}
        for file in sorted(path.glob("*.safetensors")):
            self.before |= load_tree(file)
        self._number = len(list(path.glob("*.safetensors")))
        self._new: dict[str, dict[str, Any]] = {}
        self._last = time.monotonic()

    def add(self, client: str, told: dict[str, Any]) -> None:
        """Keep one; it is on disk within :data:`EVERY` seconds, or when the next one ends after that."""
        self._new[client] = told
        if time.monotonic() - self._last >= EVERY:
            self.write()

    def write(self) -> None:
        if self._new:
            save_tree(self.path / f"{self._number:06}.safetensors", self._new)
            self._number, self._new, self._last = self._number + 1, {}, time.monotonic()


def _write_table(folder: RunFolder, table: Sequence[Own]) -> None:
    folder.write_json("table.json", {"table": [asdict(own) for own in table]})
    names = list(dict.fromkeys(name for own in table for name in own.metrics))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["client", "rows", "rounds", *names, "status", "ended"])
    for own in table:
        values = (own.metrics.get(name, math.nan) for name in names)
        shown = ("" if math.isnan(value) else repr(value) for value in values)
        rows.writerow([own.client, own.rows, own.rounds, *shown, own.status, own.ended])
    folder.write_text("table.csv", text.getvalue())
