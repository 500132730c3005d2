"""Worker processes: the same bits as in one process, whoever does the work and whoever dies; and nothing left behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest

from hansa.algorithms.fedavg import FedAvg
from hansa.core.blocks import Block, Client, Splits, Table, blocks_of
from hansa.core.contracts import Collectives, Engine, Schema
from hansa.core.errors import InputError, RunFailed
from hansa.core.local import Local
from hansa.core.loop import Terms, play_round
from hansa.core.params import Params
from hansa.core.store import DiskStore, MemoryStore
from hansa.core.updates import Failure, Total, Update
from hansa.core.worker import EvaluateCall, Worker
from hansa.engines import processes_pool, processes_shared, processes_worker
from hansa.engines.inline import Inline
from hansa.engines.processes import Processes
from hansa.learners.mlp import MLP
from tests.conformance.deeds import Count, claim

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals and counts segments in /dev/shm")

SCHEMA = Schema(shape=(64,), classes=tuple(range(10)), rows=1500)
CLIENTS = 10


def load(x: np.ndarray, y: np.ndarray) -> Splits:
    return {"train": Table(x, y)}


@cache
def recipes() -> list[Client]:
    """Ragged clients whose rows travel with their recipes."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    cuts = [slice(130 * k, 130 * k + 60 + 7 * k) for k in range(CLIENTS)]
    return [Client(f"c{k}", load, {"x": x[cut] / 16, "y": y[cut]}, rows=60 + 7 * k) for k, cut in enumerate(cuts)]


ALGORITHM = FedAvg(local=Local(batch_size=16))


def rounds(engine: Engine, count: int = 3) -> Params:
    learner = MLP(hidden=(24,)).bind(SCHEMA)
    state = ALGORITHM.init(learner.init(0), learner.kinds())
    for number in range(1, count + 1):
        state = play_round(
            state,
            algorithm=ALGORITHM,
            engine=engine,
            blocks=blocks_of(range(CLIENTS), 2),
            schema=SCHEMA,
            round=number,
            rate=1.0,
            terms=Terms(seed=5, population=CLIENTS),
        ).state
    return state["params"]


@cache
def expected() -> Params:
    engine = Inline().build()
    engine.start(MLP(hidden=(24,)), recipes(), MemoryStore())
    return rounds(engine)


def same(one: Params, other: Params) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def segments(owner: int | None = None) -> set[str]:
    """Shared memory of a process, this one by default."""
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {name for name in names if name.startswith(f"hansa-{owner or os.getpid()}-")}


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    before = segments()
    running = Processes(workers=2).build()
    running.start(MLP(hidden=(24,)), recipes(), MemoryStore())
    yield running
    assert len(segments() - before) >= 3
    running.stop()
    assert segments() <= before


@dataclass(frozen=True)
class Act:
    """A call that does to each block what it is told: nothing, raise, return what cannot be sent, or end the worker."""

    deeds: tuple[tuple[int, str], ...] = ()
    once: str = ""
    size: int = 3

    def __call__(self, worker: Any, block: Block) -> Any:
        deed = dict(self.deeds).get(block.number)
        if deed == "raise":
            raise KeyError("no such luck")
        if deed == "unsendable":
            return Update({"f": [lambda: 0]}, np.ones(1))
        if deed == "kill" and (not self.once or claim(self.once)):
            os.kill(os.getpid(), signal.SIGKILL)
        return Update({"n": np.full((1, self.size), block.number)}, np.ones(1), {"pid": (np.ones(1) * os.getpid(), np.ones(1))})


BLOCKS = blocks_of(range(CLIENTS), 2)


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_same_bits_with_any_number_of_workers(workers: int) -> None:
    engine = Processes(workers=workers).build()
    engine.start(MLP(hidden=(24,)), recipes(), MemoryStore())
    try:
        assert same(rounds(engine), expected())
    finally:
        engine.stop()


def test_same_bits_with_two_workers_again_and_again(engine: Any) -> None:
    assert same(rounds(engine), expected())
    assert same(rounds(engine), expected())


def test_same_bits_where_the_system_has_no_poll(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes_pool, "select", SimpleNamespace())
    list(engine.map(Act(), BLOCKS))
    os.kill(engine._seats[0].process.process.pid, signal.SIGKILL)
    assert same(rounds(engine), expected())


def test_a_worker_prepares_ahead_once_for_a_schema_that_comes_with_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes_worker, "BRIEF", math.inf)
    worker = Worker(MLP(hidden=(24,)), recipes(), MemoryStore())
    worker.table(0, "train", SCHEMA)
    ahead, prepared = processes_worker._Ahead(worker, range(3)), 0
    for schema, more in [(SCHEMA, 3), (deepcopy(SCHEMA), 0), (replace(SCHEMA, rows=1501), 3)]:
        call = EvaluateCall({}, schema, 0, 1, "train")
        worker.table(0, "train", schema)
        while ahead.wants(call):
            ahead.prepare(call)
            prepared += 1
        assert prepared == more
        prepared = 0


