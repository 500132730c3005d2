"""Searches: the same job with other options, many of them at once, judged by cross-validation inside every client.

A search has a folder like a run's, with in place of a state

    search.toml   the settings, in order, and how they are judged
    fits.json     every fit that has ended: its metrics, or why it failed
    table.json    the table, table.csv the same for spreadsheets
    refit/        the run of the best job on all training rows, where it was asked for

A fit that has ended is not done again when a search is resumed; one that was under way begins anew, and ends with the same bits.
"""

from __future__ import annotations

import csv
import io
import math
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, is_dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hansa import job as jobs
from hansa import training
from hansa.core import metrics as metric
from hansa.core.errors import HansaError, InputError, RunFailed, did_you_mean
from hansa.core.many import AT_ONCE
from hansa.core.randomness import generator
from hansa.core.store import DiskStore
from hansa.data import recipes
from hansa.data.folds import Fold, Interleaved
from hansa.data.split import Split
from hansa.fits import Fit, Fitted, fit_many, quietly_evaluated
from hansa.job import POLYMORPHIC, Evaluation, Job, Rounds
from hansa.options import build, describe, option_fields
from hansa.runs import Run, resume, run, text_of
from hansa.tracking.folder import RunFolder, list_runs

Settings = Mapping[str, Any]
"""Values by the dotted paths of options, as `--set` takes them: ``{"algorithm.local.learning_rate": 0.1}``."""

PLAN = "search.toml"


@dataclass(frozen=True)
class Trial:
    """One row of a search's table.

    scores:   of each fold, NaN for one that failed; without folds, the one of the validation rows.
    mean:     of the scores, NaN where a fold failed: the others were easier or harder, and are no measure.
    error:    standard error of the mean over the folds, NaN for a single score.
    rounds:   that each fold played, 0 for one that failed.
    failure:  why the first fold that failed did, empty where none did.
    """

    settings: Settings
    scores: tuple[float, ...]
    mean: float
    error: float
    rounds: tuple[int, ...]
    failure: str = ""

    @property
    def status(self) -> str:
        """ "finished" or "failed"."""
        return "failed" if self.failure else "finished"


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
            "search": str(self.directory), "by": self.by, "folds": self.folds, "table": [_plain(trial) for trial in self.table],
            "best": dict(self.chosen.settings), "seconds": self.seconds,
            "run": None if self.run is None else str(self.run.directory),
        }  # fmt: skip


