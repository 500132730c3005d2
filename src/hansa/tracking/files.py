"""Files that are whole or not there: written beside their place, synced, then moved into it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hansa.core.errors import InputError

_UNFINISHED = ".unfinished"


def replace_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file, mode 0600, atomically and durably: whoever reads ``path`` sees the old content or all of the new one.

    After a crash at any instant a file ``.<name>.<random>.unfinished`` may be left beside it, see :func:`remove_unfinished`.
    """
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise
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


def json_text(value: Any, indent: int | None = None) -> str:
    """Standard JSON, which knows no NaN and no infinity: they become null. NumPy scalars and arrays become numbers and lists."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json_file(path: Path) -> Any:
    """The content of a JSON file. Raises :class:`InputError` where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; give the folder of a run that wrote it") from error
    except (ValueError, OSError) as error:
        raise InputError(
            f"damaged file {path}: it is not JSON ({error}); restore it from a backup, or run the job again"
        ) from error
