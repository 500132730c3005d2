"""The folder that a server or a client keeps: keys, state, audit log. Mode 0700; one process at a time holds it."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from hansa.core.errors import InputError
from hansa.core.files import replace_file


class Home:
    """A folder of its own. The kernel lets go of it when the process ends, however it ends."""

    def __init__(self, path: str | Path, made: bool = True) -> None:
        """made: where it is missing; else that is an InputError."""
        self.path = Path(path).absolute()
        if not made and not self.path.is_dir():
            raise InputError(
                f"--home {path}: there is no such folder; name that of a member (hansa join ADDRESS TOKEN --home DIR makes one)"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
        except OSError as error:
            raise InputError(f"--home {path}: cannot be made ({error.strerror}); name a folder that may be written") from None
        self._lock: int | None = None

    def hold(self) -> None:
        """InputError where another process holds it."""
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise InputError(
                f"--home {self.path}: another process of Hansa uses it; stop that one, or name another folder"
            ) from None
        self._lock = handle

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def folder(self, name: str) -> Path:
        """A folder below it, made where it is missing."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def own_name(self) -> str:
        """What this home is called among the processes that share a database; made up once."""
        path = self.path / "name"
        if not path.exists():
            replace_file(path, [secrets.token_hex(8).encode()])  # whole or not there: two homes without a name would be one
        return path.read_text()

    def clear(self, name: str) -> Path:
        """An empty folder for what nobody needs after this process."""
        import shutil

        path = self.path / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return path
