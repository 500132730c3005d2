"""Where a machine asks how a server or a client is: ``/metrics``, ``/healthz`` and ``/readyz`` over plain HTTP.

There is no TLS and no login here, and nothing can be changed: it is for the network of who runs the process, and tells no name.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hansa.core.errors import InputError

Check = Callable[[], None]
"""Raises where something is not as it has to be."""

PATIENCE = 3.0
"""Seconds after which a check that has not ended counts as failed."""


class Readiness:
    """Named checks that all have to pass. Safe to use from many threads; one that hangs is not started a second time."""

    def __init__(self, checks: Mapping[str, Check], patience: float = PATIENCE) -> None:
        self._checks, self._patience = dict(checks), patience
        self._running: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    def problems(self) -> dict[str, str]:
        """What is wrong, by check; empty where all is well. Takes as long as the slowest check, and not longer than the patience."""
        found: dict[str, str] = {}
        with self._lock:
            for name, check in self._checks.items():
                if name not in self._running or not self._running[name].is_alive():
                    thread = threading.Thread(target=self._try, args=(name, check, found), name=f"ready-{name}", daemon=True)
                    self._running[name] = thread
                    thread.start()
                else:
                    found[name] = "does not answer"
            until = time.monotonic() + self._patience
            for name, thread in self._running.items():
                if name not in found:
                    thread.join(max(0.0, until - time.monotonic()))
                    if thread.is_alive():
                        found[name] = "does not answer"
            return dict(found)

    def _try(self, name: str, check: Check, found: dict[str, str]) -> None:
        try:
            check()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            # The type alone: words of drivers hold addresses, and nobody logs in here.
            found[name] = type(error).__name__


class Endpoint:
    """An HTTP server with threads of its own, from :meth:`start` to :meth:`stop`.

    address: host:port; port 0 takes a free one. registry: of Prometheus.
    """

    def __init__(self, address: str, registry: Any, readiness: Readiness) -> None:
        host, colon, port = address.rpartition(":")
        if not (colon and host and port.isdigit() and int(port) < 65_536):
            raise InputError(f"--metrics {address}: write it as host:port, for example 127.0.0.1:9444")
        self._handler = type("Handler", (_Handler,), {"registry": registry, "readiness": readiness})
        self._place = host.strip("[]"), int(port)
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> Endpoint:
        """InputError where the address cannot be used."""
        try:
            self._server = ThreadingHTTPServer(self._place, self._handler)
        except OSError as error:
            raise InputError(
                f"--metrics {self._place[0]}:{self._place[1]}: cannot be used ({error.strerror or error}); name another port"
            ) from None
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="hansa-metrics", daemon=True).start()
        return self

    @property
    def address(self) -> str:
        """host:port of where it answers."""
        assert self._server is not None
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Handler(BaseHTTPRequestHandler):
    registry: Any
    readiness: Readiness
    timeout = 10  # of a socket on which nothing comes
    server_version, sys_version = "hansa", ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._say(200, "text/plain; charset=utf-8", b"ok\n")
        elif path == "/readyz":
            problems = self.readiness.problems()
            body = json.dumps({"ready": not problems, "problems": problems}).encode() + b"\n"
            self._say(503 if problems else 200, "application/json", body)
        elif path == "/metrics":
            from prometheus_client.exposition import choose_encoder

            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._say(200, kind, encode(self.registry))
        else:
            self._say(404, "text/plain; charset=utf-8", b"there are /metrics, /healthz and /readyz\n")

    def _say(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A probe every few seconds is no news."""
