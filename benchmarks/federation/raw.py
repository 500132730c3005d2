"""The limit: the same bytes down and up between the same numbers of connections, with TLS, by gRPC streaming alone.

python -m benchmarks.federation.raw HOME serve | HOME load ADDRESS CLIENTS BYTES ROUNDS

`load` prints the seconds of every round; the connections stay open from one to the next, as a federation's do.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc

from benchmarks.federation.crowd import OPTIONS
from hansa.federation.authority import Authority
from hansa.federation.credentials import Credentials
from hansa.federation.tls import channel_credentials, server_credentials

CHUNK = 1 << 20


@lru_cache
def parts(size: int) -> tuple[bytes, ...]:
    """So many bytes as the messages that they are sent in."""
    return tuple(bytes(min(CHUNK, size - start)) for start in range(0, size, CHUNK))


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """/raw/Down answers with as many bytes as it is asked for, /raw/Up reads to the end and says how many there were."""

    def service(self, details: Any) -> Any:
        if details.method == "/raw/Down":
            return grpc.unary_stream_rpc_method_handler(_down)
        return grpc.stream_unary_rpc_method_handler(_up)


async def _down(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for part in parts(int(request)):
        yield part


async def _up(requests: AsyncIterator[bytes], context: Any) -> bytes:
    total = 0
    async for part in requests:
        total += len(part)
    return str(total).encode()


async def serve(home: Path) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 << 20)])
    server.add_generic_rpc_handlers((Handler(),))
    authority = Authority.open(home / "server" / "authority")
    port = server.add_secure_port("127.0.0.1:0", server_credentials(authority.server(())))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def one(channel: Any, size: int) -> None:
    async for _ in channel.unary_stream("/raw/Down")(str(size).encode()):
        pass
    told = await channel.stream_unary("/raw/Up")(iter(parts(size)))
    assert int(told) == size


async def load(home: Path, address: str, clients: int, size: int, rounds: int) -> list[float]:
    async with AsyncExitStack() as stack:
        channels = []
        for number in range(clients):
            credentials = channel_credentials(Credentials.load(home / f"client-{number:05d}"))
            channels.append(await stack.enter_async_context(grpc.aio.secure_channel(address, credentials, OPTIONS)))
        await asyncio.gather(*(one(channel, 1) for channel in channels))  # connected, as a federation's clients are
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            await asyncio.gather(*(one(channel, size) for channel in channels))
            seconds.append(time.perf_counter() - began)
        return seconds


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if sys.argv[2] == "serve":
        asyncio.run(serve(place))
    else:
        print(json.dumps(asyncio.run(load(place, sys.argv[3], *map(int, sys.argv[4:])))))
