"""The command line as a user meets it: what each verb prints, its JSON, its exit codes, and that it is quiet in a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hansa import __version__
from hansa.cli.main import main
from hansa.cli.starter import starter_text
from hansa.tracking.folder import RunFolder

FEDERATION = (
    "server",
    "token",
    "join",
    "check",
    "client",
    "relay",
    "submit",
    "watch",
    "stop",
    "members",
    "revoke",
    "simulate-federation",
)
VERBS = ("run", "resume", "search", "compare", "demo", "each", "report", "runs", "data", "new", "schema", *FEDERATION)

JOB = """
name = "short"
[data]
name = "heart_disease"
[split]
test = 0.25
[preparation]
name = "standard"
[learner]
name = "sklearn"
[algorithm]
name = "fedavg"
[algorithm.local]
learning_rate = 0.02
[rounds]
count = 3
block = 1
"""

THIRDS = """
name = "thirds"
[data]
name = "breast_cancer"
[partition]
name = "iid"
clients = 3
[preparation]
name = "standard"
[learner]
name = "sklearn"
[algorithm]
name = "fedavg"
[rounds]
count = 2
"""

REGRESSION = """
name = "sugar"
[data]
name = "diabetes"
[partition]
name = "iid"
clients = 9
[learner]
name = "sklearn"
estimator = "Ridge"
[algorithm]
name = "newton"
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: Any) -> str:
    """The output of a call that must end well and say nothing on standard error."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def refused(*arguments: Any, code: int = 2) -> str:
    """The one line of a call that must end badly."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("hansa: ")
    return line


