"""Many models: each client's is what it would be if there were no other client, and one that fails leaves the others alone."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hansa
from hansa import opening, training
from hansa.cli.main import main
from hansa.each import resume_each
from hansa.job import load
from hansa.tracking.folder import RunFolder
from hansa.tracking.report import write_report
from tests.conformance.problem import same_bits

KEYS = 12


def table() -> pd.DataFrame:
    """A regression per key, each with a slope of its own."""
    random = np.random.default_rng(3)
    frame = pd.DataFrame({"key": [f"shop-{k:02}" for k in range(KEYS) for _ in range(20 + k)]})
    frame["a"], frame["b"] = random.standard_normal((2, len(frame)))
    frame["y"] = frame["key"].str[-2:].astype(float) * frame["a"] - frame["b"] + 0.1 * random.standard_normal(len(frame))
    return frame


def job(**changes: Any) -> hansa.Job:
    one = hansa.Job(
        data=hansa.from_table(table(), "y", "key"), learner=make_pipeline(StandardScaler(), Ridge(alpha=0.1)),
        algorithm=hansa.Newton(), rounds=hansa.Rounds(count=20),
    )  # fmt: skip
    return replace(one, **changes)


@pytest.mark.parametrize("engine", [hansa.Inline(), hansa.Processes(workers=2)], ids=lambda engine: engine.name)
@pytest.mark.parametrize("algorithm", [hansa.Newton(), hansa.Scaffold(local=hansa.Local(batch_size=4))], ids=lambda a: a.name)
def test_each_model_has_the_bits_that_it_has_alone(engine: Any, algorithm: Any, tmp_path: Path) -> None:
    one = job(engine=engine, algorithm=algorithm, rounds=hansa.Rounds(count=3, clients=0.5))
    many = hansa.fit_each(one, at_once=5, directory=tmp_path)
    assert [own.client for own in many.table] == [f"shop-{k:02}" for k in range(KEYS)] == list(many.models)
    for client, own in zip(opening.clients_of(one), many.table, strict=True):
        setting = opening.open_setting(replace(one, engine=hansa.Inline()), [client], lenient=True)
        state = training.prepare(setting)
        for after, record in training.train(setting, state):
            state, last = after, record
        setting.engine.stop()
        assert same_bits(many.params[client.id], state["algorithm"]["params"])
        assert own.metrics == {name[5:]: value for name, value in last.items() if name.startswith("test/")}
        assert (own.rows, own.rounds) == (client.rows, state["round"])


def test_each_model_is_scikit_learns_on_the_rows_of_its_key(tmp_path: Path) -> None:
    one = job(split=hansa.Split(test=0.0))
    many = hansa.fit_each(one, directory=tmp_path)
    for key, rows in table().groupby("key"):
        theirs = make_pipeline(StandardScaler(), Ridge(alpha=0.1)).fit(rows[["a", "b"]], rows["y"])
        np.testing.assert_allclose(many.models[key].predict(rows[["a", "b"]]), theirs.predict(rows[["a", "b"]]), rtol=1e-8)
    assert all(own.metrics == {} and own.status == "finished" for own in many.table)


def test_a_client_from_which_nothing_can_be_learned_is_a_row(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((90, 3)), random.integers(0, 2, 90)
    owner = np.repeat(["one", "two", "three"], 30)
    y[owner == "two"] = 1
    one = hansa.Job(data=hansa.from_arrays(x, y, owner), learner=LogisticRegression(), algorithm=hansa.Newton())
    told: list[tuple[int, int]] = []
    many = hansa.fit_each(one, directory=tmp_path, progress=lambda done, of: told.append((done, of)))
    assert [(own.client, own.status) for own in many.table] == [("one", "finished"), ("three", "finished"), ("two", "failed")]
    assert many.table[2].ended == (
        "InputError: data: every training row of all clients has the label 1; at least two classes are needed"
    )
    assert list(many.models) == ["one", "three"] == list(many.params)
    assert told == [(1, 3), (2, 3), (3, 3)]


class Unlucky(hansa.Newton):
    """Newton's method that raises at one client."""

    def work(self, learner, message, block):  # type: ignore[no-untyped-def]  # as a user writes it
        if block.clients[0].id == "shop-07":
            raise OSError("no luck today")
        return super().work(learner, message, block)


def test_what_one_client_raises_touches_no_other(tmp_path: Path) -> None:
    many, whole = (hansa.fit_each(one, directory=tmp_path) for one in (job(algorithm=Unlucky()), job()))
    failed = [own for own in many.table if own.status == "failed"]
    assert [own.client for own in failed] == ["shop-07"]
    assert "OSError: no luck today" in failed[0].ended and "\n" not in failed[0].ended
    assert all(same_bits(params, whole.params[client]) for client, params in many.params.items())
    assert len(many.params) == KEYS - 1


# The folder

JOB = """
name = "sales"
learner = { name = "sklearn", estimator = "Ridge" }
preparation = "standard"
algorithm = "newton"
rounds = { count = 5 }
[data]
name = "file"
path = "%s"
label = "y"
client = "region"
"""

