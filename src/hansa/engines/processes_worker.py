"""What runs in a worker process of the engine ``processes``: it holds recipes and data, and does blocks until its parent is gone."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from typing import Any, overload

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
    """The life of a worker process."""
    prepare_process()
    recipes = Attached().memory(setup.segment)
    assert recipes is not None
    try:
        learner = load_span(recipes, setup.learner)
        store = RelayedStore(pipe) if setup.relayed else load_span(recipes, setup.store)
        worker = Worker(learner, Recipes(recipes, setup.shards, setup.clients), store)
    except Exception as error:  # noqa: BLE001  # the parent raises it
        pipe.send(("broken", f"{type(error).__name__}: {error}", traceback.format_exc()))
        os._exit(0)
    pipe.send(("ready",))
    inbox, outbox = Attached(), Attached()
    call: Any = None
    while True:
        try:
            _, block, news = pipe.recv()
            if news is not None:
                header, spans, name = news
                call = None  # not kept while the next one is read, which may be as large
                call = unpack(header, spans, inbox.memory(name))
            _deliver(pipe, outbox, _do(call, worker, block))
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone or has let this worker go


def _do(call: Any, worker: Worker, block: Block) -> Packed:
    result = attempt(call, worker, block)
    try:
        return pack(result)
    except Exception as error:  # noqa: BLE001  # a result that cannot be sent is the client's failure, not the worker's
        ids = tuple(worker.clients[position].id for position in block.members)
        return pack(Failure(ids, type(error).__name__, f"the result cannot be sent: {error}", traceback.format_exc()))


def _deliver(pipe: Connection, outbox: Attached, packed: Packed) -> None:
    if packed.buffers:
        pipe.send(("room", packed.size))
        name = pipe.recv()
        pipe.send(("done", packed.header, packed.place(outbox.memory(name))))
    else:
        pipe.send(("done", packed.header, ()))
