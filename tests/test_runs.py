"""Runs: what is kept, and that nothing is lost: kill -9 at any stage of a round, resume, the same bits."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import hansa
from hansa.core import accounting
from hansa.job import from_text
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
