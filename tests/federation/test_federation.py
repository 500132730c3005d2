"""The round loop over the wire: the bits of the simulation, whatever the algorithm, and what ends a round."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hansa
from hansa.core.errors import InputError, RunFailed
from hansa.federated.admin import Admin
from hansa.federated.client import Client
from hansa.federated.folder import ServedFolder
from hansa.federated.server import Server
from hansa.federation.policy import Policy
from tests.federation.parties import NAMES, job, joined, same_bits, served, simulated, threads, until

LOCAL = hansa.Local(epochs=2, batch_size=16, learning_rate=0.1)


def played(given: hansa.Job, folder: Path, policies: dict[str, Policy] | None = None, **options: Any) -> hansa.Run:
    with Server(served(given, **options), home=folder / "server", listen="127.0.0.1:0", quiet=True) as server:
        homes = joined(server, given, folder)
        with threads(homes, policies):
            return server.train()


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": hansa.FedAvg(local=LOCAL)},
        {"algorithm": hansa.Scaffold(local=LOCAL)},
        {"algorithm": hansa.Newton(), "learner": {"name": "sklearn", "estimator": "LogisticRegression"}},
        {"algorithm": {"name": "fedmedian"}, "rounds": hansa.Rounds(count=3, block=1, clients=0.75)},
    ],
    ids=["fedavg", "scaffold", "newton", "fedmedian"],
)
def test_same_bits_as_the_simulation(changes: dict[str, Any], tmp_path: Path) -> None:
    if isinstance(changes["algorithm"], dict):
        from hansa.algorithms.fedmedian import FedMedian

        changes = {**changes, "algorithm": FedMedian(local=LOCAL)}
    given = job(**changes)
    done = played(given, tmp_path)
    assert same_bits(done.params, simulated(given, tmp_path)) and done.params
    assert len(done.history) == done.history[-1]["round"]
    assert set(done.by_client) == set(NAMES)


def test_a_refusal_names_the_rule_and_ends_the_run(tmp_path: Path) -> None:
    """It reaches the server as a value, and the client computes nothing."""
    with pytest.raises(InputError, match=r"client-002 refuses \(max_epochs\)") as told:
        played(job(algorithm=hansa.FedAvg(local=LOCAL)), tmp_path, {"client-002": Policy(max_epochs=1, contact="dpo@example.org")})
    assert "dpo@example.org" in str(told.value)
    log = (tmp_path / "client-002" / "audit.jsonl").read_text()
    assert '"refused"' in log and '"kind":"train"' not in log


def test_as_many_rounds_as_the_policy_allows_may_all_be_judged_and_the_best_of_them_again(tmp_path: Path) -> None:
    kept = {"split": hansa.Split(test=0.2, validation=0.2), "evaluation": hansa.Evaluation(best=True)}
    given = job(4, algorithm=hansa.FedAvg(local=replace(LOCAL, learning_rate=2.0)), **kept)
    done = played(given, tmp_path, dict.fromkeys(NAMES, Policy(max_rounds=4)))
    losses = [record["validation/loss"] for record in done.history]
    assert len(losses) == 4 and min(losses) < losses[-1]  # else the last round's judgement would be that of the end
    assert done.metrics["validation/loss"] == min(losses)


def test_a_quorum_goes_on_without_those_who_refuse(tmp_path: Path) -> None:
    given = job(algorithm=hansa.FedAvg(local=LOCAL), rounds=hansa.Rounds(count=2, block=1, quorum=0.5))
    done = played(given, tmp_path, {"client-002": Policy(max_epochs=1)}, enough=1.0)
    assert [record["clients"] for record in done.history] == [3, 3]


def test_a_clients_traceback_reaches_the_server_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = job()

    def broken(self: Any, *_: Any) -> Any:
        raise ArithmeticError("the disk of the hospital is full")

    monkeypatch.setattr("hansa.learners.mlp.BoundMLP.train", broken)
    with pytest.raises(RunFailed, match="the disk of the hospital is full") as told:
        played(given, tmp_path)
    assert str(told.value).count("Traceback") == 1


def without_the_last(given: hansa.Job, folder: Path, **options: Any) -> hansa.Run:
    """A run whose last client falls silent after the first round."""
    with Server(served(given, **options), home=folder / "server", listen="127.0.0.1:0", quiet=True) as server:
        homes = joined(server, given, folder)
        with threads(homes) as clients:

            def leave() -> None:
                until(lambda: server.run_id and server.office.state.run(server.run_id).round >= 1)
                clients[-1].stop.set()
                clients[-1].hang_up()

            leaving = threading.Thread(target=leave)
            leaving.start()
            try:
                return server.train()
            finally:
                leaving.join()


def test_a_round_closes_at_its_deadline_and_says_so(tmp_path: Path) -> None:
    """A client that falls silent does not hold up the others, neither in a round nor at an evaluation."""
    done = without_the_last(job(rounds=hansa.Rounds(count=2, block=1, quorum=0.5)), tmp_path, deadline=2.0)
    assert done.history[0]["clients"] == 4 and done.history[-1]["clients"] == 3
    assert "deadline" in str(done.history[-1]["failures"])
    assert set(done.by_client) == set(NAMES[:3])


def test_enough_results_close_a_round(tmp_path: Path) -> None:
    done = without_the_last(job(rounds=hansa.Rounds(count=4, block=1, quorum=0.5)), tmp_path, enough=0.75)
    assert done.history[-1]["clients"] == 3


def test_a_client_that_is_never_heard_again_is_lost(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"client-003.*no byte for 2 s"):
        without_the_last(job(count=500), tmp_path, liveness=2.0)


def test_an_administrator_submits_watches_and_stops(tmp_path: Path) -> None:
    given = job(count=500)
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        playing = threading.Thread(target=server.serve_forever)
        playing.start()
        try:
            homes = joined(server, given, tmp_path)
            Client.join(server.address, server.token("ann", "admin"), tmp_path / "ann")
            Client.join(server.address, server.token("vera", "viewer"), tmp_path / "vera")
            with threads(homes), Admin(tmp_path / "ann") as ann, Admin(tmp_path / "vera") as vera:
                run = ann.submit(served(given))
                with pytest.raises(InputError, match="the role viewer may not"):
                    vera.submit(served(given))
                kinds = []
                for event in vera.watch(run):
                    kinds.append(event.kind)
                    if event.kind == "round" and kinds.count("round") == 2:
                        ann.stop(run)
                with pytest.raises(InputError, match="is over already"):
                    ann.stop(run)
                assert kinds[0] in ("waiting", "began") and kinds[-1] == "stopped"
                assert [row.status for row in vera.runs()] == ["stopped"]
                assert {member.name for member in vera.members()} >= {*NAMES, "ann", "vera"}
                with pytest.raises(InputError, match="elsewhere"):
                    ann.submit(given)
        finally:
            server.stop_playing()
            playing.join()


def test_a_server_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """The end has the bits of a run without an interruption."""
    given = job(count=6)
    homes: list[Path] = []
    for attempt in range(2):
        with Server(served(given), home=tmp_path / "server", listen=f"127.0.0.1:{PORT}", quiet=True) as server:
            homes = homes or joined(server, given, tmp_path)
            with threads(homes):
                if attempt:
                    done = server.train()
                else:
                    failed: list[BaseException] = []
                    playing = threading.Thread(target=_caught, args=(server, failed))
                    playing.start()
                    until(lambda: server.run_id and server.office.state.run(server.run_id).round >= 2)
                    server.stop_playing()
                    playing.join()
                    assert "goes on with the next start" in str(failed[0])
    assert same_bits(done.params, simulated(given, tmp_path))
    assert [record["round"] for record in done.history] == [1, 2, 3, 4, 5, 6]


def test_who_interrupts_a_server_is_told_how_its_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    given = job(count=1)
    monkeypatch.setattr(ServedFolder, "save_state", interrupted)
    with (
        Server(served(given), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server,
        threads(joined(server, given, tmp_path)),
        pytest.raises(KeyboardInterrupt) as told,
    ):
        server.train()
    assert told.value.__notes__ == ["go on with: the same command, which starts the server again"]


PORT = 28643


def _caught(server: Server, failed: list[BaseException]) -> None:
    try:
        server.train()
    except RunFailed as error:
        failed.append(error)


def test_parameters_are_there_after_every_round(tmp_path: Path) -> None:
    given = job(count=2)
    with Server(served(given), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        with threads(joined(server, given, tmp_path)):
            done = server.train()
        assert same_bits(server.get_parameters(), done.params)
