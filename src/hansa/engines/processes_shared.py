"""Large arrays between processes of one machine: pickled out of band (PEP 574) into shared memory, small things beside it.

Every segment is made, grown and removed by the parent. A worker only attaches to it, so a worker that is killed leaves nothing behind.
Where the parent is killed, Python's resource tracker removes its segments; where that is killed too, the next engine does.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import shutil
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

from hansa.core.errors import RunFailed

SMALL = 4096
"""Buffers of fewer bytes stay in the pickle: a copy through the pipe is cheaper than keeping account of them."""

FOLDER = Path("/dev/shm")
"""Where Linux keeps shared memory as files; other systems have no such place, and no limit of its size."""

PREFIX = "hansa-"

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector register."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Packed:
    """A pickled value and the buffers that are kept apart from it."""

    header: bytes
    buffers: tuple[pickle.PickleBuffer, ...]

    @property
    def size(self) -> int:
        """Bytes of shared memory that the buffers need."""
        return sum(_aligned(buffer.raw().nbytes) for buffer in self.buffers)

    def place(self, memory: memoryview | None) -> tuple[Span, ...]:
        """Copy the buffers into shared memory of at least :attr:`size` bytes; returns where each one lies."""
        spans, start = [], 0
        for buffer in self.buffers:
            raw = buffer.raw()
            assert memory is not None
            memory[start : start + raw.nbytes] = raw
            spans.append((start, raw.nbytes))
            start += _aligned(raw.nbytes)
        return tuple(spans)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def pack(value: Any) -> Packed:
    """Pickle a value; large arrays become buffers without being copied."""
    buffers: list[pickle.PickleBuffer] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < SMALL:
            return True
        buffers.append(buffer)
        return False

    header = io.BytesIO()
    pickler = pickle.Pickler(header, protocol=5, buffer_callback=inside)
    pickler.dispatch_table = {**copyreg.dispatch_table, np.ndarray: _plainly, np.float64: _number}
    pickler.dump(value)
    return Packed(header.getvalue(), tuple(buffers))


def _plainly(array: np.ndarray) -> Any:
    """How an array is pickled; where its dtype is a number's, by name and without what NumPy keeps for dtypes of any kind, which takes
    longer to write and to read than all that is around it."""
    if array.dtype.isbuiltin != 1 or array.dtype.hasobject or not array.flags.c_contiguous:
        return array.__reduce_ex__(5)
    return np.ndarray, (array.shape, array.dtype.str, pickle.PickleBuffer(array))  # type: ignore[arg-type]  # the stubs know that an array is a buffer from Python 3.12 on


def _number(value: np.float64) -> Any:
    return np.float64, (float(value),)


def unpack(header: bytes, spans: Sequence[Span], memory: memoryview | None) -> Any:
    """The value, with memory of its own: the shared memory may be overwritten at once."""
    # Copied by NumPy, which asks the system for large pages: most of the time would go to mapping small ones.
    buffers = [] if memory is None else [np.frombuffer(memory, np.uint8, size, start).copy() for start, size in spans]
    return pickle.loads(header, buffers=buffers)  # noqa: S301  # written by this job's own processes on this machine


class Segment:
    """Shared memory that the parent owns. It grows by being replaced, and is removed when closed, collected or at exit."""

    def __init__(self) -> None:
        self._shared: SharedMemory | None = None
        self._remove: weakref.finalize | None = None

    @property
    def name(self) -> str:
        """What a worker attaches by; empty while there is none."""
        return "" if self._shared is None else self._shared.name

    @property
    def memory(self) -> memoryview | None:
        return None if self._shared is None else self._shared.buf

    def reserve(self, size: int) -> None:
        """Make room for ``size`` bytes; what was written before is lost if the segment had to grow.

        Raises RunFailed when the machine has not as much shared memory.
        """
        if size <= (0 if self._shared is None else self._shared.size):
            return
        self.close()
        size = 1 << (size - 1).bit_length() if size < 1 << 24 else size + size // 8
        _refuse_more_than_free(size)
        self._shared = SharedMemory(f"{PREFIX}{os.getpid()}-{token_hex(4)}", create=True, size=size)
        _hold(self._shared)
        self._remove = weakref.finalize(self, _unlink, self._shared, os.getpid())

    def close(self) -> None:
        if self._remove is not None:
            self._remove()
        self._shared = self._remove = None


def _unlink(shared: SharedMemory, owner: int) -> None:
    if os.getpid() == owner:  # a fork inherits this callback, and must not take the memory away from its parent
        shared.close()
        shared.unlink()


def _hold(shared: SharedMemory) -> None:
    """Show to processes of other containers, to whom the number of this one says nothing, that the segment has an owner."""
    if sys.platform == "linux":
        import fcntl

        number = os.open(FOLDER / shared.name, os.O_RDONLY)
        fcntl.flock(number, fcntl.LOCK_SH)
        weakref.finalize(shared, os.close, number)


def sweep() -> None:
    """Remove this user's segments whose owners are gone: killed together with all that would have cleaned up after them."""
    if sys.platform != "linux":
        return
    import fcntl

    for path in FOLDER.glob(f"{PREFIX}*-*"):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if not owner.isdigit() or Path(f"/proc/{owner}").exists():
            continue
        # Swept by another one, or another user's, or held by a process of another container.
        with suppress(FileNotFoundError, PermissionError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _refuse_more_than_free(size: int) -> None:
    # Memory that is promised but not there would kill the process with SIGBUS when it is written, without a word.
    if FOLDER.is_dir() and shutil.disk_usage(FOLDER).free < size:
        raise RunFailed(
            f"engine processes: {size:,} bytes of shared memory are needed and {FOLDER} has {shutil.disk_usage(FOLDER).free:,} free; "
            "make it larger (for containers: --shm-size), or write engine.name = 'inline'"
        )


class Attached:
    """A worker's view of a segment; the last one attached is kept, because it is nearly always the next one too."""

    def __init__(self) -> None:
        self._shared: SharedMemory | None = None

    def memory(self, name: str) -> memoryview | None:
        """The memory of the segment of that name, None for the empty name."""
        if not name:
            return None
        if self._shared is None or self._shared.name != name:
            if self._shared is not None:
                self._shared.close()
            # Before 3.13 attaching also registers with the resource tracker, which all processes share and which keeps a set of
            # names: the parent's removal undoes both.
            self._shared = SharedMemory(name, **({"track": False} if sys.version_info >= (3, 13) else {}))
        return self._shared.buf
