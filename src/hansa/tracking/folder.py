"""The folder of one run: everything that is known about it, and its whole state.

====================  ====================================================================================================
job.toml              the job as it was given
started.toml          the same, to know it again: what a run goes on with is the job that it was started with
environment.json      where it ran, see :mod:`hansa.tracking.environment`
status.json           status, error, started, seconds of the process, rounds; while it goes on written at most once a second
metrics.jsonl         one JSON object a round: "round", numbers ("train/loss", "clients", "seconds", "bytes_up", ...), "failures"
state.safetensors     the whole state after the last round, see :mod:`hansa.tracking.tree`
params.safetensors    the model's params alone under their own names, for any reader of safetensors
description.json      the data of the clients, as far as they told
clients.json          metrics of every client at the end
sharing.json          what left the clients and what stayed, optional
comparison.json       the same data learned in other ways, optional
report.html           see :mod:`hansa.tracking.report`
launch                names the launch that began the run, where ``torchrun`` started it
lock                  held by the process that writes
====================  ====================================================================================================

The folder's mode is 0700, its files' 0600. Every file but ``metrics.jsonl`` is replaced as a whole; that one only grows, and a
line counts once its end is written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hansa.core.errors import InputError
from hansa.core.files import remove_unfinished, replace_file, sync_folder
from hansa.tracking.environment import environment
from hansa.tracking.json_files import json_text, read_json_file
from hansa.tracking.lock import Lock
from hansa.tracking.tree import load_arrays, load_tree, save_arrays, save_tree

Status = Literal["running", "finished", "stopped early", "failed", "interrupted"]


@dataclass(frozen=True)
class RunSummary:
    """One run in a list of runs. ``metrics`` is the last round's record; ``started`` is local time in ISO 8601."""

    path: Path
    name: str
    status: str
    started: str
    seconds: float
    rounds: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


