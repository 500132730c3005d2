"""How blobs cross the network: in chunks, resumed from where they stopped, and believed once their digest matches.

What is announced as too large is refused before anything of it is read. Memory is that of a few chunks: gRPC's flow control holds back
whoever sends until the other has written or read what came.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import queue
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from hansa.core.errors import InputError
from hansa.federation import wire
from hansa.federation.blobs import STEP, Blobs, Busy, MissingBlob, Partial, check_digest
from hansa.federation.faults import reached
from hansa.federation.protocol import hansa_pb2 as pb

CHUNK = 1 << 20
"""Bytes of a message with content."""

SMALL = 1 << 20
"""Bytes of a result that goes with its report, at most; a larger one is uploaded before, so that it can be resumed."""

SHELF = 64 << 20
"""Bytes of messages that are kept for the next who asks for the same."""


class Rejected(Exception):
    """What a servicer ends a call with: a status of gRPC, and words."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def upload(stub: Any, path: Path, digest: str) -> None:
    """Send a file whose digest is known, from where the server stopped the last time; when this returns, the server has it durably.

    stub: a :class:`hansa.federation.wire.FederationStub`.

    Raises grpc.RpcError as the call does.
    """
    size = path.stat().st_size
    start: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    replies = stub.PutBlob(_requests(path, pb.Blob(digest=check_digest(digest), size=size), start))
    try:
        for reply in replies:
            if reply.complete:
                return
            start.put(int(reply.offset))
        raise InputError(f"blob {digest}: the server took it and did not confirm it; use the same version of hansa at both ends")
    finally:
        start.put(None)  # whoever reads the file may still wait for where to begin
        replies.cancel()


def ahead(stub: Any, path: Path, digest: str) -> bool:
    """Upload the file of a result, unless it is so small that it goes with its report; whether it was uploaded."""
    large = path.stat().st_size > SMALL
    if large:
        upload(stub, path, digest)
    return large


def report(stub: Any, request: Any, path: Path | None = None) -> Any:
    """Report a task, with the result in a file where that is small; returns the server's reply.

    Raises grpc.RpcError as the call does.
    """
    if path is None or path.stat().st_size > SMALL:
        return stub.Report(request)
    return stub.Report(request, path.read_bytes())


def _requests(path: Path, blob: Any, start: queue.SimpleQueue[int | None]) -> Iterator[Any]:
    yield pb.PutBlobRequest(blob=blob)
    offset = start.get()
    if offset is None:
        return
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while part := file.read(CHUNK):
            offset += len(part)
            yield wire.piece(part)
            if offset < blob.size:
                reached("client.partly_uploaded")


def download(stub: Any, blob: Any, folder: Path, limit: int) -> Path:
    """The file of a blob (``digest``, ``size``) in a folder, where a download that broke off is resumed.

    Raises InputError for more than ``limit`` bytes and for content that is not the blob's, grpc.RpcError as the call does.
    """
    digest, size = check_digest(blob.digest), int(blob.size)
    if size > limit:
        raise InputError(f"blob {digest}: the server wants to send {size:,} bytes, and at most {limit:,} are taken here")
    path, partial = folder / digest, folder / f"{digest}.partial"
    if path.exists():
        return path
    # What a crash has left of an earlier download may be damaged: then once more, from the start.
    resumed = partial.exists()
    while not _fetched(stub, digest, size, partial):
        partial.unlink()
        if not resumed:
            raise InputError(
                f"blob {digest}: what the server sent has another SHA-256; it was changed on its way, or at the server"
            )
        resumed = False
    os.replace(partial, path)
    return path


def _fetched(stub: Any, digest: str, size: int, partial: Path) -> bool:
    """Download the rest of a file; whether it then has its digest."""
    found = hashlib.sha256()
    with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        if os.fstat(file.fileno()).st_size > size:
            file.truncate(0)
        while part := file.read(STEP):
            found.update(part)
        offset = file.tell()
        if offset < size:
            chunks = stub.GetBlob(pb.GetBlobRequest(digest=digest, offset=offset))
            try:
                for chunk in chunks:
                    data = chunk.data  # protobuf makes a copy each time
                    offset += len(data)
                    if offset > size:
                        raise InputError(f"blob {digest}: the server sent more than the {size:,} bytes that it announced")
                    file.write(data)
                    found.update(data)
            finally:
                chunks.cancel()
        if offset < size:
            raise InputError(
                f"blob {digest}: the server sent {offset:,} of {size:,} bytes; it holds other content than it announced"
            )
        file.flush()
        os.fsync(file.fileno())
    return found.hexdigest() == digest


def check_content(blob: Any, content: bytes | memoryview, limit: int) -> None:
    """InputError for content that is not that of a blob (``digest``, ``size``), or is more than ``limit`` bytes."""
    if len(content) > min(SMALL, limit):
        raise InputError(
            f"blob {check_digest(blob.digest)}: {len(content):,} bytes came with a report, and at most {min(SMALL, limit):,} are taken so"
        )
    found = hashlib.sha256(content).hexdigest()
    if len(content) != blob.size or found != check_digest(blob.digest):
        raise InputError(
            f"blob {blob.digest}: {len(content):,} bytes of the SHA-256 {found} came with the report; send what it names"
        )


