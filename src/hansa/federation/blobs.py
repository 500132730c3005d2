"""Blobs: files named by the SHA-256 of their content, in a folder or in an object store.

A blob is there or it is not: it becomes visible when all of it is durable and its digest has been verified, and it never changes.
Uploads in progress lie beside the blobs, one file for each owner and digest, so that they can be resumed and nobody disturbs another's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from hansa.core.errors import InputError, missing_extra
from hansa.core.files import sync_folder

STEP = 1 << 20
"""Bytes that are read or hashed at a time."""

UPLOADS = 8
"""Uploads in progress that are kept for one owner; the oldest is given up for another one."""

CACHE = 16 * 2**30
"""Bytes of an object store's blobs that are kept in a local folder."""

GRACE = 60.0
"""Seconds for which a cached file stays after it was asked for, whatever the size of the cache."""

NEW = 3600.0
"""Seconds for which an object counts as new; an object store must not be swept of anything younger than twice that."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """digest: SHA-256, 64 hexadecimal digits in lower case; size: bytes."""

    digest: str
    size: int


class MissingBlob(InputError):
    """There is no blob of that digest."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"there is no blob {digest}; it was never uploaded, or it has been removed since")


class Busy(InputError):
    """Another process is writing the same upload."""


@runtime_checkable
class Blobs(Protocol):
    """What every store offers. All methods raise InputError for what is not a digest; they may be called from any thread."""

    @property
    def scratch(self) -> Path:
        """A folder for files to be :meth:`put`."""
        ...

    def put(self, path: Path) -> Blob:
        """Move a finished local file in. It is durable when this returns, and then no longer at ``path``."""
        ...

    def has(self, digest: str) -> bool: ...

    def renew(self, digest: str) -> bool:
        """As :meth:`has`; a blob that is there counts as new for :meth:`sweep`."""
        ...

    def size(self, digest: str) -> int:
        """Bytes. Raises MissingBlob."""
        ...

    def local(self, digest: str) -> Path:
        """A local file with the content, to be opened now and never written. Raises MissingBlob."""
        ...

    def read(self, digest: str, offset: int = 0, chunk: int = STEP) -> Iterator[bytes]:
        """The content from an offset on, in chunks. Raises MissingBlob."""
        ...

    def remove(self, digest: str) -> None:
        """Forget a blob, if it is there. Files that are open, or mapped, stay readable."""
        ...

    def partial(self, digest: str, owner: str, size: int, limit: int) -> Partial:
        """Begin or resume an upload of ``size`` bytes; one that the same owner has under way here ends.

        Raises InputError for more than ``limit`` bytes, Busy while another process writes the same upload.
        """
        ...

    def sweep(self, keep: Collection[str], older_than: float) -> int:
        """Remove the blobs that are not to be kept, and uploads and scratch files nobody goes on with, last touched more than
        ``older_than`` seconds ago. Returns how many blobs."""
        ...

    def close(self) -> None:
        """End the uploads that are under way here; they may be resumed."""
        ...


def open_blobs(where: str | Path, options: Mapping[str, Any] | None = None, home: Path | None = None, cache: int = CACHE) -> Blobs:
    """The store at a path, or at a URL that fsspec knows (``s3://bucket/prefix``).

    options: of the file system, as fsspec takes them (``endpoint_url``, ``key``, ``secret``).
    home:    of an object store: the local folder for uploads in progress and for downloads, of which ``cache`` bytes are kept.
    """
    scheme, separator, rest = str(where).partition("://")
    if not separator or scheme == "file":
        return Folder(Path(rest if separator else where))
    if home is None:
        raise InputError(f"blobs {where}: an object store needs a local folder beside it for uploads in progress; give home")
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise missing_extra("fsspec", "federation") from None
    try:
        system, root = url_to_fs(str(where), **{"use_listings_cache": False, **(options or {})})
    except (ImportError, ValueError) as error:
        raise InputError(
            f"blobs {where}: {error} (give a folder, or a URL that fsspec knows, with its package installed)"
        ) from None
    return Bucket(system, root.rstrip("/"), Folder(home), cache)


