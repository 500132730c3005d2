"""The ranks as the driver sees them: started or awaited, let in, sent to, listened to, ended."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing import AuthenticationError, connection
from typing import Any

from hansa.core.accounting import Stopwatch
from hansa.core.blocks import Block
from hansa.core.errors import RunFailed
from hansa.engines.processes_pool import THREADS
from hansa.engines.remote_gang import GREETING, PULSE
from hansa.engines.wire import SILENCE, Wire

LOOPBACK = "127.0.0.1"

NOTHING = ("", 0)
"""What a rank knows that has just come."""

PATIENCE = 5.0
"""Seconds that ranks which this process has started are given to leave."""

RETURN = 1.0
"""Seconds that ranks which this process has started are given to come out of a gang that has failed."""

UNSTICK = 30.0
"""Seconds that a launcher's ranks are given to come out of a gang that has failed."""


class Rank:
    """A rank's place: the process that sits there now, the blocks that it is to do, the one at work first.

    owes:  whether an answer of it is awaited.
    knows: the token of the last job whose setup it was given, and the serial of the last call.
    """

    def __init__(self, number: int, ranks: Ranks) -> None:
        self.number = number
        self.queue: deque[Block] = deque()
        self.owes, self.knows = False, NOTHING
        self.wire: Wire | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._ranks = ranks
        self._unsent: list[Any] = []

    def wake(self) -> None:
        """Start the rank's process if it is for this one to start, and is not there or has died while it had nothing to do."""
        if self._ranks.launched:
            return
        if self.process is not None and self.process.poll() is not None:
            self.bury()
        if self.process is None:
            self.process = _start(self._ranks.address, self._ranks.key, self.number)
            self._ranks.expect()

    def send(self, message: Any) -> None:
        """Send what will be answered; as soon as the rank is there."""
        self.wake()
        self.owes = True
        self.tell(message)

    def tell(self, message: Any) -> None:
        """Send what will not be answered. To a rank that is gone nothing is sent."""
        if self.wire is not None:
            with self._ranks.transfer:
                self.wire.send(message)
        elif self.owes:
            self._unsent.append(message)

    def let_in(self, wire: Wire) -> None:
        self.wire = wire
        for message in self._unsent:
            wire.send(message)
        self._unsent.clear()

    def bury(self) -> str:
        """Clear away the process, ending it if it still runs, and say how it ended. RunFailed for one that a launcher has started."""
        if self._ranks.launched:
            raise RunFailed(
                f"engine torchrun: rank {self.number} of {len(self._ranks)} is lost; "
                "with torchrun --max-restarts all ranks are started again and go on from the last round"
            )
        return self.clear(0.0)

    def clear(self, patience: float) -> str:
        """Hang up, and kill the process if it is still there after ``patience`` seconds; says how it ended."""
        code = None
        if self.process is not None:
            try:
                code = self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                code = self.process.wait()
        if self.wire is not None:
            self.wire.close()
        self.wire, self.process, self.owes, self.knows = None, None, False, NOTHING
        self._unsent.clear()
        return "its connection broke" if code is None else f"killed by signal {-code}" if code < 0 else f"ended with code {code}"


