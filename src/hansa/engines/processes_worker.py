"""What runs in a worker process of the engine ``processes``: it holds recipes and data, and does blocks until its parent is gone."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from typing import Any, NoReturn, overload

from hansa.core.blocks import Block, Client
from hansa.core.params import Params
from hansa.core.updates import Failure
from hansa.core.worker import Worker, attempt
from hansa.engines.processes_shared import Attached, Packed, Span, pack, unpack

SHARD = 32
"""Consecutive clients that are pickled together, and unpickled when the first of them is needed."""


@dataclass(frozen=True)
class Setup:
    """What a worker starts from: where the recipes lie in shared memory, and what else it needs, pickled."""

    segment: str
    shards: tuple[Span, ...]
    clients: int
    learner: Span
    store: Span
    relayed: bool


class Recipes(Sequence[Client]):
    """The clients of the job; only those that are asked for are unpickled, so that in-memory data is not held by every worker."""

    def __init__(self, memory: memoryview, shards: Sequence[Span], length: int) -> None:
        self._memory, self._shards, self._length = memory, shards, length
        self._opened: dict[int, list[Client]] = {}

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, position: int) -> Client: ...
    @overload
    def __getitem__(self, position: slice) -> list[Client]: ...
    def __getitem__(self, position: int | slice) -> Client | list[Client]:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(self._length))]
        shard, place = divmod(position, SHARD)
        if shard not in self._opened:
            self._opened[shard] = load_span(self._memory, self._shards[shard])
        return self._opened[shard][place]


def load_span(memory: memoryview, span: Span) -> Any:
    """Unpickle what lies at a span of shared memory."""
    return pickle.loads(memory[span[0] : span[0] + span[1]])  # noqa: S301  # written by this job's own parent process


class RelayedStore:
    """Client state that lives in the parent's memory, asked for over the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def read(self, client: str, before: int) -> Params | None:
        self._pipe.send(("read", client, before))
        return _answer(self._pipe)

    def write(self, round: int, states: Mapping[str, Params]) -> None:
        self._pipe.send(("write", round, dict(states)))
        _answer(self._pipe)


def _answer(pipe: Connection) -> Any:
    kind, value = pipe.recv()
    if kind == "error":
        raise value
    return value


def prepare_process() -> None:
    """What every process of the engine does first: one BLAS thread, no interrupts of its own, no life after its parent."""
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threadpool_limits(1)
    parent = parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def serve(pipe: Connection, setup: Setup) -> None:
    """The life of a worker process: blocks in, results out, until the pipe ends."""
    prepare_process()
    shared = Attached()
    recipes = shared.memory(setup.segment)
    assert recipes is not None
    try:
        learner = load_span(recipes, setup.learner)
        store = RelayedStore(pipe) if setup.relayed else load_span(recipes, setup.store)
    except Exception as error:  # noqa: BLE001  # the parent raises it
        _leave_broken(pipe, error)
    worker = Worker(learner, Recipes(recipes, setup.shards, setup.clients), store)
    pipe.send(("ready",))
    inbox, outbox = Attached(), _Outbox(pipe)
    call: Any = None
    while True:
        try:
            block, news = pipe.recv()
        except (EOFError, OSError):
            leave()
        if news is not None:
            header, spans, name = news
            call = None  # the last one need not be kept while the next, which may be as large, is read
            try:
                call = unpack(header, spans, inbox.memory(name))
            except Exception as error:  # noqa: BLE001  # the parent raises it
                _leave_broken(pipe, error)
        packed = _do(call, worker, block)
        try:
            pipe.send(("done", packed.header, packed.place(outbox.memory(packed.size))))
        except (EOFError, OSError):
            leave()


def leave() -> NoReturn:
    """End this process without the interpreter's farewells, which would touch shared memory that others own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _leave_broken(pipe: Connection, error: Exception) -> NoReturn:
    pipe.send(("broken", f"{type(error).__name__}: {error}", traceback.format_exc()))
    leave()


def _do(call: Any, worker: Worker, block: Block) -> Packed:
    result = attempt(call, worker, block)
    try:
        return pack(result)
    except Exception as error:  # noqa: BLE001  # a result that cannot be sent is the client's failure, not the worker's
        ids = tuple(worker.clients[position].id for position in block.members)
        return pack(Failure(ids, type(error).__name__, f"the result cannot be sent: {error}", traceback.format_exc()))


class _Outbox:
    """The shared memory that this worker's results are written to; the parent is asked for more when it is too small."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._attached = pipe, Attached()
        self._memory: memoryview | None = None

    def memory(self, size: int) -> memoryview | None:
        if size > (0 if self._memory is None else self._memory.nbytes):
            self._memory = None
            self._pipe.send(("room", size))
            self._memory = self._attached.memory(self._pipe.recv())
        return self._memory
