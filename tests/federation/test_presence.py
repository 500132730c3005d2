"""Who is there: whoever has asked for tasks; and what a run that waits for others says of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import hansa
from hansa.cli.main import main
from hansa.core.errors import InputError
from hansa.federated.admin import Admin
from hansa.federated.server import Server
from hansa.federation.runs import RunRow
from hansa.federation.waiting import awaited
from hansa.job import to_text
from tests.federation.parties import NAMES, job, joined, served, threads, until

ENGINE = served(job(), clients=3)


def row(id: str, leased: float = 0.0) -> RunRow:
    return RunRow(id, "name", to_text(ENGINE), "waiting", "", "admin", 0.0, False, None, 0, None, None, leased)


@pytest.mark.parametrize(
    ("leased", "heard", "said"),
    [
        (20.0, {}, "waits for clients: 0 of 3 are there; still to join: 3"),
        (20.0, {"a": 9.0, "b": 0.0, "c": 9.5}, "waits for clients: 2 of 3 are there (a, c); joined and not running: b"),
        (20.0, {"a": -400.0, "b": 9.0}, "waits for clients: 1 of 3 are there (b); joined and not running: a; still to join: 1"),
        (0.0, {"a": 9.0}, "waits until run other is over"),
    ],
)
def test_a_waiting_run_says_what_it_waits_for(leased: float, heard: dict[str, float], said: str) -> None:
    mine = row("mine", leased)
    assert awaited(mine, [row("other", 30.0 if not leased else 0.0), mine], heard, 10.0) == said


def test_who_has_only_joined_is_not_there(tmp_path: Path) -> None:
    """The run waits, names who is missing, and begins with those who run."""
    given = job(count=1)
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        homes = joined(server, given, tmp_path)
        playing = threading.Thread(target=server.serve_forever)
        playing.start()
        try:
            with Admin(tmp_path / "server") as admin:
                first, second = (admin.submit(served(replace(given, name=name), clients=3)) for name in ("first", "second"))
                with threads(homes[:2]):
                    said = "2 of 3 are there (client-000, client-001); joined and not running: client-002, client-003"
                    until(lambda: said in admin.runs()[0].message)
                    assert first in admin.runs()[1].message
                    listed = CliRunner().invoke(main, ["runs", "--home", str(tmp_path / "server"), "--json"]).output
                    assert said in listed
                    with threads(homes[2:3]):
                        kinds = [(event.kind, event.content.get("clients")) for event in admin.watch(second)]
                assert ("began", list(NAMES[:3])) in kinds and kinds[-1][0] == "finished"
                with pytest.raises(InputError, match=rf"run {first}: is over already \(finished\)"):
                    admin.stop(first)
        finally:
            server.stop_playing()
            playing.join()


def test_no_text_of_others_reaches_the_terminal_as_it_is(tmp_path: Path) -> None:
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", quiet=True):
        with Admin(tmp_path / "server") as admin:
            admin.submit(served(replace(job(), name="heart\n\x1b[31m\u202eevil")))
        shown = CliRunner().invoke(main, ["runs", "--home", str(tmp_path / "server")]).output
    assert "heart" in shown and "evil" in shown
    assert all(character.isprintable() for character in shown.replace("\n", ""))
    assert not any(line.strip().startswith("evil") for line in shown.splitlines())


def test_who_watches_goes_on_after_the_server_was_away(tmp_path: Path) -> None:
    """From where it was: no event is shown twice, none is left out."""
    given, said = job(count=1), list[str]()
    seen: list[Any] = []

    def watch() -> None:
        with Admin(tmp_path / "server") as admin:
            for event in admin.watch(run, said.append):
                seen.append(event)

    address = "127.0.0.1:0"
    watching: threading.Thread | None = None
    for again in (False, True):
        with Server(served(given), home=tmp_path / "server", listen=address, quiet=True) as server:
            if not again:
                address, homes = server.address, joined(server, given, tmp_path)
                training = threading.Thread(target=_until_stopped, args=(server,))
                training.start()
                run = until(lambda server=server: server.run_id)
                until(lambda server=server, run=run: server.office.state.events(run, 0))
                watching = threading.Thread(target=watch)
                watching.start()
                until(lambda: seen)
                server.stop_playing()
                training.join()
            else:
                until(lambda: said)
                with threads(homes):
                    server.train()
                    assert watching is not None
                    watching.join(30)
    numbers = [event.number for event in seen]
    assert numbers == sorted(set(numbers)) and seen[-1].kind == "finished"
    assert [event.kind for event in seen].count("round") == 1


def _until_stopped(server: Server) -> None:
    with pytest.raises(hansa.RunFailed):
        server.train()
