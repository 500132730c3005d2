"""How a server and a client are seen from outside: figures, readiness, health, and traces, each only where it is asked for."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from hansa.core.errors import InputError
from hansa.federation.blobs import Blobs
from hansa.federation.doors import Doors
from hansa.federation.endpoint import Check, Endpoint, Readiness
from hansa.federation.health import add_health
from hansa.federation.link import PATIENCE
from hansa.federation.office import Office
from hansa.federation.seen import UNSEEN, UNWATCHED, Unseen, Unwatched, Watching
from hansa.federation.state import State
from hansa.federation.tracing import RoundSpans, TaskSpans, Tracing

BLOBS_EVERY = 15.0
"""Seconds for which a blob store that took a blob is believed to take another: a probe costs an object store two requests."""


class _Watched:
    """An endpoint and traces, where they are wanted, from :meth:`start` to :meth:`stop`."""

    def __init__(self, endpoint: Endpoint | None, service: str) -> None:
        self._endpoint = endpoint
        self._tracing = Tracing.of_environment(service)

    def start(self) -> Self:
        if self._endpoint is not None:
            self._endpoint.start()
        return self

    def stop(self) -> None:
        if self._endpoint is not None:
            self._endpoint.stop()
        if self._tracing is not None:
            self._tracing.close()

    @property
    def address(self) -> str:
        """host:port of the endpoint. InputError where there is none."""
        if self._endpoint is None:
            raise InputError("metrics: are not served (give metrics = 'host:port')")
        return self._endpoint.address


class WatchedServer(_Watched):
    """Around one server process, from :meth:`start` to :meth:`stop`.

    metrics:  host:port of the endpoint; empty for none. liveness: seconds, see the engine's options. name: of this process.
    file:     of the database, where it is one.
    serving:  raises where gRPC does not answer.
    """

    def __init__(self, office: Office, metrics: str, liveness: float, name: str, file: Path | None, serving: Check) -> None:
        checks = {"database": database_answers(office.state, file), "blobs": blobs_take(office.blobs, name), "grpc": serving}
        self._readiness = Readiness(checks)
        self._figures: Any = None
        endpoint = None
        if metrics:
            from hansa.federation.observe import ServerFigures

            self._figures = ServerFigures(office.state, office.presence, office.audit, liveness)
            endpoint = Endpoint(metrics, self._figures.registry, self._readiness)
        super().__init__(endpoint, "hansa-server")
        self._spans = RoundSpans(self._tracing) if self._tracing else None

    @property
    def watch(self) -> Unwatched:
        """For who plays rounds."""
        return self._spans or UNWATCHED

    @property
    def listener(self) -> Any:
        """An interceptor of calls, None where nobody needs one."""
        if self._figures is None and self._spans is None:
            return None
        from hansa.federation.interception import Listener

        return Listener(self._figures, self._spans)

    def add_health(self, server: Any, doors: Doors) -> None:
        add_health(server, self._readiness, doors)

    def told(self, kind: str, content: Mapping[str, Any]) -> None:
        if self._figures is not None:
            self._figures.told(kind, content)


class WatchedClient(_Watched):
    """Around one client, from :meth:`start` to :meth:`stop`. metrics: as for a server."""

    def __init__(self, metrics: str) -> None:
        self._figures: Any = None
        endpoint = None
        if metrics:
            from hansa.federation.observe import ClientFigures

            self._figures = ClientFigures()
            endpoint = Endpoint(metrics, self._figures.registry, Readiness({"server": self._heard_lately}))
        super().__init__(endpoint, "hansa-client")
        self._spans = TaskSpans(self._tracing) if self._tracing else None

    @property
    def seen(self) -> Unseen:
        """For who does the tasks."""
        return UNSEEN if self._figures is None and self._spans is None else Watching(self._figures, self._spans)

    @property
    def through(self) -> Callable[[Any], Any] | None:
        """What a channel is passed through when it is opened, None where nobody listens."""
        if self._figures is None and self._spans is None:
            return None
        import grpc

        from hansa.federation.interception import Caller

        figures = self._figures
        caller = Caller((lambda: None) if figures is None else figures.heard, self._spans)

        def opened(channel: Any) -> Any:
            if figures is not None:
                figures.dialled()
            return grpc.intercept_channel(channel, caller)

        return opened

    def _heard_lately(self) -> None:
        if self._figures.silent() > PATIENCE:
            raise TimeoutError


def database_answers(state: State, file: Path | None) -> Check:
    """A check that the database answers. A file that was moved or replaced under a server still answers, and what is written there is
    lost: that fails too."""
    identity = _identity(file)

    def check() -> None:
        state.ready()
        if _identity(file) != identity:
            raise FileNotFoundError

    return check


def _identity(file: Path | None) -> tuple[int, int] | None:
    if file is None:
        return None
    found = os.stat(file)
    return found.st_dev, found.st_ino


def blobs_take(blobs: Blobs, name: str) -> Check:
    """A check that the store takes a blob and gives it up again; name: of this process, so that two do not remove each other's."""
    good_until = 0.0

    def check() -> None:
        nonlocal good_until
        if time.monotonic() < good_until:
            return
        path = blobs.scratch / f"ready-{name}"
        path.write_text(f"the store of {name} takes blobs")
        blobs.remove(blobs.put(path).digest)
        good_until = time.monotonic() + BLOBS_EVERY

    return check


def try_store(blobs: Blobs, where: str, name: str, owner: str) -> None:
    """InputError for a store that does not take a blob, which would else be found out by the first client's result; and for one of
    another owner, whose blobs would be removed as those that nobody names. owner: common to all who share it, empty for no claim."""
    try:
        blobs_take(blobs, name)()
        claimed = blobs.claim(owner) if owner else owner
    except Exception as error:  # whatever an object store's driver raises
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"blobs {where}: cannot be written ({said}); name a place that is there and may be written") from None
    if claimed != owner:
        raise InputError(
            f"blobs {where}: belong to a server or relay with another authority, and whatever the database of this one does not name "
            "would be removed there; name a place of its own, or, for servers on one database, the same --authority"
        )


def loop_serves(loop: Callable[[], asyncio.AbstractEventLoop | None], address: Callable[[], str]) -> Check:
    """A check that the loop of a gRPC server turns, and that its port takes connections."""

    def check() -> None:
        turning = loop()
        if turning is None:
            raise ConnectionError
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), turning).result(2)
        host, _, port = address().rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), 2).close()

    return check
