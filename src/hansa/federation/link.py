"""The line from a member to its server: it only dials out, goes to the next address when one is down, and comes back by itself."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc

from hansa.core.errors import HansaError, InputError, RunFailed
from hansa.federation.credentials import Credentials
from hansa.federation.protocol import hansa_pb2_grpc as rpc
from hansa.federation.tls import channel_credentials
from hansa.federation.wire import FederationStub

R = TypeVar("R")

LONGEST_PAUSE = 15.0
"""Seconds between two attempts to reach a server, at most."""

JOINING = 20.0
"""Seconds for which a first connection to a server is tried."""

PATIENCE = 60.0
"""Seconds that one call may be silent: above the longest wait of `Next`, and above two lost keep-alives."""

GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED)  # fmt: skip
"""What a call ends with that no server has answered."""

# A connection that is not answered is given up after keep-alive time and timeout, 35 seconds; one that is not made, after ten. One that
# falls silent in the middle of a transfer has a ping of gRPC's own under way, and no other is sent beside it: it has its own timeout.
_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 15_000), ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.ping_timeout_ms", 15_000), ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 4 << 20), ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.min_reconnect_backoff_ms", 10_000), ("grpc.max_reconnect_backoff_ms", 5_000),
]  # fmt: skip


class Refused(HansaError):
    """The server will not have it: a certificate that is revoked, a call that the role may not make, a malformed report."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Unreached(RunFailed):
    """No server has answered, and it makes no sense to go on trying."""


class Strange(InputError):
    """At the address is a server, and it is none of this member's federation."""


class Link:
    """Calls that are made again, with growing pauses and jitter, until they have an answer. Safe to use from several threads."""

    def __init__(
        self, addresses: Sequence[str], credentials: Credentials | None, name: str = "", role: str = "client",
        through: Callable[[Any], Any] | None = None,
    ) -> None:  # fmt: skip
        """credentials: None only for a server that runs with ``--insecure`` on this machine, to which name and role are told.

        through: given every channel that is opened, gives the one that is used.
        """
        if not addresses:
            raise InputError("address: none was given (write host:port)")
        self._addresses, self._credentials = list(addresses), credentials
        self._metadata = [] if credentials is not None else [("hansa-name", name), ("hansa-role", role)]
        self._lock = threading.Lock()
        self._turn = 0
        self._through = through
        self._channel: Any = None
        self._calls: Any = None  # the channel, as calls see it
        self._made = 0

    @property
    def address(self) -> str:
        """host:port that is called at present."""
        return self._addresses[self._turn % len(self._addresses)]

    def _open(self) -> tuple[Any, int]:
        with self._lock:
            if self._channel is None:
                address = self.address
                self._made += 1
                self._channel = (
                    grpc.insecure_channel(address, _OPTIONS)
                    if self._credentials is None
                    else grpc.secure_channel(address, channel_credentials(self._credentials), _OPTIONS)
                )
                self._calls = self._channel if self._through is None else self._through(self._channel)
            return self._calls, self._made

    def _drop(self, made: int) -> None:
        """Hang up, unless another thread has done so already; the next call goes to the next address."""
        with self._lock:
            if self._channel is not None and made == self._made:
                self._channel.close()
                self._channel = None
                self._turn += 1

    def renew(self, credentials: Credentials) -> None:
        """Use another certificate from now on."""
        with self._lock:
            self._credentials = credentials
            if self._channel is not None:
                self._channel.close()
            self._channel = None

    def close(self) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def once(self, call: Callable[[Any, Any], R]) -> R:
        """``call(federation stub, administration stub)``, once. Raises Refused, or grpc.RpcError where the server cannot be reached."""
        channel, made = self._open()
        federation, administration = FederationStub(channel), rpc.AdministrationStub(channel)
        try:
            return call(_Stub(federation, self._metadata), _Stub(administration, self._metadata))
        except grpc.RpcError as error:
            if error.code() in GONE:
                self._drop(made)
                raise
            raise Refused(error.code(), error.details() or error.code().name) from None
        except ValueError as error:  # another thread closed the channel
            if "closed channel" not in str(error):
                raise
            raise Interrupted from None

    def call(
        self, call: Callable[[Any, Any], R], stop: threading.Event | None = None, said: Callable[[str], None] = lambda _: None
    ) -> R:
        """As :meth:`once`, again and again until there is an answer. Raises Refused, and Interrupted once ``stop`` is set."""
        pause = 0.2
        while True:
            if stop is not None and stop.is_set():
                raise Interrupted
            began = time.monotonic()
            try:
                return self.once(call)
            except Interrupted:
                continue
            except grpc.RpcError as error:
                if stop is not None and stop.is_set():
                    raise Interrupted from None  # it was this process that hung up
                said(f"the server cannot be reached ({cause(error)})")
                if time.monotonic() - began > 2 * LONGEST_PAUSE:
                    pause = 0.2  # it had worked for a while
                wait = pause * random.uniform(0.5, 1.5)
                pause = min(pause * 2, LONGEST_PAUSE)
                if stop is None:
                    time.sleep(wait)
                else:
                    stop.wait(wait)

    def soon(self, call: Callable[[Any, Any], R], said: Callable[[str], None] = lambda _: None, seconds: float = JOINING) -> R:
        """As :meth:`call`, for so many seconds, and at least once with every address.

        Raises Refused, Strange where the servers at all addresses are of another federation, and Unreached.
        """
        until, pause, strange = time.monotonic() + seconds, 0.2, set[str]()
        for attempt in itertools.count(1):
            address = self.address
            try:
                return self.once(call)
            except grpc.RpcError as error:
                why = cause(error)
            if why == OTHER_AUTHORITY:
                strange.add(address)
            if strange.issuperset(self._addresses):
                raise Strange(f"the server at {address} is of another federation: {why}")
            if attempt >= len(self._addresses) and time.monotonic() + pause > until:
                break
            said(f"the server at {address} cannot be reached ({why}); trying again for {max(0.0, until - time.monotonic()):.0f} s")
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, LONGEST_PAUSE)
        raise Unreached(f"the server at {address} cannot be reached ({why}); is it running there, and is this its address?")


OTHER_AUTHORITY = "its certificate was issued by an authority that is not believed here"

_CAUSES = (
    ("CERTIFICATE_VERIFY_FAILED", OTHER_AUTHORITY),
    ("Hostname Verification Check failed", "its certificate is not for this name or address; the server is told of it with --host"),
    ("Connection refused", "nothing listens there"),
    ("Domain name not found", "there is no host of that name"),
    ("Cancelling all calls", "it was stopped"),
    ("Stream removed", "the connection broke off"),
    ("Socket closed", "the connection broke off"),
    ("WRONG_VERSION_NUMBER", "it speaks no TLS"),
)


def cause(error: Any) -> str:
    """Why a call was not answered, for people. error: grpc.RpcError."""
    details = str(error.details())
    known = next((words for mark, words in _CAUSES if mark in details), None)
    return known or f"{error.code().name.lower()}: {details}"


class Interrupted(HansaError):
    """Asked to stop while it waited for the server."""


class _Stub:
    """A stub whose calls carry the metadata, and a deadline where no content goes with them, which takes as long as it takes."""

    def __init__(self, stub: Any, metadata: list[tuple[str, str]]) -> None:
        self._stub, self._metadata = stub, metadata

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._stub, name)
        streams = name in ("PutBlob", "GetBlob", "Watch")

        def call(request: Any, *content: bytes) -> Any:
            return method(request, *content, metadata=self._metadata, timeout=None if streams or content else PATIENCE)

        return call
