"""Runs: what is kept, and that nothing is lost: kill -9 at any stage of a round, resume, the same bits."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import hansa
from hansa.core import accounting
from hansa.job import from_text, load
from hansa.tracking.folder import RunFolder
from tests.conformance.problem import same_bits
from tests.killed import run_killed_at

JOB = """
name = "short"
[data]
name = "heart_disease"
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
learning_rate = 0.05
[rounds]
count = 4
block = 3
[evaluation]
best = true
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> hansa.Run:
    return hansa.run(from_text(JOB), directory=tmp_path_factory.mktemp("whole"), quiet=True)


# The first three rounds fit the preparation (and one more describes the data), the others train.
@pytest.mark.parametrize(
    ("stage", "time"),
    [
        ("work", 1),
        ("update", 3),
        ("broadcast", 6),
        ("work", 7),
        ("reduce", 6),
        ("update", 7),
        ("evaluate", 2),
        ("save", 2),
        ("saved", 2),
        ("saved", 4),
    ],
)
def test_kill_9_at_any_stage_then_resume_gives_the_same_bits(whole: hansa.Run, tmp_path: Path, stage: str, time: int) -> None:
    assert run_killed_at(JOB, stage, time, tmp_path) == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    resumed = hansa.resume(folder, quiet=True)
    assert same_bits(resumed.params, whole.params)
    untimed = [[accounting.untimed(record) for record in run.history] for run in (resumed, whole)]
    assert untimed[0] == untimed[1]
    assert RunFolder.open(folder).status()["status"] == "finished"


def test_a_fresh_process_gives_the_same_bits(whole: hansa.Run, tmp_path: Path) -> None:
    assert run_killed_at(JOB, "never", 1, tmp_path) == 0
    (folder,) = tmp_path.iterdir()
    assert same_bits(RunFolder.open(folder).load_params(), whole.params)


def test_a_run_that_is_over_can_be_resumed_and_stays_what_it_is(whole: hansa.Run) -> None:
    again = hansa.resume(whole.directory, quiet=True)
    assert same_bits(again.params, whole.params)
    assert len(again.history) == 4


def test_the_folder_holds_what_the_run_returned(whole: hansa.Run) -> None:
    folder = RunFolder.open(whole.directory)
    assert same_bits(folder.load_params(), whole.params)
    assert folder.metrics() == whole.history
    told = json.loads((whole.directory / "clients.json").read_text())
    assert {f"test/{name}": value for name, value in told["overall"].items()} == {
        name: value for name, value in whole.metrics.items() if name.startswith("test/")
    }
    assert set(whole.by_client) == {"Cleveland", "Hungary", "Switzerland", "VA Long Beach"}
    assert (whole.directory / "report.html").stat().st_size > 10_000
    assert all(path.stat().st_mode & 0o077 == 0 for path in whole.directory.iterdir())


def test_the_best_model_on_the_validation_rows_is_given_back(whole: hansa.Run) -> None:
    losses = [record["validation/loss"] for record in whole.history]
    assert whole.metrics["validation/loss"] == min(losses)


def test_block_size_belongs_to_the_job(whole: hansa.Run, tmp_path: Path) -> None:
    other = hansa.run(from_text(JOB, ("rounds.block=4",)), directory=tmp_path, quiet=True)
    for name in whole.params:
        np.testing.assert_allclose(other.params[name], whole.params[name], rtol=1e-9)


def test_early_stopping(tmp_path: Path) -> None:
    run = hansa.run(
        from_text(JOB, ("rounds.count=200", "evaluation.patience=3", "evaluation.least=0.001")), directory=tmp_path, quiet=True
    )
    assert len(run.history) < 200
    assert "no better loss" in run.ended


@pytest.mark.parametrize("options", ["evaluation.best=true", "evaluation.patience=3", "evaluation.best=false"])
def test_a_metric_that_there_is_not_is_refused_before_training(options: str, tmp_path: Path) -> None:
    seen: list[str] = []
    job = from_text(JOB, ("evaluation.watch='acuracy'", options))
    with pytest.raises(hansa.InputError, match=r"evaluation.watch = 'acuracy': learner 'sklearn' measures no .*mean 'accuracy'"):
        hansa.run(job, directory=tmp_path, quiet=True, observe=seen.append)
    assert seen.count("update") == 4  # the description of the data, and its preparation
    with pytest.raises(hansa.InputError, match=r"allowed: accuracy, auc, loss"):
        hansa.run(replace(job, evaluation=replace(job.evaluation, watch="mse")), directory=tmp_path, quiet=True)


