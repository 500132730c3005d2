"""A client's own count of the rounds that it has trained for a run."""

from __future__ import annotations

from pathlib import Path

from hansa.federated.client import Client
from hansa.federation.served import Served
from hansa.job import to_text
from tests.federation.parties import job, mine, served

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


def test_a_clients_own_state_is_durable_before_its_report(tmp_path: Path) -> None:
    """Else a power cut could take from the client what the server has used."""
    client = Client("127.0.0.1:1", data=mine(job(), "client-000"), home=tmp_path, name="client-000")
    store = client._open(to_text(served(job())), "run-1", 0, 1).worker.store
    store.write(1, {"client-000": {}})
    assert store._open().execute("PRAGMA synchronous").fetchone() == (2,)  # type: ignore[attr-defined]  # a DiskStore, of whose insides the contract does not speak
