"""Files that are whole or not there: written beside their place, synced, then moved into it. Mode 0600, in folders of mode 0700."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from hansa.core.errors import InputError

_UNFINISHED = ".unfinished"


def replace_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file, mode 0600, atomically and durably: whoever reads ``path`` sees the old content or all of the new one.

    After a crash at any instant a file ``.<name>.<random>.unfinished`` may be left beside it, see :func:`remove_unfinished`.
    """
    _write(path, parts, os.replace)


def create_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """As :func:`replace_file`, where there is none yet. FileExistsError where there is; of two writers at once one wins."""
    _write(path, parts, os.link)  # unlike a rename it fails where there is one


def _write(path: Path, parts: Iterable[bytes | memoryview], place: Callable[[str, Path], None]) -> None:
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        place(unfinished, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable: without it a file that was synced may be gone after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed have left. Only for who alone may write in the folder."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink()


def private_folder(path: Path) -> None:
    """Make a folder, durably, that only its owner may enter. InputError where that cannot be."""
    try:
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        for folder in new:
            sync_folder(folder.parent)
    except OSError as error:
        raise InputError(f"folder {path}: cannot be made private ({error.strerror}); name a folder that you own") from None
