"""A client's own count of the rounds that it has trained for a run."""

from __future__ import annotations

from pathlib import Path

from hansa.federation.served import Served

CALLS = ["a" * 64, "b" * 64, "c" * 64]


def test_a_call_counts_once_also_after_a_restart(tmp_path: Path) -> None:
    served = Served(tmp_path)
    assert [served.begin("run", call) for call in (*CALLS[:2], CALLS[0])] == [1, 2, 1]
    assert [Served(tmp_path).begin("run", call) for call in CALLS] == [1, 2, 3]
    assert served.begin("another", CALLS[2]) == 1
    assert (tmp_path / "run.rounds").stat().st_mode & 0o777 == 0o600


def test_what_a_crash_cut_off_is_no_call(tmp_path: Path) -> None:
    (tmp_path / "run.rounds").write_text(f"\n{CALLS[0]}\n\n{CALLS[1][:20]}")
    assert Served(tmp_path).begin("run", CALLS[1]) == 2
    assert Served(tmp_path).begin("run", CALLS[2]) == 3
