"""A network that fails on purpose: a TCP proxy on loopback that cuts connections, falls silent, or is slow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

End = Literal["cut", "stall"]


@dataclass(frozen=True)
class Fault:
    """After so many bytes in one direction a connection is cut, or nothing more passes and nobody is told."""

    how: End
    after: int
    upwards: bool = True


class Proxy:
    """Forwards connections to a server on this machine, as a context manager.

    faults: gives the fault of each connection in the order in which they are made, None for none.
    delay:  seconds that every piece takes to pass.
    """

    def __init__(self, port: int, faults: Callable[[int], Fault | None] = lambda _: None, delay: float = 0.0) -> None:
        self._target, self._faults, self._delay = port, faults, delay
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.moved = {True: 0, False: 0}
        """Bytes upwards, and downwards."""

    def __enter__(self) -> Proxy:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._begin(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            sockets = [self._listening, *self._sockets]
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in sockets:
            one.close()

    def _begin(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                below, _ = self._listening.accept()
                above = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                self._sockets += [below, above]
                fault = self._faults(self.connections)
                self.connections += 1
            silent = threading.Event()
            for upwards, source, sink in ((True, below, above), (False, above, below)):
                self._begin(self._pass, source, sink, upwards, fault, silent)

    def _pass(
        self, source: socket.socket, sink: socket.socket, upwards: bool, fault: Fault | None, silent: threading.Event
    ) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(self._delay)
                if fault is not None and fault.upwards == upwards and passed + len(data) > fault.after:
                    if fault.how == "cut":
                        break
                    silent.set()
                if silent.is_set():
                    continue
                sink.sendall(data)
                passed += len(data)
                with self._lock:
                    self.moved[upwards] += len(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
