"""Searches: many fits at once are what each is alone, the best is the best, failures are rows, and nothing is lost by kill -9."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy import stats
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.preprocessing import StandardScaler

import hansa
from hansa import judging, opening, training
from hansa.cli.main import main
from hansa.core import metrics as metric
from hansa.core.updates import Failure
from hansa.data.folds import Fold, Interleaved
from hansa.fits import Failed, Fit, Fitted, fit_many
from hansa.settings import with_settings
from hansa.tracking.folder import RunFolder
from hansa.tracking.report import write_report
from tests.conformance.problem import same_bits

RATE, COUNT = "algorithm.local.learning_rate", "rounds.count"

JOB = """
name = "short"
[data]
name = "breast_cancer"
[partition]
name = "dirichlet"
clients = 5
alpha = 1.0
[split]
validation = 0.2
[preparation]
name = "standard"
[learner]
name = "sklearn"
[algorithm]
name = "scaffold"
[algorithm.local]
batch_size = 16
[rounds]
count = 3
block = 2
"""


def job(**changes: Any) -> hansa.Job:
    from hansa.job import from_text

    return replace(from_text(JOB), **changes)


def alone(one: hansa.Job, split: str) -> tuple[dict[str, Any], int, dict[str, float]]:
    """A job by itself: its params, the rounds it played, and the metrics of one split."""
    setting = opening.open_setting(one, opening.clients_of(one))
    try:
        state = training.prepare(setting)
        for after, _ in training.train(setting, state):
            state = after
        params = judging.chosen_params(one, state)
        schema, _ = setting.bound(state["preparation"])
        _, total = judging.per_client(setting, schema, params, split, state["round"])
    finally:
        setting.engine.stop()
    return params, state["round"], metric.values(total)


# The same bits


@dataclass(frozen=True)
class Many:
    """Fits of unlike jobs, and what each gives alone: its params, the rounds it played, and its scores."""

    populations: tuple[Any, ...]
    fits: tuple[Fit, ...]
    alone: Mapping[str, tuple[dict[str, Any], int, dict[str, float]]]


@pytest.fixture(scope="module")
def many() -> Many:
    """Algorithms with and without client state, of sums and of single updates; other learners, preparations, rounds and folds."""
    from hansa.algorithms.fedmedian import FedMedian

    local = hansa.Local(learning_rate=0.05, batch_size=16)
    weak = hansa.Sklearn(options={"C": 0.01})
    kinds = {
        "scaffold": job(rounds=hansa.Rounds(count=2, block=2)),
        "median": job(algorithm=FedMedian(local=local), rounds=hansa.Rounds(count=2, block=3, clients=0.6)),
        "newton": job(algorithm=hansa.Newton(), learner=weak, evaluation=hansa.Evaluation(best=True)),
        "raw": job(algorithm=hansa.FedAvg(local=hansa.Local(learning_rate=1e-7)), preparation=None),
    }
    splits = [Fold.of(job().split, number, 3) for number in range(3)]
    populations = tuple(opening.clients_of(job(split=split)) for split in splits)
    fits = tuple(
        Fit(f"{name} {number}", replace(one, split=split), populations[number], number, 3, "fold")
        for name, one in kinds.items()
        for number, split in enumerate(splits)
    )
    return Many(populations, fits, {fit.name: alone(fit.job, "fold") for fit in fits})


@pytest.mark.parametrize("engine", [hansa.Inline(), hansa.Processes(workers=2)], ids=lambda engine: engine.name)
def test_a_fit_among_many_has_the_bits_of_its_job_alone(many: Many, engine: Any) -> None:
    done = dict(fit_many(engine.build(), Interleaved(many.populations), many.fits))
    for fit in many.fits:
        fitted, (params, rounds, scores) = done[fit.name], many.alone[fit.name]
        assert isinstance(fitted, Fitted)
        assert same_bits(fitted.params, params), fit.name
        assert fitted.rounds == rounds and fitted.scores == scores


def test_scores_and_the_best_are_those_of_a_loop_over_jobs(tmp_path: Path) -> None:
    space = {RATE: [0.001, 0.05], COUNT: [1, 3]}
    done = hansa.search(job(), space, folds=3, by="auc", directory=tmp_path, quiet=True)
    looped = []
    for rate in space[RATE]:
        for count in space[COUNT]:
            one = with_settings(job(), {RATE: rate, COUNT: count})
            folds = [replace(one, split=Fold.of(one.split, number, 3)) for number in range(3)]
            looped.append([alone(fold, "fold")[2]["auc"] for fold in folds])
    assert [list(trial.scores) for trial in done.table] == looped
    assert [trial.mean for trial in done.table] == pytest.approx(np.mean(looped, axis=1))
    assert [trial.error for trial in done.table] == pytest.approx(np.std(looped, axis=1, ddof=1) / math.sqrt(3))
    best = int(np.argmax(np.mean(looped, axis=1)))
    assert done.chosen == done.table[best]
    assert done.best == with_settings(job(), done.chosen.settings)
    assert [trial.rounds for trial in done.table] == [(1, 1, 1), (3, 3, 3)] * 2


def test_without_folds_the_validation_rows_judge(tmp_path: Path) -> None:
    done = hansa.search(job(), {RATE: [0.001, 0.05]}, folds=0, refit=True, directory=tmp_path, quiet=True)
    runs = [hansa.run(with_settings(job(), {RATE: rate}), directory=tmp_path, quiet=True) for rate in (0.001, 0.05)]
    losses = [run.metrics["validation/loss"] for run in runs]
    assert [trial.mean for trial in done.table] == losses
    best = runs[int(np.argmin(losses))]
    assert done.run is not None and same_bits(done.run.params, best.params)
    assert done.run.directory.is_relative_to(done.directory)


def test_fold_scores_are_scikit_learns(tmp_path: Path) -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    one = hansa.Job(
        data=hansa.from_arrays(x, y), learner=LogisticRegression(), algorithm=hansa.Newton(tolerance=1e-12),
        partition=hansa.IID(clients=1), split=hansa.Split(test=0.0), seed=5,
    )  # fmt: skip
    grid = [0.01, 0.1, 1.0]
    (client,) = opening.clients_of(one)
    own = client.load()["train"]
    cut = [Fold.of(one.split, number, 5).indices(own.y, (5, client.id), "classification")["fold"] for number in range(5)]
    where = np.empty(len(y), dtype=np.int64)
    for number, held in enumerate(cut):
        where[held] = number
    for by, scoring in (("loss", "neg_log_loss"), ("accuracy", "accuracy")):
        done = hansa.search(one, {"learner.options.C": grid}, by=by, directory=tmp_path, quiet=True)
        for trial, c in zip(done.table, grid, strict=True):
            estimator = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=1000)
            theirs = cross_val_score(estimator, own.x, own.y, cv=PredefinedSplit(where), scoring=scoring)
            np.testing.assert_allclose(trial.scores, abs(theirs), rtol=0, atol=1e-6)


# What is tried


def test_random_settings_are_drawn_by_the_seed_and_without_repetition(tmp_path: Path) -> None:
    space = {RATE: [0.001, 0.01, 0.1], COUNT: [1, 2]}

    def drawn(seed: int, number: int, over: dict[str, Any]) -> list[dict[str, Any]]:
        quick = job(seed=seed, preparation=None, algorithm=hansa.FedAvg(local=hansa.Local()))
        done = hansa.search(quick, over, folds=0, random=number, directory=tmp_path, quiet=True)
        return [dict(trial.settings) for trial in done.table]

    four = drawn(1, 4, space)
    assert len({tuple(one.items()) for one in four}) == 4
    assert four == drawn(1, 4, space)
    assert four != drawn(2, 4, space)
    assert len(drawn(1, 99, space)) == 6
    rates = [one[RATE] for one in drawn(1, 3, {RATE: stats.loguniform(1e-4, 1e-2), COUNT: [1]})]
    assert len(set(rates)) == 3 and all(1e-4 <= rate <= 1e-2 for rate in rates)


def test_settings_are_what_set_would_make_of_the_job() -> None:
    from hansa.job import from_text

    changed = with_settings(job(), {"algorithm.name": "fedprox", "algorithm.mu": 0.1, "learner.options.C": 0.5, COUNT: 7})
    assigned = ("algorithm.name=fedprox", "algorithm.mu=0.1", "learner.options.C=0.5", "rounds.count=7")
    assert changed == from_text(JOB, assigned)
    assert with_settings(job(), {"algorithm": {"name": "newton"}}).algorithm == hansa.Newton()


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "nothing": ({}, {}, "nothing to try"),
    "list of spaces": ([{COUNT: [3]}], {}, "the space is a list, and it is one table"),  # type: ignore[dict-item]
    "bare name": ({"C": [1.0, 2.0]}, {}, "an option of the estimator is learner.options.C"),
    "name of scikit-learn's": ({"logisticregression__C": [1.0]}, {}, "an option of the estimator is learner.options.C"),
    "folds as text": ({COUNT: [3]}, {"folds": "5"}, r"folds = '5' is no whole number \(write 5\)"),
    "no list": ({COUNT: 3}, {}, "give the values to try as a list"),
    "twice": ({COUNT: [3, 3]}, {}, "give different values"),
    "unknown": ({"rounds.cuont": [3]}, {}, "did you mean 'count'"),
    "data": ({"data.name": ["iris", "digits"]}, {}, "only what is trained can be searched"),
    "value": ({RATE: [0.1, -1.0]}, {}, "learning_rate = -1.0"),
    "object": ({"algorithm": [hansa.Newton()]}, {}, "is no plain value"),
    "through a value": ({"rounds.count.most": [3]}, {}, "is a value, not a table"),
    "below a name": (
        {"algorithm.server": ["adam"], "algorithm.server.tau": [0.1]},
        {},
        r"algorithm\.server is a value, not a table \(write algorithm\.server\.name in the place of algorithm\.server\)",
    ),
    "one fold": ({COUNT: [3]}, {"folds": 1}, "folds = 1"),
    "no validation rows": ({COUNT: [3]}, {"folds": 0}, "set split.validation"),
    "endless": ({RATE: stats.uniform()}, {}, "give random="),
    "nobody": ({COUNT: [3]}, {"at_once": 0}, "at_once = 0"),
}


@pytest.mark.parametrize(("space", "options", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_searched_is_refused_before_any_work(
    space: dict[str, Any], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(hansa.InputError, match=sentence) as error:
        hansa.search(job(split=hansa.Split()), space, directory=tmp_path, quiet=True, **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_metric_is_refused_by_the_first_fit(tmp_path: Path) -> None:
    with pytest.raises(hansa.InputError, match="by = 'acuracy': there is no such metric"):
        hansa.search(job(), {COUNT: [1, 2]}, by="acuracy", directory=tmp_path, quiet=True)


# Failures


class Unlucky(hansa.FedAvg):
    """FedAvg that raises at one client."""

    def work(self, learner, message, block):  # type: ignore[no-untyped-def]  # as a user writes it
        if block.clients[0].id == "client-004":
            raise OSError("no luck today")
        return super().work(learner, message, block)


def test_a_setting_that_diverges_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    done = hansa.search(job(), {RATE: [0.05, 1e300]}, folds=2, directory=tmp_path, quiet=True)
    good, bad = done.table
    assert (good.status, bad.status) == ("finished", "failed")
    assert "Diverged: round 1, client" in bad.failure and "lower algorithm.local.learning_rate" in bad.failure
    assert all(math.isnan(score) for score in (*bad.scores, bad.mean, bad.error)) and bad.rounds == (0, 0)
    assert done.chosen == good
    by_itself = hansa.search(job(), {RATE: [0.05]}, folds=2, directory=tmp_path, quiet=True)
    assert good.scores == by_itself.table[0].scores


def test_what_a_client_raises_is_the_value_of_its_fit() -> None:
    local = hansa.Local(learning_rate=0.05)
    clients = opening.clients_of(job())
    jobs = {
        "good": job(algorithm=hansa.FedAvg(local=local)),
        "bad": job(algorithm=Unlucky(local=local), rounds=hansa.Rounds(block=1)),
    }
    done = dict(fit_many(hansa.Inline().build(), clients, [Fit(name, one, clients) for name, one in jobs.items()]))
    assert isinstance(done["good"], Fitted) and done["good"].rounds == 3
    bad = done["bad"]
    assert isinstance(bad, Failed) and not isinstance(bad, Failure)
    assert "client client-004: OSError: no luck today" in bad.message
    assert "Traceback" in bad.traceback and "\n" not in bad.message


def test_a_search_without_any_score_is_a_failed_one_and_keeps_its_table(tmp_path: Path) -> None:
    with pytest.raises(hansa.RunFailed, match="no setting has a score; the first that failed: Diverged"):
        hansa.search(job(), {RATE: [1e300, 1e301]}, folds=2, directory=tmp_path, quiet=True)
    (folder,) = tmp_path.iterdir()
    told = json.loads((folder / "table.json").read_text())
    assert [row["status"] for row in told["table"]] == ["failed", "failed"]
    assert RunFolder.open(folder).status()["status"] == "failed"


# The folder


def test_more_folds_than_any_client_has_rows_for_are_refused_with_what_to_write(tmp_path: Path) -> None:
    learner = LogisticRegression()
    job = hansa.Job(hansa.BuiltIn("iris"), learner, hansa.Newton(), partition=hansa.IID(clients=30), engine=hansa.Inline())
    with pytest.raises(hansa.InputError, match=r"no client has rows for some of the 5 folds \(write fewer folds"):
        hansa.search(job, {"learner.options.C": [1.0, 2.0]}, folds=5, directory=tmp_path)


KILLED_AFTER = """
import os, signal, sys
import hansa
from hansa.job import from_text

