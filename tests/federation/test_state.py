"""What a server was told is kept, once, and in one order: the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from hansa.core.errors import InputError
from hansa.federation.schema import metadata, tasks
from hansa.federation.state import LeaseLost, Reported, State, Task

LATER = time.time() + 10_000
CALL = "c" * 64


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.sqlite'}"
    new: Callable[[], str] = request.getfixturevalue("postgres")
    return new()


@pytest.fixture
def state(url: str) -> Iterator[State]:
    state = State.open(url)
    yield state
    state.close()


def task(number: int, client: str = "a", run: str = "run", call: str = CALL) -> Task:
    return Task(f"{number:032x}", run, call, 10, client, number, 3, "open", 1.0, None, 0, None)


@pytest.fixture
def running(state: State) -> State:
    """A run of the owner ``me`` with three open tasks."""
    state.submit("run", "a job", "text", "admin")
    assert state.claim("me", 60).id == "run"  # type: ignore[union-attr]  # None, and so an error, where there is nothing to claim
    state.open_tasks("run", "me", [task(0, "a"), task(1, "b"), task(2, "c")])
    return state


def told(number: int, client: str, result: str | None = "d" * 64, **more: Any) -> Reported:
    return Reported(f"{number:032x}", client, result, 5, **more)


def all_at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``count`` threads return that begin at the same time."""
    gate, found = threading.Barrier(count), [None] * count

    def one(number: int) -> None:
        gate.wait()
        found[number] = work(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_migrations_make_the_tables_of_the_schema(state: State, url: str) -> None:
    with state._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    state.submit("run", "a job", "text", "admin")
    again = State.open(url)
    assert [row.id for row in again.runs()] == ["run"]
    again.close()


def test_a_task_has_the_columns_of_its_table() -> None:
    assert [field.name for field in fields(Task)] == tasks.columns.keys()


def test_servers_that_start_at_the_same_time_share_a_new_database(postgres: Callable[[], str]) -> None:
    url = postgres()
    for state in all_at_once(4, lambda _: State.open(url)):
        state.submit("run", "a job", "text", "admin")
        assert len(state.runs()) == 1
        state.close()


# Members


def test_a_token_is_spent_for_one_key(state: State) -> None:
    state.invite("t", "a", "client", LATER)
    assert state.join("unknown", "key", "s0", LATER) is None
    assert state.join("t", "key", "s1", LATER) == ("a", "client")
    assert state.join("t", "key", "s2", LATER) == ("a", "client")
    assert state.join("t", "other", "s3", LATER) is None
    assert state.serials() == ({"s1": "a", "s2": "a"}, set())
    assert state.clients() == ["a"]
    state.invite("old", "b", "client", time.time() - 1)
    assert state.join("old", "key", "s4", LATER) is None


def test_of_many_who_spend_a_token_one_does(state: State) -> None:
    state.invite("t", "a", "client", LATER)
    found = all_at_once(6, lambda number: state.join("t", f"key {number}", f"s{number}", LATER))
    assert sorted(map(str, found)) == ["('a', 'client')", *["None"] * 5]
    assert len(state.serials()[0]) == 1


def test_a_name_has_one_role(state: State) -> None:
    state.admit("a", "client", "s", LATER)
    with pytest.raises(InputError, match="a client; choose another name"):
        state.invite("t", "a", "admin", LATER)
    state.revoke("a")
    state.invite("t", "a", "admin", LATER)


def test_who_is_revoked_has_nothing_left(state: State) -> None:
    state.invite("spent", "a", "client", LATER)
    state.invite("unspent", "a", "client", LATER)
    state.join("spent", "key", "s1", LATER)
    state.revoke("a")
    assert state.serials() == ({}, {"s1"})
    assert state.clients() == []
    assert state.join("spent", "key", "s2", LATER) is None
    assert state.join("unspent", "key", "s3", LATER) is None
    assert not state.replace("s1", "a", "client", "s4", LATER)
    assert state.clients() == [] and state.serials() == ({}, {"s1"})
    with pytest.raises(InputError, match="no such member"):
        state.revoke("nobody")


def test_a_certificate_takes_the_place_of_another(state: State) -> None:
    state.admit("a", "client", "s1", LATER)
    assert state.replace("s1", "a", "client", "s2", LATER + 1)
    assert not state.replace("s1", "b", "client", "s3", LATER)
    assert set(state.serials()[0]) == {"s1", "s2"}
    assert [(row.name, row.expires) for row in state.members()] == [("a", pytest.approx(LATER + 1))]
    state.admit("a", "client", "short", time.time() - 1)
    assert "short" not in state.serials()[0]


def test_the_last_sign_of_life_counts(state: State) -> None:
    state.admit("a", "client", "s", LATER)
    for moment in (5.0, 9.0, 7.0):
        state.saw({"a": moment, "nobody": moment})
    assert state.seen(["a", "nobody"]) == {"a": 9.0, "nobody": 0.0}


# Runs


def test_a_run_has_one_owner(state: State) -> None:
    state.submit("first", "a job", "text", "admin")
    state.submit("first", "another", "text", "admin")
    state.submit("second", "a job", "text", "admin")
    found = all_at_once(5, lambda number: state.claim(f"server {number}", 60))
    assert sorted(row.id for row in found if row is not None) == ["first", "second"]
    assert [row.name for row in state.runs()] == ["a job", "a job"]


def test_the_newest_run_of_a_job_that_is_not_over_is_its_run(state: State) -> None:
    """And where all are over the newest one, unless that failed."""
    assert state.submit_once("r1", "r", "job", "admin") == "r1"
    state.claim("server-1", 15)
    state.finish("r1", "server-1", "finished", "done")
    assert state.submit_once("r2", "r", "job", "admin", ended=True) == "r1"
    assert state.submit_once("r2", "r", "job", "admin") == "r2"
    state.claim("server-1", 15)
    state.finish("r2", "server-1", "failed", "no luck")
    assert state.submit_once("r3", "r", "job", "admin", ended=True) == "r3"
    assert state.submit_once("r4", "r", "another job", "admin", ended=True) == "r4"
    state.claim("server-1", 15)
    state.submit("r5", "r", "job", "admin")
    assert state.claim("server-2", 15).id == "r4"  # type: ignore[union-attr]  # as above
    state.finish("r4", "server-2", "stopped", "stopped")
    assert state.claim("server-2", 15).id == "r5"  # type: ignore[union-attr]  # as above
    state.finish("r5", "server-2", "finished", "done")
    assert state.submit_once("r6", "r", "job", "admin", ended=True) == "r3"  # it is still under way
    assert state.submit_once("r6", "r", "another job", "admin", ended=True) == "r4"


def test_an_owner_finds_its_run_again(state: State) -> None:
    state.submit("run", "a job", "text", "admin")
    assert state.claim("me", 60) and state.claim("you", 60) is None
    assert state.claim("me", 60).id == "run"  # type: ignore[union-attr]  # as above
    state.release("run", "you")
    assert state.claim("you", 60) is None
    state.release("run", "me")
    assert state.claim("you", 60).owner == "you"  # type: ignore[union-attr]  # as above


def test_who_lost_its_lease_writes_nothing(running: State) -> None:
    running.release("run", "me")
    assert running.claim("you", 60)
    writes: Sequence[Callable[[], Any]] = (
        lambda: running.renew("run", "me", 60),
        lambda: running.settle("run", "me", ["a"]),
        lambda: running.commit("run", "me", 3, "e" * 64, {"round": 3}),
        lambda: running.open_tasks("run", "me", [task(9)]),
        lambda: running.close_tasks("run", "me", [task(0).id], "why"),
        lambda: running.finish("run", "me", "finished", "done"),
    )
    before = running.run("run"), running.all_open(), running.records("run")
    for write in writes:
        with pytest.raises(LeaseLost, match="taken it over"):
            write()
    assert (running.run("run"), running.all_open(), running.records("run")) == before


def test_who_takes_part_is_settled_once(running: State) -> None:
    assert running.settle("run", "me", ["a", "b"]) == ("a", "b")
    assert running.settle("run", "me", ["c"]) == ("a", "b")
    assert running.run("run").clients == ("a", "b") and running.run("run").status == "running"


def test_a_round_that_is_played_again_replaces_its_records(running: State) -> None:
    for round, loss in ((1, 0.5), (2, 0.4), (3, 0.3), (2, 0.2)):
        running.commit("run", "me", round, f"{round:064x}", {"round": round, "loss": loss})
    assert running.records("run") == [{"round": 1, "loss": 0.5}, {"round": 2, "loss": 0.2}]
    row = running.run("run")
    assert (row.round, row.state) == (2, f"{2:064x}")


def test_a_stop_is_heard_with_the_next_renewal(running: State) -> None:
    assert not running.renew("run", "me", 60)
    running.ask_to_stop("run")
    assert running.renew("run", "me", 60)
    for unknown in ("nothing", "nul\0"):
        with pytest.raises(InputError, match="no such run"):
            running.ask_to_stop(unknown)


def test_the_end_of_a_run_closes_its_tasks(running: State) -> None:
    running.report([told(0, "a")])
    running.finish("run", "me", "failed", "why")
    assert running.all_open() == [] and running.claim("me", 60) is None
    assert [one.status for one in running.tasks_of("run", CALL)] == ["reported", "closed", "closed"]
    assert running.run("run").message == "why"


# Tasks


def test_tasks_that_are_there_stay_as_they_are(running: State) -> None:
    running.report([told(0, "a")])
    running.open_tasks("run", "me", [task(0), replace(task(3, "a"), opened=0.5)])
    assert [one.id for one in running.all_open()] == [task(3).id, task(1).id, task(2).id]
    assert [one.status for one in running.tasks_of("run", CALL)] == ["reported", "open", "open", "open"]
    assert running.task(task(0).id).result == "d" * 64  # type: ignore[union-attr]  # None, and so an error, where there is no such task
    assert running.task("0" * 31) is None


def test_the_first_word_counts(running: State) -> None:
    first, other = told(0, "a"), told(0, "a", "f" * 64)
    failure = told(1, "b", None, outcome={"kind": "Broken", "message": "NUL \0 and \u20ac"})
    another = told(1, "b", None, outcome={"kind": "Broken", "message": "no, otherwise"})
    verdicts = running.report([first, first, other, failure, failure, another])
    assert [(one.known, one.used) for one in verdicts] == [(True, used) for used in (True, True, False, True, True, False)]
    assert [(one.result, one.bytes) for one in running.answered("run", CALL)] == [("d" * 64, 5), (None, 5)]
    assert running.answered("run", CALL, [task(1).id])[0].outcome == failure.outcome
    assert running.answered("run", CALL, []) == []


def test_of_many_words_on_a_task_one_counts(running: State) -> None:
    verdicts = all_at_once(6, lambda number: running.report([told(0, "a", f"{number:064x}")])[0])
    used = [number for number, verdict in enumerate(verdicts) if verdict.used]
    assert len(used) == 1 and running.task(task(0).id).result == f"{used[0]:064x}"  # type: ignore[union-attr]  # as above


def test_reports_in_any_order_do_not_wait_in_a_circle(running: State) -> None:
    both = [told(0, "a"), told(1, "b")]
    for verdicts in all_at_once(6, lambda number: running.report(both if number % 2 else both[::-1])):
        assert all(verdict.used for verdict in verdicts)


def test_what_is_not_used(running: State) -> None:
    """Another's, what nobody asked for, what nobody has looked at, and what comes too late."""
    assert [(v.known, v.used) for v in running.report([told(0, "b"), told(7, "a")])] == [(False, False)] * 2
    assert [(v.known, v.used) for v in running.report([told(0, "a", late=True)])] == [(True, False)]
    running.close_tasks("run", "me", [task(0).id], "the round closed")
    assert [(v.known, v.used) for v in running.report([told(0, "a")])] == [(True, False)]
    assert running.task(task(0).id).outcome == {"why": "the round closed"}  # type: ignore[union-attr]  # as above
    assert running.report([told(1, "b")])[0].used
    running.close_tasks("run", "me", [task(1).id], "too late")
    assert running.task(task(1).id).status == "reported"  # type: ignore[union-attr]  # as above


def test_an_exchange_is_forgotten_with_its_round(running: State) -> None:
    running.open_tasks("run", "me", [task(5, "a", call="b" * 64)])
    assert running.blobs_in_use() == {CALL, "b" * 64}
    running.forget_tasks("run", CALL)
    assert [one.call for one in running.all_open()] == ["b" * 64]
    assert not running.report([told(0, "a")])[0].known


def test_what_fails_in_the_middle_changes_nothing(running: State) -> None:
    before = running.tasks_of("run", CALL)
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        running.open_tasks("run", "me", [task(8), task(9, run="no such run")])
    assert running.tasks_of("run", CALL) == before
    running.open_tasks("run", "me", [task(8)])


def test_events_come_in_order(state: State) -> None:
    for number in range(5):
        state.tell("run", "round", {"round": number})
        state.tell("other", "round", {"round": number})
    first = state.events("run", 0, most=3)
    rest = state.events("run", first[-1].number)
    assert [row.content for row in [*first, *rest]] == [f'{{"round": {number}}}' for number in range(5)]
    assert state.events("run", rest[-1].number) == []
