"""Files that hold secrets: mode 0600, in a folder of mode 0700, whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from hansa.core.errors import InputError


def private_folder(path: Path) -> None:
    """Make a folder, durably, that only its owner may enter. InputError where that cannot be."""
    try:
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        for folder in new:
            _sync(folder.parent)
    except OSError as error:
        raise InputError(f"folder {path}: cannot be made private ({error.strerror}); name a folder that you own") from None


def write_private(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file atomically and durably: who reads ``path`` sees what was there before, or all of the content.

    Where a file is there already and ``replace`` is False, it stays, and FileExistsError is raised; of two writers at once one wins.
    """
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".unfinished")  # its mode is 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(unfinished, path)
        else:
            os.link(unfinished, path)  # unlike a rename it fails where there is one
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
