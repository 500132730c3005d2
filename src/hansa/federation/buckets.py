"""Blobs in an object store."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hansa.core.errors import InputError
from hansa.federation.blob import STEP, Blob, MissingBlob, blob_of, check_digest, chunks_of, is_digest, touched
from hansa.federation.folders import OWNER, Folder
from hansa.federation.uploads import Partial

GRACE = 60.0
"""Seconds for which a cached file stays after it was asked for, whatever the size of the cache."""

NEW = 3600.0
"""Seconds for which an object counts as new; an object store must not be swept of anything younger than twice that."""


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

    def keep(self, digest: str, content: bytes | memoryview) -> None:
        if not self.renew(digest):
            self._take(self._folder._written(digest, content), digest)

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
            files = sorted((self._folder.root / "blobs").glob("*/*"), key=touched)
            size, before = sum(_size(path) for path in files), time.time() - GRACE
            for path in files:
                if size <= self._cache:
                    break
                if path.name != newest and touched(path) < before:
                    size -= _size(path)
                    path.unlink(missing_ok=True)

    def read(self, digest: str, offset: int = 0, chunk: int = STEP) -> Iterator[bytes]:
        return chunks_of(self.local(digest), offset, chunk)

    def remove(self, digest: str) -> None:
        self._folder.remove(digest)
        with suppress(FileNotFoundError):
            self._system.rm_file(self._place(digest))

    def partial(self, digest: str, owner: str, size: int, limit: int) -> Partial:
        return self._folder._begin(digest, owner, size, limit, self._take)

    def claim(self, owner: str) -> str:
        path = f"{self._root}/{OWNER}"
        try:
            return str(self._system.cat_file(path).decode())
        except FileNotFoundError:
            self._system.pipe_file(path, owner.encode())
            return owner

    def sweep(self, keep: Collection[str], older_than: float) -> int:
        self._folder.sweep(keep, older_than)
        before, removed = time.time() - older_than, 0
        for path in self._system.find(self._root):
            digest = path.rpartition("/")[2]
            if digest in keep or not is_digest(digest):
                continue
            with suppress(FileNotFoundError):
                if self._system.modified(path).timestamp() < before:
                    self._system.rm_file(path)
                    removed += 1
        return removed

    def close(self) -> None:
        self._folder.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
