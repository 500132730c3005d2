"""What engines have in common whose workers share no memory with this process (Dask, Ray, Spark).

This process sends *errands*, and a worker process does them with the one :class:`~hansa.core.worker.Worker` that it holds. An errand
names what it needs and does not carry it: the setup (learner and recipes) is sent to a process that answers that it lacks it, so a
worker that was restarted, or that joined late, is made ready by the same exchange as all others, whatever the engine's own idea of
where data lives. Everything travels as bytes that are unpickled where they are used: arrays that an engine moves by itself may arrive
unaligned, and NumPy computes other last digits from those.

Client state is read and written by this process and travels with the errand: a worker that dies can leave nothing half-written.
"""

from __future__ import annotations

import pickle
import secrets
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hansa.core.accounting import Stopwatch
from hansa.core.blocks import Block, Client
from hansa.core.contracts import Call, ClientStore, Result, UnboundLearner
from hansa.core.errors import InputError
from hansa.core.many import part_of
from hansa.core.params import Params
from hansa.core.updates import Failure
from hansa.core.worker import Worker, attempt, own_entry
from hansa.engines.memory import keep_memory
from hansa.engines.pickling import cloudpickle
from hansa.engines.shards import SHARD, Recipes, are_small, shards_of

SETUP = -1
"""The number of the parcel that holds the learner, and the recipes where they are sent whole; shards count from 0."""

Parcels = Mapping[int, bytes]


@dataclass(frozen=True)
class Errand:
    """One block's work, as it is sent.

    token:  of the job whose setup it needs.
    serial: of the call, so that a process unpickles each call once.
    states: the clients' own entries by id, for algorithms that keep any.
    """

    token: str
    serial: int
    block: Block
    states: Mapping[str, Params] = field(default_factory=dict)


@dataclass(frozen=True)
class Lacking:
    """A worker's answer when it was not given what it needs: the numbers of the parcels to send with the errand the next time."""

    parcels: tuple[int, ...]


@dataclass(frozen=True)
class Done:
    """A worker's answer: the result, and the entries that its clients wrote in that round."""

    result: Result
    states: Mapping[str, Params] = field(default_factory=dict)
    round: int = 0


@dataclass(frozen=True)
class Unreadable:
    """A worker's answer when it cannot read what it was sent."""

    why: str
    traceback: str


