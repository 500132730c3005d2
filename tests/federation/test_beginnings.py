"""How members begin: the example of the documentation, what joins, starts and listens, and what each says of itself."""

from __future__ import annotations

import json
import logging
import re
import shlex
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import hansa
from hansa.cli.main import main
from hansa.core.errors import InputError, RunFailed
from hansa.data.split import Split
from hansa.federated import client as client_module
from hansa.federated.admin import Admin
from hansa.federated.client import ADDRESS, Client, Mine
from hansa.federated.server import Server
from hansa.federation import audit, link
from tests.federation.parties import NAMES, job, joined, process, served, threads, until, working

PAGE = (Path(__file__).parents[2] / "docs" / "federation.md").read_text()
SHELL, JOB, MINE = re.search(r"```sh\n(.*?)```.*?```toml\n(.*?)```.*?```toml\n(.*?)```", PAGE, re.DOTALL).groups()


def blocks_of_rows(folder: Path, count: int = 4) -> list[Path]:
    """A file with rows for each of several clients, as the page's ``mine.toml`` names it."""
    found = hansa.BuiltIn("breast_cancer").read()
    table = found.x.assign(outcome=found.y)
    paths = [folder / f"heart-{k}.csv" for k in range(count)]
    for k, path in enumerate(paths):
        table.iloc[k::count].to_csv(path, index=False)
    return paths


