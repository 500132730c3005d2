"""Processes of the command line that start in no time: forked from one that has imported everything, and has no other thread yet.

They are processes as any other: they have their own memory, log to their own file, and are killed and asked to end by signals.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

PRELOADED = (
    "alembic.command", "alembic.config", "sqlalchemy.dialects.sqlite", "hansa.algorithms.scaffold", "hansa.cli.federation",
    "hansa.cli.logs", "hansa.cli.main", "hansa.cli.show", "hansa.data.builtin", "hansa.data.preparing.assembly",
    "hansa.federated.client", "hansa.federated.relay", "hansa.federated.server", "hansa.learners.mlp", "jinja2",
    "matplotlib.backends.backend_svg", "matplotlib.figure", "psutil", "pydantic.type_adapter", "rich.console", "rich.progress",
    "rich.table", "sklearn.datasets", "sklearn.impute",
)  # fmt: skip
"""What a run imports on its way, too: it would take a process of its own some seconds, each time."""


class Forge:
    """Starts processes, as a context manager; those that are still there at its end are killed."""

    def __enter__(self) -> Forge:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.federation.forge"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, arguments: Sequence[str | Path], log: Path, fault: str = "") -> Forged:
        """A process of ``hansa ARGUMENTS``, that dies at a step of :mod:`hansa.federation.faults`."""
        pid = self._ask({"arguments": [str(one) for one in arguments], "log": str(log), "fault": fault})
        return Forged(self, pid, log)

    def status(self, pid: int) -> int | None:
        """What a process returned, the negative number of the signal that ended it, or None while it is there."""
        return self._ask({"poll": pid})

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Forged:
    """One of its processes."""

    def __init__(self, forge: Forge, pid: int, log: Path) -> None:
        self._forge, self.pid, self.log = forge, pid, log
        self._status: int | None = None

    def poll(self) -> int | None:
        """As :meth:`Forge.status`."""
        if self._status is None:
            self._status = self._forge.status(self.pid)
        return self._status

    def wait(self, seconds: float = 60.0) -> int:
        """Until it has ended; fails, with what it logged, if it has not after so many seconds."""
        deadline = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < deadline, f"it is still running after {seconds:g} s:\n{self.log.read_text()[-4000:]}"
            time.sleep(0.01)
        return status

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.wait()

    def end(self) -> int:
        """Ask it to end."""
        self._signal(signal.SIGTERM)
        return self.wait()

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)

    there: dict[int, int | None] = {}
    read = os.fdopen(os.dup(0), "rb", buffering=0)
    while line := read.readline():
        order = json.loads(line)
        if "poll" in order:
            answer = there[order["poll"]] = there[order["poll"]] or _ended(order["poll"], there)
        else:
            answer = os.fork()
            if not answer:
                read.close()
                _run(order)
            there[answer] = None
        os.write(1, json.dumps(answer).encode() + b"\n")
    for pid, status in there.items():
        if status is None and _ended(pid, there) is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _ended(pid: int, there: dict[int, int | None]) -> int | None:
    if there[pid] is not None:
        return there[pid]
    found, status = os.waitpid(pid, os.WNOHANG)
    if found:
        there[pid] = os.waitstatus_to_exitcode(status)
    return there[pid]


def _run(order: dict[str, Any]) -> None:
    """In the child: become the command."""
    status = 1
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        from hansa.cli.main import main as command
        from hansa.federation import faults

        faults.arm(order["fault"])
        command.main(order["arguments"], prog_name="hansa")
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:  # noqa: BLE001  # a child of a fork must not return into the parent's loop
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
