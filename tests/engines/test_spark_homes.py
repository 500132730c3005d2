"""Who does a part of a round on a machine: one process, whichever is given it; another as soon as that one is gone, or holds too many."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from hansa.core.blocks import Block, Client, Splits, Table, blocks_of
from hansa.core.store import MemoryStore
from hansa.core.updates import Update
from hansa.engines.remote import Sender, do
from hansa.engines.spark_homes import at_home
from hansa.learners.mlp import MLP

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract Unix sockets are Linux's")

BLOCKS = blocks_of(range(3), 1)


def load(k: int) -> Splits:
    return {"train": Table(np.full((2, 2), float(k)), np.zeros(2))}


@dataclass(frozen=True)
class Sum:
    """The sum of a block's rows; with a file that is not there yet, it makes the file and ends its process instead."""

    deadly: str = ""

    def __call__(self, worker: Any, block: Block) -> Update:
        if self.deadly and not os.path.exists(self.deadly):
            open(self.deadly, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        _, table = worker.table(block.members[0], "train", None)
        return Update({"x": table.x.sum(axis=0, keepdims=True)}, np.ones(1))


def serve(pipe: Any) -> None:
    """A worker of Spark as far as parts are concerned: does errands that it is given, and tells who has done them."""
    while (given := pipe.recv()) is not None:
        part, errand, call, parcels = given
        with at_home(errand.token, part, lambda: None) as done:
            result = pickle.loads(done(errand, call, parcels)).result  # noqa: S301  # this test's own
        pipe.send((int(result.spent.where.rpartition(":")[2]), result.values["x"].tolist()))


class Pair:
    """Two such processes, and the driver that has errands for them."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(2):
            own, other = context.Pipe()
            process = context.Process(target=serve, args=(other,), daemon=True)
            process.start()
            self.pipes.append(own)
            self.processes.append(process)
        self.begin()

    def begin(self) -> None:
        """Another job, of which nobody holds anything."""
        clients = [Client(f"c{k}", load, {"k": k}, rows=2) for k in range(3)]
        self.sender = Sender("spark", MLP(), clients, MemoryStore())

    def give(self, who: int, part: int, call: Sum = Sum()) -> None:
        packed, parcels = self.sender.call(call), self.sender.all_parcels()
        self.pipes[who].send((f"{part} of 3", self.sender.errand(BLOCKS[part]), packed, parcels))

    def hear(self, who: int) -> tuple[int, int]:
        """Which of the two has done it, and whose rows."""
        process, sums = self.pipes[who].recv()
        return [process.pid for process in self.processes].index(process), int(sums[0][0]) // 2

    def done(self, who: int, part: int, call: Sum = Sum()) -> int:
        self.give(who, part, call)
        by, found = self.hear(who)
        assert found == part
        return by


@pytest.fixture(scope="module")
def both() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    for process in pair.processes:
        process.kill()
        process.join()


@pytest.fixture
def pair(both: Pair) -> Pair:
    both.begin()
    return both


def test_a_part_has_one_process_whichever_is_given_it(pair: Pair) -> None:
    assert [pair.done(0, 0), pair.done(1, 1)] == [0, 1]
    assert [pair.done(1, 0), pair.done(0, 1)] == [0, 1]
    for _ in range(3):  # each is given the other's at the same time
        pair.give(0, 1)
        pair.give(1, 0)
        assert [pair.hear(0), pair.hear(1)] == [(1, 1), (0, 0)]


def test_one_that_holds_too_many_parts_gives_one_to_whoever_is_given_it(pair: Pair) -> None:
    assert [pair.done(0, part) for part in range(3)] == [0, 0, 0]
    assert [pair.done(1, part) for part in range(3)] == [1, 0, 0]
    assert [pair.done(0, part) for part in range(3)] == [1, 0, 0]


def test_another_job_has_homes_of_its_own(pair: Pair) -> None:
    assert [pair.done(0, 0), pair.done(1, 0)] == [0, 0]
    pair.begin()
    assert [pair.done(1, 0), pair.done(0, 0)] == [1, 1]


def test_without_such_sockets_each_does_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with at_home("token", "0 of 1", lambda: None) as done:
        assert done is do


def test_where_the_one_who_has_a_part_dies_of_it_another_does_it_and_has_it_from_then_on(pair: Pair, tmp_path: Any) -> None:
    assert [pair.done(0, 0), pair.done(1, 1)] == [0, 1]
    assert pair.done(1, 0, Sum(str(tmp_path / "first"))) == 1
    assert [pair.done(1, 0), pair.done(1, 1)] == [1, 1]
