"""The audit log: what was done, by whom and when, in a file that only grows and shows whether it was tampered with.

One line an entry, in canonical JSON (keys sorted, no blanks, ASCII): ``number`` from 1 on, ``time`` in UTC, ``who``, ``role``,
``action``, ``details``, ``previous``, the hash of the entry before, and ``hash``, the SHA-256 of the line without it. So whoever changes,
removes or moves an entry has to write all entries after it anew. That is found too where the hash of the last one (:meth:`Audit.head`)
is kept elsewhere, for example at the other organisations; and so is a log that was cut short at its end.

An entry that :meth:`Audit.write` has returned from is on the disk. A crash may leave a part of one that it has not: that part is cut
off when the log is opened next, and an entry says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

from hansa.core.errors import InputError, RunFailed
from hansa.core.files import sync_folder

START: Final = "0" * 64
"""``previous`` of the first entry, and the hash of an empty log's head."""

_MOST_LINE = 65_536  # bytes of one entry with its end
_MOST_TEXT = 1_000  # characters of one text
_MOST_DETAILS = 32
_MOST_ITEMS = 100
_SECRET = re.compile(r"-----BEGIN|PRIVATE KEY|hansa-[A-Za-z0-9_-]{64}")
_RESTORE = "restore the log from a backup, and find out who changed it"
_WITHHELD = "(withheld: it looks like a key or a join token)"
_PATIENCE = 0.5  # seconds; who verifies a log takes its lock for some microseconds

_open: weakref.WeakSet[Audit] = weakref.WeakSet()


class Audit:
    """A log that is open for writing, by this process alone. Threads may share it."""

    def __init__(self, path: Path, handle: int, head: tuple[int, str]) -> None:
        self.path = path
        self._handle: int | None = handle
        self._count, self._hash = head
        self._broken = ""
        self._appending, self._syncing = threading.Lock(), threading.Lock()
        self._synced = head[0]
        _open.add(self)

    @classmethod
    def open(cls, path: Path) -> Audit:
        """Open a log, or begin one, mode 0600. InputError where another process writes it, or its last entry is not whole.

        Only the last entry is looked at, however long the log is; :func:`verify` looks at all.
        """
        try:
            new = not path.exists()
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(f"audit log {path}: cannot be opened ({error.strerror}); it must belong to who runs this") from None
        try:
            os.fchmod(handle, 0o600)
            if not _taken(handle):
                raise InputError(f"audit log {path}: another process writes it; stop that one first, or use another folder")
            if new:
                sync_folder(path.parent)
            head, size, torn = _end_of(handle, path)
            log = cls(path, handle, head)
        except BaseException:
            os.close(handle)
            raise
        if torn:
            os.ftruncate(handle, size)
            os.fsync(handle)
            log.write("audit", "cut off an unfinished entry", bytes=len(torn), sha256=hashlib.sha256(torn).hexdigest())
        return log

    def write(self, who: str, action: str, /, *, role: str = "", **details: Any) -> None:
        """Add an entry; it is on the disk when this returns.

        details: texts, numbers, truth values, None, and lists of them. Texts may come from anybody: one of more than 1,000 characters
        is cut, one that looks like a key is withheld, and so are all of an entry of more than 64 KiB. InputError for other types,
        RunFailed where the disk does not take the entry.
        """
        entry = {"who": _text(who), "role": _text(role), "action": _text(action), "details": _plain(details)}
        with self._appending:
            self._append(entry)
            number = self._count
        with self._syncing:
            if self._synced < number:  # else a thread that came later has synced this one with its own
                upto = self._count
                self._sync()
                self._synced = upto

    def head(self) -> tuple[int, str]:
        """How many entries there are, and the hash of the last one, to be kept where nobody who can change the log can change it."""
        with self._syncing, self._appending:
            if self._synced < self._count:
                self._sync()
                self._synced = self._count
            return self._count, self._hash

    def close(self) -> None:
        """Let another process write. Closing twice is once."""
        with self._syncing, self._appending:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None

    def __enter__(self) -> Audit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _append(self, entry: Mapping[str, Any]) -> None:
        handle = self._usable()
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        entry = {"number": self._count + 1, "time": now, **entry, "previous": self._hash}
        line, hash = _line(entry)
        if len(line) > _MOST_LINE:
            line, hash = _line({**entry, "details": {"withheld": f"details of {len(line):,} bytes"}})
        try:
            written = 0
            while written < len(line):
                written += os.write(handle, line[written:])
        except OSError as error:
            self._break(error)
        self._count, self._hash = self._count + 1, hash

    def _sync(self) -> None:
        try:
            os.fsync(self._usable())
        except OSError as error:
            self._break(error)

    def _usable(self) -> int:
        if self._handle is None:
            raise RunFailed(f"audit log {self.path}: is closed; open it again")
        if self._broken:
            raise RunFailed(f"audit log {self.path}: {self._broken}")
        return self._handle

    def _break(self, error: OSError) -> None:
        # After a failed write or sync nobody knows what is on the disk: only who opens the log anew finds out.
        self._broken = f"an entry could not be written ({error.strerror}); make room on its disk, and start again"
        raise RunFailed(f"audit log {self.path}: {self._broken}") from error


