"""Ranks of torch.distributed: started here or by a real ``torchrun``, the same bits as in one process, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import hansa
from hansa.core.contracts import Collectives, Engine
from hansa.core.errors import InputError, RunFailed
from hansa.core.store import MemoryStore
from hansa.core.updates import Failure, Update
from hansa.engines.torchrun import Torchrun
from hansa.job import from_text
from hansa.learners.mlp import MLP
from hansa.options import build
from hansa.tracking.folder import RunFolder
from tests.conformance.deeds import Count
from tests.conformance.problem import same_bits
from tests.engines.test_processes import BLOCKS, Act, expected, recipes, rounds, same

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    running = started(2)
    yield running
    pids = [rank.process.pid for rank in running._own if rank.process is not None]
    assert pids
    running.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    running.stop()


def started(workers: int, store: Any = None) -> Any:
    running = Torchrun(workers=workers).build()
    running.start(MLP(hidden=(24,)), recipes(), MemoryStore() if store is None else store)
    return running


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What the condition gives once it holds."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


# Rounds


def test_same_bits_with_one_rank() -> None:
    running = started(1)
    try:
        assert same(rounds(running), expected())
    finally:
        running.stop()


def test_same_bits_when_ranks_are_killed_between_and_within_rounds(engine: Any) -> None:
    assert same(rounds(engine), expected())
    engine._own[0].process.kill()
    assert same(rounds(engine), expected())
    for place, _ in enumerate(engine.map(Act(), BLOCKS)):  # another one dies while results of others are on their way
        if not place:
            engine._own[1].process.kill()
    assert same(rounds(engine), expected())


def test_a_block_whose_rank_dies_once_is_done_again(engine: Any, tmp_path: Path) -> None:
    results = dict(engine.map(Act(((1, "kill"), (3, "kill")), once=str(tmp_path / "once")), BLOCKS))
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert all(isinstance(result, Update) and np.all(result.values["n"] == n) for n, result in results.items())


def test_a_block_whose_rank_always_dies_is_lost(engine: Any) -> None:
    results = dict(engine.map(Act(((2, "kill"),)), BLOCKS))
    failure = results.pop(2)
    assert isinstance(failure, Failure) and failure.kind == "WorkerLost" and failure.clients == ("c4", "c5")
    assert "signal 9" in failure.message
    assert all(isinstance(result, Update) for result in results.values()) and len(results) == 4


def test_owners_keep_their_blocks(engine: Any) -> None:
    seen = [{n: int(r.metrics["pid"][0][0]) for n, r in engine.map(Act(), BLOCKS)} for _ in range(3)]
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0].values())) == 2


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


@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_results_of_any_size_arrive(engine: Any, size: int) -> None:
    results = dict(engine.map(Act(size=size), BLOCKS))
    assert all(result.values["n"].shape == (1, size) and np.all(result.values["n"] == n) for n, result in results.items())


def test_client_state_is_one_for_all_ranks(engine: Any) -> None:
    store = MemoryStore()
    engine.start(MLP(hidden=(24,)), recipes(), store)
    for number in range(1, 4):
        results = dict(engine.map(Count(number), BLOCKS))
        assert all(np.all(result.values["n"] == number - 1) for result in results.values())
    assert np.all(store.read("c3", 9)["n"] == 3)  # type: ignore[index]  # None, and so an error, where nothing was written


def test_a_rank_that_cannot_begin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansa.engines.torchrun_ranks.sys.executable", "/bin/false")
    running = started(1)
    with pytest.raises(RunFailed, match="rank 0 ended with code 1 before it could begin"):
        next(running.map(Act(), BLOCKS))
    running.stop()


def test_a_job_of_another_engine_is_not_trained_by_every_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"engine.name = 'inline': torchrun has started this program 2 times"):
        hansa.run(hansa.Job(hansa.BuiltIn("iris"), MLP(), hansa.FedAvg(), partition=hansa.IID(clients=2)), directory=tmp_path)


def test_without_torch_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install 'hansa\[torch\]'"):
        Torchrun().build()


# Gangs


def reduce_and_gather(gang: Collectives) -> tuple[Any, ...]:
    from torch import distributed

    total = gang.all_reduce(np.full(50_000, 0.1 * (gang.rank + 1), dtype=np.float32))
    gang.barrier()
    assert (distributed.get_rank(), distributed.get_world_size()) == (gang.rank, gang.size)
    return total, gang.all_gather("x" * gang.rank), gang.broadcast({"from": gang.rank}, root=1), gang.size


def native(gang: Collectives) -> float:
    import torch
    from torch import distributed

    value = torch.full((4,), float(gang.rank + 1))
    distributed.all_reduce(value)
    return float(value.sum())


def one_raises(gang: Collectives) -> None:
    """While the other waits in a collective that only torch.distributed knows of."""
    from torch import distributed

    if gang.rank == 1:
        raise ValueError("member one has no luck")
    distributed.barrier()


def one_dies(gang: Collectives) -> None:
    if gang.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gang.barrier()


def one_never_comes_back(gang: Collectives) -> None:
    if gang.rank == 1:
        raise ValueError("member one has no luck")
    while True:
        time.sleep(1)


def one_finishes(gang: Collectives) -> None:
    if gang.rank == 0:
        gang.barrier()


def two_calls(gang: Collectives) -> None:
    if gang.rank == 0:
        gang.barrier()
    else:
        gang.all_gather(1)


def test_a_gang_sums_in_rank_order_and_is_a_process_group(engine: Engine) -> None:
    there = engine.gang(reduce_and_gather, 2)
    parts = [np.full(50_000, 0.1 * (rank + 1), dtype=np.float32) for rank in range(2)]
    for total, *others in there:
        assert np.array_equal(total, parts[0] + parts[1]) and others == [["", "x"], {"from": 1}, 2]
    assert engine.gang(native, 2) == [12.0, 12.0] and engine.gang(native, 1) == [4.0]


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (one_finishes, "member 1 has finished and member 0 waits in barrier"),
        (two_calls, r"different collective calls \(0 barrier, 1 all_gather\)"),
        (one_raises, "gang member 1 of 2: ValueError: member one has no luck"),
        (one_never_comes_back, "gang member 1 of 2: ValueError: member one has no luck"),
        (one_dies, r"gang member 1 of 2: its process ended before it was done \(killed by signal 9\)"),
    ],
)
def test_a_gang_that_cannot_go_on_is_ended(engine: Any, function: Any, error: str) -> None:
    with pytest.raises(RunFailed, match=error):
        engine.gang(function, 2)
    assert len(dict(engine.map(Act(), BLOCKS))) == len(BLOCKS)


def test_a_gang_that_is_too_large_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="a gang of 3 members needs 3 ranks and there are 2"):
        engine.gang(native, 3)


# Under torchrun

JOB = """
name = "launched"
[data]
name = "breast_cancer"
[partition]
name = "iid"
clients = 8
[split]
test = 0.25
[preparation]
name = "standard"
[learner]
name = "sklearn"
[algorithm]
name = "scaffold"
[algorithm.local]
batch_size = 8
epochs = 4
[rounds]
count = 6
block = 2
[engine]
name = "torchrun"
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> hansa.Run:
    return hansa.run(from_text(JOB, ("engine.name=inline",)), directory=tmp_path_factory.mktemp("whole"), quiet=True)