def test_the_example_of_the_page_is_played_as_printed(tmp_path: Path) -> None:
    """Its files differ in the path alone, of which every client has its own."""
    (tmp_path / "job.toml").write_text(JOB)
    assert 'path = "/srv/hansa/heart.csv"' in MINE
    with Server(tmp_path / "job.toml", home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        clients = []
        for k, path in enumerate(blocks_of_rows(tmp_path)):
            home = tmp_path / f"hospital-{k}"
            Client.join(server.address, server.token(home.name), home)
            (home / "mine.toml").write_text(MINE.replace("/srv/hansa/heart.csv", str(path)))
            clients.append(Client(home=home, data=home / "mine.toml"))
        with working(clients):
            done = server.train()
    assert done.history and done.history[-1]["clients"] == 4
    assert set(done.by_client) == {f"hospital-{k}" for k in range(4)}


def test_the_commands_of_the_page_are_understood() -> None:
    lines = [line.partition("#")[0] for line in SHELL.splitlines()]
    commands = [shlex.split(part) for line in lines for part in line.split("&&") if part.strip().startswith("hansa ")]
    assert [words[1] for words in commands] == ["server", "token", "join", "client"]
    for _, verb, *arguments in commands:
        main.commands[verb].make_context(verb, arguments)


def test_rows_of_a_source_without_clients_are_all_the_clients_own(tmp_path: Path) -> None:
    path = blocks_of_rows(tmp_path, 1)[0]
    found = Mine.of({"data": {"name": "file", "path": str(path), "label": "outcome"}}).recipe("a", Split(test=0.0), 3)
    assert found.id == "a" and found.rows == len(hansa.BuiltIn("breast_cancer").read())
    assert found.load()["train"].x.equals(hansa.File(path=str(path), label="outcome").read().x)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Servers of two federations."""
    folder = tmp_path_factory.mktemp("two")
    with (
        Server(home=folder / "one", listen="127.0.0.1:0", quiet=True) as one,
        Server(home=folder / "other", listen="127.0.0.1:0", quiet=True) as other,
    ):
        yield one, other


def free_address() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "why"),
    [("nothing", "nothing listens there"), ("no-such-host.invalid:9443", "there is no host of that name")],
    ids=["port", "host"],
)
def test_who_joins_where_no_server_is_hears_of_it_at_once_and_ends(
    address: str, why: str, two: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link.Link.soon, "__defaults__", (*link.Link.soon.__defaults__[:-1], 0.5))
    address, token = free_address() if address == "nothing" else address, two[0].token("a")
    said = CliRunner().invoke(main, ["join", address, token, "--home", str(tmp_path / "a")])
    assert said.exit_code == 3, said.output
    first, *_, last = said.output.splitlines()
    assert address in first and why in first and "trying again" in first
    assert last.startswith(f"hansa: the server at {address} cannot be reached ({why})")


def test_a_token_of_another_federation_ends_at_once(two: tuple[Server, Server], tmp_path: Path) -> None:
    """In one sentence, and nothing of gRPC's own beside it."""
    words = ["join", two[0].address, two[1].token("a"), "--home", str(tmp_path / "a")]
    joining = process(words, tmp_path / "log")
    assert joining.wait(60) == 2
    (said,) = (tmp_path / "log").read_text().splitlines()
    assert said.startswith(f"hansa: join token: the server at {two[0].address} is of another federation")
    Client.join(two[1].address, two[1].token("a"), tmp_path / "a")  # and where it belongs it is good


def test_what_is_secret_need_not_stand_on_a_command_line(two: tuple[Server, Server], tmp_path: Path) -> None:
    words = ["join", two[0].address, "-", "--home", str(tmp_path / "piped")]
    said = CliRunner().invoke(main, words, input=two[0].token("piped") + "\n")
    assert said.exit_code == 0 and "piped" in said.output, said.output
    serving = ["server", "--home", str(tmp_path / "server")]
    refused = CliRunner().invoke(main, serving, env={"HANSA_DATABASE": "nonsense://me:secret@host/hansa"})
    assert refused.exit_code == 2 and "give an SQLAlchemy URL" in refused.output and "secret" not in refused.output


def test_one_of_several_addresses_is_enough(two: tuple[Server, Server], tmp_path: Path) -> None:
    addresses = ",".join([free_address(), two[0].address, two[1].address])
    assert Client.join(addresses, two[1].token("b"), tmp_path / "b").name == "b"


@pytest.mark.parametrize(
    ("listen", "why"),
    [("taken", "another process listens there"), ("no-such-host.invalid:9443", "no host of that name"),
     ("192.0.2.1:9443", "an address of this machine")],
    ids=["taken", "unknown", "foreign"],
)  # fmt: skip
def test_an_address_that_cannot_be_listened_at_is_said(listen: str, why: str, two: tuple[Server, Server], tmp_path: Path) -> None:
    listen = two[0].address if listen == "taken" else listen
    with pytest.raises(InputError, match=f"--listen {re.escape(listen)}: .*{why}"):
        Server(home=tmp_path / "server", listen=listen, quiet=True).start()


@pytest.mark.parametrize("content", ["address = ", "adress = 'a:1'", "address = 7", "address = ''", "\udc80"])
def test_a_damaged_note_of_the_server_is_said(content: str, two: tuple[Server, Server], tmp_path: Path) -> None:
    home = tmp_path / "a"
    Client.join(two[0].address, two[0].token("c", "admin"), home)
    (home / ADDRESS).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"server\.toml: does not say where the server is"):
        Admin(home)


def test_a_home_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[data]\nname = "heart_disease"\n')
    for words in (["client", "--data", str(tmp_path / "mine.toml")], ["runs"], ["relay"]):
        said = CliRunner().invoke(main, [*words, "--home", str(tmp_path / "typo")])
        assert said.exit_code == 2 and "there is no such folder" in said.output
        assert not (tmp_path / "typo").exists()


def test_a_client_reads_its_data_before_anything_else(two: tuple[Server, Server], tmp_path: Path) -> None:
    home = tmp_path / "d"
    Client.join(two[0].address, two[0].token("d"), home)
    (home / "mine.toml").write_text('[data]\nname = "file"\npath = "nowhere.csv"\nlabel = "y"\n')
    said = CliRunner().invoke(main, ["client", "--home", str(home), "--data", str(home / "mine.toml")])
    assert said.exit_code == 2 and "no file matches nowhere.csv" in said.output