def test_divergence_names_round_and_client_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    job = from_text(JOB, ("algorithm.local.learning_rate=1e300", "rounds.count=20"))
    with pytest.raises(hansa.Diverged, match=r"round \d+, client \w+") as error, np.errstate(all="ignore"):
        hansa.run(job, directory=tmp_path, quiet=True)
    (folder,) = tmp_path.iterdir()
    assert "lower algorithm.local.learning_rate" in str(error.value)
    state = RunFolder.open(folder).load_state()
    assert all(np.isfinite(value).all() for value in state["algorithm"]["params"].values())
    assert RunFolder.open(folder).status()["status"] == "failed"


def test_resume_refuses_other_data_and_other_jobs(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).standard_normal((60, 3)), np.arange(60) % 2
    job = hansa.Job(
        data=hansa.from_arrays(x, y), learner=LogisticRegression(), algorithm=hansa.FedAvg(), partition=hansa.IID(clients=2),
        rounds=hansa.Rounds(count=2),
    )  # fmt: skip
    run = hansa.run(job, directory=tmp_path, quiet=True)
    assert same_bits(hansa.resume(run.directory, job, quiet=True).params, run.params)
    with pytest.raises(hansa.InputError, match="the data has changed"):
        hansa.resume(run.directory, replace(job, data=hansa.from_arrays(x + 1, y)), quiet=True)
    with pytest.raises(hansa.InputError, match="is not the one of the run"):
        hansa.resume(run.directory, replace(job, seed=7), quiet=True)
    with pytest.raises(hansa.InputError, match="started from Python"):
        hansa.resume(run.directory, quiet=True)
    assert RunFolder.open(run.directory).status()["status"] == "finished"
    with pytest.raises(hansa.InputError, match="no such run folder"):
        hansa.resume(tmp_path / "none")


def test_a_damaged_state_is_refused(whole: hansa.Run, tmp_path: Path) -> None:
    run = hansa.run(from_text(JOB), directory=tmp_path, quiet=True)
    path = run.directory / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(hansa.InputError, match="damaged"):
        hansa.resume(run.directory, quiet=True)


def test_a_quorum_keeps_a_run_going_without_the_clients_that_fail(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).standard_normal((90, 3)), np.arange(90) % 2
    job = hansa.Job(
        data=hansa.from_arrays(x, y), learner=LogisticRegression(), algorithm=Unlucky(), partition=hansa.IID(clients=3),
        rounds=hansa.Rounds(count=2, block=1, quorum=0.6), split=hansa.Split(test=0.0),
    )  # fmt: skip
    run = hansa.run(job, directory=tmp_path, quiet=True)
    assert [record["clients"] for record in run.history] == [2, 2]
    assert run.history[0]["failures"][0]["clients"] == ["client-001"]
    with pytest.raises(hansa.RunFailed, match=r"client client-001.*no luck") as error:
        hansa.run(replace(job, rounds=replace(job.rounds, quorum=1.0)), directory=tmp_path, quiet=True)
    assert "Traceback" in str(error.value)
    with pytest.raises(hansa.RunFailed, match="the quorum is 90%"):
        hansa.run(replace(job, rounds=replace(job.rounds, quorum=0.9)), directory=tmp_path, quiet=True)


class Unlucky(hansa.FedAvg):
    """FedAvg whose client 1 always raises."""

    def work(self, learner, message, block):  # type: ignore[no-untyped-def]  # as a user writes it
        if block.clients[0].id.endswith("1"):
            raise OSError("no luck today")
        return super().work(learner, message, block)


EDITED = {
    "an option": ("learning_rate = 0.05", "learning_rate = 0.1", r"algorithm\.local\.learning_rate is 0\.1 and was 0\.05"),
    "fewer rounds than were played": ("count = 4", "count = 3", r"rounds\.count is 3 and was 4"),
    "another algorithm": ('name = "scaffold"', 'name = "fedavg"', r"algorithm\.name is 'fedavg' and was 'scaffold'"),
    "what no job can be": ('name = "scaffold"', 'name = "nothing"', r"algorithm\.name is 'nothing' and was 'scaffold'"),
    "an option left out": ("stratify = true\n", "", ""),
    "where the work is done": ('[engine]\nname = "inline"', '[engine]\nname = "processes"\nworkers = 1', ""),
    "only the text": ("[split]", "# rows held out\n[split]  ", ""),
}


