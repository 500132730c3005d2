"""A blob is there whole, durable and under its own digest, or it is not there; nobody disturbs another's upload."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.core.errors import InputError
from hansa.federation.blobs import Blob, Blobs, Bucket, Busy, Folder, MissingBlob, open_blobs

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
EMPTY = hashlib.sha256(b"").hexdigest()
LIMIT = 10_000_000


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, Any]]:
    """An object store on this machine that speaks the S3 API."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "key": "key",
        "secret": "secret",
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"},
    }
    import s3fs

    s3fs.S3FileSystem(**options).call_s3("create_bucket", Bucket="models")
    yield options
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    if request.param == "folder":
        blobs = open_blobs(tmp_path / "blobs")
    else:
        blobs = open_blobs(f"s3://models/{tmp_path.name}", request.getfixturevalue("s3"), home=tmp_path / "cache")
    yield blobs
    blobs.close()


def stored(blobs: Blobs, content: bytes = CONTENT) -> Blob:
    path = blobs.scratch / "new"
    path.write_bytes(content)
    return blobs.put(path)


def test_a_store_belongs_to_who_claimed_it_first(blobs: Blobs) -> None:
    assert blobs.claim("one") == "one" and blobs.claim("other") == "one"
    blobs.sweep((), older_than=-1)
    assert blobs.claim("other") == "one"


@pytest.mark.parametrize("content", [CONTENT, b""], ids=["large", "empty"])
def test_what_is_put_is_read(blobs: Blobs, content: bytes) -> None:
    assert not blobs.has(hashlib.sha256(content).hexdigest())
    blob = stored(blobs, content)
    assert blob == Blob(hashlib.sha256(content).hexdigest(), len(content)) and not list(blobs.scratch.iterdir())
    assert blobs.has(blob.digest) and blobs.renew(blob.digest) and blobs.size(blob.digest) == len(content)
    assert blobs.local(blob.digest).read_bytes() == content
    assert b"".join(blobs.read(blob.digest)) == content
    parts = list(blobs.read(blob.digest, 7, 1000))
    assert b"".join(parts) == content[7:] and all(len(part) <= 1000 for part in parts)
    assert blobs.local(blob.digest).stat().st_mode & 0o777 == 0o600
    assert stored(blobs, content) == blob  # again
    blobs.remove(blob.digest)
    blobs.remove(blob.digest)
    assert not blobs.has(blob.digest) and not blobs.renew(blob.digest)
    for ask in (blobs.size, blobs.local, lambda digest: next(blobs.read(digest))):
        with pytest.raises(MissingBlob, match=blob.digest):
            ask(blob.digest)


def test_what_is_kept_is_a_blob(blobs: Blobs) -> None:
    for content in (memoryview(CONTENT), CONTENT, memoryview(b"")):
        digest = hashlib.sha256(content).hexdigest()
        blobs.keep(digest, content)
        assert blobs.has(digest) and blobs.size(digest) == len(content) and not list(blobs.scratch.iterdir())
        assert blobs.local(digest).read_bytes() == content
        assert blobs.local(digest).stat().st_mode & 0o777 == 0o600


def test_an_open_file_outlives_its_blob(blobs: Blobs) -> None:
    mapped = np.memmap(blobs.local(stored(blobs).digest), mode="r")
    blobs.remove(DIGEST)
    assert mapped.tobytes() == CONTENT


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "/" * 64, None, 7])
def test_only_digests_are_asked_for(blobs: Blobs, digest: Any) -> None:
    for ask in (blobs.has, blobs.size, blobs.local, blobs.renew, blobs.remove, lambda d: blobs.partial(d, "a", 1, 1)):
        with pytest.raises(InputError, match="is no digest"):
            ask(digest)


