"""The engine of one machine with several cores: worker processes that keep their clients' data between rounds.

Workers are spawned, not forked, so they start clean on every system and beside any threads; each has one BLAS thread. A block is
preferably done by the worker that owns its first client, so that data is loaded once; a worker that has nothing left takes from the one
with most. Messages and results travel through shared memory, so that a round costs little beyond its work. A worker that dies
is replaced, loads its recipes again, and its block is tried a second time.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge

from hansa.core.accounting import Stopwatch
from hansa.core.blocks import Block, Client
from hansa.core.contracts import Call, ClientStore, Collectives, Engine, Result, UnboundLearner
from hansa.core.errors import InputError, RunFailed
from hansa.core.store import MemoryStore
from hansa.core.updates import Failure
from hansa.engines.machine import cores
from hansa.engines.processes_calls import Sender, Standing
from hansa.engines.processes_gang import conduct, end, gather, run_gang
from hansa.engines.processes_pool import GUARD, Process, wait_any
from hansa.engines.processes_shared import Segment, Span, pack, sweep, unpack
from hansa.engines.processes_worker import Setup, serve
from hansa.engines.shards import SHARD, are_small

R = TypeVar("R")

PATIENCE = 5.0
"""Seconds that workers are given to leave when the engine stops."""


@dataclass(frozen=True)
class Processes:
    """Worker processes on this machine.

    workers: how many at most; 0 for one per CPU core. Fewer are started where there are fewer blocks.
    """

    name: Literal["processes"] = field(default="processes", kw_only=True)
    workers: Annotated[int, Ge(0)] = 0

    @property
    def slots(self) -> int:
        """Places for members of a gang that are in a process group."""
        return self.workers or cores()

    def build(self) -> Engine:
        return ProcessesEngine(self.slots)


class _Seat:
    """A worker's place: the process that sits there now, its outbox, its queue, the block it does, the last call it was given, and the
    numbers of what it was sent for all calls."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.outbox = Segment()
        self.queue: deque[Block] = deque()
        self.occupy()

    def occupy(self) -> None:
        self.process = Process(serve, (self.setup,))
        self.ready = False
        self.block: Block | None = None
        self.knows = 0
        self.stands: dict[type, int] = {}


@dataclass(frozen=True)
class _News:
    """A call that was published. place: what all workers read it by."""

    place: tuple[bytes, tuple[Span, ...], str]
    standing: Standing | None

    def of(self, seat: _Seat) -> tuple[Any, ...]:
        """What the worker at a seat is sent of it, which then knows what stands."""
        standing = self.standing
        if standing is None or seat.stands.get(standing.kind) == standing.number:
            return *self.place, None
        seat.stands[standing.kind] = standing.number
        return *self.place, standing.pickled


