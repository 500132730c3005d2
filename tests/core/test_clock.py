"""The virtual clock: who takes part, and how long a round takes, as a function of (seed, round, client) alone."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.clock import ASKED, Clock, Turnout, invite, turnout
from hansa.core.devices import Always, Constant, Devices, Diurnal, Lognormal, Probability, Uniform
from hansa.core.errors import InputError, RunFailed
from hansa.core.fleet import Known, Load, Speeds
from hansa.core.randomness import combine, derive
from hansa.core.sampling import cohort
from hansa.core.traces import Trace

LOAD = Load(epochs=2, bytes_down=50_000, bytes_up=20_000)
KEY = derive("a population")


def known(positions: np.ndarray) -> Known:
    """Clients without Client objects: an id, a key and between 1 and 100 rows for each position."""
    keys = combine(positions.astype(np.uint64), KEY)
    return Known(tuple(f"c{k:07d}" for k in positions), keys, (keys % np.uint64(100)).astype(np.int64) + 1)


def call(clock: Clock, population: int = 200, size: int = 10, look: Callable[[np.ndarray], Known] = known, **given: Any) -> Turnout:
    usual = {"seed": 5, "round": 3, "now": 0.0, "load": LOAD, "quorum": 1e-9}
    return turnout(clock, clock.open(()), look, population=population, size=size, **{**usual, **given})


def same(first: Turnout, second: Turnout) -> bool:
    rest = [replace(one, used=np.zeros(0)) for one in (first, second)]
    return np.array_equal(first.used, second.used) and str(rest[0]) == str(rest[1])


CLOCKS = st.builds(
    Devices,
    over_select=st.floats(1.0, 3.0),
    deadline=st.sampled_from([0.0, 5.0, 20.0]),
    speed=st.sampled_from([Constant(10.0), Uniform(1.0, 50.0), Lognormal(10.0, 1.5)]),
    latency=st.sampled_from([None, Constant(0.1)]),
    availability=st.sampled_from([Always(), Probability(0.3), Diurnal(period=100.0)]),
    dropout=st.sampled_from([0.0, 0.2]),
)


@given(clock=CLOCKS, population=st.integers(1, 300), size=st.integers(1, 40), seed=st.integers(0, 9), now=st.floats(0, 1e6))
@settings(max_examples=150, deadline=None)
def test_a_round_adds_up(clock: Devices, population: int, size: int, seed: int, now: float) -> None:
    size = min(size, population)
    try:
        result = call(clock, population, size, seed=seed, now=now)
    except RunFailed as error:
        assert str(error).startswith("round 3: 0 of ")
        return
    assert len(result.used) + result.dropped + result.late == result.invited <= min(population, ceil(clock.over_select * size))
    assert 1 <= len(result.used) <= result.wanted == size
    assert np.all(np.diff(result.used) > 0) and result.used[0] >= 0 and result.used[-1] < population
    who = known(result.used)
    assert clock.available(who, seed, 3, now).all()
    seconds = LOAD.seconds(clock.speeds(who, seed), who.rows)
    assert not clock.drops(who, seed, 3, now, seconds).any()
    assert np.all(seconds <= result.seconds)
    if not clock.deadline or len(result.used) == size:
        assert result.seconds == seconds.max()
    if clock.deadline:
        assert result.seconds <= clock.deadline
    assert same(result, call(clock, population, size, seed=seed, now=now))


@given(quorum=st.floats(0.01, 1.0), size=st.integers(1, 60), seed=st.integers(0, 20))
@settings(deadline=None)
def test_the_quorum_is_a_share_of_the_clients_that_were_wanted(quorum: float, size: int, seed: int) -> None:
    """The loop asks that ``results >= max(1, share * used)``; that must be ``results >= quorum * wanted``."""
    clock = Devices(dropout=0.3, over_select=1.2)
    used = len(call(clock, size=size, seed=seed).used) if size > 20 else None
    try:
        result = call(clock, size=size, seed=seed, quorum=quorum)
    except RunFailed:
        assert used is None or used < quorum * size
        return
    for results in range(len(result.used) + 1):
        enough = not results < max(1, result.quorum * len(result.used))
        assert enough == (results >= max(1, quorum * size - 1e-9))


@given(population=st.integers(1, 3000), share=st.floats(0.001, 1.0), seed=st.integers(0, 99), round=st.integers(1, 99))
def test_without_losses_the_cohort_is_that_of_a_job_without_a_clock(population: int, share: float, seed: int, round: int) -> None:
    size = max(1, int(share * population))
    result = call(Devices(), population, size, seed=seed, round=round, quorum=1.0)
    assert np.array_equal(result.used, cohort(population, size, seed, round))
    assert (result.invited, result.dropped, result.late, result.quorum) == (size, 0, 0, 1.0)


def test_draws_differ_by_seed_and_round() -> None:
    clock = Devices(over_select=1.5, dropout=0.2, availability=Probability(0.5))
    results = [call(clock, **given) for given in ({}, {"seed": 6}, {"round": 4})]
    assert not any(np.array_equal(results[0].used, other.used) for other in results[1:])


@given(clock=CLOCKS, order=st.permutations(range(12)))
@settings(deadline=None)
def test_what_happens_to_a_client_does_not_depend_on_who_else_is_there(clock: Devices, order: list[int]) -> None:
    everybody, seconds = known(np.arange(12)), np.zeros(12)
    shuffled = everybody.take(np.array(order))
    answers = (
        lambda who: clock.available(who, 1, 2, 30.0),
        lambda who: clock.drops(who, 1, 2, 30.0, seconds),
        lambda who: clock.speeds(who, 1).speed,
        lambda who: clock.speeds(who, 1).latency,
    )
    for answer in answers:
        together = answer(everybody)
        assert np.array_equal(answer(shuffled), together[order])
        assert [answer(everybody.take(np.array([k])))[0] for k in range(12)] == together.tolist()


@given(clock=CLOCKS, order=st.permutations(range(20)), seed=st.integers(0, 9))
@settings(deadline=None)
def test_the_order_of_the_clients_changes_nothing(clock: Devices, order: list[int], seed: int) -> None:
    """Where everybody is asked; else the positions that are drawn are those of the ids in their order."""
    clock = replace(clock, over_select=3.0, speed=Constant(10.0))  # many equal times, which a lot puts in order
    shuffled = np.array(order)
    try:
        result = call(clock, 20, 7, seed=seed)
    except RunFailed as error:
        with pytest.raises(RunFailed) as other:
            call(clock, 20, 7, lambda positions: known(shuffled[positions]), seed=seed)
        assert str(other.value) == str(error)
        return
    other_result = call(clock, 20, 7, lambda positions: known(shuffled[positions]), seed=seed)
    assert np.array_equal(np.sort(shuffled[other_result.used]), result.used)
    assert same(replace(other_result, used=result.used), result)


ABOVE = st.floats(0.1, 1e6)


@given(
    slow=st.tuples(ABOVE, ABOVE, ABOVE, ABOVE), by=st.tuples(*[st.floats(1.0, 10.0)] * 4), rows=st.integers(0, 10_000),
    load=st.builds(Load, st.integers(1, 20), st.integers(0, 10**9), st.integers(0, 10**9)),
)  # fmt: skip
def test_a_faster_device_is_never_later(slow: tuple[float, ...], by: tuple[float, ...], rows: int, load: Load) -> None:
    speed, down, up, latency = (np.array([value, value * factor]) for value, factor in zip(slow, by, strict=True))
    seconds = load.seconds(Speeds(speed, down, up, latency[::-1]), np.array([rows, rows]))
    assert seconds[1] <= seconds[0]


def test_the_seconds_of_a_client_are_those_of_the_formula() -> None:
    devices = Speeds(np.array([10.0]), np.array([1000.0]), np.array([500.0]), np.array([0.25]))
    assert Load(3, 4000, 2000).seconds(devices, np.array([20])).tolist() == [0.25 + 4.0 + 20 * 3 / 10 + 4.0]


def test_over_selection_uses_the_first_to_report() -> None:
    clock = Devices(over_select=2.0)
    result = call(clock)
    positions, who = invite(clock, 200, 20, 5, 3, 0.0, known)
    seconds = LOAD.seconds(clock.speeds(who, 5), who.rows)
    assert np.array_equal(result.used, np.sort(positions[np.argsort(seconds)[:10]]))
    assert (result.invited, result.late, result.seconds) == (20, 10, np.sort(seconds)[9])
    assert call(Devices(over_select=1.1)).invited == 11  # although 1.1 * 10 is above 11 in floating point


def test_the_server_waits_for_the_deadline_only_where_somebody_is_missing() -> None:
    one = Devices(speed=Constant(1000.0), down=Constant(1e6), up=Constant(1e6), deadline=60.0)
    assert call(one).seconds < 1.0
    assert call(replace(one, dropout=0.3)).seconds == 60.0
    assert call(replace(one, dropout=0.3, over_select=3.0)).seconds < 1.0
    assert call(replace(one, dropout=0.3, deadline=0.0)).seconds < 1.0  # without one, a client that is gone is noticed
    few = call(replace(one, availability=Probability(0.02)), population=100)
    assert 0 < few.invited < 10 and few.seconds < 1.0  # the server knows how many it has invited


def test_a_population_of_a_million_costs_its_cohort() -> None:
    asked = []

    def look(positions: np.ndarray) -> Known:
        asked.append(len(positions))
        return known(positions)

    for availability, most in ((Always(), 130), (Probability(0.3), 130 * 8), (Probability(1e-9), 130 * (ASKED + 1))):
        asked.clear()
        tracemalloc.start()
        try:
            result = call(Devices(over_select=1.3, availability=availability), 1_000_000, 100, look)
            assert result.invited == 130
        except RunFailed:
            assert availability == Probability(1e-9)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 130 <= sum(asked) <= most
        assert peak < 1_500_000  # one bit for each client of the population would be 125,000, one number 8,000,000


def test_who_is_not_available_is_replaced_by_who_is() -> None:
    for seed in range(20):
        clock = Devices(availability=Probability(0.3))
        result = call(clock, 1000, 20, seed=seed)
        assert len(result.used) == 20
        first = cohort(1000, 20, seed, 3)
        there = first[clock.available(known(first), seed, 3, 0.0)]
        assert np.isin(there, result.used).all()


def test_shares_and_distributions_are_those_of_the_options() -> None:
    keys = known(np.arange(50_000)).keys
    who = known(np.arange(50_000))
    drawn = Lognormal(100.0, 0.5).values(keys, 1, "x")
    assert np.median(drawn) == pytest.approx(100.0, rel=0.02)
    assert np.log(drawn).std() == pytest.approx(0.5, rel=0.02)
    even = Uniform(2.0, 4.0).values(keys, 1, "x")
    assert 2.0 <= even.min() < 2.001 and 3.999 < even.max() < 4.0 and even.mean() == pytest.approx(3.0, rel=0.01)
    assert set(Constant(7.0).values(keys, 1, "x")) == {7.0}
    assert Devices(dropout=0.06).drops(who, 1, 1, 0.0, keys).mean() == pytest.approx(0.06, rel=0.1)
    day = Devices(availability=Diurnal(period=100.0, most=0.8, least=0.1, spread=0.0))
    shares = [day.available(who, 1, round, now).mean() for round, now in enumerate((0.0, 25.0, 50.0, 100.0))]
    assert shares == pytest.approx([0.8, 0.45, 0.1, 0.8], abs=0.02)
    around = replace(day, availability=Diurnal(period=100.0, most=0.8, least=0.1, spread=1.0))
    assert around.available(who, 1, 1, 50.0).mean() == pytest.approx(0.45, abs=0.02)
    speeds = Devices().speeds(who, 1)
    assert abs(np.corrcoef(np.log([speeds.speed, speeds.down, speeds.up]))[np.triu_indices(3, 1)]).max() < 0.02


@pytest.mark.parametrize(
    ("clock", "quorum", "sentence"),
    [
        (
            Devices(dropout=0.5, over_select=1.2, deadline=30.0, speed=Constant(1e6)), 0.9,
            "round 3: 5 of 10 wanted clients reported within the deadline of 30 s (12 were invited; 7 dropped out), and the quorum is "
            "90%; raise clock.over_select above 1.2, or lower rounds.quorum to 0.5",
        ),
        (
            Devices(deadline=5.0, speed=Constant(10.0), down=Constant(1e9), up=Constant(1e9)), 0.75,
            "round 3: 3 of 10 wanted clients reported within the deadline of 5 s (10 were invited; 7 were late), and the quorum is 75%; "
            "raise clock.deadline to 18, or raise clock.over_select above 1, or lower rounds.quorum to 0.3",
        ),
        (
            Devices(availability=Probability(0.001)), 1.0,
            "round 3: 0 of 10 wanted clients reported (0 were invited; 10 of 10 places found no available client), and the quorum is "
            "100%; lower rounds.quorum",
        ),
    ],
)  # fmt: skip
def test_a_round_with_too_few_reports_fails_in_one_sentence(clock: Devices, quorum: float, sentence: str) -> None:
    with pytest.raises(RunFailed) as error:
        call(clock, quorum=quorum)
    assert str(error.value) == sentence


def test_what_the_sentence_advises_is_enough() -> None:
    clock = Devices(deadline=5.0, speed=Constant(10.0), down=Constant(1e9), up=Constant(1e9))
    assert len(call(replace(clock, deadline=18.0), quorum=0.75).used) >= 8
    assert len(call(clock, quorum=0.3).used) == 3


@pytest.mark.parametrize("make", [lambda: Uniform(3.0, 2.0), lambda: Diurnal(most=0.1, least=0.2)])
def test_options_that_contradict_each_other_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=r"^clock.* = .*; \w+"):
        make()


# Traces

TRACE = """client, speed, down, up, latency, start, end
a, 10, 1000, 500, 0.5, 0, 100
a, 10, 1000, 500, 0.5, 100, 150
a, 10, 1000, 500, 0.5, 300, 400
b, 20, 2000, 800, , 50, 120
c, 5, 900, 900, 1, ,
"""


def written(path: Path, text: str = TRACE) -> Trace:
    (path / "devices.csv").write_text(text)
    return Trace(path=str(path / "devices.csv"))


def three(positions: np.ndarray) -> Known:
    return Known(tuple("abc"[k] for k in positions), known(positions).keys, np.full(len(positions), 30, dtype=np.int64))


def test_a_trace_says_who_is_there_and_how_fast(tmp_path: Path) -> None:
    fleet, who = written(tmp_path).open("abc"), three(np.arange(3))
    there = {now: fleet.available(who, 0, 1, now).tolist() for now in (0.0, 60.0, 149.0, 150.0, 300.0, 1e9)}
    assert there == {
        0.0: [True, False, True],
        60.0: [True, True, True],
        149.0: [True, False, True],
        150.0: [False, False, True],
        300.0: [True, False, True],
        1e9: [False, False, True],
    }
    speeds = fleet.speeds(who, 0)
    assert [speeds.speed.tolist(), speeds.down.tolist(), speeds.up.tolist(), speeds.latency.tolist()] == [
        [10, 20, 5], [1000, 2000, 900], [500, 800, 900], [0.5, 0, 1],
    ]  # fmt: skip
    # Windows that touch are one: a stays until 150.
    assert fleet.drops(who, 0, 1, 60.0, np.array([90.0, 60.0, 1e9])).tolist() == [False, False, False]
    assert fleet.drops(who, 0, 1, 60.0, np.array([90.1, 60.1, 1e9])).tolist() == [True, True, False]


def test_a_trace_that_comes_again(tmp_path: Path) -> None:
    header = "client,speed,down,up,start,end\n"
    text = header + "a,10,1000,500,80,120\nb,10,1000,500,0,100\nc,10,1000,500,10,20"
    fleet, who = replace(written(tmp_path, text), period=100.0).open("abc"), three(np.arange(3))
    for day in (0, 1, 7):
        there = [fleet.available(who, 0, 1, day * 100.0 + now).tolist() for now in (5.0, 15.0, 25.0, 90.0)]
        assert there == [[True, True, False], [True, True, True], [False, True, False], [True, True, False]]
        assert fleet.drops(who, 0, 1, day * 100.0 + 90.0, np.array([30.0, 1e6, 0.0])).tolist() == [False, False, False]


def test_a_round_of_a_trace(tmp_path: Path) -> None:
    clock = written(tmp_path)
    fleet = clock.open("abc")
    usual = {"population": 3, "size": 3, "seed": 0, "round": 1, "load": Load(1, 1000, 500), "quorum": 0.3}
    result = turnout(clock, fleet, three, now=60.0, **usual)  # type: ignore[arg-type]  # options of several types
    assert result.used.tolist() == [0, 1, 2] and result.seconds == pytest.approx(1 + 1000 / 900 + 30 / 5 + 500 / 900)
    result = turnout(clock, fleet, three, now=118.0, **usual)  # type: ignore[arg-type]  # as above
    assert result.used.tolist() == [0, 2] and (result.invited, result.dropped) == (3, 1)  # b's window ends before it reports


BAD = {
    "empty": ("", "has no column 'client'"),
    "no rows": ("client,speed,down,up\n", "holds no rows"),
    "column": ("client,speed,down\na,1,1\n", "has no column 'up'; it needs client, speed, down, up"),
    "unknown": ("client,speed,down,up,strat\na,1,1,1,1\n", "has a column 'strat' (did you mean 'start'?)"),
    "number": ("client,speed,down,up\na,fast,1,1\n", "line 2: speed = 'fast' is not a number above 0"),
    "zero": ("client,speed,down,up\na,1,0,1\n", "line 2: down = '0' is not a number above 0"),
    "not finite": ("client,speed,down,up\na,1,1,nan\n", "line 2: up = 'nan' is not a number above 0"),
    "values": ("client,speed,down,up\na,1,1\n", "line 2: has 3 values for 4 columns"),
    "two devices": ("client,speed,down,up\na,1,1,1\na,2,1,1\n", "line 3: client 'a' is another device"),
    "one end": ("client,speed,down,up,start,end\na,1,1,1,5,\n", "line 2: client 'a' has a start alone"),
    "backwards": ("client,speed,down,up,start,end\na,1,1,1,5,5\n", "line 2: start = 5 is not before end = 5"),
    "period": ("client,speed,down,up,start,end\na,1,1,1,30,80\n", "does not fit into clock.period = 20"),
    "client": ("client,speed,down,up\nb,1,1,1\n", "has no row of client 'a', and rows of 1 others"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_trace_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    clock = replace(written(tmp_path, text), period=20.0)
    with pytest.raises(InputError) as error:
        clock.open(["a"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"clock.path: {clock.path}")


def test_a_trace_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("client,speed,down,up\nköln,1,1,1\n".encode("latin-1"))
    for path, message in ((tmp_path / "none.csv", "No such file"), (tmp_path, "directory"), (tmp_path / "latin.csv", "not UTF-8")):
        with pytest.raises(InputError, match=message) as error:
            Trace(path=str(path)).open(["a"])
        assert "\n" not in str(error.value)


def test_a_trace_s_digest_changes_with_the_file(tmp_path: Path) -> None:
    first = written(tmp_path).open(()).digest
    assert written(tmp_path, TRACE.replace("900", "901")).open(()).digest != first == written(tmp_path).open(()).digest
