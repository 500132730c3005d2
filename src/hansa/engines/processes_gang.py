"""A gang of processes: members start together, meet in collectives, and give all results or one error.

The parent stands in the middle: each member sends it what it brings to a collective, and when all have, it answers all. Sums are
taken once, in rank order, so that every member gets the same bits.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn, TypeVar

from hansa.core.contracts import Collectives
from hansa.core.errors import InputError, RunFailed
from hansa.core.params import Array
from hansa.engines.processes_pool import GUARD, Process, wait_any
from hansa.engines.processes_worker import leave, prepare_process
from hansa.engines.remote_gang import answer

R = TypeVar("R")


class PipeCollectives:
    """A member's side: every call sends its part to the parent and waits for the answer."""

    def __init__(self, pipe: Connection, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._pipe = pipe

    def _meet(self, operation: str, value: Any) -> Any:
        self._pipe.send(("meet", operation, pickle.dumps(value, protocol=5)))
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            leave()  # the gang was given up

    def all_gather(self, value: Any) -> list[Any]:
        return [pickle.loads(part) for part in self._meet("all_gather", value)]  # noqa: S301  # from members of the same gang

    def all_reduce(self, value: Array) -> Array:
        return pickle.loads(self._meet("all_reduce", value)[0])  # noqa: S301  # as above

    def broadcast(self, value: Any, root: int = 0) -> Any:
        operation = f"broadcast from {root}"
        return pickle.loads(self._meet(operation, value if self.rank == root else None)[root])  # noqa: S301  # as above

    def barrier(self) -> None:
        self._meet("barrier", None)


def member(pipe: Connection, rank: int, size: int) -> NoReturn:
    """The life of a member's process."""
    prepare_process()
    try:
        function = pickle.loads(pipe.recv())  # noqa: S301  # written by this job's own parent process
        message = ("done", function(PipeCollectives(pipe, rank, size)))
        pipe.send(message)
    except Exception as error:  # noqa: BLE001  # it becomes the gang's error
        pipe.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
    leave()


def run_gang(function: Callable[[Collectives], R], members: int) -> list[R]:
    """All results in rank order, or RunFailed with the first member's error; then the others are ended at once.

    Raises InputError when ``function`` cannot be sent to another process.
    """
    try:
        work = pickle.dumps(function, protocol=5)
    except Exception as error:
        raise InputError(
            f"engine processes: the gang's function cannot be sent to another process ({type(error).__name__}: {error}); "
            "define it at the top of a module"
        ) from error
    processes = [Process(member, (rank, members)) for rank in range(members)]
    try:
        return _conduct(processes, work)
    finally:
        for process in processes:
            process.end()


def _conduct(processes: list[Process], work: bytes) -> list[Any]:
    size = len(processes)
    ranks = {process: rank for rank, process in enumerate(processes)}
    for process in processes:
        process.send(work)
    results: dict[int, Any] = {}
    waiting: dict[int, tuple[str, bytes]] = {}
    while len(results) < size:
        for process, message in wait_any([process for process, rank in ranks.items() if rank not in results]):
            rank = ranks[process]
            if message is None:
                raise RunFailed(f"gang member {rank} of {size}: its process ended before it was done; {GUARD}")
            kind, *content = message
            if kind == "failed":
                raise RunFailed(f"gang member {rank} of {size}: {content[0]}\n{content[1]}".rstrip())
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
