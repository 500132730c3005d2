"""Searches: the same job with other options, many of them at once, judged by cross-validation inside every client.

A search has a folder like a run's, with in place of a state

    search.toml   the settings, in order, and how they are judged
    fits.json     every fit that has ended: its metrics, or why it failed
    table.json    the table, table.csv the same for spreadsheets
    refit/        the run of the best job on all training rows, where it was asked for

A fit that has ended is not done again when a search is resumed; one that was under way begins anew, and ends with the same bits.
"""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hansa import job as jobs
from hansa import opening
from hansa.core import metrics as metric
from hansa.core.errors import InputError, RunFailed, did_you_mean
from hansa.core.many import AT_ONCE
from hansa.core.store import DiskStore
from hansa.data import recipes
from hansa.data.folds import Fold, Interleaved
from hansa.data.split import Split
from hansa.fits import Fit, Fitted, fit_many, quietly_evaluated
from hansa.job import Job
from hansa.runs import Run, resume, run
from hansa.settings import Settings, settings_of, with_settings
from hansa.standing import recorded, reopened
from hansa.tracking.folder import RunFolder, list_runs
from hansa.tracking.live import Tell, live
from hansa.tracking.report import write_report
from hansa.trials import Trial, plain, trial_of, write_table

PLAN = "search.toml"


@dataclass(frozen=True)
class Search:
    """A finished search.

    table:      a row for each setting, in the order of the grid or of the draws.
    by:         the metric that the scores are.
    folds:      0 where the job's own validation rows judged.
    best:       the job with the best setting, the first one of those that are equal.
    chosen:     the row of the table that it is.
    run:        the best job run on all training rows, None where that was not asked for.
    directory:  the search's folder.
    seconds:    that this process took.
    """

    job: Job
    table: tuple[Trial, ...]
    by: str
    folds: int
    best: Job
    chosen: Trial
    run: Run | None = field(repr=False)
    directory: Path
    seconds: float

    def plain(self) -> dict[str, Any]:
        """As JSON-plain values."""
        return {
            "search": str(self.directory), "by": self.by, "folds": self.folds, "table": [plain(trial) for trial in self.table],
            "best": dict(self.chosen.settings), "seconds": self.seconds,
            "run": None if self.run is None else str(self.run.directory),
        }  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """What a search does, as ``search.toml`` holds it."""

    settings: tuple[Settings, ...]
    folds: int
    by: str
    refit: bool
    at_once: int

    def text(self) -> str:
        import tomli_w

        head = {"folds": self.folds, "by": self.by, "refit": self.refit, "at_once": self.at_once}
        return tomli_w.dumps({**head, "settings": [dict(one) for one in self.settings]})

    @classmethod
    def read(cls, folder: RunFolder) -> _Plan:
        try:
            told = tomllib.loads((folder.path / PLAN).read_text("utf-8"))
            return cls(tuple(told["settings"]), told["folds"], told["by"], told["refit"], told["at_once"])
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
            raise InputError(
                f"damaged file {folder.path / PLAN}: {type(error).__name__}: {error}; restore it, or search again"
            ) from None


def search(
    job: Job | str | Path,
    space: Mapping[str, Any],
    *,
    folds: int = 5,
    random: int = 0,
    by: str = "",
    refit: bool = False,
    at_once: int = AT_ONCE,
    directory: str | Path = "runs",
    quiet: bool = False,
    progress: Tell | None = None,
) -> Search:
    """Fit a job with many settings at once, on one engine and one loaded data set, and tell which setting is best.

    space:    dotted option path -> the values to try; all combinations are. For ``random``, a value may also be a frozen
              distribution of ``scipy.stats``.
    folds:    every client's training rows are cut into so many, and each setting is fitted once without each of them and scored on
              it; 0 scores on the validation rows that ``split.validation`` keeps back. No test row is looked at.
    random:   try so many settings drawn with the job's seed, without repetition from lists; 0 tries all.
    by:       the metric; ``evaluation.watch`` of the job where it is empty.
    refit:    run the best job in the end, on all training rows; its run folder is in the search's.
    at_once:  fits under way at the same time.
    quiet:    no progress; without a terminal there is none anyway.
    progress: told after every round of any fit the rounds that are done, rounds at most, and in words how far the search is; there is
              no other progress then.

    A setting that fails (it diverges, a client raises) is a row that says so. Raises InputError before any work for what cannot
    work, and RunFailed when every setting failed.
    """
    began = time.perf_counter()
    job = job if isinstance(job, Job) else jobs.load(job)
    plan = _Plan(settings_of(space, random, job.seed), folds, by or job.evaluation.watch, refit, at_once)
    candidates = _candidates(job, plan)
    opening.launch(job)
    folder = RunFolder.create(Path(directory), f"{job.name or 'job'}-search", jobs.to_text(job))
    folder.write_text(PLAN, plan.text())
    return _play(job, plan, candidates, folder, began, quiet, progress)


def resume_search(
    directory: str | Path,
    job: Job | None = None,
    *,
    quiet: bool = False,
    progress: Tell | None = None,
) -> Search:
    """Go on with a search that was interrupted or killed: fits that had ended are not done again, and the table is the same.

    ``job`` is needed only where the search was started from objects that its ``job.toml`` cannot hold.
    """
    began = time.perf_counter()
    folder, job = reopened(directory, job, "search", PLAN, "resume_search")
    plan = _Plan.read(folder)
    candidates = _candidates(job, plan)
    opening.launch(job)
    folder.lock()
    return _play(job, plan, candidates, folder, began, quiet, progress)


