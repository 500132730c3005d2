"""Many clients that have their updates ready: they speak the whole protocol with certificates of their own, and train nothing.

    python -m benchmarks.federation.crowd HOME ADDRESS FIRST LAST

Prints one JSON object: the seconds of every `Next` that brought a task, and of every upload.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np

from hansa.core.blocks import Block, Client, Table
from hansa.core.store import MemoryStore
from hansa.core.updates import Total, Update
from hansa.core.worker import Worker, attempt
from hansa.federation import calls, parcels, results
from hansa.federation.blobs import STEP
from hansa.federation.credentials import Credentials
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.tls import channel_credentials
from hansa.federation.transfer import SMALL
from hansa.federation.wire import FederationStub, piece

OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 4 << 20)]


Ready: TypeAlias = "dict[str, asyncio.Task[tuple[bytes, int]]]"
"""By the digest of a call: a result of it, and where its first number begins."""


async def client(home: Path, address: str, number: int, told: dict[str, list[float]], ready: Ready) -> None:
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
                await fetched(stub, task.call, ready)
                result = own(*await ready[task.call.digest], number)
                blob = pb.Blob(digest=hashlib.sha256(result).hexdigest(), size=len(result))
                began = time.perf_counter()
                report = pb.ReportRequest(protocol=PROTOCOL, task=task.id, result=blob)
                if len(result) > SMALL:
                    await uploaded(stub, result, blob)
                    await stub.Report(report)
                else:
                    await stub.Report(report, result)
                told["upload"].append(time.perf_counter() - began)


async def fetched(stub: Any, blob: Any, ready: Ready) -> None:
    """Every client reads all bytes of the call; one of them keeps them, and makes of them what all answer."""
    parts, new, size = [], blob.digest not in ready, 0
    async for chunk in stub.GetBlob(pb.GetBlobRequest(digest=blob.digest)):
        data = chunk.data
        size += len(data)
        if new:
            parts.append(data)
    assert size == blob.size
    if blob.digest not in ready:
        ready[blob.digest] = asyncio.create_task(asyncio.to_thread(answer, b"".join(parts)))


def answer(content: bytes) -> tuple[bytes, int]:
    """A well-formed result of the call with that content, and where its first number begins."""
    with tempfile.TemporaryDirectory() as folder:
        came, made = Path(folder) / "call", Path(folder) / "result"
        came.write_bytes(content)
        call: Any = calls.decode_call(parcels.read(came))
        result: Update | Total
        if calls.kind_of(call) == "describe":
            rows = Table(np.random.default_rng(0).random((40, 784), dtype=np.float32), np.arange(40) % 10)
            worker = Worker(None, [Client("x", dict, {"train": rows}, 40)], MemoryStore())  # type: ignore[arg-type]  # who describes needs no learner
            described = attempt(call, worker, Block(0, (0,)))
            assert isinstance(described, Update)
            result = described
        else:
            values = {f"delta/{name}": value * np.float32(1e-3) for name, value in call.message.params.items()}
            result = Total(values, 4.0, 1, {"loss": (np.float64(1.0), np.float64(4.0))})
        parcels.write(made, results.encode_result(result))
        written = made.read_bytes()
    start = 8 + int.from_bytes(written[:8], "little")
    header = json.loads(written[8:start])
    number = next(told for told in header.values() if told.get("dtype") in ("F32", "F64") and told["data_offsets"][1])
    return written, start + int(number["data_offsets"][0])


def own(result: bytes, place: int, number: int) -> bytes:
    """A result that is unlike that of any other client: in the end of a number's fraction."""
    view = memoryview(result)
    return b"".join((view[:place], number.to_bytes(2, "little"), view[place + 2 :]))


async def uploaded(stub: Any, result: bytes, blob: Any) -> None:
    start = asyncio.Event()

    async def requests() -> Any:
        yield pb.PutBlobRequest(blob=blob)
        await start.wait()
        for place in range(0, len(result), STEP):
            yield piece(result[place : place + STEP])

    async for reply in stub.PutBlob(requests()):
        if reply.complete:
            return
        start.set()


async def crowd(home: Path, address: str, numbers: range) -> dict[str, list[float]]:
    told: dict[str, list[float]] = {"next": [], "upload": []}
    ready: Ready = {}
    await asyncio.gather(*(client(home / f"client-{n:05d}", address, n, told, ready) for n in numbers))
    return told


if __name__ == "__main__":
    print(json.dumps(asyncio.run(crowd(Path(sys.argv[1]), sys.argv[2], range(int(sys.argv[3]), int(sys.argv[4]))))))
