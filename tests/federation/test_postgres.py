"""Server processes that share a database, a folder of blobs and an authority are one server: any of them may die."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from hansa.core.errors import InputError
from hansa.federated.client import Client
from hansa.federated.relay import Relay
from hansa.federated.server import Server
from hansa.federation.state import State
from hansa.job import to_text
from tests.federation.forge import Forge, Forged
from tests.federation.parties import joined, same_bits, served, simulated, threads, until
from tests.federation.test_faults import NAMES, free_port, scaffold


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


@contextlib.contextmanager
def two_servers(folder: Path, url: str, forge: Forge, given: Any) -> Iterator[tuple[list[Forged], State]]:
    """Processes on one database, and clients that know the addresses of both."""
    (folder / "job.toml").write_text(to_text(served(given, clients=len(NAMES))))
    shared = ("--database", url, "--blobs", str(folder / "blobs"), "--authority", str(folder / "authority"))
    ports = [free_port() for _ in range(2)]
    with Server(
        home=folder / "founder", listen="127.0.0.1:0", database=url, blobs=folder / "blobs", authority=folder / "authority"
    ) as server:
        homes = joined(server, given, folder, NAMES)
    for home in homes:
        (home / "server.toml").write_text(f'address = "127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"\n')
    servers = [
        forge.start(
            ("server", folder / "job.toml", "--home", folder / f"server-{k}", "--listen", f"127.0.0.1:{port}", "--quiet", *shared),
            folder / f"server-{k}.log",
        )
        for k, port in enumerate(ports)
    ]
    state = State.open(url)
    try:
        with threads(homes):
            yield servers, state
    finally:
        state.close()
        for one in servers:
            one.kill()


def test_one_of_two_servers_dies_and_the_other_goes_on(postgres: Callable[[], str], forge: Forge, tmp_path: Path) -> None:
    given = scaffold(6)
    with two_servers(tmp_path, postgres(), forge, given) as (servers, state):
        row = until(lambda: next((row for row in state.runs() if row.round >= 2), None))
        names = [(tmp_path / f"server-{k}" / "name").read_text() for k in range(2)]
        player = names.index(row.owner)
        servers[player].kill()
        state.release(row.id, row.owner)  # its lease would end by itself after some seconds
        other = servers[1 - player]
        assert other.wait(90) == 0, other.log.read_text()
        (row,) = state.runs()  # both were given the job, and it was played once
        assert (row.status, row.owner, row.round) == ("finished", names[1 - player], 6)
        records = state.records(row.id)
    assert [(record["round"], record["clients"]) for record in records] == [(k + 1, 2) for k in range(6)]
    params = load_file(tmp_path / f"server-{1 - player}" / "runs" / row.id / "params.safetensors")
    assert same_bits(params, simulated(given, tmp_path))


def test_both_servers_know_the_end(postgres: Callable[[], str], forge: Forge, tmp_path: Path) -> None:
    """The one that did not play gives the run back as well."""
    given = scaffold(2)
    with two_servers(tmp_path, postgres(), forge, given) as (servers, state):
        assert [one.wait(90) for one in servers] == [0, 0], [one.log.read_text() for one in servers]
        (row,) = state.runs()
    params = simulated(given, tmp_path)
    for k in range(2):
        assert same_bits(load_file(tmp_path / f"server-{k}" / "runs" / row.id / "params.safetensors"), params)


def test_a_database_that_was_away_for_a_moment(postgres: Callable[[], str], tmp_path: Path) -> None:
    """Every connection to it is cut in mid-run."""
    import psycopg

    given, url = scaffold(6), postgres()
    plain = url.replace("+psycopg", "")
    with Server(
        served(given, clients=len(NAMES)), home=tmp_path / "server", listen="127.0.0.1:0", database=url, quiet=True
    ) as server:
        homes = joined(server, given, tmp_path, NAMES)
        cut = []

        def cutting(*arguments: Any) -> Any:
            if arguments[2] in (2, 4) and arguments[2] not in cut:
                cut.append(arguments[2])
                with psycopg.connect(plain, autocommit=True) as connection:
                    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s"
                    connection.execute(others, [connection.info.dbname])
            return committed(*arguments)

        committed = server.office.state.commit
        server.office.state.commit = cutting  # type: ignore[method-assign]  # the cut is put in its place
        with threads(homes):
            done = server.train()
    assert cut == [2, 4]
    assert same_bits(done.params, simulated(given, tmp_path))
    assert [record["round"] for record in done.history] == [1, 2, 3, 4, 5, 6]
    assert all(not json.loads(json.dumps(record["failures"])) for record in done.history)


def test_who_knows_two_addresses_goes_to_the_next(postgres: Callable[[], str], tmp_path: Path) -> None:
    """A client joins through the server that is there."""
    url, dead = postgres(), free_port()
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", database=url, quiet=True) as server:
        who = Client.join(f"127.0.0.1:{dead},{server.address}", server.token("a"), tmp_path / "a")
    assert who.name == "a"


def test_a_relay_with_a_database_of_its_own(postgres: Callable[[], str], tmp_path: Path) -> None:
    """And with no other's."""
    given, url, theirs = scaffold(2), postgres(), postgres()
    with Server(
        served(given, clients=len(NAMES)), home=tmp_path / "server", listen="127.0.0.1:0", database=theirs, quiet=True
    ) as server:
        Client.join(server.address, server.token("north", "relay"), tmp_path / "north")
        with Relay(home=tmp_path / "north", listen="127.0.0.1:0", database=url) as relay:
            relaying = threading.Thread(target=relay.run)
            relaying.start()
            try:
                with threads(joined(relay.server, given, tmp_path, NAMES)):
                    done = server.train()
            finally:
                relay.stop.set()
                relay.hang_up()
                relaying.join()
            assert {row.status for row in relay.server.office.state.runs()} <= {"running", "finished"}
    assert same_bits(done.params, simulated(given, tmp_path))
    with pytest.raises(InputError, match="holds runs of another process"):
        Relay(home=tmp_path / "north", listen="127.0.0.1:0", database=theirs).start()


def test_a_relay_refuses_its_servers_database_before_anything_is_done_with_it(postgres: Callable[[], str], tmp_path: Path) -> None:
    theirs = postgres()
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", database=theirs, quiet=True) as server:
        Client.join(server.address, server.token("north", "relay"), tmp_path / "north")
        before = [tuple(row) for row in server.office.state.members()]
        for _ in range(2):
            with pytest.raises(InputError, match="has the relay itself among its members"):
                Relay(home=tmp_path / "north", listen="127.0.0.1:0", database=theirs).start()
        assert [tuple(row) for row in server.office.state.members()] == before
