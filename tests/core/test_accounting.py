"""Where a round's time goes: its parts add up, they belong to the record alone, and what is said of them follows from the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

import hansa
from hansa.algorithms.fedmedian import FedMedian
from hansa.core import accounting
from hansa.core.accounting import TIMES, Account, Spent, Stopwatch, Times, here, timed, untimed
from hansa.core.blocks import Block
from hansa.core.loop import Exchange, Terms, collect, round_steps
from hansa.core.many import Task, together
from hansa.core.reduction import add, reduce_block
from hansa.core.updates import Failure, Update
from hansa.core.worker import Worker, attempt
from hansa.tracking.advice import GAIN, LEAST, advice
from hansa.tracking.folder import RunFolder
from hansa.tracking.report import write_report
from tests.conformance.problem import same_bits


@dataclass
class Clock:
    """A clock that only goes on when it is told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(accounting, "perf_counter", made)
    return made


@dataclass
class Scripted:
    """An engine whose time is known: it packs, waits for each block, and unpacks it."""

    clock: Clock
    pack: float = 1.0
    waits: tuple[float, ...] = (10.0, 4.0, 3.0)
    unpack: float = 0.5
    spent: tuple[Spent, ...] = (Spent(6.0, "one"), Spent(3.0, "two"), Spent(2.0, "one"))
    transfer: Stopwatch = field(default_factory=Stopwatch)

    def map(self, call: Any, blocks: Any) -> Iterator[tuple[int, Update]]:
        with self.transfer:
            self.clock.now += self.pack
        for block, wait, spent in zip(blocks, self.waits, self.spent, strict=True):
            self.clock.now += wait
            with self.transfer:
                self.clock.now += self.unpack
            yield block.number, Update({}, np.ones(1), clients=(str(block.number),), spent=spent)


BLOCKS = [Block(number, (number,)) for number in range(3)]


def test_the_parts_of_a_map_add_up_to_its_time(clock: Clock) -> None:
    exchange = Exchange(None, BLOCKS, "gather", 1.0, 1)  # type: ignore[arg-type]  # the engine calls nothing
    collect(Scripted(clock), exchange)  # type: ignore[arg-type]  # it has only a map
    # The busiest worker computed for 8 of the 17 seconds in which nothing came.
    assert exchange.times == Times(wait=9.0, transfer=2.5, compute=8.0, reduce=0.0, work=11.0)
    assert exchange.times.wait + exchange.times.transfer + exchange.times.compute + exchange.times.reduce == clock.now


def test_compute_that_nobody_waited_for_is_in_no_part(clock: Clock) -> None:
    exchange = Exchange(None, BLOCKS, "gather", 1.0, 1)  # type: ignore[arg-type]  # the engine calls nothing
    collect(Scripted(clock, waits=(1.0, 1.0, 1.0)), exchange)  # type: ignore[arg-type]  # it has only a map
    assert exchange.times == Times(wait=0.0, transfer=2.5, compute=3.0, reduce=0.0, work=11.0)


def test_many_tasks_have_the_times_of_the_map_that_they_shared(clock: Clock) -> None:
    def steps(block: Block) -> Any:
        exchange = Exchange(None, [block], "gather", 1.0, 1)  # type: ignore[arg-type]  # the engine calls nothing
        yield exchange
        return exchange.times

    tasks = [Task(str(block.number), steps(replace(block, number=0))) for block in BLOCKS]
    ended = list(together(Scripted(clock), tasks))  # type: ignore[arg-type]  # it has only a map
    assert [one.result for one in ended] == [Times(wait=9.0, transfer=2.5, compute=8.0, reduce=0.0, work=11.0)] * 3


def test_reduce_is_bringing_together_and_the_next_state(clock: Clock) -> None:
    class Slow(FedMedian):
        def update(self, state: Any, total: Any) -> Any:
            clock.now += 5.0
            return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hansa.core.loop.perf_counter", clock)
        steps = timed(
            round_steps(
                {"params": {}}, algorithm=Slow(), blocks=BLOCKS, schema=None, round=1, rate=1.0, terms=Terms(seed=1, population=3)
            )
        )  # fmt: skip
        exchange = next(steps)
        answer = collect(Scripted(clock), exchange)  # type: ignore[arg-type]  # it has only a map
        with pytest.raises(StopIteration) as end:
            steps.send(answer)
    _, times = end.value.value
    assert times == Times(wait=9.0, transfer=2.5, compute=8.0, reduce=5.0, work=11.0)


def test_a_stopwatch_within_itself_counts_once(clock: Clock) -> None:
    watch = Stopwatch()
    with watch:
        clock.now += 1.0
        with watch:
            clock.now += 2.0
    assert watch.seconds == 3.0
    with pytest.raises(ValueError, match="bad"), watch:
        clock.now += 4.0
        raise ValueError("bad")
    assert watch.seconds == 7.0


def test_an_account_takes_only_what_was_moved_since_it_began(clock: Clock) -> None:
    engine = Scripted(clock)
    with engine.transfer:
        clock.now += 100.0
    assert Account(engine).close() == Times()


