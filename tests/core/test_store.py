"""Client state: versioned by round, so that a repeated round reads what it read before."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.core.store import DiskStore, MemoryStore


@pytest.fixture(params=["memory", "disk"])
def store(request: Any, tmp_path: Path) -> Any:
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "clients.sqlite")


def entry(value: float) -> dict[str, np.ndarray]:
    return {"b": np.full((2, 1), value, dtype=np.float32), "a": np.array(value)}


def test_reads_the_newest_version_before_a_round(store: Any) -> None:
    assert store.read("x", 5) is None
    store.write(1, {"x": entry(1.0), "y": entry(-1.0)})
    store.write(3, {"x": entry(3.0)})
    assert store.read("x", 1) is None
    assert store.read("x", 2)["a"] == 1.0
    assert store.read("x", 3)["a"] == 1.0
    assert store.read("x", 4)["a"] == 3.0
    assert store.read("y", 4)["b"].dtype == np.float32 and store.read("y", 4)["b"].shape == (2, 1)


def test_a_repeated_round_overwrites_itself_only(store: Any) -> None:
    store.write(1, {"x": entry(1.0)})
    store.write(2, {"x": entry(2.0)})
    assert store.read("x", 2)["a"] == 1.0
    store.write(2, {"x": entry(2.5)})
    assert store.read("x", 2)["a"] == 1.0
    assert store.read("x", 3)["a"] == 2.5


def test_disk_store_survives_its_process_and_travels(tmp_path: Path) -> None:
    first = DiskStore(tmp_path / "clients.sqlite")
    assert first.read("x", 1) is None and not first.path.exists()
    first.write(1, {"x": entry(1.0)})
    other = pickle.loads(pickle.dumps(first))  # noqa: S301  # as an engine sends it to its workers
    assert other.read("x", 2)["a"] == 1.0
    assert {oct(path.stat().st_mode)[-3:] for path in tmp_path.glob("clients.sqlite*")} == {"600"}


OPENED_AT_ONCE = """
import sys
from pathlib import Path
import numpy as np
from hansa.core.store import DiskStore
store = DiskStore(Path(sys.argv[1]))
sys.stdin.readline()
store.write(1, {sys.argv[2]: {"a": np.ones(2)}})
"""


def test_several_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    path = tmp_path / "clients.sqlite"
    commands = [[sys.executable, "-c", OPENED_AT_ONCE, str(path), f"client-{k}"] for k in range(6)]
    started = [subprocess.Popen(c, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    ends = [(process.communicate("go\n", timeout=60)[1], process.returncode) for process in started]
    assert ends == [("", 0)] * 6
    assert all(DiskStore(path).read(f"client-{k}", 2) is not None for k in range(6))


@pytest.mark.parametrize(("durable", "level"), [(False, 1), (True, 2)], ids=["normal", "full"])
def test_what_a_power_cut_may_take(durable: bool, level: int, tmp_path: Path) -> None:
    """By SQLite's own word, also after it has been sent to another process."""
    store = pickle.loads(pickle.dumps(DiskStore(tmp_path / "clients.sqlite", durable)))  # noqa: S301  # this test's own
    store.write(1, {"a": {"x": np.ones(1)}})
    assert store._open().execute("PRAGMA synchronous").fetchone() == (level,)
