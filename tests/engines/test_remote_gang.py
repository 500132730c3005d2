"""Gangs that meet over TCP: one answer for all, and one error for all, whoever else dials in."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from hansa.core.contracts import Collectives
from hansa.core.errors import InputError, RunFailed
from hansa.core.gang import run_threads
from hansa.engines import remote_gang
from hansa.engines.remote_gang import Hub, join, pack_function


def alive() -> str | None:
    return None


@contextmanager
def joined(hub: Hub, function: Callable[[Collectives], Any], ranks: tuple[int, ...] = ()) -> Iterator[list[BaseException]]:
    """Members as threads; what leaves :func:`join` as an error is in the list."""
    errors: list[BaseException] = []

    def member(rank: int) -> None:
        try:
            join(hub.address, hub.authkey, rank, hub.members, pack_function("test", function))
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            errors.append(error)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in ranks or range(hub.members)]
    for thread in threads:
        thread.start()
    try:
        with hub:
            yield errors
    finally:
        for thread in threads:
            thread.join()


def play(function: Callable[[Collectives], Any], members: int) -> list[Any]:
    hub = Hub(members)
    with joined(hub, function) as errors:
        results = hub.results(alive)
    assert not errors
    return results


def everything(gang: Collectives) -> tuple[Any, ...]:
    total = gang.all_reduce(np.full(300_000, 0.1 * (gang.rank + 1), dtype=np.float32))
    gang.barrier()
    return total, gang.all_gather({"rank": gang.rank}), gang.broadcast([gang.rank], root=2), gang.rank, gang.size


def test_the_same_bits_as_members_in_one_process() -> None:
    for here, there in zip(run_threads(everything, 3), play(everything, 3), strict=True):
        assert np.array_equal(here[0], there[0]) and here[1:] == there[1:]


def test_members_may_be_in_any_order_and_alone() -> None:
    assert play(lambda gang: gang.all_gather(gang.rank), 1) == [[0]]
    hub = Hub(3)
    with joined(hub, lambda gang: gang.all_gather(gang.rank), (2, 0, 1)):
        assert hub.results(alive) == [[0, 1, 2]] * 3


def raises(gang: Collectives) -> None:
    if gang.rank == 1:
        raise ValueError("no luck")
    gang.barrier()


def swallows(gang: Collectives) -> None:
    """Catches whatever ends it, and would then wait again."""
    if gang.rank == 1:
        raise ValueError("no luck")
    for _ in range(2):
        try:
            gang.barrier()
        except Exception:  # noqa: BLE001  # as users do
            continue


def finishes(gang: Collectives) -> None:
    if gang.rank == 0:
        gang.barrier()


def differs(gang: Collectives) -> None:
    if gang.rank == 0:
        gang.barrier()
    else:
        gang.all_gather(1)


def returns_what_cannot_be_sent(gang: Collectives) -> Any:
    return threading.Lock() if gang.rank == 1 else None


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (raises, "gang member 1 of 2: ValueError: no luck\n(.|\n)*raise ValueError"),
        (swallows, "no luck"),
        (finishes, "member 1 has finished"),
        (differs, r"different collective calls \(0 barrier, 1 all_gather\)"),
        (returns_what_cannot_be_sent, "gang member 1 of 2: TypeError: cannot pickle"),
    ],
)
def test_one_error_ends_all_members(function: Any, error: str) -> None:
    hub = Hub(2)
    with joined(hub, function) as errors, pytest.raises(RunFailed, match=error):
        hub.results(alive)
    assert not errors


def test_strangers_are_sent_away_and_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_gang, "GREETING", 0.5)
    hub = Hub(2)
    strangers = [socket.create_connection(hub.address) for _ in range(3)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    strangers[1].close()
    with joined(hub, everything_but_floats) as errors:
        assert hub.results(alive) == [[0, 1], [0, 1]]
        with pytest.raises(RunFailed, match=r"cannot join the gang.*does not hold this gang's key"):
            _dial_with_a_wrong_key(hub)
    assert not errors
    for stranger in strangers:
        stranger.close()


def everything_but_floats(gang: Collectives) -> list[int]:
    return gang.all_gather(gang.rank)


def _dial_with_a_wrong_key(hub: Hub) -> None:
    failed: list[BaseException] = []

    def dial() -> None:
        try:
            join(hub.address, b"wrong", 0, 2, b"")
        except RunFailed as error:
            failed.append(error)

    thread = threading.Thread(target=dial)
    thread.start()
    while thread.is_alive():  # the hub lets in whoever comes while it listens
        list(hub._listen(range(hub.members)))
    raise failed[0]


def test_a_rank_is_taken_once() -> None:
    hub = Hub(2)
    with joined(hub, everything_but_floats, (0, 0, 1)) as errors:
        assert hub.results(alive) == [[0, 1], [0, 1]]
    assert not errors


def test_the_engine_is_asked_whether_members_are_alive() -> None:
    hub = Hub(2)
    asked = iter([None, None, "worker 7 is gone"])
    with joined(hub, everything_but_floats, (0,)), pytest.raises(RunFailed, match="gang of 2: worker 7 is gone"):
        hub.results(lambda: next(asked))


def test_members_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_gang, "ARRIVAL", 0.5)
    hub = Hub(2)
    with joined(hub, everything_but_floats, (0,)), pytest.raises(RunFailed, match=r"gang of 2: 1 members have come within"):
        hub.results(alive)


def test_a_hub_that_is_gone_is_said_by_the_member() -> None:
    with Hub(1) as hub:
        pass
    with pytest.raises(RunFailed, match=r"gang member 0 of 1: cannot join the gang at 127\.0\.0\.1"):
        join(hub.address, hub.authkey, 0, 1, b"")


def test_a_function_must_be_one_that_can_be_sent() -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match=r"engine dask: the gang's function cannot be sent.*at the top of a module"):
        pack_function("dask", lambda gang: lock)
