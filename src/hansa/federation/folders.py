"""Blobs in a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hansa.core.errors import InputError
from hansa.core.files import replace_file, sync_folder
from hansa.federation.blob import STEP, Blob, MissingBlob, blob_of, check_digest, chunks_of, touched
from hansa.federation.uploads import Partial

OWNER = "owner"
"""Name of the file that says whose store it is."""

UPLOADS = 8
"""Uploads in progress that are kept for one owner; the oldest is given up for another one."""


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

    def keep(self, digest: str, content: bytes | memoryview) -> None:
        if not self.renew(digest):
            self._place_at(self._place(digest), self._written(digest, content))

    def _written(self, digest: str, content: bytes | memoryview) -> Path:
        """A durable scratch file with content."""
        path = self.scratch / f"{digest}.{os.getpid()}.{threading.get_ident()}"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0) as file:
            while content:
                content = memoryview(content)[file.write(content) :]
            os.fsync(file.fileno())
        return path

    def _place_at(self, place: Path, path: Path) -> None:
        """Move a durable file to its place, durably."""
        try:
            os.replace(path, place)
        except FileNotFoundError:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            sync_folder(place.parent.parent)
            os.replace(path, place)
        sync_folder(place.parent)

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
        self._place_at(place, path)

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
        return chunks_of(self.local(digest), offset, chunk)

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
        idle = sorted((other for other in others if other not in self._writing), key=touched)
        for oldest in idle[: max(0, len(others) + 1 - UPLOADS)]:
            oldest.unlink(missing_ok=True)

    def claim(self, owner: str) -> str:
        path = self.root / OWNER
        if not path.exists():
            replace_file(path, [owner.encode()])
        return path.read_text("utf-8")

    def sweep(self, keep: Collection[str], older_than: float) -> int:
        before, removed = time.time() - older_than, 0
        for path in (self.root / "blobs").glob("*/*"):
            if path.name not in keep and touched(path) < before:
                path.unlink(missing_ok=True)
                removed += 1
        with self._lock:
            busy = {place for place, upload in self._writing.items() if not upload.closed}
        for path in (self.root / "uploads").glob("*/*"):
            if path not in busy and touched(path) < before:
                path.unlink(missing_ok=True)
        for path in self.scratch.iterdir():
            if touched(path) < before:
                _remove(path)
        return removed

    def close(self) -> None:
        with self._lock:
            uploads = list(self._writing.values())
            self._writing = {}
        for upload in uploads:
            upload.close()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
