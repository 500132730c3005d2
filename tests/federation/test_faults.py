"""A process that is killed at any named step of a round, and started again, changes no bit of what comes out.

The algorithm is SCAFFOLD, whose clients keep a state of their own: work that is done twice, or not at all, shows in every later round.
"""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import hansa
from hansa.core.errors import HansaError
from hansa.federated.client import Client
from hansa.federated.server import Server
from hansa.federation import audit, faults
from hansa.federation.credentials import Credentials
from hansa.job import to_text
from tests.federation.forge import Forge, Forged
from tests.federation.parties import job, joined, same_bits, served, simulated, threads

NAMES = ("client-000", "client-001")
ROUNDS = 3
LOCAL = hansa.Local(epochs=1, batch_size=32, learning_rate=0.1)

# At the third time or later, where something has been committed, and there is more to come.
SERVER = {
    "server.call_stored": 4, "server.tasks_opened": 4, "server.report_validated": 7, "server.report_committed": 6,
    "server.exchange_over": 4, "server.state_saved": 2, "server.state_stored": 2, "server.round_committed": 2,
    "server.blob_partial": 3, "server.blob_complete": 6, "server.run_finished": 1,
}  # fmt: skip
CLIENT = {
    "client.task_received": 4, "client.call_fetched": 4, "client.computed": 4, "client.partly_uploaded": 2, "client.uploaded": 2,
    "client.reported": 4,
}  # fmt: skip


def test_every_step_is_tried() -> None:
    assert {*SERVER, *CLIENT, "server.joined"} == {step for step in faults.STEPS if not step.startswith("relay.")}


@dataclass(frozen=True)
class Founded:
    """A server's home and those of its clients, which have joined; every test has its own copy of them."""

    folder: Path
    port: int
    job: hansa.Job
    params: Any

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def homes(self) -> list[Path]:
        return [self.folder / name for name in NAMES]

    def copied(self, to: Path) -> Founded:
        shutil.copytree(self.folder, to, dirs_exist_ok=True)
        return Founded(to, self.port, self.job, self.params)

    def server(self, forge: Forge, fault: str = "", *more: str) -> Forged:
        arguments = (
            "server",
            self.folder / "job.toml",
            "--home",
            self.folder / "server",
            "--listen",
            self.address,
            "--quiet",
            *more,
        )
        return forge.start(arguments, self.folder / "server.log", fault)

    def client(self, forge: Forge, name: str, fault: str = "", *more: str) -> Forged:
        home = self.folder / name
        arguments = ("client", "--home", home, "--data", home / "mine.toml", *more)
        return forge.start(arguments, self.folder / f"{name}.log", fault)

    def check(self) -> None:
        """What the server kept at the end is what a run without faults gives, and both sides' logs are whole."""
        (run,) = (self.folder / "server" / "runs").iterdir()
        assert same_bits(load_file(run / "params.safetensors"), self.params)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [(record["round"], record["clients"]) for record in records] == [(k + 1, len(NAMES)) for k in range(len(records))]
        assert len(records) == self.job.rounds.count
        for home in (self.folder / "server", *self.homes):
            assert audit.verify(home / "audit.jsonl")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def found(folder: Path, given: hansa.Job, **options: Any) -> Founded:
    port = free_port()
    with Server(home=folder / "server", listen=f"127.0.0.1:{port}", quiet=True) as server:
        joined(server, given, folder, NAMES)
    (folder / "job.toml").write_text(to_text(served(given, **({"clients": len(NAMES)} | options))))
    return Founded(folder, port, given, simulated(given, folder / "elsewhere"))


def scaffold(count: int = ROUNDS, hidden: int = 8, **changes: Any) -> hansa.Job:
    parts = {"partition": hansa.IID(clients=len(NAMES)), "learner": hansa.MLP(hidden=(hidden,))}
    return job(count, algorithm=hansa.Scaffold(local=LOCAL), **(parts | changes))


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Founded:
    return found(tmp_path_factory.mktemp("small"), scaffold())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Founded:
    """Its results have several chunks."""
    return found(tmp_path_factory.mktemp("large"), scaffold(hidden=9000))


@pytest.fixture
def founded(request: pytest.FixtureRequest, tmp_path: Path) -> Founded:
    uploads = any(word in request.node.name for word in ("partial", "partly", "uploaded"))
    one: Founded = request.getfixturevalue("large" if uploads else "small")
    return one.copied(tmp_path)


@pytest.mark.parametrize("step", SERVER)
def test_a_server_that_dies_at_a_step_goes_on(step: str, founded: Founded, forge: Forge) -> None:
    with threads(founded.homes):
        assert founded.server(forge, f"{step}:{SERVER[step]}").wait() == -9
        assert founded.server(forge).wait() == 0, (founded.folder / "server.log").read_text()
    founded.check()


def test_a_run_that_is_over_is_no_other_run_after_a_restart(founded: Founded, forge: Forge) -> None:
    """Its end is shown as it was, also when no client is there any more, until another run is asked for."""
    with threads(founded.homes):
        assert founded.server(forge, "server.run_finished").wait() == -9
    assert founded.server(forge, "", "--json").wait() == 0, (founded.folder / "server.log").read_text()
    founded.check()
    given = served(founded.job, clients=len(NAMES))
    with Server(given, home=founded.folder / "server", listen=founded.address, quiet=True) as server:
        done = server.train()
        assert len(server.office.state.all_open()) == 0 and len(server.office.state.runs()) == 1
        assert same_bits(done.params, founded.params) and done.ended == f"played all {ROUNDS} rounds"
        assert done.history[-1]["round"] == ROUNDS and done.metrics["test/accuracy"] == done.history[-1]["test/accuracy"]
        assert set(done.by_client) == set(NAMES) and done.model.n_features_in_ == 30
        with threads(founded.homes):
            more = server.train(again=True)
        assert len(server.office.state.runs()) == 2 and more.directory != done.directory
    assert (more.ended, more.metrics, more.by_client) == (done.ended, done.metrics, done.by_client)
    assert same_bits(more.params, done.params)


@pytest.mark.parametrize("step", CLIENT)
def test_a_client_that_dies_at_a_step_goes_on(step: str, founded: Founded, forge: Forge) -> None:
    dying = founded.client(forge, NAMES[0], f"{step}:{CLIENT[step]}")
    given = served(founded.job, clients=len(NAMES))
    with Server(given, home=founded.folder / "server", listen=founded.address, quiet=True) as server, threads(founded.homes[1:]):
        training = threading.Thread(target=server.train)
        training.start()
        assert dying.wait() == -9
        again = founded.client(forge, NAMES[0])
        training.join(60)
        assert again.end() == 0, again.log.read_text()
    founded.check()


def test_a_server_that_dies_before_it_answers_who_joins(founded: Founded, forge: Forge) -> None:
    """The same request has its answer from the next process, and the token is spent all the same."""
    with Server(home=founded.folder / "server", listen=founded.address, quiet=True) as server:
        token = server.token("late")
    dying = founded.server(forge, "server.joined:1")
    who: list[Any] = []
    joining = threading.Thread(target=lambda: who.append(Client.join(founded.address, token, founded.folder / "late")))
    joining.start()
    assert dying.wait() == -9
    again = founded.server(forge)
    joining.join(60)
    assert [one.name for one in who] == ["late"] and Credentials.load(founded.folder / "late").identity.role == "client"
    with pytest.raises(HansaError, match="used before"):
        Client.join(founded.address, token, founded.folder / "thief")
    again.kill()
