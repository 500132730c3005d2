"""A gang of processes: members start together, meet in collectives, and give all results or one error.

The parent stands in the middle: each member sends it what it brings to a collective, and when all have, it answers all. Sums are
taken once, in rank order, so that every member gets the same bits.
"""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn, TypeVar

from hansa.core.contracts import Collectives
from hansa.core.errors import InputError, RunFailed
from hansa.engines.meeting import Meeting, answer
from hansa.engines.processes_pool import GUARD, Process, wait_any
from hansa.engines.processes_worker import leave, prepare_process

R = TypeVar("R")

AFTERMATH = 0.5
"""Seconds in which it may turn out that a member raised because another one was gone."""


def member(pipe: Connection, rank: int, size: int) -> NoReturn:
    """The life of a member's process: functions in, results out, until the pipe ends or a function raises."""
    prepare_process()

    def meet(operation: str, brought: bytes) -> list[bytes]:
        pipe.send(("meet", operation, brought))
        try:
            told: list[bytes] = pipe.recv()
        except (EOFError, OSError):
            leave()  # the gang was given up
        return told

    while True:
        try:
            work = pipe.recv()
        except (EOFError, OSError):
            leave()
        try:
            function = pickle.loads(work)  # noqa: S301  # written by this job's own parent process
            message = ("done", function(Meeting(rank, size, meet)))
            pipe.send(message)
        except Exception as error:  # noqa: BLE001  # it becomes the gang's error
            pipe.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc(), isinstance(error, InputError)))
            leave()


def run_gang(function: Callable[[Collectives], R], members: int) -> list[R]:
    """All results in rank order, or RunFailed with the first member's error; then the others are ended at once.

    Raises InputError when ``function`` cannot be sent to another process.
    """
    work, processes = _packed(function), gather(members)
    try:
        return _conducted(processes, work)
    finally:
        end(processes)


def gather(members: int) -> list[Process]:
    """Processes that wait for functions."""
    return [Process(member, (rank, members)) for rank in range(members)]


def end(processes: list[Process]) -> None:
    for process in processes:
        process.end()


def conduct(processes: list[Process], function: Callable[[Collectives], R]) -> list[R]:
    """As :func:`run_gang`, in processes that are there and may be used again if it does not raise."""
    return _conducted(processes, _packed(function))


def _packed(function: Callable[..., Any]) -> bytes:
    try:
        return pickle.dumps(function, protocol=5)
    except Exception as error:
        raise InputError(
            f"engine processes: the gang's function cannot be sent to another process ({type(error).__name__}: {error}); "
            "define it at the top of a module"
        ) from error


def _conducted(processes: list[Process], work: bytes) -> list[Any]:
    size = len(processes)
    ranks = {process: rank for rank, process in enumerate(processes)}
    for process in processes:
        process.send(work)
    results: dict[int, Any] = {}
    waiting: dict[int, tuple[str, bytes]] = {}
    while len(results) < size:
        heard = wait_any([process for process, rank in ranks.items() if rank not in results])
        for process, message in sorted(heard, key=lambda one: one[1] is not None):  # those that are gone first
            rank = ranks[process]
            if message is None:
                raise RunFailed(_gone(rank, process, size))
            kind, *content = message
            if kind == "failed":
                _raise_failed(rank, content, processes)
            if kind == "done":
                results[rank] = content[0]
            else:
                waiting[rank] = (content[0], content[1])
        if waiting and len(waiting) + len(results) == size:
            parts = answer(waiting, results)
            for process in processes:
                process.send(parts)
            waiting.clear()
    return [results[rank] for rank in range(size)]


def _gone(rank: int, process: Process, size: int) -> str:
    code = process.end(AFTERMATH)
    why = f" (killed by signal {-code})" if code < 0 else f"; {GUARD}"
    return f"gang member {rank} of {size}: its process ended before it was done{why}"


def _raise_failed(rank: int, told: list[Any], processes: list[Process]) -> NoReturn:
    """The gang's error: in the words of the member that raised, unless another one is gone, without whom it could not go on."""
    message, trace, bad_input = told
    size = len(processes)
    if bad_input:
        raise RunFailed(f"gang member {rank} of {size}: {message}\n{trace}".rstrip()) from InputError(message.partition(": ")[2])
    until = time.monotonic() + AFTERMATH
    others = {process: other for other, process in enumerate(processes) if other != rank}
    while others and (left := until - time.monotonic()) > 0:
        for process, news in wait_any(list(others), left):
            if news is None and process.end(AFTERMATH):
                raise RunFailed(_gone(others[process], process, size))
            del others[process]
    raise RunFailed(f"gang member {rank} of {size}: {message}\n{trace}".rstrip())
