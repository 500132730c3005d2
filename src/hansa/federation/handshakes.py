"""Connections that end before a call: TLS turns away whoever shows no certificate that is believed, and tells the server nothing of it.

gRPC asks for credentials at every new connection, before its handshake, and every call names the connection that it came by. What has
begun and was never called by was turned away, spoke no TLS, or left; who it was is not known, for it did not say so credibly.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

PATIENCE = 30.0
"""Seconds from the beginning of a connection until it counts as ended where no call has come by it."""

FORGET = 3600.0
"""Seconds after which a connection that is no longer heard of is forgotten."""


class Handshakes:
    """Counts them. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: deque[float] = deque()
        self._known: OrderedDict[str, float] = OrderedDict()

    def begun(self) -> None:
        with self._lock:
            self._begun.append(time.monotonic())

    def arrived(self, peer: str) -> None:
        """A call has come by a connection, that of the address and port ``peer``."""
        now = time.monotonic()
        with self._lock:
            if peer not in self._known and self._begun:
                self._begun.popleft()
            self._known[peer] = now
            self._known.move_to_end(peer)
            while next(iter(self._known.values())) < now - FORGET:
                self._known.popitem(last=False)

    def failed(self) -> int:
        """How many have ended without a call since this was asked the last time."""
        before, count = time.monotonic() - PATIENCE, 0
        with self._lock:
            while self._begun and self._begun[0] < before:
                self._begun.popleft()
                count += 1
        return count
