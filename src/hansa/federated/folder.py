"""A run's folder at a server: a copy of what the database and the blobs say, so that another server process can go on with the run."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hansa.federation.blobs import Blobs
from hansa.federation.faults import reached
from hansa.federation.state import RunRow, State
from hansa.tracking.folder import RunFolder


class ServedFolder(RunFolder):
    """A round counts once it is committed to the database; this folder is brought to what is there before the run goes on."""

    def __init__(self, path: Path, run: str, owner: str, state: State, blobs: Blobs, tidy: Callable[[], None]) -> None:
        super().__init__(path)
        self._run, self._owner, self._state, self._blobs, self._tidy = run, owner, state, blobs, tidy
        self._record: Mapping[str, Any] | None = None
        self._last: str | None = None

    @classmethod
    def open_for(
        cls, root: Path, row: RunRow, owner: str, state: State, blobs: Blobs, tidy: Callable[[], None], job: str
    ) -> ServedFolder:
        """The folder of a run, locked, with the state that the database names, or with none."""
        path = root / row.id
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = cls(path, row.id, owner, state, blobs, tidy)
        folder.lock()
        if not folder.has("status.json") or not folder.has("job.toml"):
            folder.begin(job)
        folder._restore(row)
        return folder

    @property
    def go_on(self) -> str:
        return "the same command, which starts the server again"

    def _restore(self, row: RunRow) -> None:
        own = self.path / "state.safetensors"
        own.unlink(missing_ok=True)
        self._last = row.state
        if row.state is not None:
            _copy(self._blobs.local(row.state), own)
        lines = [
            json.dumps({k: None if _not_finite(v) else v for k, v in record.items()}) for record in self._state.records(row.id)
        ]
        self.write_text("metrics.jsonl", "".join(line + "\n" for line in lines))

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        super().append_metrics(record)
        self._record = self.metrics()[-1]

    def save_state(self, tree: Mapping[str, Any]) -> None:
        """Save the state here, store it as a blob, and commit the round."""
        super().save_state(tree)
        reached("server.state_saved")
        copy = self._blobs.scratch / f"{self._run}.state"
        _copy(self.path / "state.safetensors", copy)
        blob = self._blobs.put(copy)
        reached("server.state_stored")
        round = int(tree["round"]) if tree["stage"] == "training" else 0
        record = None if round == 0 else self._record
        self._state.commit(self._run, self._owner, round, blob.digest, record)
        reached("server.round_committed")
        for digest in self._state.unused([self._last]) if self._last is not None else ():
            self._blobs.remove(digest)
        self._last = blob.digest
        self._tidy()


def _copy(old: Path, new: Path) -> None:
    """The same content under another name: files here are replaced and never changed, so that a link will do."""
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
