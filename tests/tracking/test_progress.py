"""Progress shows on a terminal what matters, and elsewhere nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from hansa.tracking.progress import Progress, watched

RUN = """
import sys
from hansa.tracking.progress import Progress
p = Progress(quiet="quiet" in sys.argv)
p.start(rounds=12, start_round=3)
for round, auc in ((4, 0.91), (5, 0.88)):
    p.update({"round": round, "train/loss": 0.3, "test/loss": 0.2, "test/auc": auc})
p.note("client [b]x[/b]: lost")
p.stop()
p.stop()
"""


def on_terminal(*arguments: str) -> str:
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    leader, follower = pty.openpty()
    env = {**os.environ, "COLUMNS": "150", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", RUN, *arguments], stderr=follower, stdout=subprocess.DEVNULL, env=env) as process:
        os.close(follower)
        parts = []
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
            parts.append(part)
    os.close(leader)
    assert process.returncode == 0
    return b"".join(parts).decode()


def test_a_terminal_shows_round_metric_best_memory_and_notes():
    shown = on_terminal()
    assert "5/12" in shown and "test/auc 0.880 (best 0.910)" in shown and "peak" in shown and "client [b]x[/b]: lost" in shown


def test_quiet_and_anything_but_a_terminal_are_silent():
    assert on_terminal("quiet") == ""
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""
    stream = io.StringIO()
    progress = Progress(stream=stream)
    progress.start(3)
    progress.update({"round": 1, "test/auc": 1.0})
    progress.stop()
    assert stream.getvalue() == ""


def test_the_metric_that_says_most_is_watched():
    assert watched({"round": 1, "train/loss": 1.0}) == "train/loss"
    assert watched({"train/accuracy": 1.0, "test/loss": 1.0, "test/auc": 1.0}) == "test/auc"
    assert watched({"test/auc": 1.0, "validation/loss": 1.0}) == "validation/loss"
    assert watched({"round": 1, "seconds": 1.0}) is None
