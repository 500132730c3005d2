"""Client state: control variates, personal layers, error feedback. It stays with the client, keyed by its id.

Entries are versioned by the round that wrote them. A round that is repeated after a crash reads the version from before it, and
so computes the same; only the newest version before the round that writes is kept beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hansa.core.params import Params


class MemoryStore:
    """Keeps the state in this process."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[int, Params]] = {}

    def read(self, client: str, before: int) -> Params | None:
        versions = [round for round in self._versions.get(client, {}) if round < before]
        return self._versions[client][max(versions)] if versions else None

    def write(self, round: int, states: Mapping[str, Params]) -> None:
        for client, state in states.items():
            before = [r for r in self._versions.get(client, {}) if r < round]
            self._versions[client] = {r: self._versions[client][r] for r in before[-1:]} | {round: state}


class DiskStore:
    """Keeps the state in one SQLite file; memory does not grow with the number of clients.

    durable: a power cut loses nothing that was written. A simulation needs none of that: its own round goes with the client's, and is
             played again. A client of a federation does: its server has the round whose state would be lost here.
    """

    # With row ids, so that entries of any size lie beside the index and not in it: a read of one walks over no other.
    _SCHEMA = "CREATE TABLE IF NOT EXISTS entries (client TEXT, round INTEGER, layout TEXT, data BLOB, PRIMARY KEY (client, round))"

    def __init__(self, path: Path, durable: bool = False) -> None:
        self.path, self.durable = path, durable
        self._connection: sqlite3.Connection | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "durable": self.durable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.durable, self._connection = state["path"], state["durable"], None

    def _open(self) -> sqlite3.Connection:
        # Opened on first use, so that a run without client state has no file and a worker process has its own connection.
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # before SQLite does, whose files beside it take its mode
            connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            with _alone_in(self.path.parent):  # the switch to WAL does not wait for its turn as everything after it does
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(f"PRAGMA synchronous={'FULL' if self.durable else 'NORMAL'}")
                connection.execute(self._SCHEMA)
            self._connection = connection
        return self._connection

    def read(self, client: str, before: int) -> Params | None:
        if self._connection is None and not self.path.exists():
            return None
        newest = "SELECT layout, data FROM entries WHERE client = ? AND round < ? ORDER BY round DESC LIMIT 1"
        found = self._open().execute(newest, (client, before)).fetchone()
        return None if found is None else _unpacked(*found)

    def write(self, round: int, states: Mapping[str, Params]) -> None:
        old = (
            "DELETE FROM entries WHERE client = ?1 AND (round >= ?2 OR round < "
            "(SELECT max(round) FROM entries WHERE client = ?1 AND round < ?2))"
        )
        connection = self._open()
        with connection:  # commits, or rolls back
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(old, [(client, round) for client in states])
            rows = ((client, round, *_packed(state)) for client, state in states.items())
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time; the kernel lets go when a process ends, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _packed(state: Params) -> tuple[str, bytes]:
    """Names, types and shapes as JSON, and all arrays one behind the other."""
    arrays = {name: np.asarray(value) for name, value in state.items()}
    layout = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    return json.dumps(layout), b"".join(array.tobytes() for array in arrays.values())


def _unpacked(layout: str, data: bytes) -> Params:
    state, start = {}, 0
    for name, dtype, shape in json.loads(layout):
        count = int(np.prod(shape, dtype=np.int64))
        state[name] = np.frombuffer(data, dtype, count, start).reshape(shape).copy()
        start += state[name].nbytes
    return state