def _candidates(job: Job, plan: _Plan) -> list[Job]:
    """The job of each setting, checked. InputError names the setting that cannot work."""
    for option, value in (("folds", plan.folds), ("at_once", plan.at_once)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"search: {option} = {value!r} is no whole number (write {5 if option == 'folds' else 64})")
    if plan.folds < 0 or plan.folds == 1:
        raise InputError(
            f"search: folds = {plan.folds} cannot be held out one by one (write 2 or more, or 0 for the validation rows)"
        )
    if plan.folds == 0 and not job.split.validation:
        raise InputError("search: folds = 0 needs validation rows to judge by (set split.validation, for example to 0.1)")
    if plan.at_once < 1:
        raise InputError(f"search: at_once = {plan.at_once} lets nothing begin (write 1 or more)")
    made: dict[str, Any] = {}
    return [with_settings(job, settings, made) for settings in plan.settings]


# What is done


def _play(
    job: Job, plan: _Plan, candidates: Sequence[Job], folder: RunFolder, began: float, quiet: bool,
    progress: Tell | None,
) -> Search:  # fmt: skip
    with recorded(folder, began):
        ended = folder.read_json("fits.json") if folder.has("fits.json") else {}
        live(partial(_fit, job, plan, candidates, folder, ended), quiet, "searching", progress)
        folds = range(max(1, plan.folds))
        table = tuple(
            trial_of(settings, [ended[_name(number, fold)] for fold in folds], plan.by)
            for number, settings in enumerate(plan.settings)
        )
        write_table(folder, plan.by, plan.folds, table)
        sign = 1.0 if plan.by in metric.HIGHER_IS_BETTER else -1.0
        able = [number for number, trial in enumerate(table) if not trial.failure and not math.isnan(trial.mean)]
        if not able and not any(trial.failure for trial in table):
            raise InputError(
                f"search: no client has rows for some of the {plan.folds} folds (write fewer folds, or leave split.test out)"
                if plan.folds
                else "search: no client has validation rows (raise split.validation, or judge by folds)"
            )
        if not able:
            failure = next(trial.failure for trial in table if trial.failure)
            raise RunFailed(f"search: no setting has a score; the first that failed: {failure}")
        best = max(able, key=lambda number: sign * table[number].mean)
        done = _refitted(candidates[best], folder, quiet) if plan.refit else None
        seconds = time.perf_counter() - began
        folder.set_status("finished", rounds=sum(sum(trial.rounds) for trial in table), seconds=seconds)
        write_report(folder)
        return Search(job, table, plan.by, plan.folds, candidates[best], table[best], done, folder.path, seconds)


def _fit(job: Job, plan: _Plan, candidates: Sequence[Job], folder: RunFolder, ended: dict[str, Any], progress: Tell) -> None:
    """Do the fits that have not ended, and keep each as it ends, in ``fits.json`` and in ``ended``."""
    splits: list[Split] = [Fold.of(job.split, fold, plan.folds) for fold in range(plan.folds)] if plan.folds else [job.split]
    populations = [recipes.clients(job.data, job.partition, split, job.seed) for split in splits]
    fits = [
        Fit(
            _name(number, fold), quietly_evaluated(replace(one, split=split)), populations[fold], fold, len(splits),
            "fold" if plan.folds else "validation", export=False,
        )
        for number, one in enumerate(candidates)
        for fold, split in enumerate(splits)
    ]  # fmt: skip
    left = [fit for fit in fits if fit.name not in ended]
    if not left:
        return
    most = {fit.name: fit.job.rounds.count for fit in fits}
    played = {name: rounds if name in ended else 0 for name, rounds in most.items()}

    def tell(name: str, record: dict[str, Any]) -> None:
        played[name] = record["round"]
        progress(sum(played.values()), sum(most.values()), f"{len(ended)} of {len(fits)} fits")

    known = {name.partition("-")[2]: told["data"] for name, told in ended.items() if told["data"]}
    store = DiskStore(folder.path / "clients.sqlite")
    try:
        for name, result in fit_many(
            job.engine.build(), Interleaved(tuple(populations)), left, store=store, at_once=plan.at_once, tell=tell
        ):
            if isinstance(result, Fitted):
                _check(result, known.setdefault(name.partition("-")[2], result.data), plan, folder)
                told = {
                    "metrics": result.scores,
                    "rounds": result.rounds,
                    "ended": result.ended,
                    "failure": "",
                    "data": result.data,
                }
            else:
                told = {"metrics": {}, "rounds": 0, "ended": "", "failure": str(result), "traceback": result.traceback, "data": ""}
            ended[name] = told
            folder.write_json("fits.json", ended)
            tell(name, {"round": most[name]})
    finally:
        for path in folder.path.glob("clients.sqlite*"):
            path.unlink()  # what clients kept for a fit that is under way is of no use to anybody: it begins anew


def _name(number: int, fold: int) -> str:
    return f"{number}-{fold}"


def _check(fitted: Fitted, data: str, plan: _Plan, folder: RunFolder) -> None:
    if fitted.data != data:
        raise InputError(f"search {folder.path}: the data has changed since the search began (restore it, or search again)")
    if plan.by not in fitted.scores:
        raise InputError(f"search: by = {plan.by!r}: there is no such metric{did_you_mean(plan.by, fitted.scores)}")


def _refitted(best: Job, folder: RunFolder, quiet: bool) -> Run:
    begun = [one for one in list_runs(folder.path / "refit") if one.status != "damaged"]
    return resume(begun[0].path, best, quiet=quiet) if begun else run(best, directory=folder.path / "refit", quiet=quiet)
