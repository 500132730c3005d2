"""The short version of the soak; `python -m tests.federation.soak --faults 100` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.federation.soak import soak


def test_random_kills_change_no_bit(tmp_path: Path) -> None:
    done = soak(tmp_path, faults=6, seed=4)
    assert done.faults == 6 and done.same
    assert len(done.killed) > 1
