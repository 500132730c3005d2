"""Processes as their parent sees them: started, listened to, replaced, ended."""

from __future__ import annotations

import multiprocessing
import pickle
import select
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from hansa.core.errors import InputError
from hansa.engines.machine import environment, refuse_unimportable

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")

GUARD = "a script that uses processes is imported again by each of them, so write its own calls under\nif __name__ == '__main__':"

_context = multiprocessing.get_context("spawn")


class Process:
    """A started process and the pipe to it. ``target`` is called there with its end of the pipe and ``arguments``."""

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise InputError(f"engine processes: {GUARD}")
        refuse_unimportable("processes")
        self.pipe, theirs = _context.Pipe()
        # Daemons are ended with the parent whatever happens, and may not start processes of their own.
        self.process = _context.Process(target=target, args=(theirs, *arguments), daemon=True)
        with environment(dict.fromkeys(THREADS, "1")):
            self.process.start()
        theirs.close()
        self._code: int | None = None

    def send(self, message: Any) -> bool:
        """False if the process is gone."""
        try:
            tell(self.pipe, message)
        except OSError:
            return False
        return True

    def receive(self) -> Any:
        """The next message, None if the process is gone; waits for either."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def end(self, patience: float = 0.0) -> int:
        """Hang up, and kill the process if it is still there after ``patience`` seconds. Returns its exit code, minus the signal
        if one killed it; the same again for a process that was ended before."""
        if self._code is None:
            self.pipe.close()
            self.process.join(patience)
            if self.process.exitcode is None:
                self.process.kill()
                self.process.join()
            self._code = self.process.exitcode or 0
            self.process.close()
        return self._code


def tell(pipe: Connection, message: Any) -> None:
    """Send what is pickled in the plain way: most of what :meth:`Connection.send` takes is for objects of the system, such as sockets."""
    pipe.send_bytes(pickle.dumps(message, protocol=5))


def wait_any(
    processes: Sequence[Process], timeout: float | None = None, receiving: AbstractContextManager[None] | None = None
) -> list[tuple[Process, Any]]:
    """Wait until at least one process has sent something or is gone: (process, message), None for gone.

    receiving: entered while messages are read, not while they are waited for.
    """
    ready = _with_news(processes, timeout)
    with receiving or nullcontext():
        return [(process, process.receive()) for process in ready]


def _with_news(processes: Sequence[Process], timeout: float | None) -> list[Process]:
    # A pipe ends with the process at its other end, so that there is nothing else to wait for.
    if not hasattr(select, "poll"):
        pipes = {process.pipe: process for process in processes}
        return [pipes[pipe] for pipe in connection.wait(list(pipes), timeout)]  # type: ignore[index]  # the stubs say that anything may be ready
    # Asked without connection.wait, which makes more of the question than of the answer; for a round it is asked every time.
    numbers, poll = {process.pipe.fileno(): process for process in processes}, select.poll()
    for number in numbers:
        poll.register(number, select.POLLIN)
    return [numbers[number] for number, _ in poll.poll(None if timeout is None else timeout * 1000)]
