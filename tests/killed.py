"""Runs in processes of their own that are killed at a stage."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context
from pathlib import Path

import pandas  # noqa: F401  # imported once for all processes
import sklearn.linear_model  # noqa: F401  # as above

import hansa.runs
from hansa.data import builtin  # noqa: F401  # as above
from hansa.data.preparing import assembly  # noqa: F401  # as above
from hansa.job import from_text

FORKED = get_context("forkserver")
"""Each process is a copy of one that has imported what a run needs, and done nothing else."""
FORKED.set_forkserver_preload([__name__])


def _run(job: str, stage: str, time: int, folder: Path) -> None:
    seen = 0

    def kill(reached: str) -> None:
        nonlocal seen
        seen += reached == stage
        if seen == time:
            os.kill(os.getpid(), signal.SIGKILL)

    hansa.runs.run(from_text(job), directory=folder, quiet=True, observe=kill)


def run_killed_at(job: str, stage: str, time: int, folder: Path) -> int | None:
    """The exit code of a process that runs a job, and is killed when it reaches a stage for the given time."""
    other = FORKED.Process(target=_run, args=(job, stage, time, folder))
    other.start()
    other.join(120)
    return other.exitcode