Progress = Callable[[int, int, str], None]
"""Told after every round of any fit: rounds that are done, rounds at most, and in words how far the search is."""


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
    progress: Progress = lambda done, of, what: None,
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
    quiet:    no progress of the refit.

    A setting that fails (it diverges, a client raises) is a row that says so. Raises InputError before any work for what cannot
    work, and RunFailed when every setting failed.
    """
    began = time.perf_counter()
    job = job if isinstance(job, Job) else jobs.load(job)
    plan = _Plan(_settings(space, random, job.seed), folds, by or job.evaluation.watch, refit, at_once)
    candidates = _candidates(job, plan)
    training.launch(job)
    folder = RunFolder.create(Path(directory), f"{job.name or 'job'}-search", text_of(job))
    folder.write_text(PLAN, plan.text())
    return _play(job, plan, candidates, folder, began, quiet, progress)


def resume_search(
    directory: str | Path,
    job: Job | None = None,
    *,
    quiet: bool = False,
    progress: Progress = lambda done, of, what: None,
) -> Search:
    """Go on with a search that was interrupted or killed: fits that had ended are not done again, and the table is the same.

    ``job`` is needed only where the search was started from objects that its ``job.toml`` cannot hold.
    """
    began = time.perf_counter()
    folder = RunFolder.open(Path(directory))
    if not folder.has(PLAN):
        raise InputError(f"{directory}: it is no search ({PLAN} is missing); for a run write hansa.resume({str(directory)!r})")
    plan, text = _Plan.read(folder), folder.job_text()
    if job is None:
        try:
            job = jobs.from_text(text, where=f"{directory}/job.toml")
        except InputError as error:
            raise InputError(
                f"search {directory}: its job.toml cannot be read back ({error}); if the search was started from Python objects, "
                f"write hansa.resume_search({str(directory)!r}, job) with the same job"
            ) from None
    elif text_of(job) != text:
        raise InputError(f"search {directory}: the job given is not the one of the search (compare it with {directory}/job.toml)")
    candidates = _candidates(job, plan)
    training.launch(job)
    folder.lock()
    return _play(job, plan, candidates, folder, began, quiet, progress)


# What is tried


def _settings(space: Mapping[str, Any], random: int, seed: int) -> tuple[Settings, ...]:
    if not space:
        raise InputError("search: there is nothing to try (give option paths with values, as {'rounds.count': [10, 20]})")
    if random < 0:
        raise InputError(f"search: random = {random} settings cannot be drawn (write 0 to try all, or a positive number)")
    values = {path: _values(path, given, random > 0) for path, given in space.items()}
    lists = {path: given for path, given in values.items() if isinstance(given, list)}
    draw = generator(seed, "search")
    if len(lists) == len(values):
        size = math.prod(len(given) for given in lists.values())
        if not random or random >= size:
            return tuple(dict(zip(lists, some, strict=True)) for some in product(*lists.values()))
        return tuple(_combination(lists, int(number)) for number in sorted(draw.choice(size, size=random, replace=False)))
    return tuple(
        {
            path: _drawn(given, draw) if path not in lists else given[int(draw.integers(len(given)))]
            for path, given in values.items()
        }
        for _ in range(random)
    )


def _values(path: str, given: Any, drawn: bool) -> Any:
    """A list of plain values, or a distribution."""
    if hasattr(given, "rvs"):
        if drawn:
            return given
        raise InputError(f"search {path}: a distribution has no end of values (give random=, the number of settings to draw)")
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
        raise InputError(f"search {path} = {given!r}: give the values to try as a list")
    found = [_plain_value(path, value) for value in given]
    if not found or any(value in found[:place] for place, value in enumerate(found)):
        raise InputError(f"search {path} = {found}: give different values to try, at least one")
    return found


def _plain_value(path: str, value: Any) -> Any:
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if isinstance(value, Mapping):
        return {str(key): _plain_value(path, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(path, item) for item in value]
    if not isinstance(value, (bool, int, float, str)):
        raise InputError(
            f"search {path}: {type(value).__name__} is no plain value (write a part of the job as a table, as {{'name': 'fedprox'}})"
        )
    return value


def _combination(lists: Mapping[str, list[Any]], number: int) -> Settings:
    """The combination of that number in the order of the whole grid, in which the last path changes fastest."""
    chosen: dict[str, Any] = {}
    for path, given in reversed(list(lists.items())):
        number, place = divmod(number, len(given))
        chosen[path] = given[place]
    return {path: chosen[path] for path in lists}


def _drawn(distribution: Any, draw: Any) -> Any:
    return distribution.rvs(random_state=draw).item()


def with_settings(job: Job, settings: Settings, made: dict[str, Any] | None = None) -> Job:
    """The job with other options, as `--set` would change it. InputError for a path that is not there or may not be searched.

    made: parts of other settings' jobs; what is equal is the same object, so that fits with the same learner share their data.
    """
    tables: dict[str, Any] = {}
    made = {} if made is None else made
    for path, value in settings.items():
        head, *parents = path.split(".")
        if head not in SEARCHED:
            raise InputError(
                f"search {path}: only what is trained can be searched, on the same rows for all{did_you_mean(head, SEARCHED)}"
            )
        if not parents:
            tables[head] = value
            continue
        table = tables.setdefault(head, _readable(head, getattr(job, head)))
        *parents, last = parents
        for parent in parents:
            table = table.setdefault(parent, {}) if isinstance(table, dict) else table
        if not isinstance(table, dict):
            raise InputError(f"search {path}: {'.'.join(path.split('.')[:-1])} is a value, not a table")
        table[last] = value
    keys = {head: f"{head} = {table!r}" for head, table in tables.items()}
    for head, table in tables.items():
        if keys[head] not in made:
            made[keys[head]] = _built(head, table)
    return replace(job, **{head: made[key] for head, key in keys.items()})


SEARCHED = ("learner", "algorithm", "preparation", "transforms", "rounds", "evaluation")
"""Fields of a job whose options can be searched. Data, partition, split and seed say on which rows, and are the same for all."""


def _readable(head: str, part: Any) -> dict[str, Any]:
    """The table of a part of the job, as a file would hold it. InputError where the part is an object that no table can give back."""
    table = _written(part)
    try:
        if isinstance(table, dict) and describe(_built(head, table)) == describe(part):
            return table
    except InputError as error:
        why = f" ({error})"
    else:
        why = ""
    raise InputError(
        f"search {head}: {type(part).__name__} was given as an object whose options cannot be changed by their paths{why}; "
        f"give the part by name, or whole tables as values of {head!r}"
    )


def _written(part: Any) -> Any:
    """A part as a table of the options that are not at their defaults: another name need not know the others."""
    if not is_dataclass(part) or isinstance(part, type) or hasattr(part, "plain"):
        return describe(part)
    table = {}
    for name, option in option_fields(type(part)).items():
        value, default = getattr(part, name), option.default
        if option.default_factory is not MISSING:
            default = option.default_factory()
        if value is not None and (name == "name" or value != default):
            table[name] = _written(value)
    return table


def _built(head: str, table: Any) -> Any:
    if head == "transforms":
        return tuple(build("transform", item, f"transforms[{place}]") for place, item in enumerate(table))
    return build({"rounds": Rounds, "evaluation": Evaluation}.get(head) or POLYMORPHIC[head], table, head)


def _candidates(job: Job, plan: _Plan) -> list[Job]:
    """The job of each setting, checked. InputError names the setting that cannot work."""
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
    job: Job, plan: _Plan, candidates: Sequence[Job], folder: RunFolder, began: float, quiet: bool, progress: Progress
) -> Search:
    with _recorded(folder, began):
        ended = folder.read_json("fits.json") if folder.has("fits.json") else {}
        _fit(job, plan, candidates, folder, ended, progress)
        table = tuple(_trial(plan, number, settings, ended) for number, settings in enumerate(plan.settings))
        _write(folder, plan, table)
        sign = 1.0 if plan.by in metric.HIGHER_IS_BETTER else -1.0
        able = [number for number, trial in enumerate(table) if not trial.failure and not math.isnan(trial.mean)]
        if not able:
            raise RunFailed(f"search: no setting has a score; the first one: {table[0].failure or f'{plan.by} is not a number'}")
        best = max(able, key=lambda number: sign * table[number].mean)
        done = _refitted(candidates[best], folder, quiet) if plan.refit else None
        seconds = time.perf_counter() - began
        folder.set_status("finished", rounds=sum(sum(trial.rounds) for trial in table), seconds=seconds)
        return Search(job, table, plan.by, plan.folds, candidates[best], table[best], done, folder.path, seconds)


def _fit(job: Job, plan: _Plan, candidates: Sequence[Job], folder: RunFolder, ended: dict[str, Any], progress: Progress) -> None:
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


def _trial(plan: _Plan, number: int, settings: Settings, ended: Mapping[str, Any]) -> Trial:
    told = [ended[_name(number, fold)] for fold in range(max(1, plan.folds))]
    scores = tuple(math.nan if one["failure"] else _number(one["metrics"][plan.by]) for one in told)
    failure = next((one["failure"] for one in told if one["failure"]), "")
    error = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 and not any(map(math.isnan, scores)) else math.nan
    return Trial(settings, scores, fmean(scores), error, tuple(one["rounds"] for one in told), failure)


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # JSON has no NaN


def _refitted(best: Job, folder: RunFolder, quiet: bool) -> Run:
    begun = [one for one in list_runs(folder.path / "refit") if one.status != "damaged"]
    return resume(begun[0].path, best, quiet=quiet) if begun else run(best, directory=folder.path / "refit", quiet=quiet)


# What is kept


def _plain(trial: Trial) -> dict[str, Any]:
    return {
        "settings": dict(trial.settings), "scores": list(trial.scores), "mean": trial.mean, "error": trial.error,
        "rounds": list(trial.rounds), "status": trial.status, "failure": trial.failure,
    }  # fmt: skip


def _write(folder: RunFolder, plan: _Plan, table: Sequence[Trial]) -> None:
    folder.write_json("table.json", {"by": plan.by, "folds": plan.folds, "table": [_plain(trial) for trial in table]})
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    paths = list(plan.settings[0])
    rows.writerow(
        [*paths, *(f"fold {fold}" for fold in range(plan.folds)), "mean", "standard error", "rounds", "status", "failure"]
    )
    for trial in table:
        scores = (_cell(score) for score in trial.scores[: plan.folds])
        figures = (_cell(trial.mean), _cell(trial.error), " ".join(map(str, trial.rounds)))
        rows.writerow([*(trial.settings[path] for path in paths), *scores, *figures, trial.status, trial.failure])
    folder.write_text("table.csv", text.getvalue())


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


@contextmanager
def _recorded(folder: RunFolder, began: float) -> Iterator[None]:
    """Write how the search stands into its folder, whatever way it ends."""
    folder.set_status("running")
    try:
        yield
    except KeyboardInterrupt as stop:
        folder.set_status("interrupted", seconds=time.perf_counter() - began)
        stop.add_note(f"go on with: hansa resume {folder.path}")
        raise
    except HansaError as error:
        folder.set_status("failed", seconds=time.perf_counter() - began, error=str(error))
        raise
    finally:
        folder.close()