def test_an_upload_is_resumed_where_it_stopped(blobs: Blobs) -> None:
    upload = blobs.partial(DIGEST, "a", len(CONTENT), LIMIT)
    assert upload.offset == 0
    upload.write(CONTENT[:1_000_000])
    upload.close()
    assert not blobs.has(DIGEST)
    upload = blobs.partial(DIGEST, "a", len(CONTENT), LIMIT)
    assert upload.offset == 1_000_000
    with pytest.raises(InputError, match="1,000,000 of 3,000,000 bytes came"):
        upload.finish()
    upload.write(CONTENT[1_000_000:])
    assert upload.finish() == Blob(DIGEST, len(CONTENT)) and blobs.local(DIGEST).read_bytes() == CONTENT
    with pytest.raises(Busy):
        upload.write(b"")


def test_wrong_content_is_never_visible_and_is_forgotten(blobs: Blobs) -> None:
    upload = blobs.partial(DIGEST, "a", len(CONTENT), LIMIT)
    upload.write(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(InputError, match="SHA-256"):
        upload.finish()
    assert not blobs.has(DIGEST) and blobs.partial(DIGEST, "a", len(CONTENT), LIMIT).offset == 0


def test_more_than_is_allowed_or_announced_is_refused_at_once(blobs: Blobs) -> None:
    with pytest.raises(InputError, match="3,000,000 bytes are announced, and at most 2,999,999"):
        blobs.partial(DIGEST, "a", len(CONTENT), len(CONTENT) - 1)
    upload = blobs.partial(DIGEST, "a", 10, LIMIT)
    upload.write(CONTENT[:9])
    with pytest.raises(InputError, match="more came than the 10 bytes"):
        upload.write(CONTENT[9:11])
    assert blobs.partial(DIGEST, "a", len(CONTENT), LIMIT).offset == 0
    blobs.partial(DIGEST, "b", len(CONTENT), LIMIT).write(CONTENT[:100])
    assert blobs.partial(DIGEST, "b", 50, LIMIT).offset == 0  # another size than before: from the start


def test_owners_do_not_disturb_each_other(blobs: Blobs) -> None:
    honest, other = (blobs.partial(DIGEST, owner, len(CONTENT), LIMIT) for owner in ("a", "b"))
    other.write(bytes(1_000_000))
    honest.write(CONTENT)
    honest.finish()
    other.write(bytes(2_000_000))
    with pytest.raises(InputError, match="SHA-256"):
        other.finish()
    assert blobs.local(DIGEST).read_bytes() == CONTENT


def test_of_two_uploads_of_one_owner_the_later_goes_on(blobs: Blobs) -> None:
    first = blobs.partial(DIGEST, "a", len(CONTENT), LIMIT)
    first.write(CONTENT[:1_000_000])
    second = blobs.partial(DIGEST, "a", len(CONTENT), LIMIT)
    with pytest.raises(Busy, match="begun again"):
        first.write(b"x" * 1000)
    first.discard()  # too late to matter
    assert second.offset == 1_000_000
    second.write(CONTENT[1_000_000:])
    second.finish()
    assert blobs.local(DIGEST).read_bytes() == CONTENT


def test_a_discarded_upload_is_forgotten(blobs: Blobs) -> None:
    upload = blobs.partial(DIGEST, "a", len(CONTENT), LIMIT)
    upload.write(CONTENT[:10])
    upload.discard()
    assert blobs.partial(DIGEST, "a", len(CONTENT), LIMIT).offset == 0


def test_few_uploads_are_kept_for_one_owner(tmp_path: Path) -> None:
    blobs = Folder(tmp_path)
    for number in range(20):
        blobs.partial(f"{number:064x}", "a", 10, 10).close()
        os.utime(next((tmp_path / "uploads").glob(f"*/{number:064x}")), (number, number))
    blobs.partial(DIGEST, "b", 10, 10).close()
    assert sorted(int(path.name, 16) for path in (tmp_path / "uploads").glob("*/*") if path.name != DIGEST) == list(range(12, 20))


UPLOADER = """
import sys
from hansa.federation.blobs import open_blobs
content = open(sys.argv[2], "rb").read()
upload = open_blobs(sys.argv[1]).partial(sys.argv[3], "a", len(content), len(content))
for start in range(upload.offset, len(content), 1000):
    upload.write(content[start : start + 1000])
    if start > len(content) // 2:
        print("half", flush=True)
        sys.stdin.readline()
"""


def test_an_upload_survives_kill_and_excludes_other_processes(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(CONTENT)
    command = [sys.executable, "-c", UPLOADER, str(tmp_path / "blobs"), str(tmp_path / "content"), DIGEST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"half\n"
        blobs = open_blobs(tmp_path / "blobs")
        with pytest.raises(Busy, match="another process"):
            blobs.partial(DIGEST, "a", len(CONTENT), LIMIT)
        writer.send_signal(signal.SIGKILL)
    upload = blobs.partial(DIGEST, "a", len(CONTENT), LIMIT)
    assert 0 < upload.offset < len(CONTENT)
    upload.write(CONTENT[upload.offset :])
    upload.finish()
    assert blobs.local(DIGEST).read_bytes() == CONTENT


def test_sweeping_removes_what_is_old_and_not_kept(tmp_path: Path) -> None:
    blobs = Folder(tmp_path)
    old, kept, new = (stored(blobs, content).digest for content in (b"old", b"kept", b"new"))
    blobs.partial(DIGEST, "gone", 10, 10).close()
    busy = blobs.partial(DIGEST, "busy", 10, 10)
    (blobs.scratch / "left").write_bytes(b"by a process that was killed")
    (blobs.scratch / "folder").mkdir()
    for path in tmp_path.rglob("*"):
        if path.name != new:
            os.utime(path, (time.time() - 1000,) * 2)
    assert blobs.sweep({kept}, older_than=500) == 1
    assert [blobs.has(digest) for digest in (old, kept, new)] == [False, True, True]
    assert not list(blobs.scratch.iterdir()) and len(list((tmp_path / "uploads").glob("*/*"))) == 1
    busy.close()
    os.utime(blobs.local(new), (time.time() - 1000,) * 2)
    assert blobs.renew(new) and blobs.sweep(set(), older_than=500) == 1 and blobs.has(new)


def test_a_bucket_is_swept_and_damage_in_it_is_found(s3: dict[str, Any], tmp_path: Path) -> None:
    blobs = open_blobs("s3://models/swept", s3, home=tmp_path / "one")
    stored(blobs, b"gone"), stored(blobs, b"kept")
    kept = hashlib.sha256(b"kept").hexdigest()
    assert blobs.sweep({kept}, older_than=-10) == 1 and blobs.has(kept) and not blobs.has(hashlib.sha256(b"gone").hexdigest())
    assert isinstance(blobs, Bucket)
    blobs._system.pipe_file(blobs._place(kept), b"KEPT")
    with pytest.raises(InputError, match="other content"):
        open_blobs("s3://models/swept", s3, home=tmp_path / "two").local(kept)
    assert not list((tmp_path / "two" / "scratch").iterdir())


def test_what_is_cached_of_a_bucket_is_bounded(s3: dict[str, Any], tmp_path: Path) -> None:
    blobs = open_blobs("s3://models/cached", s3, home=tmp_path, cache=2500)
    digests = []
    for number in range(4):
        digests.append(stored(blobs, bytes([number]) * 1000).digest)
        for path in (tmp_path / "blobs").glob("*/*"):
            os.utime(path, (path.stat().st_mtime - 1000,) * 2)
    stored(blobs, b"last")
    assert len(list((tmp_path / "blobs").glob("*/*"))) == 3
    assert all(blobs.local(digest).read_bytes() == bytes([number]) * 1000 for number, digest in enumerate(digests))


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nosuch"):
        open_blobs("nosuch://bucket", home=tmp_path)
    with pytest.raises(InputError, match="give home"):
        open_blobs("s3://bucket")
    assert isinstance(open_blobs(f"file://{tmp_path}/b"), Folder)
