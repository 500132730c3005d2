"""One run's folder: what is written is read, what was not finished does not count, one process writes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from hansa.core.errors import InputError
from hansa.tracking import RunFolder, list_runs

JOB = 'name = "a job"\nseed = 1\n'


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.create(tmp_path, "a job", JOB)
    yield folder
    folder.close()


def test_a_new_folder_is_private_complete_and_unique(tmp_path):
    first, second = (RunFolder.create(tmp_path / "runs", "../x y/<é>", JOB) for _ in range(2))
    assert first.path != second.path and first.path.parent == tmp_path / "runs"
    assert first.path.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in first.path.iterdir())
    assert first.job_text() == JOB and first.status()["status"] == "running" and first.read_json("environment.json")["python"]
    first.close()
    second.close()


def test_records_come_back_in_order_with_nan(folder):
    folder.append_metrics({"round": 1, "test/auc": math.nan, "clients": np.int64(4), "train/loss": np.float32(0.5)})
    folder.append_metrics({"round": 2, "failures": [{"clients": ["a"], "kind": "E", "message": "<é>"}]})
    first, second = folder.metrics()
    assert math.isnan(first["test/auc"]) and first["clients"] == 4 and first["train/loss"] == 0.5
    assert second["failures"][0]["message"] == "<é>"
    for line in (folder.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("torn", [b"", b'{"rou', b'{"round": 5}', b"\0\0\0\0\n", b'{"round": 5\n'])
@pytest.mark.parametrize("keep", [0, 2, 4, 9])
def test_rewind_then_append_equals_never_having_gone_on(folder, keep, torn):
    for round in range(1, 5):
        folder.append_metrics({"round": round, "train/loss": 1 / round})
    with (folder.path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert [record["round"] for record in folder.metrics()] == [1, 2, 3, 4]
    folder.rewind(keep)
    folder.append_metrics({"round": 10, "train/loss": 0.0})
    assert [record["round"] for record in folder.metrics()] == [*range(1, min(keep, 4) + 1), 10]
    assert (folder.path / "metrics.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_broken_line_in_the_middle_is_refused(folder):
    (folder.path / "metrics.jsonl").write_text('{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(InputError, match=r"damaged .* line 2"):
        folder.metrics()
    with pytest.raises(InputError, match="names no round"):
        folder.append_metrics({"loss": 1.0})


def test_state_params_and_json_come_back(folder):
    state = {"params": {"b": np.ones(2), "a": np.arange(3)}, "round": 3, "best": math.nan}
    folder.save_state(state)
    folder.save_params(state["params"])
    loaded = folder.load_state()
    assert loaded["round"] == 3 and math.isnan(loaded["best"]) and list(folder.load_params()) == ["b", "a"]
    assert np.array_equal(folder.load_params()["a"], state["params"]["a"])
    folder.write_json("clients.json", {"metrics": {"x": {"auc": math.nan, "rows": np.int64(3)}}})
    assert folder.read_json("clients.json") == {"metrics": {"x": {"auc": None, "rows": 3}}}
    assert folder.has("clients.json") and not folder.has("comparison.json")


def test_damage_is_named_in_one_sentence(folder, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="hansa runs"):
            RunFolder.open(path)
    with pytest.raises(InputError, match="is missing"):
        folder.read_json("clients.json")
    with pytest.raises(InputError, match=r"damaged .* missing"):
        folder.load_state()
    (folder.path / "status.json").write_text('{"status": "run')
    with pytest.raises(InputError, match="damaged file"):
        RunFolder.open(folder.path)
    assert [run.status for run in list_runs(tmp_path)] == ["damaged"]


def test_status_keeps_what_is_not_given(folder):
    folder.set_status("failed", error="round 3: no quorum", seconds=1.5, rounds=2)
    folder.set_status("finished", rounds=9)
    status = RunFolder.open(folder.path).status()
    assert (status["status"], status["error"], status["seconds"], status["rounds"]) == ("finished", None, 1.5, 9)


def test_runs_are_listed_newest_first_with_their_last_metrics(tmp_path):
    assert list_runs(tmp_path / "none") == []
    for name in ("one", "two"):
        folder = RunFolder.create(tmp_path, name, f'name = "{name}"')
        folder.append_metrics({"round": 1, "test/auc": 0.9})
        folder.set_status("finished", seconds=2.0, rounds=1)
        folder.close()
        os.rename(folder.path, tmp_path / f"2030-01-0{1 + (name == 'two')}-000000-{name}")
    (tmp_path / "other").mkdir()
    runs = list_runs(tmp_path)
    assert [run.name for run in runs] == ["two", "one"] and runs[0].metrics["test/auc"] == 0.9 and runs[0].rounds == 1


HOLDER = """
import os, sys, time
from hansa.tracking import RunFolder
folder = RunFolder.create(sys.argv[1], "held", "name = 'held'")
if "fork" in sys.argv:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(folder.path, child, flush=True)
else:
    print(folder.path, 0, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("fork", [(), ("fork",)])
def test_one_process_writes_and_a_killed_one_lets_go(tmp_path, fork):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), *fork], stdout=subprocess.PIPE, text=True)
    try:
        path, child = holder.stdout.readline().split()
        folder = RunFolder.open(path)
        assert folder.summary().status == "running"
        with pytest.raises(InputError, match=f"process {holder.pid} "):
            folder.lock()
        (folder.path / ".state.safetensors.abc.unfinished").touch()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    # A worker that it forked is still there, and does not keep the run locked.
    assert folder.summary().status == "interrupted"
    folder.lock()
    assert not list(folder.path.glob(".*"))
    with pytest.raises(InputError, match=f"process {os.getpid()} "):
        RunFolder.open(path).lock()
    folder.lock()
    folder.close()
    if int(child):
        os.kill(int(child), signal.SIGKILL)