left = int(sys.argv[1])

def tell(done, of, what):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

space = {"algorithm.local.learning_rate": [0.01, 0.1], "rounds.count": [2, 3]}
hansa.search(from_text(sys.stdin.read()), space, folds=2, at_once=2, refit=True, directory=sys.argv[2], quiet=True, progress=tell)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> hansa.Search:
    space, folder = {RATE: [0.01, 0.1], COUNT: [2, 3]}, tmp_path_factory.mktemp("whole")
    return hansa.search(job(), space, folds=2, at_once=2, refit=True, directory=folder, quiet=True)


@pytest.mark.parametrize("rounds", [1, 20])
def test_kill_9_then_resume_gives_the_same_table(rounds: int, whole: hansa.Search, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AFTER, str(rounds), str(tmp_path)]
    died = subprocess.run(command, input=JOB, text=True, capture_output=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    (folder,) = tmp_path.iterdir()
    ended = json.loads((folder / "fits.json").read_text()) if (folder / "fits.json").exists() else {}
    assert (rounds == 1) == (not ended) and len(ended) < 8
    told: list[str] = []
    resumed = hansa.resume_search(folder, quiet=True, progress=lambda done, of, what: told.append(what))
    assert resumed.table == whole.table and resumed.best == whole.best
    assert resumed.run is not None and whole.run is not None and same_bits(resumed.run.params, whole.run.params)
    assert told[0] == f"{len(ended)} of 8 fits"
    left = [row for name, row in json.loads((folder / "fits.json").read_text()).items() if name not in ended]
    assert len(told) == sum(row["rounds"] for row in left) + len(left)  # no round of a fit that had ended was played again
    assert RunFolder.open(folder).status()["status"] == "finished"
    assert not list(folder.glob("clients.sqlite*"))


def test_the_folder_holds_the_table(tmp_path: Path) -> None:
    done = hansa.search(job(), {RATE: [0.01, 1e300]}, folds=2, directory=tmp_path, quiet=True)
    told = json.loads((done.directory / "table.json").read_text())
    assert told["table"][0]["mean"] == done.table[0].mean and told["table"][1]["mean"] is None
    with (done.directory / "table.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["mean"]) == done.table[0].mean and float(first["fold 1"]) == done.table[0].scores[1]
    assert first[RATE] == "0.01" and second["mean"] == "" and second["status"] == "failed"
    assert all(path.stat().st_mode & 0o077 == 0 for path in done.directory.iterdir())


def test_the_report_of_a_search_shows_its_table(tmp_path: Path) -> None:
    done = hansa.search(job(), {RATE: [1e300, 0.01]}, folds=2, directory=tmp_path, quiet=True)
    text = write_report(RunFolder.open(done.directory)).read_text()
    assert "2 settings, judged on 2 folds" in text and "Diverged: round 1" in text and RATE in text
    assert text.index('<th scope="row">0.01</th>') < text.index('<th scope="row">1e+300</th>')


def test_resume_refuses_other_data_other_jobs_and_other_folders(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).standard_normal((90, 3)), np.arange(90) % 2
    one = hansa.Job(
        data=hansa.from_arrays(x, y), learner=LogisticRegression(), algorithm=hansa.FedAvg(), partition=hansa.IID(clients=2)
    )
    done = hansa.search(one, {COUNT: [1, 2]}, folds=2, directory=tmp_path, quiet=True)
    assert hansa.resume_search(done.directory, one, quiet=True).table == done.table
    with pytest.raises(hansa.InputError, match="is not the one of the search"):
        hansa.resume_search(done.directory, replace(one, seed=7), quiet=True)
    with pytest.raises(hansa.InputError, match="started from Python"):
        hansa.resume_search(done.directory, quiet=True)
    with pytest.raises(hansa.InputError, match="is a search, not a run"):
        hansa.resume(done.directory, one, quiet=True)
    folder = RunFolder.open(done.directory)
    kept = folder.read_json("fits.json")
    folder.write_json("fits.json", {name: kept[name] for name in list(kept)[:3]})
    with pytest.raises(hansa.InputError, match="the data has changed"):
        hansa.resume_search(done.directory, replace(one, data=hansa.from_arrays(x + 1, y)), quiet=True)
    run = hansa.run(one, directory=tmp_path / "runs", quiet=True)
    with pytest.raises(hansa.InputError, match="is no search"):
        hansa.resume_search(run.directory, one, quiet=True)


# The verb


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


def test_the_verb_shows_the_table_and_what_to_set(path: Path, tmp_path: Path) -> None:
    done = call("search", path, "--grid", f"{RATE}=0.01,0.1,1e300", "--grid", "algorithm.name=fedavg,scaffold", "--folds", "2",
                "--by", "accuracy", "--runs", tmp_path / "runs", "--refit")  # fmt: skip
    assert done.exit_code == 0 and done.stderr == "", done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "6 settings, judged on 2 folds of every client's training rows; mean ± standard error"
    assert lines[1].split() == [RATE, "algorithm.name", "accuracy", "rounds"]
    assert sum("failed" in line for line in lines[2:8]) == 2 and all(line == line.rstrip() for line in lines)
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"search  {folder}" in done.stdout and "test/accuracy" in done.stdout
    (best,) = (line for line in lines if line.startswith("best "))
    assert f"--set {RATE}={lines[2].split()[0]} --set algorithm.name={lines[2].split()[1]}" in best


def test_the_verb_tells_machines_the_same_when_it_is_resumed(path: Path, tmp_path: Path) -> None:
    first = call("search", path, "--grid", f"{COUNT}=1,2", "--folds", "0", "--random", "1", "--runs", tmp_path / "runs", "--json")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert len(told["table"]) == 1 and told["best"] == told["table"][0]["settings"] and told["by"] == "loss"
    again = call("resume", told["search"], "--json")
    assert again.exit_code == 0, again.output
    assert {**json.loads(again.stdout), "seconds": 0} == {**told, "seconds": 0}


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ((COUNT,), "write it as key=value,value"),
        ((f"{COUNT}=",), "write it as key=value,value"),
        ((f"{COUNT}=1", f"{COUNT}=2"), "is given twice"),
        (("rounds.cuont=1",), "did you mean 'count'"),
    ],
)
def test_the_verb_refuses_in_one_line(grid: tuple[str, ...], sentence: str, path: Path, tmp_path: Path) -> None:
    done = call("search", path, *(word for one in grid for word in ("--grid", one)), "--runs", tmp_path / "runs")
    assert done.exit_code == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hansa: ") and sentence in line


def test_a_terminal_sees_a_live_line(path: Path, tmp_path: Path) -> None:
    """On a pseudo-terminal: the line says how far the search is, and is gone in the end."""
    import pty

    master, slave = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "hansa.cli.main",
        "search",
        str(path),
        "--grid",
        f"{COUNT}=1,2",
        "--folds",
        "2",
        "--runs",
        str(tmp_path),
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        seen = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # the other side was closed
                break
            if not part:
                break
            seen += part
        shown = process.stdout.read() if process.stdout is not None else b""
        assert process.wait(120) == 0
    os.close(master)
    assert b"searching" in seen and b"4 fits" in seen
    assert shown.startswith(b"2 settings")
