"""A started gRPC server with all services of a server process."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from hansa.core.errors import InputError
from hansa.federation.administration import AdministrationService
from hansa.federation.desk import Desk
from hansa.federation.doors import Doors
from hansa.federation.office import Office
from hansa.federation.service import FederationService
from hansa.federation.wire import add_administration, add_federation

THREADS = 12
"""That wait for disks and the database, of which SQLAlchemy opens 15 connections: uploads that are synced together cost one sync."""


async def serve(
    office: Office, address: str, credentials: Any, also: Sequence[Callable[[Any, Doors], None]] = (), listener: Any = None
) -> tuple[Any, int, list[Any]]:
    """Start to serve; returns the server, its port, and the tasks in its background. InputError for an address that cannot be used.

    also: add further services to the server, with the doors that say who may call them. listener: an interceptor of all calls.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "hansa-desk"))
    desk = Desk(office)
    await desk.look()
    doors = Doors(office, desk)
    options = [
        ("grpc.max_receive_message_length", 4 << 20), ("grpc.max_send_message_length", 4 << 20),
        ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000), ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.ping_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000), ("grpc.max_metadata_size", 16 << 10), ("grpc.so_reuseport", 0),
    ]  # fmt: skip
    server = grpc.aio.server(options=options, interceptors=() if listener is None else (listener,))
    add_federation(FederationService(office, desk, doors), server)
    add_administration(AdministrationService(office, desk, doors), server)
    for add in also:
        add(server, doors)
    try:
        port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    except RuntimeError:
        raise InputError(f"--listen {address}: cannot be used ({_why_not(address)})") from None
    await server.start()
    background = [asyncio.create_task(desk.keep()), asyncio.create_task(desk.commit_reports())]
    return server, port, background


def _why_not(address: str) -> str:
    """Why nobody can listen at an address, which gRPC does not tell."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as one:
            one.bind(place)
    except socket.gaierror:
        return "this machine knows no host of that name; write 0.0.0.0 to be reached at all its addresses"
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return "another process listens there; stop it, or name another port"
        return f"{getattr(error, 'strerror', None) or error}; name an address of this machine and a port up to 65535"
    return "gRPC does not say why; name another port"
