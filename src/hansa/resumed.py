"""The job that goes on in the folder of a run, a search or a fit of every client: the one that was started there."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from hansa import job as jobs
from hansa.core.errors import InputError
from hansa.core.synchrony import WHERE
from hansa.job import Job
from hansa.options import field_value
from hansa.tracking.folder import RunFolder

SHOWN = 3
"""Options that are named where a job is not the same."""


def job_of(folder: RunFolder, given: Job | None, kind: str, resume: str, played: int | None = None) -> Job:
    """The job that goes on in a folder: the one given, or that of its ``job.toml``; either is the one that was started there, but for
    where its work is done, and for how long.

    kind:    what the folder is of, in a word.
    resume:  the function that goes on with it.
    played:  rounds of a run that stay what they are; None for what is more than one run, whose rounds.count stays what it is.

    Raises InputError for another job, and for a text that holds descriptions of objects, where no job is given.
    """
    now = folder.job() if given is None else tomllib.loads(jobs.to_text(given))
    was = folder.started()
    if changed := _changed(was, now, played is not None and _same_rates(was, now, played)):
        what = "job.toml is not the job that was started" if given is None else f"the job given is not the one of the {kind}"
        remedy = "write it as it was" if given is None else f"give the job of {folder.path}/started.toml"
        raise InputError(f"{kind} {folder.path}: {what}: {changed} ({remedy}, or start anew)")
    if given is not None:
        return given
    try:
        return jobs.from_table(now)
    except InputError as error:
        raise InputError(
            f"{kind} {folder.path}: its job.toml cannot be read back ({error}); if the {kind} was started from Python objects, "
            f"write hansa.{resume}({str(folder.path)!r}, job) with the same job"
        ) from None


def _changed(was: Mapping[str, Any], now: Mapping[str, Any], longer: bool) -> str:
    """In which options a job differs from another one, the first of them in words; empty for the same job. longer: ``rounds.count`` may."""
    if was == now:
        return ""
    free = {"rounds.count"} if longer else set()
    before, after = (
        {path: value for path, value in _leaves(table) if path not in free and not _is_where(path)}
        for table in _comparable(was, now)
    )
    paths = [path for path in dict.fromkeys([*before, *after]) if before.get(path) != after.get(path)]
    said = [f"{path} is {_told(after.get(path))} and was {_told(before.get(path))}" for path in paths[:SHOWN]]
    return ", ".join(said) + (f", and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")


def _same_rates(was: Mapping[str, Any], now: Mapping[str, Any], played: int) -> bool:
    """Whether the rounds that were played are those of the job with another ``rounds.count``, which a schedule may look at."""
    before, after = (field_value(Job, "rounds", table.get("rounds", {})) for table in (was, now))
    if after.count < played:
        return False
    rounds = range(1, played + 1)
    return all(before.schedule.factor(k, before.count) == after.schedule.factor(k, after.count) for k in rounds)


def rounds_played(folder: RunFolder) -> int:
    """Of a run, by its metrics."""
    records = folder.metrics()
    return int(records[-1]["round"]) if records else 0


def _comparable(*tables: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tables with what they leave out, as far as they can be read: an option at its default may be written or not."""
    try:
        return [jobs.to_table(jobs.from_table(table)) for table in tables]
    except InputError:
        return list(tables)


def _leaves(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _is_where(path: str) -> bool:
    """Whether an option says where the work is done, and not what."""
    head, _, rest = path.partition(".")
    return head == "engine" or (head == "algorithm" and rest.partition(".")[0] in WHERE)


def _told(value: Any) -> str:
    shown = repr(value)
    return "left out" if value is None else shown if len(shown) <= 80 else f"{shown[:77]}..."