def test_same_bits_when_workers_are_killed_between_and_within_rounds(engine: Any) -> None:
    list(engine.map(Act(), BLOCKS))
    os.kill(engine._seats[0].process.process.pid, signal.SIGKILL)
    assert same(rounds(engine), expected())
    state, killed = None, 0
    for _ in engine.map(Act(), BLOCKS):  # another one dies while results of others are on their way
        if not killed:
            busy = next(seat for seat in engine._seats if seat.block is not None)
            os.kill(busy.process.process.pid, signal.SIGKILL)
        killed += 1
    assert killed == len(BLOCKS) and state is None
    assert same(rounds(engine), expected())


def test_a_block_whose_worker_dies_once_is_done_again(engine: Any, tmp_path: Path) -> None:
    results = dict(engine.map(Act(((1, "kill"), (3, "kill")), once=str(tmp_path / "once")), BLOCKS))
    assert all(isinstance(result, Update) and np.all(result.values["n"] == n) for n, result in results.items())
    assert sorted(results) == [0, 1, 2, 3, 4]


def test_a_block_whose_worker_always_dies_is_lost(engine: Any) -> None:
    results = dict(engine.map(Act(((2, "kill"),)), BLOCKS))
    failure = results.pop(2)
    assert isinstance(failure, Failure) and failure.kind == "WorkerLost" and failure.clients == ("c4", "c5")
    assert "signal 9" in failure.message
    assert all(isinstance(result, Update) for result in results.values()) and len(results) == 4


def test_what_a_client_raises_arrives_with_its_traceback(engine: Any) -> None:
    results = dict(engine.map(Act(((0, "raise"), (4, "unsendable"))), BLOCKS))
    assert results[0].kind == "KeyError" and 'raise KeyError("no such luck")' in results[0].traceback
    assert results[0].clients == ("c0", "c1")
    assert isinstance(results[4], Failure) and "cannot be sent" in results[4].message


@pytest.mark.parametrize("size", [1, 511, 512, 100_000, 3_000_000])
def test_results_of_any_size_arrive_in_memory_of_their_own(engine: Any, size: int) -> None:
    results = dict(engine.map(Act(size=size), BLOCKS))
    for number, result in results.items():
        value = result.values["n"]
        assert value.shape == (1, size) and np.all(value == number) and value.flags.writeable and value.flags.aligned


def test_owners_keep_their_clients(engine: Any) -> None:
    """With one block for each worker nothing is left to take, and the same process does the same block every time."""
    for _ in range(3):
        seen = [{n: int(r.metrics["pid"][0][0]) for n, r in engine.map(Act(), blocks_of(range(CLIENTS), 5))} for _ in range(2)]
        assert seen[0] == seen[1] and len(set(seen[0].values())) == 2


def test_a_map_that_is_left_early_is_over_when_the_next_begins(engine: Any) -> None:
    left = engine.map(Act(size=100_000), BLOCKS)
    next(left)
    assert same(rounds(engine), expected())
    with pytest.raises(RunFailed, match="given up"):
        list(left)
    left = engine.map(Act(((1, "kill"),)), BLOCKS)
    next(left)
    left.close()
    assert same(rounds(engine), expected())


@pytest.mark.parametrize("disk", [False, True])
def test_client_state_is_one_for_all_workers(disk: bool, tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "clients.sqlite") if disk else MemoryStore()
    store.write(0, {})  # makes the file first: SQLite does not wait for its turn when two processes make the same one
    engine = Processes(workers=2).build()
    engine.start(MLP(hidden=(24,)), recipes(), store)
    try:
        for number in range(1, 5):
            blocks = blocks_of(range(CLIENTS), number)  # other blocks, so other workers
            results = [result for _, result in engine.map(Count(number), blocks)]
            assert not [result for result in results if isinstance(result, Failure)], results
            values = [result.values["n"] for result in results]
            assert np.all(np.concatenate(values) == number - 1)
        assert np.all(store.read("c3", 9)["n"] == 4)  # type: ignore[index]  # None, and so an error, where nothing was written
    finally:
        engine.stop()