class Ranks:
    """All ranks; open until closed, which ends them.

    launcher: host and port of the key-value store of the launcher that starts the ranks; without, this process starts them.
    transfer: runs while messages are sent and received.
    """

    def __init__(self, size: int, timeout: float, launcher: tuple[str, int] | None = None) -> None:
        self.launched = launcher is not None
        self.key = secrets.token_bytes(32)
        self.serial, self.transfer = 0, Stopwatch()
        self._timeout, self._until = timeout, time.monotonic() + timeout
        host = LOOPBACK if launcher is None else launcher[0]
        self._server = _listener(host)
        self.address: tuple[str, int] = (host, self._server.getsockname()[1])
        self._launcher = launcher
        self._store: Any = None
        self._own: threading.Thread | None = None
        self._abandoned = False
        self._all = [Rank(number, self) for number in range(size)]

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, number: int) -> Rank:
        return self._all[number]

    def __iter__(self) -> Iterator[Rank]:
        return iter(self._all)

    def gather(self) -> None:
        """Wait for all of a launcher's ranks, of which this process is the first."""
        from hansa.engines.torchrun_member import dial, serve

        # The driver's own rank is a thread beside the rounds, which is told and answers like any other.
        self._own = threading.Thread(target=lambda: serve(dial(self.address, self.key, 0)), name="hansa-rank-0", daemon=True)
        self._own.start()
        while missing := [rank for rank in self._all if rank.wire is None]:
            if connection.wait([self._server], PULSE):
                self._admit()
            self._look_for(missing)

    def expect(self) -> None:
        """Ranks are on their way: allow them the time to come."""
        self._until = time.monotonic() + self._timeout

    def begin(self) -> int:
        """Begin a map or a gang: wait for what is still owed to the one before, and forget it. Returns the new one's serial."""
        self.serial += 1
        for rank in self._all:
            rank.queue.clear()
        while any(rank.owes for rank in self._all):
            heard = self.listen(UNSTICK if self._abandoned else None)
            for rank, answer in heard:
                if answer is None:
                    rank.bury()
            if not heard:
                stuck = ", ".join(str(rank.number) for rank in self._all if rank.owes)
                raise RunFailed(f"engine torchrun: rank {stuck} has not come out of a gang that had failed; start all ranks again")
        self._abandoned = False
        return self.serial

    def listen(self, timeout: float | None = None) -> list[tuple[Rank, Any]]:
        """Answers that are owed, at least one within ``timeout`` seconds; None of a rank that is gone, and those first.

        Raises RunFailed for ranks that do not come.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            heard = self._hear(until)
            if heard or (until is not None and time.monotonic() >= until):
                return sorted(heard, key=lambda one: one[1] is not None)

    def _hear(self, until: float | None) -> list[tuple[Rank, Any]]:
        awaited = [rank for rank in self._all if rank.owes and rank.wire is None]
        talking = {rank.wire.socket: rank for rank in self._all if rank.owes and rank.wire is not None}
        pauses = [PULSE] * bool(awaited) + ([] if until is None else [max(0.0, until - time.monotonic())])
        heard: list[tuple[Rank, Any]] = []
        for ready in connection.wait([self._server, *talking], min(pauses, default=None)):
            if ready is self._server:
                self._admit()
            elif isinstance(ready, socket.socket):
                rank = talking[ready]
                assert rank.wire is not None
                with self.transfer:
                    message = rank.wire.receive()
                rank.owes = message is None  # who is gone owes until it is buried
                heard.append((rank, message))
        self._look_for(awaited)
        return heard

    def _admit(self) -> None:
        """Let a rank in; whoever cannot prove to be one, or comes a second time, is sent away."""
        wire = Wire(self._server.accept()[0], GREETING)
        try:
            wire.prove(self.key, "hub")
            number = wire.receive()
        except (AuthenticationError, EOFError, OSError):
            number = None
        if number in range(len(self)) and self._all[number].wire is None:
            wire.socket.settimeout(SILENCE)
            self._all[number].let_in(wire)
        else:
            wire.close()

    def _look_for(self, awaited: list[Rank]) -> None:
        missing = [rank for rank in awaited if rank.wire is None]
        for rank in missing:
            if rank.process is not None and rank.process.poll() is not None:
                how = rank.bury()
                raise RunFailed(f"engine torchrun: rank {rank.number} {how} before it could begin (what it wrote says why)")
        if missing and time.monotonic() > self._until:
            numbers = ", ".join(str(rank.number) for rank in missing)
            raise RunFailed(
                f"engine torchrun: rank {numbers} of {len(self)} has not come within {self._timeout:g} seconds; all ranks must run "
                f"the same job, and be able to dial {self.address[0]} (see a firewall between)"
            )

    def rendezvous(self) -> tuple[str, int]:
        """Host and port of a key-value store in which a gang's members find each other."""
        if self._launcher is not None:
            return self._launcher
        if self._store is None:
            from torch.distributed import TCPStore

            self._store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
        return LOOPBACK, self._store.port

    def abandon(self) -> None:
        """Give a gang up. Members come back when the connections of the one that failed are closed; those that do not soon, because
        they compute or are stuck, are ended where this process has started them."""
        if self.launched:
            self._abandoned = True
            return
        until = time.monotonic() + RETURN
        for rank in self._all:
            if rank.wire is None and rank.owes:
                rank.bury()
        while any(rank.owes for rank in self._all):
            heard = self.listen(max(0.0, until - time.monotonic()))
            for rank in [rank for rank, answer in heard if answer is None] if heard else self._all:
                if rank.owes:
                    rank.bury()

    def close(self) -> None:
        """End all ranks."""
        until = time.monotonic() + PATIENCE
        for rank in self._all:
            rank.tell(("bye",))
        for rank in self._all:
            rank.clear(0.0 if rank.owes else max(0.0, until - time.monotonic()))
        if self._own is not None:
            self._own.join(max(0.0, until - time.monotonic()))  # it may be leaving a process group, which must not be cut off
        self._server.close()
        self._store = None


def _listener(host: str) -> socket.socket:
    """A socket that can be dialled by the name; of another host's name for this one only on all its addresses."""
    if host in (LOOPBACK, "localhost"):
        return socket.create_server((LOOPBACK, 0), backlog=128)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=128)


def _start(address: tuple[str, int], key: bytes, number: int) -> subprocess.Popen[bytes]:
    """A rank's process. It imports nothing of the program that started it but what it is sent."""
    here = os.pathsep.join(path or os.getcwd() for path in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from hansa.engines.torchrun_member import main; main()"],
        stdin=subprocess.PIPE,
        env={**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": here},
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and is found so by who waits for it
        process.stdin.write(json.dumps([*address, key.hex(), number]).encode())  # not as arguments, which all users can read
        process.stdin.close()
    return process