def process(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same as a real process whose output is a pipe."""
    command = [sys.executable, "-m", "hansa.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_shows_an_example_of_it_and_offers_json(verb: str) -> None:
    shown = done(verb, "--help")
    assert f"Example: hansa {verb}" in shown
    assert "--json" in shown


def test_help_lists_every_verb_and_nothing_else() -> None:
    assert tuple(sorted(main.commands)) == tuple(sorted(VERBS))
    shown = done("--help")
    assert all(f"  {verb} " in shown for verb in VERBS)


def test_version() -> None:
    assert done("--version").strip() == f"hansa, version {__version__}"


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("run", ["--set", "--runs", "--json", "--quiet", "--help"]),
        ("each", ["--by", "--set", "--runs", "--json", "--quiet", "--help"]),
        ("resume", ["--json", "--quiet", "--help"]),
        ("search", ["--grid", "--folds", "--random", "--by", "--refit", "--set", "--runs", "--json", "--quiet", "--help"]),
        ("compare", ["--repeats", "--set", "--runs", "--json", "--quiet", "--help"]),
        ("demo", ["--repeats", "--runs", "--json", "--quiet", "--help"]),
        ("report", ["--json", "--help"]),
        ("runs", ["--runs", "--home", "--address", "--key", "--certificate", "--believe", "--json", "--help"]),
        ("data", ["--picture", "--set", "--json", "--help"]),
        ("new", ["--json", "--help"]),
        ("schema", ["--json", "--help"]),
    ],
)
def test_the_options_of_a_verb_change_only_on_purpose(verb: str, options: list[str]) -> None:
    command = main.commands[verb]
    context = command.make_context(verb, ["--help"], resilient_parsing=True, help_option_names=["-h", "--help"])
    assert [option.opts[-1] for option in command.get_params(context) if option.param_type_name == "option"] == options


# The life of a run


def test_a_run_from_its_start_to_the_list_of_runs(job: Path, tmp_path: Path) -> None:
    shown = done("run", job, "--runs", tmp_path / "runs")
    assert shown.startswith("played all 3 rounds in ")
    assert all(f"  test/{metric} " in shown for metric in ("loss", "accuracy", "auc"))
    folder = Path(shown.split("run     ")[1].splitlines()[0])
    assert f"report  {folder / 'report.html'}" in shown
    assert (folder / "report.html").stat().st_size > 1000

    told = json.loads(done("runs", "--runs", tmp_path / "runs", "--json"))
    assert [one["path"] for one in told["runs"]] == [str(folder)]
    assert told["runs"][0]["status"] == "finished" and told["runs"][0]["rounds"] == 3
    assert str(folder) in done("runs", "--runs", tmp_path / "runs")

    (folder / "report.html").unlink()
    assert done("report", folder).strip() == str(folder / "report.html")
    assert json.loads(done("report", folder, "--json")) == {"report": str(folder / "report.html")}
    assert (folder / "report.html").exists()


def test_run_and_resume_tell_machines_the_same(job: Path, tmp_path: Path) -> None:
    first = json.loads(done("run", job, "--runs", tmp_path, "--json"))
    assert first["rounds"] == 3 and first["seconds"] > 0
    assert set(first["metrics"]) == {"test/loss", "test/accuracy", "test/auc"}
    assert set(first["by_client"]) == {"Cleveland", "Hungary", "Switzerland", "VA Long Beach"}
    assert RunFolder.open(first["run"]).status()["status"] == "finished"
    again = json.loads(done("resume", first["run"], "--json"))
    assert {key: again[key] for key in ("run", "rounds", "metrics")} == {key: first[key] for key in ("run", "rounds", "metrics")}


def test_values_of_the_job_are_set_from_outside(job: Path, tmp_path: Path) -> None:
    changes = ("algorithm.name=fedprox", "algorithm.mu=0.1", "rounds.count=2")
    told = json.loads(done("run", job, "--runs", tmp_path, "--json", *(word for change in changes for word in ("--set", change))))
    assert told["rounds"] == 2
    written = RunFolder.open(told["run"]).job()
    assert written["algorithm"]["name"] == "fedprox" and written["algorithm"]["mu"] == 0.1


def test_runs_of_an_empty_folder_say_what_to_do(tmp_path: Path) -> None:
    assert "hansa run JOB.toml" in done("runs", "--runs", tmp_path / "none")
    assert json.loads(done("runs", "--runs", tmp_path / "none", "--json")) == {"runs": []}


# Comparing


def test_compare_sets_ways_to_learn_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(THIRDS)
    shown = done("compare", tmp_path / "job.toml", "--runs", tmp_path / "runs", "--repeats", 2)
    for name in ("each client alone", "all rows pooled", "federated averaging", "exact federated Newton"):
        assert shown.count(f"  {name} ") == 2  # for AUC and for accuracy
    assert "2 random splits" in shown and "no row left its client" in " ".join(shown.split())
    (folder,) = (tmp_path / "runs").iterdir()
    assert "each client alone" in (folder / "report.html").read_text()


def test_compare_tells_machines_a_run_and_its_comparison(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(THIRDS)
    told = json.loads(done("compare", tmp_path / "job.toml", "--runs", tmp_path / "runs", "--repeats", 1, "--json"))
    assert {"run", "rounds", "metrics", "seconds", "comparison"} <= told.keys()
    comparison = told["comparison"]
    assert comparison["metrics"] == ["auc", "accuracy"] and comparison["repeats"] == 1
    rows = {row["name"]: row["values"] for row in comparison["rows"]}
    pooled, exact = (rows[name]["auc"]["overall"][0] for name in ("all rows pooled", "exact federated Newton"))
    assert exact == pytest.approx(pooled, abs=1e-9)  # the same optimum of the same objective, however few rounds the job plays
    assert rows["all rows pooled"]["auc"]["overall"][1] is None  # one split has no standard error, and JSON no NaN


def test_compare_of_many_clients_and_of_a_regression(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(REGRESSION)
    shown = done("compare", path, "--runs", tmp_path / "runs", "--repeats", 2)
    assert shown.splitlines()[1].split() == ["overall"]
    assert "each of the 9 clients" in shown and "mean squared error" in shown


def test_demo_shows_the_table_of_the_four_hospitals(tmp_path: Path) -> None:
    shown = done("demo", "--runs", tmp_path, "--repeats", 1)
    assert "Four hospitals, 920 patients" in shown
    for hospital in ("Cleveland", "Hungary", "Switzerland", "VA Long Beach"):
        assert hospital in shown.splitlines()[1]


# Data


def test_data_shows_clients_and_draws_them(job: Path, tmp_path: Path) -> None:
    picture = tmp_path / "clients.svg"
    shown = done("data", job, "--picture", picture)
    assert "client         train  test  label 0  label 1" in shown
    assert "Switzerland       92    31        6       86" in shown
    assert "chol" in shown and "(100%)" in shown  # Switzerland measured no cholesterol
    root = ElementTree.fromstring(picture.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.attrib["height"]) > 100
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Cleveland" in texts and "1" in texts


def test_data_draws_many_clients(tmp_path: Path) -> None:
    path, picture = tmp_path / "job.toml", tmp_path / "clients.svg"
    path.write_text(REGRESSION)
    shown = done("data", path, "--picture", picture, "--set", "partition.clients=60")
    assert "mean target" in shown
    assert len(list(ElementTree.fromstring(picture.read_text()).iter("{http://www.w3.org/2000/svg}svg"))) == 3


def test_data_tells_machines_all_facts(job: Path) -> None:
    told = json.loads(done("data", job, "--json"))
    assert told["rows"] == 689 and told["classes"] == [0, 1]
    assert told["facts"]["Hungary"]["columns"]["age"]["kind"] == "number"


def test_a_picture_that_cannot_be_drawn_is_bad_input(job: Path, tmp_path: Path) -> None:
    assert "clients.svg" in refused("data", job, "--picture", tmp_path / "clients.png")
    assert "in a folder that exists" in refused("data", job, "--picture", tmp_path / "none" / "clients.svg")


# New and schema


def test_new_prints_a_job_that_runs(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(done("new"))
    assert path.read_text() == starter_text() == json.loads(done("new", "--json"))["job"]
    assert "played all 1 rounds" in done("run", path, "--runs", tmp_path, "--set", "rounds.count=1")


def test_schema_is_one_object_either_way() -> None:
    schema = json.loads(done("schema"))
    assert schema == json.loads(done("schema", "--json"))
    assert schema["$schema"].startswith("https://json-schema.org/") and {"data", "learner", "algorithm"} <= set(
        schema["properties"]
    )


# What goes wrong


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("algorithm.mu=0.1", "algorithm: unknown key 'mu'"),
        ("algorithm.name=fedavgg", "did you mean 'fedavg'?"),
        ("rounds.cuont=3", "did you mean 'count'?"),
        ("rounds.count=0", "rounds.count = 0: input should be greater than or equal to 1"),
        ("algorithm.local.learning_rate=-1", "greater than 0"),
        ("learner.estimator=Ridge", "the learner does not fit the task"),
        ("rounds", "write it as key=value"),
        ("split.test=1.5", "split.test = 1.5"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(job: Path, tmp_path: Path, assignment: str, said: str) -> None:
    assert said in refused("run", job, "--runs", tmp_path / "runs", "--set", assignment)


def test_what_is_not_there_is_bad_input(tmp_path: Path) -> None:
    assert "no such file" in refused("run", tmp_path / "none.toml")
    for verb in ("resume", "report"):
        assert "no such run folder" in refused(verb, tmp_path / "none")
        assert "is not a run folder" in refused(verb, tmp_path)
    (tmp_path / "cut.toml").write_text("[data")
    assert "not valid TOML" in refused("data", tmp_path / "cut.toml")


def test_a_call_that_is_not_understood_is_bad_input() -> None:
    for arguments in (("fly",), ("run",), ("run", "job.toml", "--fast"), ("compare", "job.toml", "--repeats", "0")):
        result = call(*arguments)
        assert result.exit_code == 2 and result.stdout == "" and "Error: " in result.stderr


def test_divergence_is_a_failed_run_that_keeps_its_state(job: Path, tmp_path: Path) -> None:
    line = refused(
        "run", job, "--runs", tmp_path / "runs", "--set", "algorithm.name=fedprox", "--set", "algorithm.mu=1e300", code=3
    )
    assert "round 1, client Cleveland" in line and "learning_rate" in line
    (folder,) = (tmp_path / "runs").iterdir()
    assert RunFolder.open(folder).summary().status == "failed"
    assert RunFolder.open(folder).load_state()["round"] == 0
    assert "learning_rate" in (folder / "report.html").read_text()


def test_a_folder_that_cannot_be_made_is_one_line(job: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused("run", job, "--runs", tmp_path / "file")


# Real processes


def test_a_pipe_gets_the_result_and_nothing_else(job: Path, tmp_path: Path) -> None:
    quiet = process("run", job, "--runs", tmp_path)
    assert quiet.returncode == 0 and quiet.stderr == ""
    assert "\x1b" not in quiet.stdout and "\r" not in quiet.stdout
    assert quiet.stdout.splitlines()[0].startswith("played all 3 rounds in ")


def test_bad_input_of_a_process_has_no_traceback(job: Path) -> None:
    bad = process("run", job, "--set", "rounds.count=none")
    assert bad.returncode == 2 and bad.stdout == "" and len(bad.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_says_how_to_go_on_and_does_to_the_same_bits(number: int, job: Path, tmp_path: Path) -> None:
    """Ctrl-C, and what a scheduler sends: exit code 130; resumed, the run ends with the params of one that was never interrupted."""
    long = ["run", str(job), "--runs", str(tmp_path / "runs"), "--set", "rounds.count=400"]
    # A suite that runs in the background of a shell has SIGINT ignored, and its children would inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "hansa.cli.main", *long], preexec_fn=heed, **pipes) as started:
        _await(lambda: any(path.stat().st_size for path in (tmp_path / "runs").glob("*/metrics.jsonl")), started)
        started.send_signal(number)
        out, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert out == "" and len(err.splitlines()) == 1 and "hansa resume" in err
    (folder,) = (tmp_path / "runs").iterdir()
    summary = RunFolder.open(folder).summary()
    played = summary.metrics["round"]
    assert summary.status == "interrupted" and 1 <= played < 400

    # The job in the folder is what is resumed: fewer rounds are enough to see that it goes on where it stopped.
    text = (folder / "job.toml").read_text()
    (folder / "job.toml").write_text(text.replace("count = 400", f"count = {played + 2}"))
    resumed = json.loads(done("resume", folder, "--json"))
    assert resumed["run"] == str(folder) and resumed["rounds"] == played + 2
    whole = json.loads(done("run", job, "--runs", tmp_path / "whole", "--set", f"rounds.count={played + 2}", "--json"))
    first, second = (RunFolder.open(one["run"]).load_params() for one in (resumed, whole))
    assert all(np.array_equal(first[name], second[name]) for name in second)


def _await(reached: Any, started: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert started.poll() is None and time.monotonic() < deadline, "the run did not get under way"
        time.sleep(0.02)


def test_a_reader_that_leaves_is_no_error(job: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        command = [sys.executable, "-m", "hansa.cli.main", "schema"]
        left = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert "Traceback" not in left.stderr