class RunFolder:
    """One run's files. :meth:`create` and :meth:`open` make it; who writes holds the lock until :meth:`close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock(path / "lock")

    @classmethod
    def create(cls, root: Path | str, name: str, job_text: str) -> RunFolder:
        """Make ``root/<date>-<time>-<name>``, locked, with the job, the environment and the status "running"."""
        root = Path(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"runs folder {root}: cannot be made ({error.strerror}); name another with --runs, or directory="
            ) from None
        now = datetime.now().astimezone()
        stem = f"{now:%Y-%m-%d-%H%M%S}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')[:60] or 'run'}"
        folder = cls(_make_folder(root, stem))
        folder.lock()
        folder.begin(job_text)
        return folder

    def begin(self, job_text: str) -> None:
        """Write what a run's folder has before its first round. The lock must be held."""
        self.write_text("job.toml", job_text)
        self.write_text("started.toml", job_text)
        self.write_json("environment.json", environment())
        self.write_text("metrics.jsonl", "")
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        self.write_json("status.json", {"status": "running", "error": None, "started": started, "seconds": 0.0, "rounds": 0})

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run, to read; call :meth:`lock` before writing. Raises :class:`InputError` where there is none."""
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path}: there is no such run folder; `hansa runs` lists the runs")
        if missing := [name for name in ("job.toml", "status.json") if not (path / name).is_file()]:
            raise InputError(f"{path} is not a run folder ({missing[0]} is missing); `hansa runs` lists the runs")
        folder = cls(path)
        folder.status()
        return folder

    @property
    def go_on(self) -> str:
        """What to do for a run that was interrupted to go on."""
        return f"hansa resume {self.path}"

    def lock(self) -> None:
        """Become the one process that writes this run; the kernel lets go of it when the process ends, however it ends."""
        self._lock.acquire()
        remove_unfinished(self.path)

    def close(self) -> None:
        """Let go of the lock."""
        self._lock.release()

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one round's record, durably. A metric that is not finite is written as null."""
        if "round" not in record:
            raise InputError(f"metrics: the record of {', '.join(record) or 'nothing'} names no round; add 'round'")
        with self._open_private("metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            file.write(json_text(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """All rounds' records in order; null is NaN again. A last line that was not finished does not count."""
        return [{k: math.nan if v is None else v for k, v in json.loads(line).items()} for line in self._lines()]

    def rewind(self, round: int) -> None:
        """Forget the records after ``round``: what a run did after its last saved state, and will do again."""
        kept = [line for line in self._lines() if json.loads(line)["round"] <= round]
        replace_file(self.path / "metrics.jsonl", (line + b"\n" for line in kept))

    def save_state(self, tree: Mapping[str, Any]) -> None:
        save_tree(self.path / "state.safetensors", tree)

    def load_state(self) -> dict[str, Any]:
        return load_tree(self.path / "state.safetensors")

    def save_params(self, params: Mapping[str, Any]) -> None:
        save_arrays(self.path / "params.safetensors", params, {"names": json.dumps(list(params))})

    def load_params(self) -> dict[str, np.ndarray]:
        arrays, metadata = load_arrays(self.path / "params.safetensors")
        return {name: arrays[name] for name in json.loads(metadata.get("names", "null")) or arrays}

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file atomically. What is not finite becomes null, NumPy values become numbers and lists."""
        self.write_text(name, json_text(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file. Raises :class:`InputError` where it is missing or damaged; see :meth:`has`."""
        return read_json_file(self.path / name)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def write_text(self, name: str, text: str) -> None:
        replace_file(self.path / name, [text.encode()])

    def job_text(self) -> str:
        return (self.path / "job.toml").read_text()

    def job(self) -> dict[str, Any]:
        """The job as plain values, not checked against the options that exist."""
        return self._table("job.toml")

    def started(self) -> dict[str, Any]:
        """As :meth:`job`, the one that was started."""
        return self._table("started.toml" if self.has("started.toml") else "job.toml")

    def _table(self, name: str) -> dict[str, Any]:
        try:
            return tomllib.loads((self.path / name).read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"damaged file {self.path / name}: {error}; write the job's text there again") from error

    def set_status(
        self, status: Status, *, error: str | None = None, seconds: float | None = None, rounds: int | None = None
    ) -> None:
        """Replace the status and its error; seconds and rounds stay as they are where they are not given."""
        given = {"seconds": seconds, "rounds": rounds}
        changed = {name: value for name, value in given.items() if value is not None}
        self.write_json("status.json", {**self.status(), "status": status, "error": error, **changed})

    def status(self) -> dict[str, Any]:
        """``status.json`` as it is written. A run that was killed still says "running" there; :func:`summary` knows better."""
        status = self.read_json("status.json")
        if not isinstance(status, dict) or not {"status", "error", "started", "seconds", "rounds"} <= status.keys():
            raise InputError(f"damaged file {self.path / 'status.json'}: entries are missing; restore it, or run the job again")
        return status

    def summary(self) -> RunSummary:
        status = self.status()
        running = status["status"] == "running"
        # Nobody writes a run that says it is running: its process was killed.
        dead = running and not self._lock.is_held()
        records = self.metrics()
        rounds, seconds = status["rounds"], status["seconds"]
        if running and records:  # they are newer than the status
            rounds, seconds = int(records[-1]["round"]), max(seconds, sum(record.get("seconds", 0.0) for record in records))
        return RunSummary(
            path=self.path,
            name=str(self.job().get("name", self.path.name)),
            status="interrupted" if dead else status["status"],
            started=status["started"],
            seconds=seconds,
            rounds=rounds,
            metrics=records[-1] if records else {},
        )

    def _open_private(self, name: str, flags: int) -> Any:
        return os.fdopen(os.open(self.path / name, flags | os.O_CLOEXEC, 0o600), "ab")

    def _lines(self) -> list[bytes]:
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # what follows the last line's end was not finished
        for position, line in enumerate(lines):
            try:
                record = json.loads(line)
                if isinstance(record, dict) and "round" in record:
                    continue
            except ValueError as error:
                if position == len(lines) - 1:  # a power cut may leave the length of a line and not its content
                    return lines[:-1]
                reason = str(error)
            else:
                reason = "it names no round"
            raise InputError(f"damaged file {path}: line {position + 1}: {reason}; remove the line, or run the job again")
        return lines


def _make_folder(root: Path, stem: str) -> Path:
    for attempt in range(1, 10_000):
        path = root / (stem if attempt == 1 else f"{stem}-{attempt}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            sync_folder(root)
            return path
    raise InputError(f"{root}: there are {attempt} runs named {stem}; name another folder for the runs")


def list_runs(root: Path | str) -> list[RunSummary]:
    """The runs in a folder, newest first; a folder that is damaged is listed with the status "damaged"."""
    root = Path(root)
    found = []
    for path in sorted(root.iterdir(), reverse=True) if root.is_dir() else []:
        if path.is_dir() and (path / "job.toml").is_file():
            try:
                found.append(RunFolder.open(path).summary())
            except InputError:
                changed = datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(timespec="seconds")
                found.append(RunSummary(path, path.name, "damaged", changed, 0.0, 0))
    return found
