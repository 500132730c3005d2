"""What arrives is what was sent, over connections that break; and nobody can send too much, something else, or into another's upload."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.core.errors import InputError
from hansa.federation.blobs import Blob, Folder

grpc = pytest.importorskip("grpc", reason="the extra federation is not installed")
from hansa.federation import transfer, wire  # noqa: E402  # only where grpc is
from hansa.federation.protocol import hansa_pb2 as pb  # noqa: E402
from hansa.federation.protocol import hansa_pb2_grpc as rpc  # noqa: E402

CONTENT = np.random.default_rng(1).bytes(5_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LIMIT = 20_000_000


class Servicer(rpc.FederationServicer):
    """Uploads and downloads alone; who uploads says so in the metadata. ``cut`` says after how many bytes a call ends, and only once."""

    def __init__(self, blobs: Folder) -> None:
        self.blobs, self.shelf, self.cut, self.seen = blobs, transfer.Shelf(blobs), 0, list[int]()

    def on_bytes(self) -> Callable[[int], None]:
        left, self.cut = self.cut, 0
        so_far = 0

        def told(size: int) -> None:
            nonlocal so_far
            so_far += size
            self.seen.append(size)
            if left and so_far > left:
                raise transfer.Rejected(grpc.StatusCode.UNAVAILABLE, "cut")

        return told

    async def PutBlob(self, requests: Any, context: Any) -> Any:
        owner = dict(context.invocation_metadata()).get("owner", "a")
        try:
            async for reply in transfer.receive(requests, self.blobs, owner, LIMIT, self.on_bytes()):
                yield reply
        except transfer.Rejected as error:
            await context.abort(error.code, error.message)

    async def GetBlob(self, request: Any, context: Any) -> Any:
        try:
            async for chunk in transfer.send(self.shelf, request.digest, request.offset, self.on_bytes()):
                yield chunk
        except transfer.Rejected as error:
            await context.abort(error.code, error.message)


class Running:
    """A server on loopback, with an event loop in a thread of its own."""

    def __init__(self, servicer: Any) -> None:
        self.servicer = servicer
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server, self.port = self.do(self._started())

    async def _started(self) -> tuple[Any, int]:
        server = grpc.aio.server()
        wire.add_federation(self.servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def stop(self) -> None:
        self.do(self.server.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    server = Running(Servicer(Folder(tmp_path / "blobs")))
    yield server
    server.stop()


@contextmanager
def stub_at(port: int) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield wire.FederationStub(channel)


@pytest.fixture
def stub(running: Running) -> Iterator[Any]:
    with stub_at(running.port) as stub:
        yield stub


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


def code_of(work: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        work()
    return caught.value.code()  # type: ignore[attr-defined]  # grpc's stubs leave it out: every error of a call is a Call too


@pytest.mark.parametrize("content", [CONTENT, b"", CONTENT[: 1 << 20]], ids=["several chunks", "empty", "one chunk"])
def test_a_file_goes_there_and_comes_back(running: Running, stub: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    transfer.upload(stub, tmp_path / "file", digest)
    assert running.servicer.blobs.local(digest).read_bytes() == content
    path = transfer.download(stub, Blob(digest, len(content)), tmp_path, LIMIT)
    assert path.read_bytes() == content and path.stat().st_mode & 0o777 == 0o600
    assert sum(running.servicer.seen) == 2 * len(content) and max(running.servicer.seen, default=0) <= transfer.CHUNK
    transfer.upload(stub, tmp_path / "file", digest)  # again: the server has it
    assert transfer.download(stub, Blob(digest, len(content)), tmp_path, LIMIT) == path
    assert sum(running.servicer.seen) == 2 * len(content)


def test_a_transfer_that_was_cut_goes_on_where_it_stopped(running: Running, stub: Any, file: Path, tmp_path: Path) -> None:
    running.servicer.cut = 2_500_000
    assert code_of(lambda: transfer.upload(stub, file, DIGEST)) is grpc.StatusCode.UNAVAILABLE
    assert not running.servicer.blobs.has(DIGEST)
    running.servicer.seen.clear()
    transfer.upload(stub, file, DIGEST)
    assert sum(running.servicer.seen) == len(CONTENT) - 2 * transfer.CHUNK
    running.servicer.cut = 2_500_000
    assert code_of(lambda: transfer.download(stub, Blob(DIGEST, len(CONTENT)), tmp_path, LIMIT)) is grpc.StatusCode.UNAVAILABLE
    running.servicer.seen.clear()
    assert transfer.download(stub, Blob(DIGEST, len(CONTENT)), tmp_path, LIMIT).read_bytes() == CONTENT
    assert 0 < sum(running.servicer.seen) < len(CONTENT)


class Proxy:
    """Passes on what two ends say to each other, and tears the connection after so many bytes to the server or from it."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self.to, self.cuts = port, cuts
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self.socket.accept()[0]
                server = socket.create_connection(("127.0.0.1", self.to))
                left = [self.cuts.pop(0) if self.cuts else 1 << 60]
                for ends in ((client, server), (server, client)):
                    self.threads.append(threading.Thread(target=self._pass, args=(*ends, left)))
                    self.threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        with suppress(OSError):
            while part := source.recv(65_536):
                left[0] -= len(part)
                if left[0] < 0:
                    break
                sink.sendall(part)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def stop(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for thread in self.threads:
            thread.join()


def until_it_works(work: Callable[[], Any]) -> tuple[Any, int]:
    for failures in range(20):
        try:
            return work(), failures
        except grpc.RpcError:
            continue
    raise AssertionError("it never worked")


def test_torn_connections_cost_no_more_than_what_was_on_its_way(running: Running, file: Path, tmp_path: Path) -> None:
    proxy = Proxy(running.port, [1_500_000, 2_500_000, 100])

    def through(work: Callable[[Any], Any]) -> Any:
        with stub_at(proxy.port) as stub:
            return work(stub)

    try:
        _, failures = until_it_works(lambda: through(lambda stub: transfer.upload(stub, file, DIGEST)))
        assert failures >= 2 and running.servicer.blobs.local(DIGEST).read_bytes() == CONTENT
        assert sum(running.servicer.seen) < len(CONTENT) + 2 * transfer.CHUNK
        proxy.cuts = [1_500_000, 2_500_000]
        path, failures = until_it_works(
            lambda: through(lambda s: transfer.download(s, Blob(DIGEST, len(CONTENT)), tmp_path, LIMIT))
        )
        assert failures == 2 and path.read_bytes() == CONTENT
    finally:
        proxy.stop()


def test_another_content_than_announced_is_refused(running: Running, stub: Any, file: Path) -> None:
    other = "0" * 64
    assert code_of(lambda: transfer.upload(stub, file, other)) is grpc.StatusCode.INVALID_ARGUMENT
    assert not running.servicer.blobs.has(other) and not list((running.servicer.blobs.root / "uploads").glob("*/*"))


def test_what_is_left_of_a_damaged_transfer_is_thrown_away(running: Running, stub: Any, file: Path, tmp_path: Path) -> None:
    partial = running.servicer.blobs.partial(DIGEST, "a", len(CONTENT), LIMIT)
    partial.write(bytes(1000))
    partial.close()
    assert code_of(lambda: transfer.upload(stub, file, DIGEST)) is grpc.StatusCode.UNAVAILABLE
    transfer.upload(stub, file, DIGEST)
    (tmp_path / f"{DIGEST}.partial").write_bytes(bytes(1000))
    assert transfer.download(stub, Blob(DIGEST, len(CONTENT)), tmp_path, LIMIT).read_bytes() == CONTENT


def test_too_much_is_refused_before_it_is_sent(running: Running, stub: Any, file: Path, tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as large:
        large.truncate(LIMIT + 1)
    assert code_of(lambda: transfer.upload(stub, tmp_path / "large", DIGEST)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(InputError, match="at most 4,999,999 are taken"):
        transfer.download(stub, Blob(DIGEST, len(CONTENT)), tmp_path, len(CONTENT) - 1)
    assert not running.servicer.seen


class Liar(rpc.FederationServicer):
    """Sends what it likes, and confirms what it never took."""

    parts: tuple[bytes, ...] = ()

    async def GetBlob(self, request: Any, context: Any) -> Any:
        for part in self.parts:
            yield pb.Chunk(data=part)

    async def PutBlob(self, requests: Any, context: Any) -> Any:
        yield pb.PutBlobReply(offset=1 << 40)


def test_a_server_that_lies_is_not_believed(tmp_path: Path, file: Path) -> None:
    liar = Liar()
    server = Running(liar)
    try:
        with stub_at(server.port) as stub:
            for parts, why in [((b"x" * 10,), "another SHA-256"), ((b"x" * 6,) * 2, "more than the 10"), ((b"x",), "sent 1 of 10")]:
                liar.parts = parts
                with pytest.raises(InputError, match=why):
                    transfer.download(stub, Blob(DIGEST, 10), tmp_path, LIMIT)
                assert not (tmp_path / DIGEST).exists()
                (tmp_path / f"{DIGEST}.partial").unlink(missing_ok=True)
            with pytest.raises(InputError, match="did not confirm"):
                transfer.upload(stub, file, DIGEST)
    finally:
        server.stop()


def put(*parts: bytes) -> list[Any]:
    return [pb.PutBlobRequest(data=part) for part in parts]


def name(digest: str = DIGEST, size: int = len(CONTENT)) -> Any:
    return pb.PutBlobRequest(blob=pb.Blob(digest=digest, size=size))


MALFORMED = {
    "nothing": [],
    "no name": put(b"content"),
    "an empty message": [pb.PutBlobRequest()],
    "a digest that is a path": [name("../" * 20 + "0000")],
    "a digest in upper case": [name(DIGEST.upper())],
    "a size beyond the limit": [name(size=2**63)],
    "two names": [name(), name()],
    "an empty chunk": [name(), *put(b"")],
    "more than announced": [name(size=10), *put(b"x" * 11)],
    "less than announced": [name(size=10)],
}  # fmt: skip


STRANGE = b"\x0a\xff\xff"
"""The beginning of a message of the protocol, and not one."""


@pytest.mark.parametrize("parts", [[STRANGE], [name().SerializeToString(), STRANGE], None], ids=["first", "second", "the only one"])
def test_what_is_no_message_is_refused_in_one_line(running: Running, caplog: Any, parts: list[bytes] | None) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        place = "/hansa.federation.v1.Federation"
        if parts is None:
            code = code_of(lambda: list(channel.unary_stream(f"{place}/GetBlob")(STRANGE)))
        else:
            code = code_of(lambda: list(channel.stream_stream(f"{place}/PutBlob")(iter(parts))))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    (said,) = caplog.records
    assert said.exc_info is None and "cannot be read" in said.getMessage()


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_stream_changes_nothing(running: Running, stub: Any, what: str) -> None:
    assert code_of(lambda: list(stub.PutBlob(iter(MALFORMED[what])))) is not grpc.StatusCode.UNKNOWN
    blobs = running.servicer.blobs
    assert not blobs.has(DIGEST) and all(path.stat().st_size == 0 for path in (blobs.root / "uploads").glob("*/*"))


def test_bytes_that_are_no_message_change_nothing(running: Running) -> None:
    rng = np.random.default_rng(0)
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        raw = channel.stream_stream("/hansa.federation.v1.Federation/PutBlob", lambda data: data, lambda data: data)
        for _ in range(200):
            junk = [rng.bytes(int(rng.integers(1, 200))) for _ in range(int(rng.integers(1, 4)))]
            with pytest.raises(grpc.RpcError):
                list(raw(iter(junk)))
    assert not list((running.servicer.blobs.root / "blobs").glob("*/*"))


@pytest.mark.parametrize(
    ("request_", "code"),
    [(pb.GetBlobRequest(digest="0" * 64), "NOT_FOUND"), (pb.GetBlobRequest(digest="../x"), "INVALID_ARGUMENT")],
    ids=["missing", "no digest"],
)
def test_only_blobs_that_are_there_are_sent(stub: Any, request_: Any, code: str) -> None:
    assert code_of(lambda: list(stub.GetBlob(request_))).name == code


def test_an_offset_beyond_the_end_is_refused(stub: Any, file: Path) -> None:
    transfer.upload(stub, file, DIGEST)
    assert code_of(lambda: list(stub.GetBlob(pb.GetBlobRequest(digest=DIGEST, offset=len(CONTENT) + 1)))).name == "OUT_OF_RANGE"


class As:
    """A stub that says who it is."""

    def __init__(self, stub: Any, owner: str) -> None:
        self.stub, self.owner = stub, owner

    def PutBlob(self, requests: Any) -> Any:
        return self.stub.PutBlob(requests, metadata=[("owner", self.owner)])


def test_many_may_send_the_same_blob_at_once_and_one_of_them_something_else(
    running: Running, stub: Any, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").write_bytes(CONTENT[:-1] + b"x")

    def sent(owner: int) -> Any:
        try:
            transfer.upload(As(stub, str(owner)), tmp_path / "bad" if owner == 3 else file, DIGEST)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined]  # as above
        return None

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(sent, range(6)))
    assert outcomes[3] in (None, grpc.StatusCode.INVALID_ARGUMENT)  # None where the server had the blob already
    assert [outcome for owner, outcome in enumerate(outcomes) if owner != 3] == [None] * 5
    assert running.servicer.blobs.local(DIGEST).read_bytes() == CONTENT


def test_memory_does_not_grow_with_the_blob(running: Running, stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SHELF", 2 * transfer.CHUNK)
    path = tmp_path / "large"
    with open(path, "wb") as large:
        large.truncate(LIMIT)
    digest = hashlib.sha256(bytes(LIMIT)).hexdigest()
    tracemalloc.start()
    try:
        transfer.upload(stub, path, digest)
        transfer.download(stub, Blob(digest, LIMIT), tmp_path / "blobs" / "scratch", LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 12 * transfer.CHUNK
    finally:
        tracemalloc.stop()