def verify(path: Path, head: tuple[int, str] | None = None) -> int:
    """How many entries a log has, all of them as they were written. InputError naming the first line that is not.

    head: what :meth:`Audit.head` gave at any time before; without it a log whose last entries were removed looks whole.
    """
    count, hash, seen = 0, START, START
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"audit log {path}: cannot be read ({error.strerror}); name the file of a log") from None
    with file:
        while line := _next(file):
            count += 1
            why, hash = _broken(line, count, hash)
            if why:
                raise InputError(f"audit log {path}, line {count:,}: {why}")
            if head is not None and count == head[0]:
                seen = hash
    if head is not None and count < head[0]:
        raise InputError(f"audit log {path}: ends after line {count:,} and had {head[0]:,}; {_RESTORE}")
    if head is not None and seen != head[1]:
        raise InputError(
            f"audit log {path}, line {head[0]:,}: is not the one whose hash was noted, so the log was written anew up to it; {_RESTORE}"
        )
    return count


def _next(file: BinaryIO) -> bytes:
    """The next line. One that a writer is at this moment adding to a log that is in use is waited for."""
    start = file.tell()
    line = file.readline(_MOST_LINE + 1)
    if not line or line.endswith(b"\n") or not _in_use(file):
        return line
    # An entry is written by one system call: what is still torn after that was left by a call that failed.
    time.sleep(0.1)
    file.seek(start)
    return file.readline(_MOST_LINE + 1)


def _taken(handle: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _in_use(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _broken(line: bytes, number: int, previous: str) -> tuple[str, str]:
    """Why a line cannot be the one with that number after that hash, empty where it can; and its own hash."""
    if not line.endswith(b"\n"):
        if len(line) > _MOST_LINE:
            return f"is longer than {_MOST_LINE:,} bytes; {_RESTORE}", previous
        return "is not finished, as after a crash; who opens the log to write cuts it off", previous
    try:
        entry = json.loads(line)
        told = entry.pop("hash")
        expected, hash = _line(entry)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return f"is not an entry; {_RESTORE}", previous
    if expected != line or told != hash:
        return f"was changed; {_RESTORE}", previous
    if entry.get("number") != number:
        return f"is the entry {entry.get('number')}, so entries were removed or moved; {_RESTORE}", previous
    if entry.get("previous") != previous:
        return f"does not follow the line before; {_RESTORE}", previous
    return "", hash


def _line(entry: Mapping[str, Any]) -> tuple[bytes, str]:
    """The line of an entry that has no hash yet, and its hash."""
    hash = hashlib.sha256(_canonical(entry)).hexdigest()
    return _canonical({**entry, "hash": hash}) + b"\n", hash


def _canonical(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _end_of(handle: int, path: Path) -> tuple[tuple[int, str], int, bytes]:
    """The head of a log, its size up to the end of its last whole line, and what stands after that."""
    size = os.fstat(handle).st_size
    start = max(0, size - 2 * _MOST_LINE)
    tail = os.pread(handle, size - start, start)
    whole, end, torn = tail.rpartition(b"\n")
    if not end:
        if start:
            raise InputError(f"audit log {path}: its end is no entry of a log; restore it from a backup, or begin another")
        return (0, START), 0, tail
    line = whole.rpartition(b"\n")[2] + b"\n"
    try:
        entry = json.loads(line)
        number, previous = entry["number"], entry["previous"]
    except (ValueError, KeyError, TypeError, RecursionError):
        number, previous = 0, START
    why, hash = _broken(line, number, previous)
    if why or not isinstance(number, int) or number < 1:
        raise InputError(f"audit log {path}: its last line {why or f'is not an entry; {_RESTORE}'}")
    return (number, hash), size - len(torn), torn


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    if len(details) > _MOST_DETAILS:
        raise InputError(f"audit log: {len(details)} details are more than {_MOST_DETAILS}; tell less")
    return {name: _value(name, value) for name, value in details.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        items = [_scalar(name, item) for item in value[:_MOST_ITEMS]]
        return [*items, f"... ({len(value):,} in all)"] if len(value) > _MOST_ITEMS else items
    return _scalar(name, value)


def _scalar(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**63 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _text(value)
    raise InputError(f"audit log: the detail {name} is a {type(value).__name__}; give a text, a number, or a list of them")


def _text(value: str) -> str:
    if _SECRET.search(value):
        return _WITHHELD
    return value if len(value) <= _MOST_TEXT else f"{value[:_MOST_TEXT]}... ({len(value):,} characters)"


def _forget_in_child() -> None:
    # A forked child shares the lock; one that outlives its killed parent would keep the log from the parent's successor.
    for log in list(_open):
        if log._handle is not None:
            os.close(log._handle)
            log._handle = None


os.register_at_fork(after_in_child=_forget_in_child)
