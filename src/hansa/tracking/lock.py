"""A lock between processes that the kernel releases when its holder ends, even by kill -9."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from hansa.core.errors import InputError

_PATIENCE: Final = 0.5  # seconds; a look at the lock by `is_held` takes it for some microseconds
_held: set[int] = set()


class Lock:
    """One file, locked by flock(2), that names its holder's process id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises :class:`InputError` naming the holder where another process has it. Taking it twice is once."""
        if self._handle is not None:
            return
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _PATIENCE
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
                os.close(handle)
                raise InputError(f"{self.path.parent}: process {pid} is writing this run; wait for it to end, or stop it first")
            time.sleep(0.01)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        _held.add(handle)

    def release(self) -> None:
        if self._handle is not None:
            _held.discard(self._handle)
            os.close(self._handle)
            self._handle = None

    def is_held(self) -> bool:
        """Whether this or any other process holds it."""
        if self._handle is not None:
            return True
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(handle)
        finally:
            os.close(handle)


def _try_lock(handle: int) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _forget_in_child() -> None:
    # A forked child shares the lock; a worker that outlives its killed parent would keep the run locked.
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
