"""Uploads in progress: files that several processes see and one thread at a time writes, hashed as they come."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hansa.core.errors import InputError
from hansa.federation.blob import STEP, Blob, Busy


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

    def write(self, data: bytes | memoryview) -> None:
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