class Sender:
    """The side of the process that plays the rounds: packs errands and parcels, takes answers.

    transfer: runs meanwhile, and while the engine sends and receives them.
    """

    def __init__(self, engine: str, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore) -> None:
        """Raises InputError for a learner that cannot be sent to another process."""
        self.engine, self.clients, self.store = engine, clients, store
        self.transfer = Stopwatch()
        self.token = secrets.token_hex(8)
        self._serial = 0
        self._call: Any = None
        self._whole = are_small(clients, cloudpickle().Pickler)
        setup = (learner, len(clients), clients if self._whole else None)
        self._parcels = {SETUP: self._pickled(setup, "the learner or the clients' recipes")}

    def call(self, call: Call) -> bytes:
        """What every errand of a round shares, to be sent once for all. Begins the round."""
        self._serial += 1
        self._call = call
        with self.transfer:
            return self._pickled(call, "the algorithm, the message or the preparation")

    def errand(self, block: Block) -> Errand:
        """The work of a block in the round that :meth:`call` began."""
        states: dict[str, Params] = {}
        part = part_of(self._call, block)
        before = getattr(part.call, "before", None)
        if before is not None:
            with self.transfer:
                for position in block.members:
                    name = own_entry(part.task, self.clients[position].id)
                    entry = self.store.read(name, before)
                    if entry is not None:
                        states[name] = entry
        return Errand(self.token, self._serial, block, states)

    def parcels(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """What a worker said it lacks. InputError for a recipe that cannot be sent to another process."""
        for number in numbers:
            if number not in self._parcels:
                some = list(self.clients[number * SHARD : (number + 1) * SHARD])
                with self.transfer:
                    self._parcels[number] = self._pickled(some, f"the recipe of a client from {some[0].id!r} on")
        return {number: self._parcels[number] for number in numbers}

    def all_parcels(self) -> dict[int, bytes]:
        """Everything that any worker may need, for engines that send it to all of them in advance."""
        return self.parcels([SETUP, *(() if self._whole else range(-(-len(self.clients) // SHARD)))])

    def take(self, answer: bytes) -> Result | Lacking:
        """The result of an errand, its clients' entries written to the store; or what the worker lacks. InputError where the worker
        could not read what it was sent."""
        with self.transfer:
            told: Done | Lacking | Unreadable = pickle.loads(answer)  # noqa: S301  # from this job's own worker
        if isinstance(told, Lacking):
            return told
        if isinstance(told, Unreadable):
            raise InputError(
                f"engine {self.engine}: a worker cannot read what it was sent ({told.why}); install the same packages there as here\n"
                + told.traceback
            )
        if told.states:
            with self.transfer:
                self.store.write(told.round, told.states)
        return told.result

    def lost(self, block: Block, why: str) -> Failure:
        """The failure of a block whose worker was lost too often."""
        ids = tuple(self.clients[position].id for position in block.members)
        return Failure(
            ids, "WorkerLost", f"the worker was lost while it did this block ({why}); too little memory is a common cause"
        )

    def _pickled(self, value: Any, what: str) -> bytes:
        try:
            return cloudpickle().dumps(value, protocol=5)
        except Exception as error:
            raise InputError(
                f"engine {self.engine}: {what} cannot be sent to another process ({type(error).__name__}: {error}); "
                "write engine.name = 'inline', or give data by path"
            ) from error


def owner(block: Block, slots: int, clients: int) -> int:
    """Which of ``slots`` workers should do a block: the one that holds the part of the population where the block begins, so that
    data is loaded once."""
    return block.members[0] * slots // clients


# --- at the worker ---------------------------------------------------------------------------------------------------------------


class Carried:
    """The store of client state at a worker: the entries that came with the errand, and those that go back with the answer."""

    def __init__(self) -> None:
        self.came: Mapping[str, Params] = {}
        self.goes: dict[str, Params] = {}
        self.round = 0

    def read(self, client: str, before: int) -> Params | None:
        return self.came.get(client)

    def write(self, round: int, states: Mapping[str, Params]) -> None:
        self.goes.update(states)
        self.round = round


class _Bench:
    """What this process holds between errands: the worker of one job, and the last call."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # an engine may run several threads in a process; data and learner are held once
        self.token, self.serial = "", 0
        self.worker: Worker | None = None
        self.store = Carried()
        self.call: Any = None

    def open(self, token: str, setup: bytes) -> None:
        """Hold another job's learner and recipes, and nothing of the last one's."""
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)
        keep_memory()
        learner, length, whole = pickle.loads(setup)  # noqa: S301  # from this job's own driver
        self.store, self.call, self.serial = Carried(), None, 0
        self.worker = Worker(learner, Recipes(length) if whole is None else whole, self.store)
        self.token = token


_bench = _Bench()


def do(errand: Errand, call: bytes, parcels: Parcels) -> bytes:
    """Do an errand in this process; returns a pickled :class:`Done` or :class:`Lacking`."""
    with _bench.lock:
        try:
            lacking = _make_ready(errand, call, parcels)
        except Exception as error:  # noqa: BLE001  # raised by the driver, in its words
            return pickle.dumps(Unreadable(f"{type(error).__name__}: {error}", traceback.format_exc()))
        return pickle.dumps(lacking) if lacking is not None else _do(errand)


def _make_ready(errand: Errand, call: bytes, parcels: Parcels) -> Lacking | None:
    """Unpack what this errand needs and this process does not hold yet; or say what is lacking."""
    if _bench.token != errand.token:
        if SETUP not in parcels:
            return Lacking((SETUP, *shards_of(errand.block)))
        _bench.open(errand.token, parcels[SETUP])
    worker = _bench.worker
    assert worker is not None
    if isinstance(worker.clients, Recipes):
        lacking = [shard for shard in shards_of(errand.block) if shard not in worker.clients.shards]
        if not parcels.keys() >= set(lacking):
            return Lacking(tuple(lacking))
        for shard in lacking:
            worker.clients.shards[shard] = pickle.loads(parcels[shard])  # noqa: S301  # from this job's own driver
    if _bench.serial != errand.serial:
        _bench.call = None  # the last one need not be kept while the next, which may be as large, is read
        _bench.call, _bench.serial = pickle.loads(call), errand.serial  # noqa: S301  # as above
    return None


def _do(errand: Errand) -> bytes:
    worker = _bench.worker
    assert worker is not None
    _bench.store.came, _bench.store.goes = errand.states, {}
    result = attempt(_bench.call, worker, errand.block)
    done = Done(result, _bench.store.goes, _bench.store.round)
    try:
        return cloudpickle().dumps(done, protocol=5)
    except Exception as error:  # noqa: BLE001  # a result that cannot be sent is the client's failure, not the worker's
        ids = tuple(worker.clients[position].id for position in errand.block.members)
        return pickle.dumps(Done(Failure(ids, type(error).__name__, f"the result cannot be sent: {error}", traceback.format_exc())))
