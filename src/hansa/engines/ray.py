"""The engine of Ray: a Ray on this machine that lives as long as the engine, a cluster, or the Ray that this process is in.

One actor per slot holds the data of its clients between rounds. It reserves no CPU, so that ordinary tasks of the same Ray are not
starved by it, and is made without arguments: an actor that Ray restarts, maybe on another node, gets the same arguments again, and
those may have been lost with the first. What it lacks it is sent with the next errand.
"""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge

from hansa.core.accounting import Stopwatch
from hansa.core.blocks import Block, Client
from hansa.core.contracts import Call, ClientStore, Collectives, Engine, Result, UnboundLearner
from hansa.core.errors import InputError, RunFailed
from hansa.core.updates import Failure
from hansa.engines.ray_cluster import enter, hear_out, leave, nodes_alive, refuse_ended, slots
from hansa.engines.ray_gang import run_gang
from hansa.engines.remote import Errand, Lacking, Parcels, Sender, do, owner

R = TypeVar("R")

BEAT = 1.0
"""Seconds without an answer after which the engine looks whether its Ray is there. Ray itself ends a process that has lost it."""

LARGE = 100 * 1024
"""Bytes above which Ray moves an argument through its object store; a round's call is then put there once, for all workers."""


@dataclass(frozen=True)
class Ray:
    """The workers of a Ray.

    address: of a running cluster: ``ray://host:10001`` from anywhere, ``host:6379`` or ``auto`` on one of its nodes; it is left
             running. Empty for a Ray on this machine, which ends with the run. Where this process is in a Ray already, that is used.
    workers: how many at most; 0 for one per CPU. Fewer are started where there are fewer blocks. A Ray on this machine has so many
             slots for gangs.
    """

    name: Literal["ray"] = field(default="ray", kw_only=True)
    address: str = ""
    workers: Annotated[int, Ge(0)] = 0

    def build(self) -> Engine:
        return RayEngine(self.address, self.workers)


class Holder:
    """The actor of a slot."""

    def do(self, sent: bytes, call: bytes = b"") -> bytes:
        """See :func:`hansa.engines.remote.do`; ``sent`` is the pickled errand with its parcels."""
        errand, parcels = pickle.loads(sent)  # noqa: S301  # from this job's own driver
        return do(errand, call, parcels)

    def awake(self) -> None:
        """Answers when the actor is there again."""