@pytest.mark.parametrize(("old", "new", "said"), EDITED.values(), ids=EDITED.keys())
def test_a_run_goes_on_with_the_job_that_it_was_started_with(
    whole: hansa.Run, tmp_path: Path, old: str, new: str, said: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.directory, folder)
    text = (folder / "job.toml").read_text()
    assert text.count(old) == 1
    (folder / "job.toml").write_text(text.replace(old, new))
    if not said:
        assert same_bits(hansa.resume(folder, quiet=True).params, whole.params)
        return
    with pytest.raises(
        hansa.InputError, match=f"job.toml is not the job that was started: {said} \\(write it as it was, or"
    ) as error:
        hansa.resume(folder, quiet=True)
    assert "\n" not in str(error.value)
    with pytest.raises(hansa.InputError, match=r"is not the one of the run: rounds\.block is 4 and was 3 \(give"):
        hansa.resume(folder, from_text(JOB, ("rounds.block=4",)), quiet=True)
    assert same_bits(hansa.resume(folder, from_text(JOB), quiet=True).params, whole.params)


@pytest.mark.parametrize("given", [True, False])
def test_a_run_may_go_on_for_longer(whole: hansa.Run, tmp_path: Path, given: bool) -> None:
    short = hansa.run(from_text(JOB, ("rounds.count=2",)), directory=tmp_path, quiet=True)
    path = short.directory / "job.toml"
    if not given:
        path.write_text(path.read_text().replace("count = 2", "count = 4"))
    longer = hansa.resume(short.directory, from_text(JOB) if given else None, quiet=True)
    assert same_bits(longer.params, whole.params) and load(path) == from_text(JOB)


def test_a_run_whose_rates_depend_on_its_end_does_not_go_on_for_longer(tmp_path: Path) -> None:
    falling = "rounds.schedule={name='cosine',floor=0.1}"
    short = hansa.run(from_text(JOB, ("rounds.count=2", falling)), directory=tmp_path, quiet=True)
    with pytest.raises(hansa.InputError, match=r"rounds\.count is 4 and was 2"):
        hansa.resume(short.directory, from_text(JOB, (falling,)), quiet=True)


def test_an_interrupted_run_says_how_many_rounds_it_has_done(tmp_path: Path) -> None:
    times = 0

    def stop(stage: str) -> None:
        nonlocal times
        times += stage == "work"
        if times == 7:  # after three for the preparation, one for the description and two rounds
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hansa.run(from_text(JOB), directory=tmp_path, quiet=True, observe=stop)
    (path,) = tmp_path.iterdir()
    status = RunFolder.open(path).status()
    assert status["status"] == "interrupted" and status["seconds"] > 0
    assert status["rounds"] == len(RunFolder.open(path).metrics()) == 2
    assert hansa.resume(path, quiet=True).directory == path
    assert RunFolder.open(path).status()["rounds"] == 4


def test_a_run_that_fails_says_how_many_rounds_it_has_done(tmp_path: Path) -> None:
    with pytest.raises(hansa.Diverged), np.errstate(all="ignore"):
        hansa.run(from_text(JOB, ("algorithm.local.learning_rate=1e9", "rounds.count=200")), directory=tmp_path, quiet=True)
    (path,) = tmp_path.iterdir()
    assert RunFolder.open(path).status()["rounds"] == len(RunFolder.open(path).metrics()) > 0


KILLED_IN_ROUND_4 = """
import os, signal, sys
from hansa import runs
from hansa.job import from_text

runs.EVERY, saved = 0.0, []

def kill(stage):
    saved.extend([stage] if stage == "saved" else [])
    if stage == "work" and len(saved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

runs.run(from_text(sys.stdin.read()), directory=sys.argv[1], quiet=True, observe=kill)
"""


def test_a_killed_run_says_how_far_it_came(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_IN_ROUND_4, str(tmp_path)]
    died = subprocess.run(command, input=JOB, text=True, capture_output=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    (path,) = tmp_path.iterdir()
    status, summary = RunFolder.open(path).status(), RunFolder.open(path).summary()
    assert (status["status"], status["rounds"]) == ("running", 3)
    assert (summary.status, summary.rounds) == ("interrupted", 3) and summary.seconds >= status["seconds"] > 0


def test_a_comparison_takes_a_path_and_is_kept_where_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    without = hansa.compare(path, repeats=1, quiet=True)
    assert without.run is None and not list(tmp_path.glob("runs/*"))
    told: list[tuple[int, int]] = []
    kept = hansa.compare(
        str(path), repeats=1, directory=tmp_path / "runs", quiet=True, progress=lambda done, of, what: told.append((done, of))
    )
    assert repr(kept) == repr(without) and kept.run is not None and told[-1] == (4, 4)
    folder = RunFolder.open(kept.run.directory)
    assert folder.read_json("comparison.json")["sentence"] == kept.sentence and (folder.path / "report.html").is_file()