def test_a_clients_log_tells_its_life(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who takes part with what; connected, a run begun and over, the connection lost and found."""
    given, address = job(count=1), free_address()
    caplog.set_level(logging.INFO, "hansa.federation.client")

    def logged(*words: str) -> bool:
        return any(all(word in record.getMessage() for word in words) for record in caplog.records)

    with Server(home=tmp_path / "server", listen=address, quiet=True) as server:
        homes = joined(server, given, tmp_path)
    with threads(homes):
        with Server(home=tmp_path / "server", listen=address, quiet=True) as server:
            until(lambda: logged("client-000", "connected to"))
            playing = threading.Thread(target=server.serve_forever)
            playing.start()
            with Admin(tmp_path / "server") as admin:
                run = admin.submit(served(given))
                assert [event.kind for event in admin.watch(run)][-1] == "finished"
            assert logged("client-000", "takes part in run", run)
            until(lambda: logged("client-000", "no run left", run))
            server.stop_playing()
            playing.join()
        until(lambda: logged("client-000", "cannot be reached", "had no run left, and is waited for"))
        with Server(home=tmp_path / "server", listen=address, quiet=True):
            until(lambda: logged("client-000", "connected to", "again"))
    rows = len(given.partition.assign(given.data.read(), given.seed)[0][1])
    assert logged("client-000", "takes part with", f"{rows} rows", "columns", address)
    said = [record for record in caplog.records if "client-000" in record.getMessage()]
    over = next(k for k, record in enumerate(said) if "is waited for" in record.getMessage())
    assert all(record.levelname == "INFO" for record in said[over:])


def test_who_waits_for_tasks_hears_of_the_end_before_the_server_is_gone(tmp_path: Path) -> None:
    """Its job is over and it ends: clients that end with the last run do so too, without another look at the server."""
    given = job(count=1)
    with Server(served(given), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        clients = [Client(data=home / "mine.toml", home=home) for home in joined(server, given, tmp_path)]
        each = [threading.Thread(target=client.run, args=(False,), daemon=True) for client in clients]
        for one in each:
            one.start()
        server.train()
    for one in each:
        one.join(20)
    assert not any(one.is_alive() for one in each)


@pytest.mark.parametrize(("role", "verb"), [("relay", "hansa relay"), ("admin", "hansa submit"), ("viewer", "hansa runs")])
def test_only_who_joined_as_a_client_is_one(role: Any, verb: str, two: tuple[Server, Server], tmp_path: Path) -> None:
    Client.join(two[0].address, two[0].token(f"e-{role}", role), tmp_path / "home")
    with pytest.raises(InputError, match=f"has joined as a {role}, which is for {verb}.*hansa token --name"):
        Client(data=hansa.BuiltIn("breast_cancer"), home=tmp_path / "home")


def test_a_store_that_takes_nothing_is_found_out_at_the_start(tmp_path: Path) -> None:
    nowhere = f"http://{free_address()}/blobs"
    server = Server(home=tmp_path / "server", listen="127.0.0.1:0", blobs=nowhere, quiet=True)
    with pytest.raises(InputError, match=f"blobs {nowhere}: cannot be written .*; name a place"):
        server.start()
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", quiet=True):
        pass  # nothing holds the home any more


def test_an_error_of_a_clients_data_is_in_its_own_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = job(count=1)
    with Server(served(given), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        homes = joined(server, given, tmp_path)
        before = client_module.Mine.recipe

        def moved(self: Any, name: str, *rest: Any) -> Any:
            if name == NAMES[1]:
                raise InputError("data.path: the file was moved away")
            return before(self, name, *rest)

        monkeypatch.setattr(client_module.Client, "_look", lambda self: None)
        monkeypatch.setattr(client_module.Mine, "recipe", moved)
        with threads(homes), pytest.raises((InputError, RunFailed), match="moved away"):
            server.train()
    assert any("client-001" in r.getMessage() and "moved away" in r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    entries = [json.loads(line) for line in (tmp_path / NAMES[1] / "audit.jsonl").read_text().splitlines()]
    assert any(entry["action"] == "failed" and "moved away" in entry["details"]["why"] for entry in entries)
    assert audit.verify(tmp_path / NAMES[1] / "audit.jsonl")
