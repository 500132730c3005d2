"""The environment of a run is plain, imports nothing and holds no secret."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from hansa.tracking.environment import command_line, environment


def test_it_is_plain_json_and_true():
    told = environment()
    assert json.loads(json.dumps(told)) == told
    assert told["packages"]["numpy"] == np.__version__ and told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["memory"] > 0 and told["cores"] >= told["usable_cores"] >= 1


def test_it_imports_no_framework_and_tells_no_environment_variable():
    code = (
        "import sys, json; from hansa.tracking.environment import environment; told = json.dumps(environment());"
        "print(told, [name for name in ('torch', 'sklearn', 'pandas', 'scipy') if name in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env={"HUSH": "zyxwv-secret"}, capture_output=True, text=True, check=True
    ).stdout
    assert out.strip().endswith("[]") and "zyxwv-secret" not in out


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("hansa run job.toml --seed 3", "hansa run job.toml --seed 3"),
        ("hansa join --token abc host:1", "hansa join --token *** host:1"),
        ("hansa join --api-key=abc -v", "hansa join --api-key=*** -v"),
        ("hansa serve --db postgresql://me:pw@host/db", "hansa serve --db postgresql://***@host/db"),
        ("hansa serve --password --listen x", "hansa serve --password --listen x"),
    ],
)
def test_secrets_of_the_command_line_are_hidden(given, shown):
    assert command_line(given.split()) == shown


def test_the_commit_says_whether_files_were_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["commit"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    (tmp_path / "f").write_text("1")
    subprocess.run([*git, "add", "f"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    commit = environment()["commit"]
    assert len(commit) == 40
    (tmp_path / "f").write_text("2")
    assert environment()["commit"] == f"{commit}-changed"