class ProcessesEngine:
    """See :class:`Processes`."""

    keeps_members = True

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.transfer = Stopwatch()
        self._clients: Sequence[Client] = ()
        self._store: ClientStore | None = None
        self._setup: Setup | None = None
        self._sender = Sender()
        self._recipes, self._inbox = Segment(), Segment()
        self._seats: list[_Seat] = []
        self._members: list[Process] = []
        self._serial = 0

    def start(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore) -> None:
        """Put the recipes where workers find them. InputError for a recipe that cannot be sent to another process."""
        self.stop()
        sweep()
        relayed = isinstance(store, MemoryStore)  # what is in this process's memory is read and written here, for all workers
        whole = are_small(clients, pickle.Pickler)
        parts = [_pickled(learner, "the learner"), b"" if relayed else _pickled(store, "the store of client state")]
        parts.append(pickle.dumps(clients, protocol=5) if whole else b"")
        for start in range(0, 0 if whole else len(clients), SHARD):
            parts.append(_pickled(list(clients[start : start + SHARD]), f"the recipe of a client from {clients[start].id!r} on"))
        ends = list(accumulate(map(len, parts)))
        self._recipes.reserve(max(1, ends[-1]))
        memory = self._recipes.memory
        assert memory is not None
        spans = [(end - len(part), len(part)) for end, part in zip(ends, parts, strict=True)]
        for (begin, size), part in zip(spans, parts, strict=True):
            memory[begin : begin + size] = part
        self._clients, self._store = clients, store
        self._setup = Setup(self._recipes.name, spans[0], spans[1], spans[2], tuple(spans[3:]), len(clients), relayed)

    def map(self, call: Call, blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        """Do the call on every block. A map that was left early is finished before the next one begins.

        Raises RunFailed when workers cannot be started, InputError when they cannot read what they are sent.
        """
        assert self._setup is not None, "start the engine first"
        self._settle()
        self._serial += 1
        serial, news, deaths = self._serial, self._publish(call), Counter[int]()
        self._assign(blocks, self._setup)
        for seat in sorted(self._seats, key=lambda seat: not seat.queue):  # owners choose before those who own nothing
            self._give(seat, self._next(seat), news)
        left = len(blocks)
        while left:
            if serial != self._serial:
                raise RunFailed("engine processes: this map was given up when the next one began; use its results first")
            done: list[tuple[int, Result]] = []
            for seat, message in self._listen():
                block = seat.block
                assert block is not None
                if message is not None:
                    result = self._hear(seat, message)
                else:
                    result = self._replace(seat, block, deaths)
                    if result is None:
                        self._give(seat, block, news)
                if result is not None:
                    done.append((block.number, result))
                    self._give(seat, self._next(seat), news)
            left -= len(done)
            yield from done  # only now: whoever leaves early must leave no message unheard

    def gang(self, function: Callable[[Collectives], R], members: int) -> list[R]:
        """Run ``function``, which must be importable by name, in processes of its own that are co-started and end with it; where it has
        ``kept = True``, with the engine, or with the first such gang that fails or is of another size."""
        if not getattr(function, "kept", False):
            return run_gang(function, members)
        if len(self._members) != members:
            end(self._members)
            self._members = gather(members)
        try:
            return conduct(self._members, function)
        except BaseException:
            end(self._members)
            self._members = []
            raise

    def stop(self) -> None:
        """End the workers and remove all shared memory. The engine may be started again."""
        until = time.monotonic() + PATIENCE
        for seat in self._seats:
            seat.process.pipe.close()
        for seat in self._seats:
            seat.process.end(0.0 if seat.block is not None else max(0.0, until - time.monotonic()))
            seat.outbox.close()
        end(self._members)
        self._seats, self._members, self._setup, self._sender = [], [], None, Sender()
        self._recipes.close()
        self._inbox.close()

    def _publish(self, call: Call) -> _News:
        """Write the call once for all workers."""
        with self.transfer:
            try:
                sent, standing = self._sender.parted(call)
                packed = pack(sent)
            except Exception as error:
                raise InputError(_unsendable("the algorithm, the message or the preparation", error)) from error
            self._inbox.reserve(packed.size)
            return _News((packed.header, packed.place(self._inbox.memory), self._inbox.name), standing)

    def _assign(self, blocks: Sequence[Block], setup: Setup) -> None:
        while len(self._seats) < min(self.workers, len(blocks)):
            first, last = (len(self._clients) * (len(self._seats) + k) // self.workers for k in (0, 1))
            self._seats.append(_Seat(replace(setup, own=range(first, last))))
        for block in blocks:
            owner = block.members[0] * len(self._seats) // len(self._clients)
            self._seats[owner].queue.append(block)

    def _next(self, seat: _Seat) -> Block | None:
        """The seat's own next block, or the last one of whoever has most."""
        if seat.queue:
            return seat.queue.popleft()
        longest = max((other.queue for other in self._seats), key=len)
        return longest.pop() if longest else None

    def _give(self, seat: _Seat, block: Block | None, news: _News) -> None:
        if block is not None and not self._send(seat, block, news):
            seat.process.end()  # it had died while it had nothing to do
            seat.occupy()
            if not self._send(seat, block, news):
                raise RunFailed(f"engine processes: a worker cannot be started; {GUARD}")

    def _send(self, seat: _Seat, block: Block, news: _News) -> bool:
        with self.transfer:
            sent = seat.process.send((block, None if seat.knows == self._serial else news.of(seat)))
        seat.block, seat.knows = block, self._serial
        return sent

    def _listen(self) -> list[tuple[_Seat, Any]]:
        busy = {seat.process: seat for seat in self._seats if seat.block is not None}
        return [(busy[process], message) for process, message in wait_any(list(busy), receiving=self.transfer)]

    def _hear(self, seat: _Seat, message: tuple[Any, ...]) -> Result | None:
        """Answer what a worker asks, or take its result."""
        kind, *content = message
        if kind == "done":
            seat.block = None
            header, spans = content
            with self.transfer:
                result: Result = unpack(header, spans, seat.outbox.memory)
            return result
        if kind == "ready":
            seat.ready = True
        elif kind == "room":
            seat.outbox.reserve(*content)
            seat.process.send(seat.outbox.name)
        elif kind == "broken":
            raise InputError(_unreadable(*content))
        else:
            seat.process.send(self._access(kind, content))
        return None

    def _access(self, kind: str, content: list[Any]) -> tuple[str, Any]:
        assert self._store is not None
        try:
            return "value", (self._store.read if kind == "read" else self._store.write)(*content)
        except Exception as error:  # noqa: BLE001  # raised again in the worker, where it is the client's failure
            return "error", error

    def _replace(self, seat: _Seat, block: Block, deaths: Counter[int]) -> Failure | None:
        """Start another process in place of one that died; a failure if this was the block's second death."""
        code = seat.process.end(PATIENCE)
        if not seat.ready and code >= 0:
            raise RunFailed(f"engine processes: a worker ended with code {code} before it could begin; {GUARD}")
        seat.occupy()
        deaths[block.number] += 1
        if deaths[block.number] < 2:
            return None
        ids = tuple(self._clients[position].id for position in block.members)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return Failure(ids, "WorkerLost", f"the worker {how} while it did this block, twice (too little memory is a common cause)")

    def _settle(self) -> None:
        """Wait for what a map that was left early had begun, and forget it."""
        for seat in self._seats:
            seat.queue.clear()
        while any(seat.block is not None for seat in self._seats):
            for seat, message in self._listen():
                if message is None:
                    seat.block = None
                else:
                    self._hear(seat, message)


def _pickled(value: Any, what: str) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:
        raise InputError(_unsendable(what, error)) from error


def _unsendable(what: str, error: Exception) -> str:
    return (
        f"engine processes: {what} cannot be sent to another process ({type(error).__name__}: {error}); "
        "define functions and classes at the top of a module, or write engine.name = 'inline'"
    )


def _unreadable(what: str, trace: str) -> str:
    return (
        f"engine processes: a worker cannot read what it was sent ({what}); define functions and classes in a module that can be "
        f"imported, or write engine.name = 'inline'\n{trace}"
    )
