"""The engine of Dask clusters: the same bits as in one process, whoever dies; errors instead of waits; nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

if find_spec("distributed") is None:  # where it is there and broken, the tests fail
    pytest.skip("the extra dask is not installed", allow_module_level=True)

from hansa.core.blocks import Client, blocks_of
from hansa.core.errors import InputError, RunFailed
from hansa.core.store import MemoryStore
from hansa.core.updates import Failure
from hansa.engines import dask_cluster
from hansa.engines.dask import LARGE, Dask, seats
from hansa.engines.dask_cluster import scheduler_url
from hansa.options import build
from tests.conformance.deeds import until
from tests.engines.dask_deeds import (
    ALGORITHM,
    BLOCKS,
    CLIENTS,
    LEARNER,
    Act,
    Deadly,
    First,
    Layout,
    Unreadable,
    clients,
    dies,
    meets,
    raises,
    rows,
    same_as_inline,
)  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    with started(Dask(workers=2)) as running:
        yield running


@contextmanager
def started(options: Dask) -> Iterator[Any]:
    running = options.build()
    try:
        running.start(LEARNER, clients(), MemoryStore())
        yield running
    finally:
        running.stop()


def whole(engine: Any) -> Any:
    """The engine once two workers answer: those that tests before this one have killed are replaced."""
    deadline = time.monotonic() + 60
    pids: list[Any] = []
    while sum(isinstance(pid, int) for pid in pids) < 2 and time.monotonic() < deadline:
        engine._cluster.workers()
        pids = list(engine._cluster.client.run(os.getpid, on_error="return").values())
        time.sleep(0.05)
    assert len(pids) == 2
    return engine


def numbers(results: dict[int, Any]) -> dict[int, int]:
    return {number: int(result.values["n"][0][0]) for number, result in results.items()}


def test_same_bits_with_one_worker() -> None:
    with started(Dask(workers=1)) as engine:
        assert same_as_inline(engine)


def test_same_bits_with_two_workers_again_and_again(engine: Any) -> None:
    assert same_as_inline(engine)
    assert same_as_inline(engine)


def test_same_bits_when_a_worker_is_killed_in_every_round(engine: Any, tmp_path: Path) -> None:
    assert same_as_inline(engine, Deadly(local=ALGORITHM.local, folder=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3"}


@pytest.mark.parametrize("cargo", [0, 4 * LARGE])
def test_what_is_sent_as_a_result_of_a_task_is_not_lost_with_a_worker(engine: Any, tmp_path: Path, cargo: int) -> None:
    deeds = ((0, "kill"), (6, "sleep"))
    results = dict(engine.map(Act(deeds, once=str(tmp_path / "once"), cargo=bytes(cargo)), BLOCKS))
    assert numbers(results) == {number: number + cargo for number in range(7)}


def test_where_all_workers_die_at_once_the_blocks_are_done_by_those_that_come_after(engine: Any, tmp_path: Path) -> None:
    """A task that is pinned to a worker, softly too, is never given to another that comes while there is none."""
    deeds = ((0, "kill"), (6, "kill"))
    results = dict(whole(engine).map(Act(deeds, once=str(tmp_path / "once")), BLOCKS))
    assert numbers(results) == {number: number for number in range(7)}
    assert len(list(tmp_path.iterdir())) == 2


def test_results_that_are_lost_with_all_workers_before_they_are_fetched_are_made_again(engine: Any) -> None:
    """Dask tells of such a task at once, and again and again, that it is not under way."""
    client = whole(engine)._cluster.client
    coming = engine.map(Act(), BLOCKS)
    first = next(coming)
    assert until(lambda: all(task.status == "finished" for task in engine._round._tasks))
    for pid in client.run(os.getpid).values():
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: all(task.status == "lost" for task in engine._round._tasks))
    assert numbers(dict([first, *coming])) == {number: number for number in range(7)}


def test_only_the_block_that_kills_every_worker_is_lost(engine: Any) -> None:
    results = dict(engine.map(Act(((2, "kill"),)), BLOCKS))
    failure = results.pop(2)
    assert isinstance(failure, Failure) and failure.kind == "WorkerLost" and failure.clients == ("client-2",)
    assert "2 workers died of it" in failure.message
    assert numbers(results) == {number: number for number in (0, 1, 3, 4, 5, 6)}
    assert same_as_inline(engine)


def test_what_a_client_raises_arrives_with_its_traceback(engine: Any) -> None:
    results = dict(engine.map(Act(((0, "raise"), (4, "unsendable"))), BLOCKS))
    assert results[0].kind == "KeyError" and 'raise KeyError("no such luck")' in results[0].traceback
    assert isinstance(results[4], Failure) and "cannot be sent" in results[4].message
    assert sorted(numbers({n: result for n, result in results.items() if n not in (0, 4)})) == [1, 2, 3, 5, 6]


def test_large_results_arrive_in_memory_of_their_own(engine: Any) -> None:
    for number, result in engine.map(Act(size=300_000), BLOCKS):
        value = result.values["n"]
        assert value.shape == (1, 300_000) and np.all(value == number) and value.flags.writeable and value.flags.aligned


@pytest.mark.parametrize("size", [7, LARGE])
def test_arrays_arrive_aligned(engine: Any, size: int) -> None:
    """Those that Dask moves by itself may not, and then NumPy computes other last digits."""
    engine.start(LEARNER, clients(), MemoryStore())
    for round in (1, 2, 3):
        results = dict(engine.map(Layout(round, np.ones(size)), BLOCKS))
        assert all(result.values["aligned"].all() and np.all(result.values["kept"] == round - 1) for result in results.values())


def test_owners_keep_their_clients(engine: Any) -> None:
    """With one block for each worker the same process does the same block every time."""
    blocks = blocks_of(range(CLIENTS), 4)
    seen = [{n: int(r.metrics["pid"][0][0]) for n, r in whole(engine).map(Act(), blocks)} for _ in range(3)]
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0].values())) == 2


def test_a_worker_that_replaces_another_takes_its_place() -> None:
    assert seats([], {"c", "a", "b"}) == ["a", "b", "c"]
    assert seats(["a", "b", "c"], {"a", "c", "z"}) == ["a", "z", "c"]
    assert seats(["a", "b", "c"], {"a", "c"}) == ["a", "c"]
    assert seats(["a", "c"], {"c", "y", "x"}) == ["x", "c", "y"]
    assert seats(["a"], set()) == []


def test_a_map_that_is_left_early_is_given_up_and_its_tasks_are_dropped(engine: Any) -> None:
    client = engine._cluster.client
    left = engine.map(Act(((6, "sleep"),), cargo=bytes(2 * LARGE)), BLOCKS)
    next(left)
    assert same_as_inline(engine)
    with pytest.raises(RunFailed, match="given up"):
        list(left)
    left = engine.map(Act(((1, "sleep"),)), BLOCKS)
    next(left)
    left.close()
    assert same_as_inline(engine)
    tasks: Any = True
    deadline = time.monotonic() + 20
    while tasks and time.monotonic() < deadline:  # the scheduler forgets a moment after it is told
        tasks = client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.tasks))
    assert tasks == []


def test_data_that_travels_with_the_recipes_goes_to_those_who_need_it(engine: Any, tmp_path: Path) -> None:
    many = [Client(f"c{k}", rows, {"x": np.full((100, 50), float(k))}, rows=100) for k in range(100)]
    engine.start(LEARNER, many, MemoryStore())
    blocks = blocks_of(range(100), 5)
    for _ in range(2):
        assert numbers(dict(engine.map(First(), blocks))) == {number: 5 * number for number in range(20)}
        dict(engine.map(Act(((0, "kill"),), once=str(tmp_path / "once")), BLOCKS))
    engine.start(LEARNER, clients(), MemoryStore())
    assert same_as_inline(engine)


def test_recipes_and_calls_that_cannot_be_sent_are_refused(engine: Any) -> None:
    generator = (k for k in "ab")
    engine.start(LEARNER, [Client("odd", rows, {"x": generator}, rows=1)], MemoryStore())
    with pytest.raises(InputError, match=r"engine dask: the recipe of a client from 'odd' on cannot be sent .*inline"):
        list(engine.map(First(), blocks_of(range(1), 1)))
    with pytest.raises(InputError, match=r"engine dask: the learner .*cannot be sent"):
        engine.start(generator, clients(), MemoryStore())
    engine.start(LEARNER, clients(), MemoryStore())
    with pytest.raises(InputError, match=r"engine dask: .*cannot be sent to another process"):
        next(engine.map(lambda worker, block: generator, BLOCKS))
    assert same_as_inline(engine)


def test_what_a_worker_cannot_read_is_an_error_in_its_words(engine: Any) -> None:
    with pytest.raises(InputError, match=r"engine dask: a worker cannot read.*ValueError: invalid literal"):
        list(engine.map(Unreadable(), BLOCKS))
    assert same_as_inline(engine)


# --- gangs -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(engine: Any) -> Any:
    """Both workers are there at the start, whom tests before have killed or not."""
    return whole(engine)


def test_members_of_a_gang_have_a_process_each_and_the_same_sums(pair: Any) -> None:
    first, second = pair.gang(meets, 2)
    expected = np.full(50_000, 0.1, np.float32) + np.full(50_000, 0.1 * 2, np.float32)
    assert np.array_equal(first[0], expected) and np.array_equal(second[0], expected)
    assert first[1:] == second[1:] == ([0, 1], 2)


def test_a_gang_that_needs_more_workers_than_there_are_is_refused(pair: Any) -> None:
    with pytest.raises(
        InputError, match=r"a gang of 5 needs 5 workers at the same time and the cluster has 2; write engine.workers = 5"
    ):
        pair.gang(meets, 5)


@pytest.mark.parametrize(
    ("function", "error"), [(raises, "member 0 of 2: ValueError: no luck"), (dies, "member 1 of 2: its process ended")]
)
def test_a_gang_that_cannot_go_on_is_ended_and_rounds_go_on(pair: Any, function: Any, error: str) -> None:
    with pytest.raises(RunFailed, match=error):
        pair.gang(function, 2)
    assert same_as_inline(pair)


def test_a_gang_after_a_member_has_died_is_whole_again(pair: Any) -> None:
    assert pair.gang(meets, 2)[0][1:] == ([0, 1], 2)


# --- clusters that run already ---------------------------------------------------------------------------------------------------


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """A scheduler and workers without nannies, each a program of its own: (address, [scheduler, *workers])."""
    file = folder / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    commands = [["scheduler", "--host", "127.0.0.1", "--port", "0", *common]]
    commands += [["worker", *common, "--nthreads", "1", "--no-nanny", "--memory-limit", "0"]] * workers
    programs: list[subprocess.Popen[str]] = []
    try:
        with (folder / "log").open("w") as log:
            for kind, *options in commands:
                line = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options]
                programs.append(subprocess.Popen(line, stdout=log, stderr=log, text=True, env=environment, cwd=folder))
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        import json

        yield json.loads(file.read_text())["address"], programs
    finally:
        for program in reversed(programs):
            program.kill()
            program.wait()


def test_a_running_cluster_is_used_and_left_running_and_a_dead_worker_hangs_nothing(tmp_path: Path) -> None:
    """Nothing replaces a worker here: what was pinned to it must go to the other one."""
    with cluster(tmp_path, 2) as (address, programs):
        client = wait_for(address, 2)
        with started(build("engine", address.replace("tcp://", "dask://"))) as engine:
            assert same_as_inline(engine)
            assert same_as_inline(engine, Deadly(local=ALGORITHM.local, folder=str(one_round(tmp_path))))
            assert sorted(program.poll() is None for program in programs) == [False, True, True]
            with pytest.raises(InputError, match=r"a gang of 2 needs 2 workers .* has 1; start more with `dask worker`"):
                engine.gang(meets, 2)
            assert engine.gang(meets, 1)[0][1:] == ([0], 1)
        with started(Dask(address=address)) as engine:
            left = engine.map(Act(((3, "sleep"), (4, "sleep"), (5, "sleep"))), BLOCKS)
            next(left)
            client.close()
            programs[0].kill()
            with pytest.raises(RunFailed, match=r"the scheduler at tcp://127.* is lost"):
                list(left)
            with pytest.raises(RunFailed, match="is lost"):
                list(engine.map(Act(), BLOCKS))


def one_round(folder: Path) -> Path:
    """Where all rounds but the second have been claimed: one death is all that two workers can bear."""
    (folder / "claims").mkdir()
    for round in (1, 3):
        (folder / "claims" / str(round)).touch()
    return folder / "claims"


def wait_for(address: str, workers: int) -> Any:
    from distributed import Client

    client = Client(address, timeout=60, set_as_default=False)
    client.wait_for_workers(workers, timeout=60)
    return client


def test_where_no_scheduler_answers_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "TIMEOUT", 0.5)
    with pytest.raises(InputError, match=r"no scheduler answers at tcp://127.0.0.1:1 .*start one with `dask scheduler`"):
        Dask(address="dask://127.0.0.1:1").build().start(LEARNER, clients(), MemoryStore())


def test_a_scheme_that_dask_does_not_know_is_refused_without_a_client_that_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed.Client", None)
    with pytest.raises(InputError, match=r"dsk://host:8786 \(ValueError: unknown address scheme 'dsk'.*or correct engine.address$"):
        Dask(address="dsk://host").build().start(LEARNER, clients(), MemoryStore())


def test_where_there_are_no_workers_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(dask_cluster, "TIMEOUT", 2.0)
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(InputError, match=r"the cluster at tcp://\S+ has no workers; start some with `dask worker tcp://"),
    ):
        Dask(address=empty.scheduler_address).build().start(LEARNER, clients(), MemoryStore())


def test_workers_of_another_version_are_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address = engine._cluster.client.scheduler.address
    with started(Dask(address=address)) as other:
        assert same_as_inline(other)
    monkeypatch.setattr("hansa.__version__", "0.0.7")
    with pytest.raises(InputError, match=r"worker tcp://\S+ has hansa \S+ and this process 0\.0\.7; install the same"):
        Dask(address=address).build().start(LEARNER, clients(), MemoryStore())


def test_addresses_are_read_as_people_write_them() -> None:
    assert scheduler_url("dask://host:8786") == scheduler_url("tcp://host") == scheduler_url("host:8786") == "tcp://host:8786"
    assert scheduler_url("host") == "tcp://host:8786"
    assert scheduler_url("tls://10.0.0.7:99") == "tls://10.0.0.7:99"
    assert scheduler_url("dask://[::1]") == scheduler_url("dask://[::1]:8786") == "tcp://[::1]:8786"
    for wrong in ("dask://", "dask://host:port", "dask://:8786"):
        with pytest.raises(InputError, match="is not the address of a scheduler; write dask://host:8786"):
            scheduler_url(wrong)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match=r"workers = 3 is for a cluster that is started here.*leave one"):
        Dask(address="dask://host:8786", workers=3).build()


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"dask is not installed; write: pip install 'hansa\[dask\]'"):
        Dask(workers=1).build().start(LEARNER, clients(), MemoryStore())


# --- programs --------------------------------------------------------------------------------------------------------------------


SCRIPT = """
    import os, signal, sys
    import numpy as np
    from hansa.core.blocks import Client, Table, blocks_of
    from hansa.core.store import MemoryStore
    from hansa.core.updates import Update
    from hansa.engines.dask import Dask
    from hansa.learners.mlp import MLP

    def load():
        return {"train": Table(np.zeros((2, 2)), np.zeros(2, int))}

    class Call:
        def __init__(self, path=""):
            self.path = path

        def __call__(self, worker, block):
            if self.path and block.number == 1:
                try:
                    os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            return Update({"n": np.zeros((1, 3))}, np.ones(1), {"pid": (np.ones(1) * os.getpid(), np.ones(1))})

    def main():
        engine = Dask(workers=2).build()
        engine.start(MLP(), [Client(str(k), load, rows=2) for k in range(4)], MemoryStore())
        results = dict(engine.map(Call(), blocks_of(range(4), 1)))
        print("workers", *{int(result.metrics["pid"][0][0]) for result in results.values()}, flush=True)
        return engine
