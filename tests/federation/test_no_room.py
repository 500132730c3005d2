"""A server whose disk is full: the run is not over, and what was saved and acknowledged is there after the next start."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hansa.core.errors import InputError, RunFailed
from hansa.federated.folder import ServedFolder
from hansa.federated.server import Server
from hansa.federated.watched import database_answers
from hansa.federation.endpoint import Readiness
from hansa.federation.state import State
from tests.federation.forge import Forge
from tests.federation.parties import job, joined, same_bits, served, simulated, threads, until
from tests.federation.test_faults import NAMES, found, scaffold

SIZE = 6 << 20
"""Bytes of the file system that is filled."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root alone, and this is none, or may not")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on a file system."""
    path = disk / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


def round_of(home: Path) -> int:
    """How far the only run of a server is, as its database says."""
    runs = list((home / "runs").iterdir()) if (home / "runs").is_dir() else []
    records = runs[0] / "metrics.jsonl" if runs else None
    return len(records.read_text().splitlines()) if records is not None and records.exists() else 0


def test_a_full_disk_ends_the_server_and_not_the_run(disk: Path, tmp_path: Path) -> None:
    """One sentence, an exit code, and after a new start with room on the disk the bits of a run that nothing disturbed."""
    place = found(tmp_path, scaffold(15))
    shutil.move(place.folder / "server", disk / "server")
    (place.folder / "server").symlink_to(disk / "server")
    with Forge() as forge:
        clients = [place.client(forge, name) for name in NAMES]
        server = place.server(forge)
        until(lambda: round_of(disk / "server") >= 3)
        ballast = fill(disk)
        assert server.wait() == 3, server.log.read_text()
        said = server.log.read_text()
        assert "Traceback" not in said and said.count("make room") == 1 and "goes on after the last saved round" in said
        ballast.unlink()
        assert place.server(forge).wait() == 0, said
        for client in clients:
            client.end()
        place.check()


def test_a_round_that_cannot_be_saved_is_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, before, full = job(count=3), ServedFolder.save_state, [errno.EDQUOT]

    def save(self: ServedFolder, tree: Any) -> None:
        if tree["stage"] == "training" and tree["round"] == 2 and full:
            number = full.pop()
            raise OSError(number, os.strerror(number), str(self.path / "state.safetensors"))
        before(self, tree)

    monkeypatch.setattr(ServedFolder, "save_state", save)
    with (
        Server(served(given), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server,
        threads(joined(server, given, tmp_path)),
    ):
        with pytest.raises(RunFailed, match=r"state\.safetensors cannot be written \(.*\); make room there") as told:
            server.train()
        assert "\n" not in str(told.value)
        first = server.run_id
        assert server.office.state.run(first).status == "running" and server.office.state.run(first).round == 1
        done = server.train()
    assert server.run_id == first and [record["round"] for record in done.history] == [1, 2, 3]
    assert same_bits(done.params, simulated(given, tmp_path))


def test_a_server_that_has_no_room_does_not_start(disk: Path) -> None:
    with Server(home=disk / "server", listen="127.0.0.1:0", quiet=True):
        pass
    ballast = fill(disk)
    with pytest.raises((InputError, RunFailed), match="make room"):
        Server(home=disk / "server", listen="127.0.0.1:0", quiet=True).start()
    ballast.unlink()
    with Server(home=disk / "server", listen="127.0.0.1:0", quiet=True):
        pass


def test_a_database_without_room_is_not_ready(disk: Path) -> None:
    state = State.open(f"sqlite:///{disk / 'state.sqlite'}")
    ready = Readiness({"database": database_answers(state, disk / "state.sqlite")})
    try:
        assert not ready.problems()
        ballast = fill(disk)
        assert ready.problems() == {"database": "OperationalError"}
        ballast.unlink()
        assert not ready.problems()
    finally:
        state.close()
