"""How many rounds of training a client has done for a run: by its own count, because the number of a round is the server's word."""

from __future__ import annotations

import os
from pathlib import Path

_DIGEST = 64


class Served:
    """A file for every run, with the digests of the calls to train that were begun. A call that is made again counts once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, list[str]] = {}

    def begin(self, run: str, call: str) -> int:
        """Note a call of a run whose name can be that of a file; returns how many different ones there have been, this one included."""
        path = self._folder / f"{run}.rounds"
        known = self._known.get(run)
        if known is None:
            lines = path.read_text("ascii").split("\n") if path.exists() else []
            known = self._known[run] = [line for line in lines if len(line) == _DIGEST]
        if call not in known:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"\n{call}\n")  # after what a crash may have cut off
                file.flush()
                os.fsync(file.fileno())
            known.append(call)
        return known.index(call) + 1