def test_what_the_work_took_is_beside_the_result_and_not_in_it() -> None:
    worker = Worker(hansa.Sklearn(), (), None)  # type: ignore[arg-type]  # the calls ask it for nothing
    update = Update({"a": np.ones((2, 3))}, np.ones(2))
    result = attempt(lambda worker, block: update, worker, Block(0, ()))
    assert result.spent.seconds >= 0 and result.spent.where == here() and update.spent == Spent()
    assert isinstance(result, Update) and result.values["a"] is update.values["a"]
    total = reduce_block(result)
    assert total.spent == Spent() == add(total, replace(total, spent=Spent(3.0, "x"))).spent
    failure = attempt(lambda worker, block: 1 / 0, worker, Block(0, ()))
    assert isinstance(failure, Failure) and failure.spent.where == here()
    assert failure == replace(failure, spent=Spent())


X, Y = load_breast_cancer(return_X_y=True)

JOB = hansa.Job(
    data=hansa.from_arrays(X, Y), learner=LogisticRegression(), algorithm=hansa.Newton(), preparation=hansa.Standard(),
    partition=hansa.IID(clients=4), rounds=hansa.Rounds(count=3, block=1),
)  # fmt: skip


def test_the_record_tells_the_times_and_is_else_the_same_on_every_engine(tmp_path: Path) -> None:
    runs = [
        hansa.run(replace(JOB, engine=engine), directory=tmp_path, quiet=True)
        for engine in (hansa.Inline(), hansa.Processes(workers=2))
    ]
    assert same_bits(runs[0].params, runs[1].params)
    assert [untimed(record) for record in runs[0].history] == [untimed(record) for record in runs[1].history]
    for run in runs:
        for record in run.history:
            assert all(record[name] >= 0 for name in TIMES) and record["time/work"] > 0
            assert sum(record[name] for name in TIMES[:4]) <= record["seconds"]
    assert all(record["time/transfer"] == 0 for record in runs[0].history)
    assert all(record["time/transfer"] > 0 for record in runs[1].history)
    report = (runs[1].directory / "report.html").read_text()
    assert 'id="time"' in report and "Time of a round by what it went into" in report and "Time/" not in report


def records(rounds: int = LEAST, clients: int = 256, **parts: float) -> list[dict[str, Any]]:
    times = {f"time/{name}": seconds for name, seconds in parts.items()}
    return [{"round": number, "clients": clients, **times} for number in range(1, rounds + 2)]


DASK = {"engine": {"name": "dask"}, "rounds": {"block": 16}}
WAITING = {"wait": 0.035, "transfer": 0.001, "compute": 0.004, "reduce": 0.001, "work": 0.007}


def test_another_engine_is_named_with_the_numbers() -> None:
    said = advice(records(**WAITING), DASK, 4)
    assert said == "rounds take 41 ms, of which 35 ms is waiting for dask; 'processes' would take about 5.6 ms"
    assert advice(records(**WAITING), {**DASK, "engine": "dask://somewhere:8786"}, 4) == said


def test_blocks_are_named_where_larger_ones_serve_better() -> None:
    parts = {"wait": 0.9, "transfer": 0.2, "compute": 0.4, "reduce": 0.0, "work": 3.2}
    said = advice(records(clients=4096, **parts), DASK, 1)
    assert said.startswith(
        "rounds take 1.5 s, of which 900 ms is waiting for dask and 200 ms moving messages and results; blocks of 512 "
    )


def test_nothing_is_said_where_nothing_would_be_better() -> None:
    assert advice(records(**WAITING)[:LEAST], DASK, 4) == ""  # too early
    assert advice(records(**WAITING), {"engine": "inline"}, 4) == ""
    assert advice(records(**WAITING), {"engine": {"name": "of another house"}}, 4) == ""
    assert advice(records(**{**WAITING, "compute": 0.04, "work": 0.08}), DASK, 1) == ""  # the work takes most of it
    assert advice(records(**{**WAITING, "work": 0.2}), DASK, 1) == ""  # many workers, and here is one
    assert advice([{"round": number} for number in range(9)], DASK, 4) == ""  # a run of an older version


def test_what_is_said_takes_clearly_less() -> None:
    at = {work: advice(records(**{**WAITING, "work": work}), {**DASK, "rounds": {"block": 256}}, 1) for work in (0.02, 0.03)}
    assert "'inline' would take about 21 ms" in at[0.02] and 0.021 < GAIN * 0.041 < 0.031
    assert at[0.03] == ""


def test_the_report_says_what_the_terminal_said(tmp_path: Path) -> None:
    done = hansa.run(replace(JOB, engine=hansa.Processes(workers=1)), directory=tmp_path, quiet=True)
    folder = RunFolder.open(done.directory)
    folder.rewind(0)
    for record in records(**{**WAITING, "wait": 0.5}):
        folder.append_metrics({**record, "seconds": 0.6, "bytes_up": 1, "bytes_down": 1, "failures": []})
    write_report(folder)
    assert (
        "of which 500 ms is waiting for processes; &#39;inline&#39; would take about 8.0 ms."
        in (folder.path / "report.html").read_text()
    )
