"""Many clients that have their updates ready: they speak the whole protocol with certificates of their own, and train nothing.

    python -m benchmarks.federation.crowd HOME ADDRESS FIRST LAST

Prints one JSON object: the seconds of every `Next` that brought a task, and of every upload.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from hansa.core.updates import Total, Update
from hansa.federation import calls, parcels
from hansa.federation.blobs import STEP
from hansa.federation.identity import Credentials, channel_credentials
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.wire import FederationStub, piece

OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 4 << 20)]


async def client(home: Path, address: str, number: int, told: dict[str, list[float]], folder: Path) -> None:
    credentials = channel_credentials(Credentials.load(home))
    async with grpc.aio.secure_channel(address, credentials, OPTIONS) as channel:
        stub = FederationStub(channel)
        while True:
            began = time.perf_counter()
            try:
                reply = await stub.Next(pb.NextRequest(protocol=PROTOCOL))
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    return  # the server leaves when its job is done
                raise
            if reply.idle:
                return
            for task in reply.tasks:
                told["next"].append(time.perf_counter() - began)
                call = await fetched(stub, task.call, folder)
                result, digest = await asyncio.to_thread(answer, call, number, folder)
                blob = pb.Blob(digest=digest, size=result.stat().st_size)
                began = time.perf_counter()
                await uploaded(stub, result, blob)
                told["upload"].append(time.perf_counter() - began)
                await stub.Report(pb.ReportRequest(protocol=PROTOCOL, task=task.id, result=blob))
                result.unlink()


async def fetched(stub: Any, blob: Any, folder: Path) -> Any:
    """Every client reads all bytes of the call; one of them keeps what all work from."""
    path, size = folder / blob.digest, 0
    parts, new = [], not path.exists()
    async for chunk in stub.GetBlob(pb.GetBlobRequest(digest=blob.digest)):
        size += len(chunk.data)
        if new:
            parts.append(chunk.data)
    assert size == blob.size
    if not path.exists():
        path.write_bytes(b"".join(parts))
    return calls.decode_call(parcels.read(path))


def answer(call: Any, number: int, folder: Path) -> tuple[Path, str]:
    """A well-formed result of the call, unlike that of any other client: its file and digest."""
    kind = calls.kind_of(call)
    result: Update | Total
    if kind == "describe":
        from hansa.core.blocks import Block, Client, Table
        from hansa.core.store import MemoryStore
        from hansa.core.worker import Worker, attempt

        rows = Table(np.random.default_rng(number).random((4, 784), dtype=np.float32), np.array([0, 1, 2, 3]) + 2 * (number % 4))
        made = attempt(call, Worker(None, [Client("x", dict, {"train": rows}, 4)], MemoryStore()), Block(0, (0,)))  # type: ignore[arg-type]
        assert isinstance(made, Update)
        result = made
    else:
        scale = np.float32(1e-3 * (1 + number))
        values = {f"delta/{name}": value * scale for name, value in call.message.params.items()}
        result = Total(values, 4.0, 1, {"loss": (np.float64(1.0), np.float64(4.0))})
    path = folder / f"{number}-{time.monotonic_ns()}"
    return path, parcels.write(path, calls.encode_result(result))


async def uploaded(stub: Any, path: Path, blob: Any) -> None:
    start = asyncio.Event()

    async def requests() -> Any:
        yield pb.PutBlobRequest(blob=blob)
        await start.wait()
        with path.open("rb") as file:
            while part := file.read(STEP):
                yield piece(part)

    async for reply in stub.PutBlob(requests()):
        if reply.complete:
            return
        start.set()


async def crowd(home: Path, address: str, numbers: range) -> dict[str, list[float]]:
    told: dict[str, list[float]] = {"next": [], "upload": []}
    with tempfile.TemporaryDirectory() as folder:
        await asyncio.gather(*(client(home / f"client-{n:05d}", address, n, told, Path(folder)) for n in numbers))
    return told


if __name__ == "__main__":
    print(json.dumps(asyncio.run(crowd(Path(sys.argv[1]), sys.argv[2], range(int(sys.argv[3]), int(sys.argv[4]))))))