def launch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "job.toml").write_text(JOB)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # which torchrun would say that it sets
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, output and errors; no process of it may be left."""
    below = psutil.Process(process.pid).children(recursive=True)
    output, errors = process.communicate(timeout=300)
    until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in below))
    return process.returncode, output, errors


def the_run(folder: Path) -> RunFolder:
    (run,) = (folder / "runs").iterdir()
    return RunFolder.open(run)


def test_under_torchrun_one_rank_plays_and_prints_and_the_others_serve(whole: hansa.Run, tmp_path: Path) -> None:
    code, output, errors = ended(launch(tmp_path, "-m", "hansa", "run", "job.toml", "--json"))
    assert (code, errors) == (0, "")
    told = json.loads(output)
    assert told["metrics"] == whole.metrics
    run = the_run(tmp_path)
    assert run.status()["status"] == "finished" and same_bits(run.load_params(), whole.params)


SCRIPT = """
import os
from pathlib import Path

import hansa
from hansa.job import from_table, to_table, load
from hansa.core.errors import InputError

job = load("job.toml", ("rounds.count=2",))
first = hansa.run(job, quiet=True)
second = hansa.run(job, quiet=True)
engine = job.engine.build()

def who(gang):
    from torch import distributed
    return os.environ["RANK"], distributed.get_world_size(), gang.all_gather(gang.rank)

def unlucky(gang):
    from torch import distributed
    if gang.rank == 0:
        raise ValueError("no luck")
    distributed.barrier()

print(first.directory != second.directory, engine.gang(who, 2))
for size, function in ((3, who), (2, unlucky)):
    try:
        engine.gang(function, size)
    except hansa.HansaError as error:
        print(str(error).splitlines()[0])
