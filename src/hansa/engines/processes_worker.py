"""What runs in a worker process of the engine ``processes``: it holds recipes and data, and does blocks until its parent is gone."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from hansa.core.blocks import Block
from hansa.core.params import Params
from hansa.core.updates import Failure
from hansa.core.worker import Worker, attempt
from hansa.engines.memory import keep_memory
from hansa.engines.processes_calls import Receiver
from hansa.engines.processes_pool import tell
from hansa.engines.processes_shared import Attached, Packed, Span, pack, unpack
from hansa.engines.shards import Recipes

BRIEF = 0.01
"""Seconds that preparing a client ahead may take: the next block should not have to wait for longer."""


@dataclass(frozen=True)
class Setup:
    """What a worker starts from: where everything it needs lies in shared memory, pickled.

    whole: all recipes, where they are small; else empty, and they lie in shards.
    own: the positions of the clients that the worker owns.
    """

    segment: str
    learner: Span
    store: Span
    whole: Span
    shards: tuple[Span, ...]
    clients: int
    relayed: bool
    own: range = range(0)


def _in_shards(memory: memoryview, setup: Setup) -> Recipes:
    return Recipes(setup.clients, lambda shard: load_span(memory, setup.shards[shard]))


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
    keep_memory()
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
        clients = load_span(recipes, setup.whole) if setup.whole[1] else _in_shards(recipes, setup)
    except Exception as error:  # noqa: BLE001  # the parent raises it
        _leave_broken(pipe, error)
    worker = Worker(learner, clients, store)
    _say(pipe, ("ready",))
    inbox, outbox, receiver = Attached(), _Outbox(pipe), Receiver()
    call: Any = None
    ahead = _Ahead(worker, setup.own)
    while True:
        try:
            while ahead.wants(call) and not pipe.poll():
                ahead.prepare(call)
            block, news = pipe.recv()
        except (EOFError, OSError):
            leave()
        if news is not None:
            header, spans, name, standing = news
            call = None  # the last one need not be kept while the next, which may be as large, is read
            try:
                call = receiver.whole(unpack(header, spans, inbox.memory(name)), standing)
            except Exception as error:  # noqa: BLE001  # the parent raises it
                _leave_broken(pipe, error)
        packed = _do(call, worker, block)
        try:
            tell(pipe, ("done", packed.header, packed.place(outbox.memory(packed.size))))
        except (EOFError, OSError):
            leave()


class _Ahead:
    """What a worker does while it waits: it prepares the clients that it owns, if all of them stay in memory."""

    def __init__(self, worker: Worker, own: range) -> None:
        self._worker, self._own = worker, own
        self._schema: Any = None
        self._left = own[:0]

    def wants(self, call: Any) -> bool:
        """Whether there is a client to prepare for the schema of the last call."""
        schema = getattr(call, "schema", None)
        if schema is not self._schema:  # nor is it where it came anew with the call and is the same
            self._left = self._left if schema == self._schema else self._own
            self._schema = schema
        return schema is not None and bool(self._left) and self._worker.keeps(len(self._own))

    def prepare(self, call: Any) -> None:
        """Prepare the next client."""
        position, began = self._left[0], time.monotonic()
        self._left = self._left[1:]
        with suppress(Exception):  # said when the client is visited, which may never be
            self._worker.table(position, call.split, call.schema)
        if time.monotonic() - began > BRIEF:
            self._left = self._own[:0]


def leave() -> NoReturn:
    """End this process without the interpreter's farewells, which would touch shared memory that others own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _leave_broken(pipe: Connection, error: Exception) -> NoReturn:
    _say(pipe, ("broken", f"{type(error).__name__}: {error}", traceback.format_exc()))
    leave()


def _say(pipe: Connection, message: Any) -> None:
    try:
        pipe.send(message)
    except OSError:
        leave()  # the parent has ended meanwhile, and has said why


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
