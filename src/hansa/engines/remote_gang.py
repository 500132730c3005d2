"""A gang whose members are tasks of an engine that gives no collectives of its own (Dask, Ray, Spark).

The process that plays the rounds holds a :class:`Hub`, which listens on TCP; every task calls :func:`join`, which dials back and
runs the gang's function. The hub stands in the middle: each member sends it what it brings to a collective, and when all have, it
answers all. Sums are taken once, in rank order, so that every member gets the same bits. Results come back the same way.

Both sides prove to each other that they hold the hub's key before anything is unpickled. What they send is not encrypted.
"""

from __future__ import annotations

import pickle
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from multiprocessing import AuthenticationError, connection
from typing import Any

from hansa.core.contracts import Collectives
from hansa.core.errors import InputError, RunFailed
from hansa.engines.meeting import Meeting, answer
from hansa.engines.pickling import cloudpickle
from hansa.engines.wire import SILENCE, Wire

PULSE = 0.2
"""Seconds without news after which the engine is asked whether the members are alive."""

ARRIVAL = 60.0
"""Seconds within which all members must have come."""

GREETING = 5.0
"""Seconds that whoever dials in has for each part of the proof that it is a member."""


class Hub:
    """The side of the process that plays the rounds; open until it is left, which ends all members.

    members: how many there are.
    host:    of this machine, by a name or number that the members can dial.
    """

    def __init__(self, members: int, host: str = "127.0.0.1") -> None:
        self.members = members
        self.authkey = secrets.token_bytes(32)
        self._server = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
        self.address: tuple[str, int] = (host, self._server.getsockname()[1])
        self._wires: dict[int, Wire] = {}
        self._bell, self._button = socket.socketpair()  # rung when a member has come
        self._lock, self._open = threading.Lock(), True

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open = False
        for each in (self._server, self._bell, self._button, *(wire.socket for wire in self._wires.values())):
            each.close()

    def results(self, alive: Callable[[], str | None]) -> list[Any]:
        """What the members returned, in rank order; may be called once.

        alive: asked a few times a second while nothing happens: None while the engine runs all members, or why it does not.

        Raises RunFailed in a member's words when it raises, and when one is lost, does not come or calls other collectives.
        """
        results: dict[int, Any] = {}
        waiting: dict[int, tuple[str, bytes]] = {}
        until = time.monotonic() + ARRIVAL
        while len(results) < self.members:
            quiet = True
            for rank, message in self._listen(results):
                quiet = False
                if message is None:
                    raise RunFailed(f"gang member {rank} of {self.members}: its process ended before it was done")
                kind, *content = message
                if kind == "failed":
                    raise RunFailed(f"gang member {rank} of {self.members}: {content[0]}\n{content[1]}".rstrip())
                if kind == "done":
                    results[rank] = content[0]
                else:
                    waiting[rank] = (content[0], content[1])
            if waiting and len(waiting) + len(results) == self.members:
                parts = answer(waiting, results)
                for wire in self._wires.values():
                    wire.send(parts)
                waiting.clear()
            if quiet:
                self._look(alive, until)
        return [results[rank] for rank in range(self.members)]

    def _listen(self, over: Collection[int]) -> Iterator[tuple[int, Any]]:
        """(rank, message) of members that have said something, None for those that are gone; new members are let in."""
        with self._lock:
            talking = {wire.socket: rank for rank, wire in self._wires.items() if rank not in over}
        for ready in connection.wait([self._server, self._bell, *talking], PULSE):
            if ready is self._server:
                # In a thread of its own: whoever dials in and then says nothing must not keep the members waiting.
                threading.Thread(target=self._greet, args=(self._server.accept()[0],), daemon=True).start()
            elif ready is self._bell:
                self._bell.recv(1)
            elif isinstance(ready, socket.socket):
                yield talking[ready], self._wires[talking[ready]].receive()

    def _greet(self, dialled: socket.socket) -> None:
        """Let a member in; whoever cannot prove to be one, or comes a second time, is sent away."""
        wire = Wire(dialled, GREETING)
        try:
            wire.prove(self.authkey, "hub")
            rank = wire.receive()
        except (AuthenticationError, EOFError, OSError):
            rank = None
        wire.socket.settimeout(SILENCE)
        with self._lock:
            if self._open and rank in range(self.members) and rank not in self._wires:
                self._wires[rank] = wire
                self._button.send(b"1")
                return
        wire.close()

    def _look(self, alive: Callable[[], str | None], until: float) -> None:
        why = alive()
        if why is not None:
            raise RunFailed(f"gang of {self.members}: {why}")
        if len(self._wires) < self.members and time.monotonic() > until:
            raise RunFailed(
                f"gang of {self.members}: {len(self._wires)} members have come within {ARRIVAL:.0f} seconds; "
                f"their slots must be free, and the workers must be able to dial {self.address[0]}:{self.address[1]}"
            )


def pack_function(engine: str, function: Callable[[Collectives], Any]) -> bytes:
    """The gang's function as :func:`join` takes it. InputError when it cannot be sent to another process."""
    try:
        return cloudpickle().dumps(function, protocol=5)
    except Exception as error:
        raise InputError(
            f"engine {engine}: the gang's function cannot be sent to another process ({type(error).__name__}: {error}); "
            "define it at the top of a module"
        ) from error


# --- at the worker ---------------------------------------------------------------------------------------------------------------


class _Ended(BaseException):
    """The gang was given up. Not an Exception, so that a function that catches those lets it pass."""


def join(address: tuple[str, int], authkey: bytes, rank: int, size: int, function: bytes) -> None:
    """Be member ``rank`` of a gang, in this process and thread; what the function returns or raises goes to the hub.

    function: from :func:`pack_function`.

    Returns when the gang is over for this member. Raises RunFailed when the hub cannot be dialled or is not the one of the key.
    """
    from threadpoolctl import threadpool_limits

    try:
        wire = Wire(socket.create_connection(address, ARRIVAL), ARRIVAL)
        try:
            wire.prove(authkey, "member")
        except BaseException:
            wire.close()
            raise
    except (AuthenticationError, EOFError, OSError) as error:
        where = f"{address[0]}:{address[1]}"
        raise RunFailed(
            f"gang member {rank} of {size}: cannot join the gang at {where} ({type(error).__name__}: {error})"
        ) from error
    wire.socket.settimeout(None)  # other members may compute for hours before they come to a collective
    try:
        wire.send(rank)
        with threadpool_limits(1):
            told = _told(wire, rank, size, function)
        wire.send_bytes(told)
    except _Ended:
        return
    finally:
        wire.close()


def _told(wire: Wire, rank: int, size: int, function: bytes) -> bytes:
    """What the hub is told in the end."""

    def meet(operation: str, brought: bytes) -> list[bytes]:
        wire.send(("meet", operation, brought))
        told: list[bytes] | None = wire.receive()
        if told is None:
            raise _Ended
        return told

    try:
        result = pickle.loads(function)(Meeting(rank, size, meet))  # noqa: S301  # from this job's own driver
        return cloudpickle().dumps(("done", result), protocol=5)
    except Exception as error:  # noqa: BLE001  # it becomes the gang's error
        return pickle.dumps(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
