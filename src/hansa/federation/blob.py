"""What a blob is: bytes, named by their SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hansa.core.errors import InputError

STEP = 1 << 20
"""Bytes that are read or hashed at a time."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """digest: SHA-256, 64 hexadecimal digits in lower case; size: bytes."""

    digest: str
    size: int


class MissingBlob(InputError):
    """There is no blob of that digest."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"there is no blob {digest}; it was never uploaded, or it has been removed since")


class Busy(InputError):
    """Another process is writing the same upload."""


def check_digest(digest: str) -> str:
    """The digest; InputError where it is none, so that no path is ever made of anything else."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InputError(f"{str(digest)[:80]!r} is no digest; write a SHA-256 as 64 hexadecimal digits in lower case")
    return digest


def is_digest(text: str) -> bool:
    """Whether a text is a digest."""
    return _DIGEST.fullmatch(text) is not None


def blob_of(path: Path) -> Blob:
    """Digest and size of a file."""
    with open(path, "rb") as file:
        return Blob(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)


def chunks_of(path: Path, offset: int, chunk: int) -> Iterator[bytes]:
    """The content of a file from an offset on."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while part := file.read(chunk):
            yield part


def touched(path: Path) -> float:
    """When a file was last written or renewed, Unix seconds; infinite for one that is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