def test_memory_and_files_do_not_grow_with_rounds(engine: Any) -> None:
    def footprint() -> tuple[int, int, int]:
        # Of this process only what is the engine's: other tests have left theirs in it.
        workers = [psutil.Process(seat.process.process.pid) for seat in engine._seats]
        mapped = sum("hansa-" in os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        memory = sum(p.memory_info().rss for p in (psutil.Process(), *workers))
        return mapped + sum(p.num_fds() for p in workers), memory, len(segments())

    rounds(engine, 10)
    before = footprint()
    rounds(engine, 50)
    after = footprint()
    assert after[0] <= before[0] and after[2] <= before[2]
    assert after[1] - before[1] < 8 << 20


def test_stop_ends_all_processes_and_removes_all_memory_also_in_mid_round() -> None:
    before = segments(), {p.pid for p in psutil.Process().children()}
    engine = Processes(workers=2).build()
    engine.start(MLP(hidden=(24,)), recipes(), MemoryStore())
    for _ in engine.map(Act(size=10_000), BLOCKS):
        break
    engine.stop()
    assert segments() <= before[0]
    assert {p.pid for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE} <= before[1]
    engine.stop()


def test_recipes_and_calls_that_cannot_be_sent_are_refused(engine: Any) -> None:
    other = Processes(workers=1).build()
    with pytest.raises(InputError, match=r"recipe of a client from 'odd' on cannot be sent.*inline"):
        other.start(MLP(), [Client("odd", lambda: load(np.zeros((1, 1)), np.zeros(1)), {}, rows=1)], MemoryStore())
    with pytest.raises(InputError, match=r"cannot be sent to another process"):
        next(engine.map(lambda worker, block: None, BLOCKS))
    assert same(rounds(engine), expected())


def run_script(folder: Path, body: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a script; it must leave no shared memory, also where it is killed."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(body))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, script], stdout=pipe, stderr=pipe, text=True) as process:
        output, errors = process.communicate(timeout=60)
    deadline = time.monotonic() + 10  # after a kill it is the resource tracker that cleans up, a moment later
    while segments(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not segments(process.pid)
    return process.returncode, output, errors


SCRIPT = """
    import os, signal, sys
    import numpy as np
    from hansa.core.blocks import Client, Table, blocks_of
    from hansa.core.store import MemoryStore
    from hansa.core.updates import Update
    from hansa.engines.processes import Processes
    from hansa.learners.mlp import MLP

    def load():
        return {"train": Table(np.zeros((2, 2)), np.zeros(2, int))}

    class Call:
        def __call__(self, worker, block):
            print("at work", flush=False)
            return Update({"n": np.zeros((1, 100_000))}, np.ones(1))

    def main():
        engine = Processes(workers=2).build()
        engine.start(MLP(), [Client(str(k), load, rows=2) for k in range(4)], MemoryStore())
        print(len(list(engine.map(Call(), blocks_of(range(4), 1)))))
        return engine
"""


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    code, _, errors = run_script(tmp_path, SCRIPT + "\n    main().stop()\n")
    assert code != 0
    assert "RunFailed: engine processes: a worker ended with code 1 before it could begin" in errors
    assert "if __name__ == '__main__':" in errors


def test_a_script_that_is_no_file_is_told_so() -> None:
    body = "from hansa.engines.{engine} import {kind}\nif __name__ == '__main__':\n    "
    processes = body.format(engine="processes_pool", kind="Process") + "Process(print, ())"
    dask = body.format(engine="dask_cluster", kind="connect") + "connect('', 1)"
    for script in (processes, dask) if find_spec("distributed") else (processes,):
        ended = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=60)
        assert "<stdin>' is no file; save what was read from standard input as one" in ended.stderr.splitlines()[-1]
        assert "InputError" in ended.stderr and ended.returncode == 1


def test_a_script_whose_workers_are_killed_and_that_forgets_to_stop_leaves_nothing_and_warns_of_nothing(tmp_path: Path) -> None:
    tail = """
    if __name__ == "__main__":
        engine = main()
        for seat in engine._seats:
            os.kill(seat.process.process.pid, signal.SIGKILL)
        print(len(list(engine.map(Call(), blocks_of(range(4), 1)))))
    """
    code, output, errors = run_script(tmp_path, SCRIPT + tail)
    assert code == 0 and errors == "" and output.split().count("4") == 2


def test_workers_that_come_too_late_end_without_a_word(tmp_path: Path) -> None:
    tail = """
    if __name__ == "__main__":
        engine = Processes(workers=2).build()
        engine.start(MLP(), [Client(str(k), load, rows=2) for k in range(4)], MemoryStore())
        engine._assign(blocks_of(range(4), 1), engine._setup)
        for seat in engine._seats:
            seat.process.pipe.close()
            seat.process.process.join()
            print(seat.process.process.exitcode)
        engine.stop()
    """
    assert run_script(tmp_path, SCRIPT + tail) == (0, "0\n0\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="only there is shared memory seen as files")
def test_what_processes_leave_that_are_killed_together_the_next_engine_removes(tmp_path: Path) -> None:
    import fcntl

    tail = """
    if __name__ == "__main__":
        engine = main()
        os.killpg(0, signal.SIGKILL)
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT + tail))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.DEVNULL, start_new_session=True) as process:
        process.wait(60)
    left = segments(process.pid)
    assert left and process.returncode == -signal.SIGKILL
    held, mine = left.pop(), processes_shared.Segment()
    mine.reserve(1)
    with (processes_shared.FOLDER / held).open("rb") as owned:  # as by a process of another container with the same memory
        fcntl.flock(owned, fcntl.LOCK_SH)
        processes_shared.sweep()
        assert segments(process.pid) == {held} and segments() >= {mine.name}
    one = Processes(workers=1).build()
    one.start(MLP(), recipes(), MemoryStore())
    assert not segments(process.pid)
    one.stop()
    mine.close()


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    tail = """
    if __name__ == "__main__":
        engine = main()
        print("workers", *[seat.process.process.pid for seat in engine._seats], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    _, output, _ = run_script(tmp_path, SCRIPT + tail)
    pids = [int(word) for line in output.splitlines() if line.startswith("workers") for word in line.split()[1:]]
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)


def reduce_and_gather(gang: Collectives) -> tuple[Any, ...]:
    total = gang.all_reduce(np.full(50_000, 0.1 * (gang.rank + 1), dtype=np.float32))
    gang.barrier()
    return total, gang.all_gather(gang.rank), gang.broadcast({"from": gang.rank}, root=2), gang.size


def one_dies(gang: Collectives) -> None:
    if gang.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gang.barrier()


def one_finishes(gang: Collectives) -> None:
    if gang.rank == 0:
        gang.barrier()


def two_calls(gang: Collectives) -> None:
    if gang.rank == 0:
        gang.barrier()
    else:
        gang.all_gather(1)


def test_a_gang_sums_in_rank_order(engine: Any) -> None:
    here = Inline().build().gang(reduce_and_gather, 3)
    there = engine.gang(reduce_and_gather, 3)
    for one, other in zip(here, there, strict=True):
        assert np.array_equal(one[0], other[0]) and one[1:] == other[1:] == ([0, 1, 2], {"from": 2}, 3)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (one_dies, "member 1 of 2: its process ended"),
        (one_finishes, "member 1 has finished"),
        (two_calls, "different collective calls"),
    ],
)
def test_a_gang_that_cannot_go_on_is_ended(engine: Any, function: Any, error: str) -> None:
    with pytest.raises(RunFailed, match=error):
        engine.gang(function, 2)


def test_a_gang_needs_a_function_that_can_be_sent(engine: Any) -> None:
    with pytest.raises(InputError, match="at the top of a module"):
        engine.gang(lambda gang: gang.rank, 2)


def test_totals_are_what_travels_for_a_sum(engine: Any) -> None:
    from hansa.core.contracts import Message
    from hansa.core.worker import WorkCall

    learner = MLP(hidden=(24,)).bind(SCHEMA)
    call = WorkCall(ALGORITHM, Message(learner.init(0), {"rate": 1.0}), SCHEMA, seed=1, round=1)
    assert all(isinstance(result, Total) for _, result in engine.map(call, BLOCKS))


READ: list[str] = []
"""Names of what was unpickled in this process."""


@dataclass(frozen=True)
class Noted:
    """Tells each process that reads it."""

    name: str

    def __setstate__(self, state: dict[str, str]) -> None:
        vars(self).update(state)
        READ.append(self.name)


@dataclass(frozen=True)
class Tell:
    """A call whose result is what its worker has read so far."""

    stays: Noted
    comes: Noted

    standing: ClassVar[tuple[str, ...]] = ("stays",)

    def __call__(self, worker: Any, block: Block) -> Any:
        assert self.stays.name.startswith("stays")
        return Update({"read": [list(READ)]}, np.ones(1))


def test_what_stands_is_sent_once_to_each_worker_and_again_when_it_is_another(engine: Any) -> None:
    def told(call: Tell) -> list[list[str]]:
        return [result.values["read"][0] for _, result in sorted(engine.map(call, BLOCKS[:1]), key=lambda one: one[0])]

    first, second = Noted("stays 1"), Noted("stays 2")
    assert told(Tell(first, Noted("a"))) == [["a", "stays 1"]]
    assert told(Tell(first, Noted("b"))) == [["a", "stays 1", "b"]]
    assert told(Tell(second, Noted("c"))) == [["a", "stays 1", "b", "c", "stays 2"]]
    os.kill(engine._seats[0].process.process.pid, signal.SIGKILL)
    assert told(Tell(second, Noted("d"))) == [["d", "stays 2"]]