def check_digest(digest: str) -> str:
    """The digest; InputError where it is none, so that no path is ever made of anything else."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InputError(f"{str(digest)[:80]!r} is no digest; write a SHA-256 as 64 hexadecimal digits in lower case")
    return digest


def blob_of(path: Path) -> Blob:
    """Digest and size of a file."""
    with open(path, "rb") as file:
        return Blob(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)


class Folder:
    """Blobs in a folder of this machine, which several processes may share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writing: dict[Path, Partial] = {}
        self._lock = threading.Lock()
        for name in ("blobs", "uploads", "scratch"):
            (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_folder(root)

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def _place(self, digest: str) -> Path:
        return self.root / "blobs" / check_digest(digest)[:2] / digest

    def put(self, path: Path) -> Blob:
        blob = blob_of(path)
        self._take(path, blob.digest)
        return blob

    def _take(self, path: Path, digest: str) -> None:
        """Make a finished file the blob of that digest, which is known to be its own."""
        place = self._place(digest)
        if path.stat().st_dev != self.root.stat().st_dev:
            copy = self.scratch / f"{digest}.{os.getpid()}.{threading.get_ident()}"
            shutil.copyfile(path, copy)
            path.unlink()
            path = copy
        os.chmod(path, 0o600)
        os.utime(path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        if not place.parent.is_dir():
            place.parent.mkdir(mode=0o700, exist_ok=True)
            sync_folder(place.parent.parent)
        os.replace(path, place)
        sync_folder(place.parent)

    def has(self, digest: str) -> bool:
        return self._place(digest).is_file()

    def renew(self, digest: str) -> bool:
        try:
            os.utime(self._place(digest))
        except FileNotFoundError:
            return False
        return True

    def size(self, digest: str) -> int:
        return self.local(digest).stat().st_size

    def local(self, digest: str) -> Path:
        place = self._place(digest)
        if not place.is_file():
            raise MissingBlob(digest)
        return place

    def read(self, digest: str, offset: int = 0, chunk: int = STEP) -> Iterator[bytes]:
        return _chunks(self.local(digest), offset, chunk)

    def remove(self, digest: str) -> None:
        self._place(digest).unlink(missing_ok=True)

    def partial(self, digest: str, owner: str, size: int, limit: int) -> Partial:
        return self._begin(digest, owner, size, limit, self._take)

    def _begin(self, digest: str, owner: str, size: int, limit: int, take: Any) -> Partial:
        check_digest(digest)
        if not 0 <= size <= limit:
            raise InputError(f"blob {digest}: {size:,} bytes are announced, and at most {limit:,} are taken; send less")
        folder = self.root / "uploads" / hashlib.sha256(owner.encode()).hexdigest()[:32]
        path = folder / digest
        with self._lock:
            before = self._writing.pop(path, None)
        if before is not None:
            before.close()
        with self._lock:
            self._writing = {place: upload for place, upload in self._writing.items() if not upload.closed}
            folder.mkdir(mode=0o700, exist_ok=True)
            self._make_room(folder, path)
            upload = self._writing[path] = Partial(path, Blob(digest, size), take)
        upload.resume()  # takes its time for a large file, and holds up nobody else
        return upload

    def _make_room(self, folder: Path, path: Path) -> None:
        others = [other for other in folder.iterdir() if other != path]
        idle = sorted((other for other in others if other not in self._writing), key=_touched)
        for oldest in idle[: max(0, len(others) + 1 - UPLOADS)]:
            oldest.unlink(missing_ok=True)

    def sweep(self, keep: Collection[str], older_than: float) -> int:
        before, removed = time.time() - older_than, 0
        for path in (self.root / "blobs").glob("*/*"):
            if path.name not in keep and _touched(path) < before:
                path.unlink(missing_ok=True)
                removed += 1
        with self._lock:
            busy = {place for place, upload in self._writing.items() if not upload.closed}
        for path in (self.root / "uploads").glob("*/*"):
            if path not in busy and _touched(path) < before:
                path.unlink(missing_ok=True)
        for path in self.scratch.iterdir():
            if _touched(path) < before:
                _remove(path)
        return removed

    def close(self) -> None:
        with self._lock:
            uploads = list(self._writing.values())
            self._writing = {}
        for upload in uploads:
            upload.close()


class Partial:
    """An upload in progress, which one thread at a time may write. Made by ``partial`` of a store.

    offset:  bytes that are there already.
    damaged: all of it came, and it was not the blob.
    """

    def __init__(self, path: Path, blob: Blob, take: Any) -> None:
        self.blob = blob
        self._path, self._take = path, take
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = _alone(path, blob.digest)
        self.offset = 0
        self.damaged = False
        self._digest = hashlib.sha256()

    def resume(self) -> None:
        """Count and hash what came before; called once, before anything is written."""
        with self._lock:
            file = self._open()
            if os.fstat(file.fileno()).st_size > self.blob.size:
                file.truncate(0)
            while part := file.read(STEP):
                self._digest.update(part)
                self.offset += len(part)

    @property
    def closed(self) -> bool:
        return self._file is None

    def write(self, data: bytes) -> None:
        """Append. Raises InputError, and forgets the upload, for more than was announced."""
        with self._lock:
            file = self._open()
            if self.offset + len(data) > self.blob.size:
                self._discard(file)
                raise InputError(f"blob {self.blob.digest}: more came than the {self.blob.size:,} bytes that were announced")
            file.write(data)
            self._digest.update(data)
            self.offset += len(data)

    def finish(self) -> Blob:
        """Verify size and digest, make the content durable, and then the blob visible.

        Raises InputError for too few bytes, which stay; and for a wrong digest, which forgets the upload.
        """
        with self._lock:
            file = self._open()
            if self.offset < self.blob.size:
                raise InputError(f"blob {self.blob.digest}: {self.offset:,} of {self.blob.size:,} bytes came; send the others")
            if self._digest.hexdigest() != self.blob.digest:
                self.damaged = True
                self._discard(file)
                raise InputError(f"blob {self.blob.digest}: what came has the SHA-256 {self._digest.hexdigest()}; send it again")
            file.flush()
            self._take(self._path, self.blob.digest)  # still locked: nobody else may write what is verified
            self._close(file)
            return self.blob

    def discard(self) -> None:
        """Forget what came."""
        with self._lock:
            if self._file is not None:
                self._discard(self._file)

    def close(self) -> None:
        """Stop here; the upload may be resumed."""
        with self._lock:
            if self._file is not None:
                self._close(self._file)

    def _open(self) -> IO[bytes]:
        if self._file is None:
            raise Busy(f"blob {self.blob.digest}: this upload has ended, or was begun again elsewhere; ask for its offset")
        return self._file

    def _discard(self, file: IO[bytes]) -> None:
        self._path.unlink(missing_ok=True)
        self._close(file)

    def _close(self, file: IO[bytes]) -> None:
        self._file = None
        file.close()


def _alone(path: Path, digest: str) -> IO[bytes]:
    """The file at a path, open and locked; the kernel lets go when the process ends, however it ends."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had the lock before may have moved the file away, or removed it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return os.fdopen(handle, "r+b")
        except BlockingIOError:
            os.close(handle)
            raise Busy(f"blob {digest}: another process is writing this upload; try again later") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


class Bucket:
    """Blobs in an object store, whose uploads become visible as a whole. Downloads and uploads in progress lie in a local folder."""

    def __init__(self, system: Any, root: str, folder: Folder, cache: int) -> None:
        self._system, self._root, self._folder, self._cache = system, root, folder, cache
        self._downloads: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def scratch(self) -> Path:
        return self._folder.scratch

    def _place(self, digest: str) -> str:
        return f"{self._root}/{check_digest(digest)[:2]}/{digest}"

    def put(self, path: Path) -> Blob:
        blob = blob_of(path)
        self._take(path, blob.digest)
        return blob

    def _take(self, path: Path, digest: str) -> None:
        self._system.put_file(str(path), self._place(digest))
        self._folder._take(path, digest)
        self._evict(digest)

    def has(self, digest: str) -> bool:
        return bool(self._system.exists(self._place(digest)))

    def renew(self, digest: str) -> bool:
        if not self.has(digest):
            return False
        # An object's time is that of its upload, so that one that is not new any more has to be uploaded again.
        if time.time() - self._system.modified(self._place(digest)).timestamp() > NEW:
            self._system.put_file(str(self.local(digest)), self._place(digest))
        return True

    def size(self, digest: str) -> int:
        try:
            return int(self._system.info(self._place(digest))["size"])
        except FileNotFoundError:
            raise MissingBlob(digest) from None

    def local(self, digest: str) -> Path:
        if self._folder.renew(digest):
            return self._folder.local(digest)
        with self._lock:
            alone = self._downloads.setdefault(digest, threading.Lock())
        with alone:
            if not self._folder.renew(digest):
                self._download(digest)
        with self._lock:
            self._downloads.pop(digest, None)
        self._evict(digest)
        return self._folder.local(digest)

    def _download(self, digest: str) -> None:
        path = self.scratch / f"{digest}.{os.getpid()}.{threading.get_ident()}"
        try:
            try:
                self._system.get_file(self._place(digest), str(path))
            except FileNotFoundError:
                raise MissingBlob(digest) from None
            found = blob_of(path).digest
            if found != digest:
                raise InputError(
                    f"blob {digest}: the object store holds other content under its name (SHA-256 {found}); restore it"
                )
            self._folder._take(path, digest)
        finally:
            path.unlink(missing_ok=True)

    def _evict(self, newest: str) -> None:
        """Keep the cache within its size; what was asked for a moment ago may be about to be opened."""
        with self._lock:
            files = sorted((self._folder.root / "blobs").glob("*/*"), key=_touched)
            size, before = sum(_size(path) for path in files), time.time() - GRACE
            for path in files:
                if size <= self._cache:
                    break
                if path.name != newest and _touched(path) < before:
                    size -= _size(path)
                    path.unlink(missing_ok=True)

    def read(self, digest: str, offset: int = 0, chunk: int = STEP) -> Iterator[bytes]:
        return _chunks(self.local(digest), offset, chunk)

    def remove(self, digest: str) -> None:
        self._folder.remove(digest)
        with suppress(FileNotFoundError):
            self._system.rm_file(self._place(digest))

    def partial(self, digest: str, owner: str, size: int, limit: int) -> Partial:
        return self._folder._begin(digest, owner, size, limit, self._take)

    def sweep(self, keep: Collection[str], older_than: float) -> int:
        self._folder.sweep(keep, older_than)
        before, removed = time.time() - older_than, 0
        for path in self._system.find(self._root):
            digest = path.rpartition("/")[2]
            if digest in keep or not _DIGEST.fullmatch(digest):
                continue
            with suppress(FileNotFoundError):
                if self._system.modified(path).timestamp() < before:
                    self._system.rm_file(path)
                    removed += 1
        return removed

    def close(self) -> None:
        self._folder.close()


def _chunks(path: Path, offset: int, chunk: int) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while part := file.read(chunk):
            yield part


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
