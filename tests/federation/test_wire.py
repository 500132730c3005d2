"""What is written and read without protobuf is what protobuf writes and reads; and transfers have their turns and their shelf."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="the extra federation is not installed")
from hansa.federation import turns, wire
from hansa.federation.blobs import Folder, MissingBlob
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.transfer import CHUNK, SHELF, Shelf

SIZES = (1, 127, 128, 16_383, 16_384, 1 << 20)


@pytest.mark.parametrize("size", SIZES)
def test_messages_with_content_are_those_of_protobuf(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert wire.chunk(content) == pb.Chunk(data=content).SerializeToString()
    assert wire.piece(content) == pb.PutBlobRequest(data=content).SerializeToString()
    assert bytes(wire.read_chunk(wire.chunk(content)).data) == content
    read = wire.read_piece(wire.piece(content))
    assert bytes(read.data) == content and read.WhichOneof("part") == "data"
    assert wire.result(content) == pb.ReportRequest(content=content).SerializeToString()
    assert bytes(wire.read_report(wire.result(content)).data) == content


@pytest.mark.parametrize(
    "message",
    [
        b"",
        pb.PutBlobRequest(blob=pb.Blob(digest="ab", size=3)).SerializeToString(),
        pb.PutBlobRequest(data=b"first").SerializeToString() + pb.PutBlobRequest(data=b"last").SerializeToString(),
        pb.PutBlobRequest(data=b"").SerializeToString(),
        b"\x12\x85\x00hello",  # a length in more bytes than it needs
    ],
)
def test_other_messages_are_read_as_protobuf_does(message: bytes) -> None:
    read, known = wire.read_piece(message), pb.PutBlobRequest.FromString(message)
    assert read.WhichOneof("part") == known.WhichOneof("part") and bytes(read.data) == known.data


@pytest.mark.parametrize(
    "message",
    [
        pb.ReportRequest(task="ab", result=pb.Blob(digest="ab", size=3)).SerializeToString(),
        pb.ReportRequest(task="ab", content=b"not alone").SerializeToString(),
        pb.ReportRequest(content=b"first").SerializeToString() + pb.ReportRequest(content=b"last").SerializeToString(),
    ],
)
def test_other_reports_are_read_as_protobuf_does(message: bytes) -> None:
    assert wire.read_report(message) == pb.ReportRequest.FromString(message)


@pytest.mark.parametrize("message", [b"\x12", b"\x12\x05abcd", b"\x12\xff\xff\xff\xff\xff\xff", b"\x0a\x05abcd"])
def test_broken_messages_are_refused(message: bytes) -> None:
    for read in (wire.read_piece, wire.read_chunk, wire.read_report):
        with pytest.raises(Exception, match="pars"):
            read(message)


def test_a_chunk_is_read_once_for_all_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, content = Folder(tmp_path), b"a" * CHUNK + b"bc"
    (blobs.scratch / "new").write_bytes(content)
    blob, reads = blobs.put(blobs.scratch / "new"), list[int]()
    monkeypatch.setattr(blobs, "read", lambda *given, real=blobs.read: (reads.append(given[1]), real(*given))[1])

    async def all_ask() -> list[bytes]:
        shelf = Shelf(blobs)
        first = asyncio.ensure_future(shelf.chunk(blob.digest, 0, blob.size))
        await asyncio.sleep(0)
        first.cancel()  # who hangs up takes it from nobody
        parts = await asyncio.gather(*(shelf.chunk(blob.digest, at, blob.size) for at in (0, CHUNK) for _ in range(3)))
        with pytest.raises(MissingBlob):
            await shelf.chunk(hashlib.sha256(b"none").hexdigest(), 5, 6)
        for at in range(2 * SHELF // CHUNK):
            await shelf.chunk(blob.digest, CHUNK + 1 if at % 2 else at, blob.size)
        assert len(shelf._chunks) <= SHELF // CHUNK
        return parts

    parts = asyncio.run(all_ask())
    assert parts == [wire.chunk(content[:CHUNK])] * 3 + [wire.chunk(b"bc")] * 3
    assert reads[:2] == [0, CHUNK] and reads.count(0) == 1


def test_so_many_have_a_turn_and_slow_ones_keep_it_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST", 2)
    monkeypatch.setattr(turns, "SECONDS", 0.05)
    now, most = 0, 0

    async def transfer(all: turns.Turns, over: asyncio.Event | None, who: str = "any") -> None:
        nonlocal now, most
        async with all.turn(who):
            now += 1
            most = max(most, now)
            await (asyncio.sleep(0) if over is None else over.wait())
            now -= 1

    async def play() -> Any:
        all, over = turns.Turns(), asyncio.Event()
        await asyncio.gather(*(transfer(all, None) for _ in range(20)))
        quick, slow = most, [asyncio.ensure_future(transfer(all, over)) for _ in range(5)]
        await asyncio.gather(*(transfer(all, None) for _ in range(5)))  # would wait for ever
        over.set()
        await asyncio.gather(*slow)
        return quick, all._free._value

    assert asyncio.run(play()) == (2, 2)


def test_a_member_that_stalls_all_its_transfers_holds_up_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST", 3)
    monkeypatch.setattr(turns, "EACH", 2)

    async def play() -> dict[str, Any]:
        all, over = turns.Turns(), asyncio.Event()

        async def stalled() -> None:
            async with all.turn("a"):
                await over.wait()

        many = [asyncio.ensure_future(stalled()) for _ in range(100)]
        await asyncio.sleep(0)
        async with all.turn("b"):  # at once, though turns last for two seconds
            pass
        many[50].cancel()
        over.set()
        await asyncio.gather(*many, return_exceptions=True)
        return all._members

    assert asyncio.run(play()) == {}
