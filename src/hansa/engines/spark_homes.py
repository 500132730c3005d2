"""Where a part's data is: one process of a machine does each part of the rounds, whichever of them Spark has given the task to.

Spark gives a task to any Python process that waits on a machine. A process that is given a part which is another's sends that one the
errands and waits for the answers, so that data is loaded once on each machine and stays in one memory. Whose a part is, is told by an
abstract Unix socket that bears its name: one process can hold it, and it is free as soon as that process is gone, in whatever way;
then whoever has the task next holds the part and loads its data. Only processes of the same user are talked to. Where there are no
such sockets (they are Linux's), each process does what it is given, and may in time hold the data of all parts of its machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TypeAlias

from hansa.engines.remote import Errand, Parcels, do

Doing: TypeAlias = Callable[[Errand, bytes, Parcels], bytes]
"""As :func:`hansa.engines.remote.do`, in this process or another."""

GREETING = 5.0
"""Seconds in which the process that holds a part must answer; else the errands are done by who was given them."""

_STAY, _YOURS, _ASKED, _DONE = b"s", b"y", b"a", b"d"
_CREDENTIALS = struct.Struct("3i")
"""Process, user and group, as Linux tells them of the other side of a Unix socket."""


@dataclass
class _Held:
    """The parts of a job that this process holds: name -> the socket that bears it, and the thread that listens there."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    token: str = ""
    parts: dict[str, tuple[socket.socket, threading.Thread]] = field(default_factory=dict)


_held = _Held()
_idle = threading.Condition()
_serving = 0
"""Errands that this process does for others."""


@contextmanager
def at_home(token: str, part: str, afterwards: Callable[[], None]) -> Iterator[Doing]:
    """How the errands of a part of a job are done: by the process of this machine that holds it, which is this one where no other
    does.

    afterwards: called in the process that has done an errand for another.
    """
    connection = _found(token, part, afterwards) if sys.platform == "linux" else None
    if connection is None:
        yield do
        return
    with connection:
        yield _Elsewhere(connection)


class _Elsewhere:
    """Errands done by the process at the other end of a connection; by this one as soon as that is lost."""

    def __init__(self, connection: Connection) -> None:
        self.connection: Connection | None = connection
        self._call = b""

    def __call__(self, errand: Errand, call: bytes, parcels: Parcels) -> bytes:
        if self.connection is not None:
            try:
                return self._asked(self.connection, errand, call, parcels)
            except (EOFError, OSError):
                self.connection = None
        return do(errand, call, parcels)

    def _asked(self, other: Connection, errand: Errand, call: bytes, parcels: Parcels) -> bytes:
        known = call == self._call
        other.send_bytes(pickle.dumps((errand, None if known else call, tuple(parcels)), protocol=5))
        self._call = call
        while (told := other.recv_bytes())[:1] == _ASKED:
            other.send_bytes(parcels[int(told[1:])])
        return other.recv_bytes()


def settled() -> None:
    """Wait until this process does no errand for another: Spark ends processes whose own task is over, and knows of no other work."""
    with _idle:
        _idle.wait_for(lambda: not _serving)


@contextmanager
def _busy() -> Iterator[None]:
    global _serving
    with _idle:
        _serving += 1
    try:
        yield
    finally:
        with _idle:
            _serving -= 1
            _idle.notify_all()


@dataclass(frozen=True)
class _Asking(Mapping[int, bytes]):
    """The parcels that the process at the other end has, asked for where they are needed."""

    connection: Connection
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __getitem__(self, number: int) -> bytes:
        if number not in self.numbers:
            raise KeyError(number)
        self.connection.send_bytes(_ASKED + str(number).encode())
        return self.connection.recv_bytes()


def _found(token: str, part: str, afterwards: Callable[[], None]) -> Connection | None:
    """A connection to the process that holds the part; None where that is this one, or nobody can be asked."""
    with _held.lock:
        if _held.token != token:
            for name in list(_held.parts):
                _give_up(name)
            _held.token = token
    for _ in range(2):
        with _held.lock:
            if part in _held.parts or _take(token, part, afterwards):
                return None
            own = len(_held.parts)
        connection = _dialled(token, part, own)  # without the lock: the other may be about to ask this one
        if connection is not None:
            return connection
    return None


def _address(token: str, part: str) -> str:
    return "\0hansa-" + hashlib.sha256(f"{os.getuid()} {token} {part}".encode()).hexdigest()


def _take(token: str, part: str, afterwards: Callable[[], None]) -> bool:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(_address(token, part))
        listening.listen()
    except OSError:
        listening.close()
        return False
    thread = threading.Thread(target=_listen, args=(listening, part, afterwards), name="hansa-spark-home", daemon=True)
    _held.parts[part] = listening, thread
    thread.start()
    return True


def _give_up(part: str) -> None:
    listening, thread = _held.parts.pop(part)
    with contextlib.suppress(OSError):
        listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that listens
    thread.join()


def _dialled(token: str, part: str, own: int) -> Connection | None:
    """A connection to whoever holds the part and will do it."""
    dialling = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dialling.settimeout(GREETING)
    try:
        dialling.connect(_address(token, part))
        trusted = _is_own_user(dialling)
    except OSError:
        trusted = False
    if not trusted:
        dialling.close()
        return None
    dialling.setblocking(True)
    connection = Connection(dialling.detach())
    try:
        connection.send_bytes(str(own).encode())
        if connection.poll(GREETING) and connection.recv_bytes() == _STAY:
            return connection
    except (EOFError, OSError):
        pass
    connection.close()
    return None


def _is_own_user(other: socket.socket) -> bool:
    told = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(told)[1] == os.getuid())


def _listen(listening: socket.socket, part: str, afterwards: Callable[[], None]) -> None:
    with listening:
        while True:
            try:
                other, _ = listening.accept()
            except OSError:
                return
            if _is_own_user(other):
                served = threading.Thread(
                    target=_serve, args=(Connection(other.detach()), part, afterwards), name="hansa-spark-errand", daemon=True
                )
                served.start()
            else:
                other.close()


def _serve(connection: Connection, part: str, afterwards: Callable[[], None]) -> None:
    """Do the errands of one task that another process was given; or let that one have the part, where it holds fewer."""
    from threadpoolctl import threadpool_limits

    with connection, contextlib.suppress(EOFError, OSError):
        connection.send_bytes(_STAY if _stays(part, int(connection.recv_bytes())) else _YOURS)
        threadpool_limits(1)  # OpenMP counts its threads for each thread that calls it
        call = b""
        while True:
            errand, given, numbers = pickle.loads(connection.recv_bytes())  # noqa: S301  # from a process of the same user and job
            call = call if given is None else given
            with _busy():
                answer = do(errand, call, _Asking(connection, numbers))
                connection.send_bytes(_DONE)
                connection.send_bytes(answer)
            afterwards()


def _stays(part: str, others: int) -> bool:
    """False, and the part is given up, where who asks for it would hold no more parts than this process then."""
    with _held.lock:
        if part in _held.parts and len(_held.parts) <= others + 1:
            return True
        if part in _held.parts:
            _give_up(part)
        return False