print(engine.gang(who, 2))
"""


def test_a_script_goes_on_in_one_rank_only_and_its_engines_share_the_launch(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    code, output, errors = ended(launch(tmp_path, "script.py"))
    assert (code, errors) == (0, "")
    gang = "[('0', 2, [0, 1]), ('1', 2, [0, 1])]"
    assert output.splitlines() == [
        f"True {gang}",
        "engine torchrun: a gang of 3 members needs 3 ranks and there are 2; start torchrun with more processes",
        "gang member 0 of 2: ValueError: no luck",
        gang,
    ]


KILLS = """
import os

import psutil

import hansa
from hansa.job import load

KILLED = {"0": ("1", 7), "1": ("0", 2)}  # restarts -> rank, and what work of this start is under way
works = 0

def kill(stage):
    global works
    works += stage == "work"
    rank, when = KILLED.get(os.environ["TORCHELASTIC_RESTART_COUNT"], ("", 0))
    if stage == "work" and works == when:
        ranks = {process.environ().get("RANK"): process for process in psutil.Process().parent().children()}
        ranks[rank].kill()

print(hansa.run(load("job.toml"), quiet=True, observe=kill).directory.name, works)
"""


def test_a_run_whose_rank_is_killed_goes_on_when_torchrun_starts_all_again(whole: hansa.Run, tmp_path: Path) -> None:
    """First one that serves, then the one that plays."""
    (tmp_path / "script.py").write_text(KILLS)
    code, output, errors = ended(launch(tmp_path, "--max-restarts", "2", "script.py"))
    assert code == 0, errors
    run = the_run(tmp_path)
    name, works = output.split()
    assert name == run.path.name and int(works) == 4  # it went on both times, and did not start anew
    assert run.status()["status"] == "finished" and same_bits(run.load_params(), whole.params)
    assert [record["round"] for record in run.metrics()] == list(range(1, 7))


def test_a_rank_that_finds_no_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunFailed, match=f"rank 1 of 2 has not found the others by way of 127.0.0.1:{port} within 1 seconds"):
        Torchrun(timeout=1.0).serve()
    with pytest.raises(InputError, match=r"engine.workers = 3: the launcher has started 2 ranks"):
        Torchrun(workers=3).serve()
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(InputError, match="MASTER_PORT='': not what a launcher sets"):
        Torchrun().serve()


def test_a_driver_whose_ranks_do_not_come_says_which(tmp_path: Path) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    alone = {**os.environ, **told, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    (tmp_path / "job.toml").write_text(JOB)
    command = [sys.executable, "-m", "hansa", "run", "job.toml", "--set", "engine.timeout=1"]
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3 and "rank 1 of 2 has not come within 1 seconds" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# Without a launcher, from outside

DRIVER = """
import os, signal
import numpy as np
from hansa.core.blocks import Client, Table, blocks_of
from hansa.core.store import MemoryStore
from hansa.core.updates import Update
from hansa.engines.torchrun import Torchrun
from hansa.learners.mlp import MLP

class Call:
    def __call__(self, worker, block):
        import time
        time.sleep(float(os.environ["SLEEP"]) if block.number == 1 else 0)
        return Update({"pid": np.array([os.getpid()])}, np.ones(1))

engine = Torchrun(workers=2).build()
engine.start(MLP(), [Client(str(k), dict, rows=2) for k in range(2)], MemoryStore())
print(os.getpid(), flush=True)
for _, result in engine.map(Call(), blocks_of(range(2), 1)):
    print(*result.values["pid"], flush=True)
"""


def run_driver(sleep: float) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    environment = {**os.environ, "SLEEP": str(sleep)}
    return subprocess.Popen([sys.executable, "-c", DRIVER], stdout=pipe, stderr=pipe, text=True, env=environment)


def test_a_script_without_a_guard_that_forgets_to_stop_leaves_nothing_and_warns_of_nothing() -> None:
    process = run_driver(0)
    output, errors = process.communicate(timeout=120)
    pids = [int(line) for line in output.split()]
    assert process.returncode == 0 and errors == "" and len(set(pids)) == 3
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_ranks_end_when_their_driver_is_killed_also_at_work() -> None:
    process = run_driver(1000)
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        driver, idle = int(process.stdout.readline()), int(process.stdout.readline())
        children = [child.pid for child in psutil.Process(driver).children()]
        assert idle in children and len(children) == 2
        process.kill()
        process.wait()
        until(lambda: not any(psutil.pid_exists(pid) for pid in children))
        assert process.stderr.read() == ""


def test_the_engine_can_be_named_in_a_job() -> None:
    assert build("engine", "torchrun") == Torchrun() and build("engine", {"name": "torchrun", "workers": 2}).workers == 2