async def receive(
    requests: AsyncIterator[Any], blobs: Blobs, owner: str, limit: int, on_bytes: Callable[[int], None]
) -> AsyncIterator[Any]:
    """The server's side of an upload: replies to a client's messages.

    on_bytes: told the size of every message with content before it is used; what it raises ends the upload.

    Raises Rejected for what is no upload, is too large, has another digest, or is being written elsewhere.
    """
    blob = await _announced(requests, limit)
    try:
        partial = await asyncio.to_thread(_begun, blobs, blob, owner, limit)
    except Busy as error:
        raise Rejected(grpc.StatusCode.UNAVAILABLE, str(error)) from None
    if partial is None:
        yield pb.PutBlobReply(offset=blob.size, complete=True)
        return
    began = partial.offset
    try:
        yield pb.PutBlobReply(offset=began)
        await _written(requests, partial, on_bytes)
        reached("server.blob_complete")
    except Busy as error:
        raise Rejected(grpc.StatusCode.UNAVAILABLE, str(error)) from None
    except InputError as error:
        # What a crash has left of an earlier upload may be damaged: it is forgotten now, and another try begins at the start.
        code = grpc.StatusCode.UNAVAILABLE if began and partial.damaged else grpc.StatusCode.INVALID_ARGUMENT
        raise Rejected(code, str(error)) from None
    finally:
        # Not awaited: where the call was cancelled, nothing may be, and a chunk may still be on its way to the disk.
        if not partial.closed:
            asyncio.get_running_loop().run_in_executor(None, partial.close)
    yield pb.PutBlobReply(offset=blob.size, complete=True)


async def _announced(requests: AsyncIterator[Any], limit: int) -> Any:
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("part") != "blob":
        raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, "an upload begins with the digest and the size of its blob")
    try:
        check_digest(first.blob.digest)
    except InputError as error:
        raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
    if first.blob.size > limit:
        said = f"blob {first.blob.digest}: {first.blob.size:,} bytes are announced, and at most {limit:,} are taken; send less"
        raise Rejected(grpc.StatusCode.RESOURCE_EXHAUSTED, said)
    return first.blob


def _begun(blobs: Blobs, blob: Any, owner: str, limit: int) -> Partial | None:
    """The upload of a blob, begun or resumed; None where the blob is there."""
    if not blobs.renew(blob.digest):
        return blobs.partial(blob.digest, owner, blob.size, limit)
    if blobs.size(blob.digest) != blob.size:
        raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, f"blob {blob.digest}: it does not have {blob.size:,} bytes")
    return None


def _appended(partial: Partial, data: bytes | memoryview) -> None:
    partial.write(data)
    if partial.offset == partial.blob.size:
        partial.finish()


async def _written(requests: AsyncIterator[Any], partial: Partial, on_bytes: Callable[[int], None]) -> None:
    if partial.offset == partial.blob.size:
        await asyncio.to_thread(partial.finish)
    while partial.offset < partial.blob.size:
        request = await anext(aiter(requests), None)
        if request is None:
            said = f"blob {partial.blob.digest}: {partial.offset:,} of {partial.blob.size:,} bytes came; send the others"
            raise Rejected(grpc.StatusCode.UNAVAILABLE, said)
        data = request.data  # protobuf makes a copy each time
        if not data:
            raise Rejected(
                grpc.StatusCode.INVALID_ARGUMENT, "what follows the name of a blob is its content, and none of it is empty"
            )
        on_bytes(len(data))
        await asyncio.to_thread(_appended, partial, data)
        if partial.offset < partial.blob.size:
            reached("server.blob_partial")


class Shelf:
    """Chunks that were read from blobs a moment ago, as they are on the wire: many clients fetch the same call at the same time.

    It holds :data:`SHELF` bytes at most, and belongs to one event loop.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._chunks: OrderedDict[tuple[str, int], asyncio.Future[Any]] = OrderedDict()

    async def size(self, digest: str) -> int:
        """Bytes of a blob. Raises MissingBlob, and InputError for what is no digest."""
        return int(await self._kept((digest, -1), self._blobs.size, digest))

    async def chunk(self, digest: str, offset: int, size: int) -> bytes:
        """The message with what a blob of that size has from an offset on. Raises MissingBlob."""
        return bytes(await self._kept((digest, offset), self._read, digest, offset, min(CHUNK, size - offset)))

    async def _kept(self, place: tuple[str, int], read: Callable[..., Any], *of: Any) -> Any:
        found = self._chunks.get(place)
        if found is None:
            found = self._chunks[place] = asyncio.ensure_future(asyncio.to_thread(read, *of))
            found.add_done_callback(lambda done: self._drop(place) if done.cancelled() or done.exception() else None)
            while len(self._chunks) > SHELF // CHUNK:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(place)
        return await asyncio.shield(found)  # who hangs up must not take it from the others

    def _drop(self, place: tuple[str, int]) -> None:
        self._chunks.pop(place, None)

    def _read(self, digest: str, offset: int, length: int) -> bytes:
        return wire.chunk(next(self._blobs.read(digest, offset, length), b""))


async def send(shelf: Shelf, digest: str, offset: int, on_bytes: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The server's side of a download: chunks from an offset on, as they are on the wire.

    on_bytes: told the size of every chunk when it was taken; what it raises ends the download.

    Raises Rejected for a blob that is not there, and for an offset beyond its end.
    """
    try:
        size = await shelf.size(digest)
        if offset > size:
            raise Rejected(grpc.StatusCode.OUT_OF_RANGE, f"blob {digest}: it has {size:,} bytes, and byte {offset:,} was asked for")
        for start in range(offset, size, CHUNK):
            yield await shelf.chunk(digest, start, size)
            on_bytes(min(CHUNK, size - start))
    except MissingBlob as error:
        raise Rejected(grpc.StatusCode.NOT_FOUND, str(error)) from None
    except InputError as error:
        raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
