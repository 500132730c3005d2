"""The standard health service of gRPC (grpc.health.v1), for probes that have a certificate of the federation.

TLS asks everybody for a certificate before a call begins, so that a probe without one sees a handshake that fails: `/readyz` is for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from hansa.core.errors import missing_extra
from hansa.federation.endpoint import Readiness

try:
    from grpc_health.v1 import health_pb2 as messages
    from grpc_health.v1 import health_pb2_grpc as rpc
except ImportError as error:
    raise missing_extra("grpcio-health-checking", "federation") from error

SERVICES = ("", "hansa.federation.v1.Federation", "hansa.federation.v1.Administration")
MEMBERS = ("client", "relay", "admin", "viewer", "server")

LOOK = 5.0
"""Seconds between two looks of who watches."""


class Health(rpc.HealthServicer):
    """SERVING where this process is ready, NOT_SERVING where it is not."""

    def __init__(self, readiness: Readiness, doors: Any) -> None:
        self._readiness, self._doors = readiness, doors

    async def Check(self, request: Any, context: Any) -> Any:
        await self._doors.known(context, *MEMBERS)
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return messages.HealthCheckResponse(status=await self._status())

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        who, last = await self._doors.known(context, *MEMBERS), None
        while self._doors.knows(who):
            status = await self._status() if request.service in SERVICES else messages.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                last = status
                yield messages.HealthCheckResponse(status=status)
            await asyncio.sleep(LOOK)
        await self._doors.refuse(context, who.name, who.role, "its certificate was revoked")

    async def _status(self) -> Any:
        problems = await asyncio.to_thread(self._readiness.problems)
        return messages.HealthCheckResponse.NOT_SERVING if problems else messages.HealthCheckResponse.SERVING


def add_health(server: Any, readiness: Readiness, doors: Any) -> None:
    """Answer for the health of a gRPC server that has not been started yet."""
    rpc.add_HealthServicer_to_server(Health(readiness, doors), server)