"""


def run_script(folder: Path, tail: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a script; none of its workers may live on."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT) + textwrap.dedent(tail))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    pids = [int(word) for line in done.stdout.splitlines() if line.startswith("workers") for word in line.split()[1:]]
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    return done.returncode, done.stdout, done.stderr


def test_a_script_whose_worker_is_killed_and_that_forgets_to_stop_says_nothing_of_it(tmp_path: Path) -> None:
    tail = f"""
    if __name__ == "__main__":
        print("rest", len(dict(main().map(Call({str(tmp_path / "once")!r}), blocks_of(range(4), 1)))))
    """
    code, output, errors = run_script(tmp_path, tail)
    assert code == 0 and errors == "" and "rest 4" in output and (tmp_path / "once").exists()


def test_ctrl_c_is_for_the_driver_alone_to_answer(tmp_path: Path) -> None:
    tail = """
    if __name__ == "__main__":
        engine = main()
        for pid in engine._cluster.client.run(os.getpid).values():
            os.kill(pid, signal.SIGINT)
        print("rest", len(dict(engine.map(Call(), blocks_of(range(4), 1)))))
        engine.stop()
    """
    code, output, errors = run_script(tmp_path, tail)
    assert code == 0 and errors == "" and "rest 4" in output


def test_workers_end_when_their_driver_is_killed(tmp_path: Path) -> None:
    code, output, _ = run_script(tmp_path, "\nif __name__ == '__main__':\n    main()\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    assert code == -signal.SIGKILL and "workers" in output


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    code, _, errors = run_script(tmp_path, "\nmain().stop()\n")
    assert code != 0 and "RunFailed: engine dask: a cluster cannot be started here" in errors
    assert "if __name__ == '__main__':" in errors


def test_stop_ends_all_processes_also_in_mid_round() -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with started(Dask(workers=2)) as engine:
        next(engine.map(Act(((5, "sleep"), (6, "sleep"))), BLOCKS))
        assert len({process.pid for process in psutil.Process().children(recursive=True)} - before) >= 2
    after = [process for process in psutil.Process().children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE]
    assert {process.pid for process in after if "resource_tracker" not in " ".join(process.cmdline())} <= before
    engine.stop()
