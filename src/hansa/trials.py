"""The table of a search: a row for each setting, with its scores."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from hansa.settings import Settings
from hansa.tracking.folder import RunFolder


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


def trial_of(settings: Settings, told: Sequence[Mapping[str, Any]], by: str) -> Trial:
    """The row of a setting whose fits, one for each fold, came to what is told of them; ``by`` is the metric."""
    scores = tuple(math.nan if one["failure"] else _number(one["metrics"][by]) for one in told)
    failure = next((one["failure"] for one in told if one["failure"]), "")
    error = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 and not any(map(math.isnan, scores)) else math.nan
    return Trial(settings, scores, fmean(scores), error, tuple(one["rounds"] for one in told), failure)


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # JSON has no NaN


def plain(trial: Trial) -> dict[str, Any]:
    """A row as JSON-plain values."""
    return {
        "settings": dict(trial.settings), "scores": list(trial.scores), "mean": trial.mean, "error": trial.error,
        "rounds": list(trial.rounds), "status": trial.status, "failure": trial.failure,
    }  # fmt: skip


def write_table(folder: RunFolder, by: str, folds: int, table: Sequence[Trial]) -> None:
    """Write ``table.json``, and ``table.csv`` for spreadsheets."""
    folder.write_json("table.json", {"by": by, "folds": folds, "table": [plain(trial) for trial in table]})
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    paths = list(table[0].settings)
    rows.writerow([*paths, *(f"fold {fold}" for fold in range(folds)), "mean", "standard error", "rounds", "status", "failure"])
    for trial in table:
        scores = (_cell(score) for score in trial.scores[:folds])
        figures = (_cell(trial.mean), _cell(trial.error), " ".join(map(str, trial.rounds)))
        rows.writerow([*(trial.settings[path] for path in paths), *scores, *figures, trial.status, trial.failure])
    folder.write_text("table.csv", text.getvalue())


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
