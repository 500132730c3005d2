"""What a client has begun for a run, by its own count and durably: the numbers that a server gives are its word."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

_DIGEST = 64

Counted: TypeAlias = Literal["rounds", "evaluations", "jobs"]


class Served:
    """A file for every run and what is counted of it, with digests. One that comes again counts once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[tuple[str, Counted], list[str]] = {}

    def begin(self, run: str, call: str, counted: Counted = "rounds") -> int:
        """Note the digest of a call of a run whose name can be that of a file; returns which one it is of the different ones that
        there have been, counted from 1."""
        path = self._folder / f"{run}.{counted}"
        known = self._known.get((run, counted))
        if known is None:
            lines = path.read_text("ascii").split("\n") if path.exists() else []
            known = self._known[run, counted] = [line for line in lines if len(line) == _DIGEST]
        if call not in known:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"\n{call}\n")  # after what a crash may have cut off
                file.flush()
                os.fsync(file.fileno())
            known.append(call)
        return known.index(call) + 1