class _Seat:
    """A slot's place: its actor, its queue, the block it does, the answer that is awaited, and the last call it was given."""

    def __init__(self, ray: Any, node: str) -> None:
        self.ray, self.node = ray, node
        self.queue: deque[Block] = deque()
        self.block: Block | None = None
        self.errand: Errand | None = None
        self.answer: Any = None
        self.occupy()

    def occupy(self) -> None:
        near = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(self.node, soft=True)
        # A byte of memory: an actor that asks for nothing at all is put on any node, whatever is said of where it should be.
        # Ray restarts the process, and holds back what is sent meanwhile. An errand that was under way is not sent again by Ray: its
        # deaths are counted here.
        options = {"num_cpus": 0, "memory": 1, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": near}
        self.holder = self.ray.remote(**options)(Holder).remote()
        self.do = self.holder.do.options(max_task_retries=0)
        self.begun, self.waking, self.knows = False, False, 0

    def wake(self) -> None:
        self.answer, self.waking, self.knows = self.holder.awake.remote(), True, 0


class RayEngine:
    """See :class:`Ray`."""

    def __init__(self, address: str = "", workers: int = 0) -> None:
        self.address, self.workers = address, workers
        self._sender: Sender | None = None
        self._ray: Any = None
        self._slots: list[str] = []
        self._seats: list[_Seat] = []
        self._round = 0
        self._call: Any = None

    @property
    def transfer(self) -> Stopwatch | None:
        """Runs while messages and results are packed, moved and unpacked here."""
        return None if self._sender is None else self._sender.transfer

    def start(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore) -> None:
        """Be in a Ray. InputError where there is none at the address, or one of another version, and for a learner that cannot be
        sent; RunFailed where none can be started."""
        self.stop()
        sender = Sender("ray", learner, clients, store)
        self._ray, self._sender = enter(self.address, self.workers), sender
        places = slots() or [str(node["NodeID"]) for node in nodes_alive()]
        self._slots = [places[k % len(places)] for k in range(self.workers or len(places))]

    def map(self, call: Call, blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        """Do the call on every block. What a map that was left early has begun is finished before the next one begins.

        Raises RunFailed when workers cannot be started, InputError when they cannot read what they are sent.
        """
        assert self._sender is not None, "start the engine first"
        self._settle()
        self._round += 1
        current, deaths, data = self._round, Counter[int](), self._sender.call(call)
        with self._sender.transfer:
            self._call = self._ray.put(data) if len(data) > LARGE else data
        self._assign(blocks, len(self._sender.clients))
        for seat in sorted(self._seats, key=lambda seat: not seat.queue):  # owners choose before those who own nothing
            self._give(seat)
        left = len(blocks)
        while left:
            if current != self._round:
                raise RunFailed("engine ray: this map was given up when the next one began; use its results first")
            done: list[tuple[int, Result]] = []
            for seat in self._listen():
                block, result = seat.block, self._hear(seat, self._sender, deaths)
                if block is not None and result is not None:
                    done.append((block.number, result))
                    self._give(seat)
            left -= len(done)
            yield from done
        self._call = None

    def gang(self, function: Callable[[Collectives], R], members: int) -> list[R]:
        """Run ``function`` in tasks that reserve a CPU each, all at once or none; they are processes of their own."""
        assert self._sender is not None, "start the engine first"
        return run_gang(self.address, function, members)

    def stop(self) -> None:
        """End the actors, and the Ray that was started here. The engine may be started again."""
        seats, self._seats, self._sender, self._call = self._seats, [], None, None
        if self._ray is not None:
            if self._ray.is_initialized():
                for seat in seats:
                    self._ray.kill(seat.holder, no_restart=True)
                hear_out([seat.answer for seat in seats if seat.block is not None])
            self._ray = None
            leave()

    def _assign(self, blocks: Sequence[Block], clients: int) -> None:
        while len(self._seats) < min(len(self._slots), len(blocks)):
            self._seats.append(_Seat(self._ray, self._slots[len(self._seats)]))
        for block in blocks:
            self._seats[owner(block, len(self._seats), clients)].queue.append(block)

    def _give(self, seat: _Seat) -> None:
        """The seat's own next block, or the last one of whoever has most."""
        queue = seat.queue
        if queue:
            seat.block = queue.popleft()
        else:
            longest = max((other.queue for other in self._seats), key=len)
            seat.block = longest.pop() if longest else None
        if seat.block is not None:
            assert self._sender is not None
            seat.errand = self._sender.errand(seat.block)
            self._send(seat, {})

    def _send(self, seat: _Seat, parcels: Parcels) -> None:
        # An actor that has read this round's call is not sent it again; one that was restarted lacks its setup, and says so first.
        call = () if seat.knows == self._round and not parcels else (self._call,)
        # Bytes, and not the errand: arrays that Ray moves by itself may arrive unaligned, and NumPy computes other digits from those.
        assert self._sender is not None
        with self._sender.transfer:
            seat.answer = seat.do.remote(pickle.dumps((seat.errand, parcels), protocol=5), *call)
        seat.waking, seat.knows = False, self._round

    def _listen(self) -> list[_Seat]:
        """Seats whose answers are there, at least one."""
        busy = {seat.answer: seat for seat in self._seats if seat.block is not None}
        while not self._ray.wait(list(busy), num_returns=1, timeout=BEAT)[0]:
            refuse_ended()
        return [busy[answer] for answer in self._ray.wait(list(busy), num_returns=len(busy), timeout=0)[0]]

    def _hear(self, seat: _Seat, sender: Sender, deaths: Counter[int]) -> Result | None:
        """A block's result, its failure after its second death; or None, and the seat has been sent what it needs."""
        errors = self._ray.exceptions
        try:
            with sender.transfer:
                answer = self._ray.get(seat.answer)
        except errors.RayTaskError as error:
            raise InputError(
                f"engine ray: a worker cannot read what it was sent ({error.cause!r}); install the same packages there as here\n{error}"
            ) from error
        except errors.RayError as error:
            return self._replace(seat, sender, error, deaths)
        seat.begun = True
        if seat.waking:
            self._send(seat, {})
            return None
        told = sender.take(answer)
        if isinstance(told, Lacking):
            self._send(seat, sender.parcels(told.parcels))
            return None
        seat.block = None
        return told

    def _replace(self, seat: _Seat, sender: Sender, error: Exception, deaths: Counter[int]) -> Failure | None:
        block, why = seat.block, " ".join(str(error).split())
        assert block is not None
        if isinstance(error, self._ray.exceptions.ActorDiedError):  # Ray will not restart it
            if not seat.begun:
                raise InputError(f"engine ray: a worker cannot begin ({why}); install the same packages there as here") from error
            seat.occupy()
        if not seat.waking:
            deaths[block.number] += 1
        if deaths[block.number] < 2:
            seat.wake()
            return None
        seat.block = None
        return sender.lost(block, f"twice; {why}")

    def _settle(self) -> None:
        """Wait for what a map that was left early had begun, and forget it."""
        for seat in self._seats:
            seat.queue.clear()
        begun = [seat.answer for seat in self._seats if seat.block is not None]
        if begun:
            self._ray.wait(begun, num_returns=len(begun))
            hear_out(begun)
        for seat in self._seats:
            seat.block = None