KILLED_AFTER = """
import os, signal, sys
from hansa import each
from hansa.job import load
each.EVERY = 0.0
def tell(done, of):
    if done == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
each.fit_each(load(sys.argv[2]), by="key", at_once=4, directory=sys.argv[3], progress=tell)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    frame = table().assign(region=[f"region-{k % 2}" for k in range(len(table()))])
    frame.to_csv(tmp_path / "sales.csv", index=False)
    (tmp_path / "job.toml").write_text(JOB % (tmp_path / "sales.csv"))
    return tmp_path / "job.toml"


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("after", [1, 7])
def test_kill_9_then_resume_gives_the_same_models(path: Path, tmp_path: Path, after: int) -> None:
    runs, job = tmp_path / "runs", load(path, ("data.drop=['region']",))
    whole = hansa.fit_each(job, by="key", directory=tmp_path / "whole")
    overridden = path.with_name("dropped.toml")
    overridden.write_text(path.read_text() + 'drop = ["region"]\n')
    command = [sys.executable, "-c", KILLED_AFTER, str(after), str(overridden), str(runs)]
    died = subprocess.run(command, text=True, capture_output=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    (folder,) = runs.iterdir()
    assert RunFolder.open(folder).summary().status == "interrupted"
    told: list[int] = []
    resumed = resume_each(folder, progress=lambda done, of: told.append(done))
    assert resumed.table == whole.table and list(resumed.models) == list(whole.models)
    assert all(same_bits(params, whole.params[client]) for client, params in resumed.params.items())
    assert told == list(range(1, KEYS + 1))
    rows = table()[["a", "b"]]
    assert all(np.array_equal(model.predict(rows), whole.models[client].predict(rows)) for client, model in resumed.models.items())
    assert RunFolder.open(folder).status()["status"] == "finished"


class Refuses(hansa.Newton):
    """Newton's method that nobody may do any more."""

    def work(self, learner, message, block):  # type: ignore[no-untyped-def]  # as above
        raise AssertionError("a fit that had ended was done again")


def test_what_has_ended_is_not_done_again(tmp_path: Path) -> None:
    done = hansa.fit_each(job(algorithm=Unlucky()), directory=tmp_path)
    again = resume_each(done.directory, job(algorithm=Refuses()))
    assert again.table == done.table and list(again.models) == list(done.models)
    rows = table()[["a", "b"]]
    for client, model in again.models.items():
        assert np.array_equal(model.predict(rows), done.models[client].predict(rows))


def test_resume_refuses_other_data_other_jobs_and_other_folders(tmp_path: Path) -> None:
    done = hansa.fit_each(job(), directory=tmp_path)
    with pytest.raises(hansa.InputError, match="is not the one of the folder of models per client"):
        resume_each(done.directory, job(seed=1))
    with pytest.raises(hansa.InputError, match="started from Python objects"):
        resume_each(done.directory)
    with pytest.raises(hansa.InputError, match="the data has changed since the start"):
        resume_each(done.directory, job(data=hansa.from_table(table()[5:], "y", "key")))
    with pytest.raises(hansa.InputError, match=r"is no run; write hansa\.resume_each"):
        hansa.resume(done.directory, job())
    run = hansa.run(job(), directory=tmp_path / "runs", quiet=True)
    with pytest.raises(hansa.InputError, match="is no folder of models per client"):
        resume_each(run.directory, job())
    with pytest.raises(hansa.InputError, match="at_once = 0 lets nothing begin"):
        hansa.fit_each(job(), at_once=0, directory=tmp_path)
    with pytest.raises(hansa.InputError, match="by = 'key' names a column, and data"):
        hansa.fit_each(job(), by="key", directory=tmp_path)


def test_the_folder_holds_the_table(tmp_path: Path) -> None:
    done = hansa.fit_each(job(algorithm=Unlucky()), directory=tmp_path)
    told = json.loads((done.directory / "table.json").read_text())["table"]
    assert [row["client"] for row in told] == [own.client for own in done.table]
    with (done.directory / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mse"]) for row in rows if row["mse"]] == [own.metrics["mse"] for own in done.table if own.metrics]
    assert rows[7]["status"] == "failed" and "no luck today" in rows[7]["ended"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in done.directory.rglob("*"))
    report = write_report(RunFolder.open(done.directory)).read_text()
    assert "shop-07" in report and "no luck today" in report and "12 clients" in report


# The verb


def test_the_verb_fits_each_key_of_a_column(path: Path, tmp_path: Path) -> None:
    done = call("each", path, "--by", "key", "--set", "data.drop=['region']", "--runs", tmp_path / "runs")
    assert done.exit_code == 0 and done.stderr == "", done.output
    lines = done.stdout.splitlines()
    assert lines[0] == f"{KEYS} models for {KEYS} clients; metrics of each client's own test rows"
    assert lines[2].split()[0] == "shop-00" and lines[13].split()[0] == "shop-11"
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"each    {folder}" in done.stdout
    again = call("resume", folder, "--json")
    assert again.exit_code == 0, again.output
    assert [row["client"] for row in json.loads(again.stdout)["table"]] == [f"shop-{k:02}" for k in range(KEYS)]
    assert call("resume", folder).stdout == done.stdout


def test_the_verb_takes_the_jobs_own_clients(path: Path, tmp_path: Path) -> None:
    done = call("each", path, "--set", "data.drop=['key']", "--runs", tmp_path / "runs", "--json")
    assert done.exit_code == 0, done.output
    assert [row["client"] for row in json.loads(done.stdout)["table"]] == ["region-0", "region-1"]


def test_the_verb_refuses_in_one_line(path: Path, tmp_path: Path) -> None:
    done = call("each", path, "--by", "kee", "--runs", tmp_path / "runs")
    assert done.exit_code == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hansa: ") and "kee" in line
