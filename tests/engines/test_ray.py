"""The engine of Ray: the same bits as in one process, whoever dies; errors instead of waits; nothing left behind, nothing said."""

from __future__ import annotations

import http.server
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hansa.core.blocks import Client, Splits, Table, blocks_of
from hansa.core.errors import InputError, RunFailed
from hansa.core.store import MemoryStore
from hansa.core.updates import Failure, Update
from hansa.engines import ray as module
from hansa.engines import ray_gang
from hansa.engines.inline import Inline
from hansa.engines.ray import LARGE, Ray
from hansa.engines.ray_cluster import import_ray, probed, slots
from hansa.options import build
from tests.conformance.deeds import Count, until
from tests.engines.dask_deeds import ALGORITHM, BLOCKS, LEARNER, Act, Deadly, clients, same_as_inline
from tests.engines.ray_deeds import Gate, node_of, one_dies, reduce_and_gather

try:
    ray = import_ray()  # as the engine does it: told to be quiet
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")

ROOT = Path(__file__).parents[2]
CLIENT_PORT = 23017


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A node with one CPU and one with two, and this process in the first: engines join it and leave it."""
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", ResourceWarning)
        patch.setenv("PYTHONPATH", str(ROOT))  # who connects from elsewhere has to care for packages; here the tests are one
        running = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 1, "ray_client_server_port": CLIENT_PORT})
        try:
            running.add_node(num_cpus=2, **node)
            ray.init(address=running.address, log_to_driver=False, logging_level=logging.ERROR)
            yield running
        finally:
            ray.shutdown()
            running.shutdown()


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[Any]:
    with started(Ray(workers=2)) as running:
        yield running


@pytest.fixture(scope="module")
def three(cluster: Any) -> Iterator[Any]:
    """As many workers as there are CPUs."""
    with started(Ray()) as running:
        yield running


@contextmanager
def started(options: Ray) -> Iterator[Any]:
    running: Any = options.build()
    try:
        running.start(LEARNER, clients(), MemoryStore())
        yield running
    finally:
        running.stop()


def lose(cluster: Any, node: Any, folder: Path) -> None:
    """Kill a node while it is at work, then let all others through."""
    try:
        if until(lambda: any(path.name.endswith(node.node_id) for path in folder.iterdir()), 60):
            (folder / "lost").touch()
    finally:
        cluster.remove_node(node, allow_graceful=False)
        (folder / "open").touch()


def numbers(results: dict[int, Any]) -> dict[int, int]:
    return {number: int(result.values["n"][0][0]) for number, result in results.items()}


def pids(engine: Any) -> list[int]:
    return [int(result.metrics["pid"][0][0]) for _, result in engine.map(Act(), BLOCKS)]


def test_a_cluster_is_used_from_outside_and_left_running(cluster: Any, tmp_path: Path) -> None:
    """The first of all: Ray's proxy for those outside sometimes fails to fork a server for them once it is minutes old."""
    body = """
    engine = start(address=sys.argv[1])
    assert play(engine, os.path.abspath("once")) == list(range(6)) and os.path.exists("once")
    assert len(engine._seats) == 3
    assert engine.gang(lambda gang: gang.all_gather(gang.rank), 2) == [[0, 1]] * 2
    try:
        engine.gang(lambda gang: gang.rank, 9)
    except InputError as error:
        print(error)
    engine.stop()
    print("over")
    """
    code, lines, errors = run_script(tmp_path, body, f"ray://127.0.0.1:{CLIENT_PORT}")
    assert not errors, errors
    assert code == 0
    assert len(lines) == 2 and "a gang of 9 needs 9 slots" in lines[0] and lines[1] == "over"
    assert len(slots()) == 3


def test_same_bits_with_any_number_of_workers_and_what_was_there_stays(engine: Any, three: Any) -> None:
    with started(Ray(workers=1)) as one:
        for workers, running in ((1, one), (2, engine), (3, three)):
            assert same_as_inline(running)
            assert len(set(pids(running))) <= workers
    assert ray.is_initialized() and ray.get(ray.put(7)) == 7


def test_workers_are_spread_over_the_nodes(three: Any) -> None:
    assert len(slots()) == 3 and slots()[0] != slots()[1]
    list(three.map(Act(), BLOCKS))
    assert {ray.get(seat.holder.__ray_call__.remote(node_of)) for seat in three._seats} == set(slots())


def test_same_bits_when_a_worker_is_killed_in_every_round(engine: Any, tmp_path: Path) -> None:
    """Ray restarts the actor with nothing: data and learner come with the errand that it lacks them for."""
    assert same_as_inline(engine, Deadly(local=ALGORITHM.local, folder=str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 3


def test_same_bits_when_all_workers_are_killed_between_rounds(engine: Any) -> None:
    for pid in set(pids(engine)):
        os.kill(pid, signal.SIGKILL)
    assert same_as_inline(engine)


def test_an_actor_that_ray_will_not_restart_is_replaced(engine: Any) -> None:
    list(engine.map(Act(), BLOCKS))
    for seat in engine._seats:
        ray.kill(seat.holder, no_restart=True)
    assert same_as_inline(engine)


def test_a_block_whose_worker_dies_once_is_done_again(engine: Any, tmp_path: Path) -> None:
    results = dict(engine.map(Act(((1, "kill"), (5, "kill")), once=str(tmp_path / "once")), BLOCKS))
    assert numbers(results) == {number: number for number in range(7)}


def test_a_block_whose_worker_always_dies_is_lost(engine: Any) -> None:
    results = dict(engine.map(Act(((2, "kill"),)), BLOCKS))
    failure = results.pop(2)
    assert isinstance(failure, Failure) and failure.kind == "WorkerLost" and failure.clients == ("client-2",)
    assert "twice" in failure.message
    assert numbers(results) == {number: number for number in (0, 1, 3, 4, 5, 6)}


def test_what_a_client_raises_arrives_with_its_traceback(engine: Any) -> None:
    results = dict(engine.map(Act(((0, "raise"), (4, "unsendable"))), BLOCKS))
    assert results[0].kind == "KeyError" and 'raise KeyError("no such luck")' in results[0].traceback
    assert results[0].clients == ("client-0",)
    assert isinstance(results[4], Failure) and "cannot be sent" in results[4].message


@pytest.mark.parametrize("size", [1, 511, 100_000, 3_000_000])
def test_results_of_any_size_arrive_in_memory_of_their_own(engine: Any, size: int) -> None:
    for number, result in engine.map(Act(size=size), BLOCKS):
        value = result.values["n"]
        assert value.shape == (1, size) and np.all(value == number) and value.flags.writeable and value.flags.aligned


@pytest.mark.parametrize("size", [LARGE // 2, 3 * LARGE])
def test_calls_of_any_size_arrive_also_where_a_worker_dies(engine: Any, tmp_path: Path, size: int) -> None:
    for deeds in ((), ((3, "kill"),)):
        results = dict(engine.map(Act(deeds, once=str(tmp_path / "once"), cargo=bytes(size)), BLOCKS))
        assert numbers(results) == {number: number + size for number in range(7)}


def test_owners_keep_their_clients(engine: Any) -> None:
    """With one block for each worker nothing is left to take, and the same process does the same block every time."""
    halves = blocks_of(range(7), 4)
    seen = [{n: int(result.metrics["pid"][0][0]) for n, result in engine.map(Act(), halves)} for _ in range(4)]
    assert all(each == seen[0] for each in seen) and len(set(seen[0].values())) == 2


def test_ordinary_tasks_run_beside_the_workers(three: Any) -> None:
    """Actors that reserve CPUs would let them wait for ever, silently."""
    list(three.map(Act(), BLOCKS))
    task = ray.remote(num_cpus=1)(lambda: os.getpid())
    assert len(ray.get([task.remote() for _ in range(3)], timeout=60)) == 3


def test_a_map_that_is_left_early_is_over_when_the_next_begins(engine: Any) -> None:
    left = engine.map(Act(size=100_000), BLOCKS)
    next(left)
    assert same_as_inline(engine)
    with pytest.raises(RunFailed, match="given up"):
        list(left)
    left = engine.map(Act(((1, "kill"), (5, "kill"))), BLOCKS)
    next(left)
    left.close()
    assert same_as_inline(engine)


def test_client_state_is_one_for_all_workers(engine: Any) -> None:
    for number in range(1, 4):
        results = dict(engine.map(Count(number), blocks_of(range(7), number)))  # other blocks, so other workers
        assert all(isinstance(result, Update) and np.all(result.values["n"] == number - 1) for result in results.values())
    entry = engine._sender.store.read("client-3", 9)
    assert entry is not None and np.all(entry["n"] == 3)


def load(x: np.ndarray) -> Splits:
    return {"train": Table(x, np.zeros(len(x)))}


def test_recipes_that_cannot_be_sent_are_refused(cluster: Any) -> None:
    other = Ray(workers=1).build()
    lock = threading.Lock()
    with pytest.raises(InputError, match=r"recipe of a client from 'odd' on cannot be sent.*inline"):
        other.start(LEARNER, [Client("odd", lambda: load(np.zeros((lock.locked(), 1))), {}, rows=1)], MemoryStore())
        list(other.map(Act(), blocks_of(range(1), 1)))
    other.stop()


def test_workers_without_the_packages_are_an_error(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    only_here = types.ModuleType("only_here")
    for what in (module.Holder, Act):
        copy = type(what.__name__, (what,), {"__module__": "only_here", "__qualname__": what.__name__})
        setattr(only_here, what.__name__, copy)
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    with pytest.raises(InputError, match=r"cannot read what it was sent.*only_here.*install the same packages"):
        list(engine.map(only_here.Act(), BLOCKS))
    assert same_as_inline(engine)
    monkeypatch.setattr(module, "Holder", only_here.Holder)
    with started(Ray(workers=1)) as other, pytest.raises(InputError, match=r"a worker cannot begin.*install the same packages"):
        list(other.map(Act(), BLOCKS))


def test_a_gang_sums_in_rank_order_in_processes_of_its_own(engine: Any) -> None:
    here, offset = Inline().build().gang(reduce_and_gather, 3), os.getpid()
    # What a notebook defines is sent as it is.
    there = engine.gang(lambda gang: (reduce_and_gather(gang), gang.all_gather(os.getpid() - offset)), 3)
    for one, (other, _) in zip(here, there, strict=True):
        assert np.array_equal(one[0], other[0]) and one[1:] == other[1:] == ([0, 1, 2], {"from": 2}, 3)
    members = [pids for _, pids in there]
    assert members[0] == members[1] == members[2] and len(set(members[0])) == 3
    assert not {offset + pid for pid in members[0]} & set(pids(engine))


def test_a_gang_that_cannot_go_on_is_ended_and_frees_its_slots(engine: Any) -> None:
    with pytest.raises(RunFailed, match="member 1 of 2: its process ended"):
        engine.gang(one_dies, 2)
    assert until(lambda: ray.available_resources().get("CPU") == 3.0)


def test_a_gang_without_its_slots_is_an_error_and_not_a_wait(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_gang, "PATIENCE", 0.5)
    with pytest.raises(InputError, match=r"a gang of 9 needs 9 slots .* and Ray has 3; write engine.workers = 9"):
        engine.gang(reduce_and_gather, 9)
    keeper = ray.remote(num_cpus=1)(module.Holder).remote()
    ray.get(keeper.awake.remote())
    try:
        with pytest.raises(RunFailed, match=r"needs 3 slots .* of the 3 that Ray has 2 are free; end what holds them"):
            engine.gang(reduce_and_gather, 3)
    finally:
        ray.kill(keeper)
    assert until(lambda: ray.available_resources().get("CPU") == 3.0)


def test_a_gang_needs_a_function_that_can_be_sent(engine: Any) -> None:
    lock = threading.Lock()
    with pytest.raises(InputError, match="at the top of a module"):
        engine.gang(lambda gang: lock.locked(), 2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def other_protocol() -> Iterator[int]:
    """The port of a server that is no Ray."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]  # it must not write into the tests' output
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("127.0.0.1:{free}", r"there is no Ray \(.*refused.*start one with `ray start --head`"),
        ("ray://127.0.0.1:{free}", r"there is no Ray \(.*refused.*'ray://host:10001' from elsewhere"),
        ("127.0.0.1:{other}", "speaks another protocol"),
        ("ray://127.0.0.1:{other}", "speaks another protocol"),
        ("ray://head:6379", r"write 'head:6379' or 'ray://head:10001'"),
        ("head:10001", r"write 'head:6379' or 'ray://head:10001'"),
        ("dask://head:8786", "is not the address of a Ray"),
        ("ray://", "is not the address of a Ray"),
        ("head:port", "is not the address of a Ray"),
    ],
)
def test_an_address_without_a_ray_is_an_error_and_not_a_wait(address: str, error: str, other_protocol: int) -> None:
    given = address.format(free=free_port(), other=other_protocol)
    with pytest.raises(InputError, match=f"^engine.address = '{given}': .*{error}"):
        probed(given)


def test_a_ray_that_is_found_and_does_not_answer_is_an_error_and_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", gone := f"127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match=rf"^engine.address = 'auto': Ray finds '{gone}', and there is no Ray \(.*refused"):
        probed("auto")


def test_addresses_of_a_ray(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        assert probed("auto") == cluster.address
    assert probed(cluster.address) == cluster.address
    assert probed(f"ray://127.0.0.1:{CLIENT_PORT}") == f"ray://127.0.0.1:{CLIENT_PORT}"
    assert build("engine", "ray") == Ray() and build("engine", "ray://head:10001") == Ray(address="ray://head:10001")


def test_same_results_when_a_node_is_lost_in_mid_round(cluster: Any, three: Any, tmp_path: Path) -> None:
    """Its processes die with it, and so does what is in its store. The last in this cluster, which is smaller from then on."""
    (doomed,) = cluster.worker_nodes
    killer = threading.Thread(target=lose, args=(cluster, doomed, tmp_path))
    killer.start()
    found = dict(three.map(Gate(str(tmp_path), 200_000), BLOCKS))
    killer.join()
    assert (tmp_path / "lost").exists()
    assert numbers(found) == {number: number for number in range(7)}
    assert same_as_inline(three)


def test_a_missing_extra_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"ray is not installed; write: pip install 'hansa\[ray\]'"), started(Ray()):
        pass


SCRIPT = """
    import os, signal, sys
    import numpy as np
    import psutil
    from hansa.core.blocks import Client, Table, blocks_of
    from hansa.core.errors import InputError, RunFailed
    from hansa.core.store import MemoryStore
    from hansa.core.updates import Update
    from hansa.engines.ray import Ray
    from hansa.learners.mlp import MLP

    BLOCKS = blocks_of(range(6), 1)

    def load():
        return {"train": Table(np.zeros((2, 2)), np.zeros(2, int))}

    class Call:
        def __init__(self, once=""):
            self.once = once

        def __call__(self, worker, block):
            print("at work")
            if self.once and block.number == 3 and not os.path.exists(self.once):
                open(self.once, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return Update({"n": np.full((1, 100_000), block.number)}, np.ones(1))

    def start(**options):
        engine = Ray(**options).build()
        engine.start(MLP(), [Client(str(k), load, rows=2) for k in range(6)], MemoryStore())
        return engine

    def play(engine, once=""):
        return sorted(int(update.values["n"][0][0]) for _, update in engine.map(Call(once), BLOCKS))

    def ray_processes():
        return psutil.Process().children(recursive=True)

    def told():
        agents = [process.pid for process in ray_processes() if "Agent" in " ".join(process.cmdline())]
        print("agents", *agents)
        print("processes", *[process.pid for process in ray_processes() if process.pid not in agents], flush=True)
"""


def run_script(folder: Path, body: str, *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines and errors of a script; all processes that it told of must end."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT + body))
    ended = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=240, cwd=folder)
    told = {line.split()[0]: [int(word) for word in line.split()[1:]] for line in ended.stdout.splitlines() if line[:5] in TOLD}
    if ended.returncode < 0:
        for agent in told["agents"]:  # they look only once a minute whether their node is still there
            psutil.Process(agent).kill()
    assert until(lambda: not any(alive(pid) for pids in told.values() for pid in pids)), ended
    return ended.returncode, [line for line in ended.stdout.splitlines() if line[:5] not in TOLD], ended.stderr


TOLD = ("agent", "proce")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


SERVER = """
import sys
import ray
ray.__version__ = "1.0.0"
from ray.util.client.server.server import serve
server = serve("127.0.0.1", int(sys.argv[1]), lambda job_config=None, **options: None)
print("serves", flush=True)
sys.stdin.read()
"""


def test_a_cluster_of_another_version_is_an_error_and_a_ray_of_ones_own_lasts_until_the_last_engine_stops(tmp_path: Path) -> None:
    body = """
    before = signal.getsignal(signal.SIGTERM)
    try:
        start(address=sys.argv[1])
    except InputError as error:
        print(error)
    one, other = start(workers=2), start()
    assert play(one) == play(other) == list(range(6))
    assert len({seat.node for seat in other._seats}) == 1 and len(other._seats) == 2
    one.stop()
    assert play(other, os.path.abspath("once")) == list(range(6)) and os.path.exists("once")
    assert other.gang(lambda gang: gang.all_gather(gang.rank), 2) == [[0, 1]] * 2
    told()
    assert len(ray_processes()) > 3
    other.stop()
    other.stop()
    assert not [process for process in ray_processes() if process.status() != psutil.STATUS_ZOMBIE]
    assert signal.getsignal(signal.SIGTERM) is before
    print("over")
    """
    port, pipe = free_port(), subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == "serves\n"
            code, lines, errors = run_script(tmp_path, body, f"ray://127.0.0.1:{port}")
        finally:
            server.kill()
    assert not errors, errors
    assert code == 0
    said, last = lines
    assert last == "over"
    assert said.startswith(f"engine.address = 'ray://127.0.0.1:{port}': no Ray can be used there")
    assert "1.0.0" in said and f"of Ray {ray.__version__}" in said


def test_all_processes_end_when_the_driver_is_killed(tmp_path: Path) -> None:
    body = """
    engine = start(workers=1)
    play(engine)
    told()
    os.kill(os.getpid(), signal.SIGKILL)
    """
    code, lines, errors = run_script(tmp_path, body)
    assert code == -signal.SIGKILL and not lines and not errors


def test_a_ray_of_ones_own_that_loses_a_process_it_cannot_be_without_ends_the_run_in_a_sentence(tmp_path: Path) -> None:
    body = """
    engine = start(workers=1)
    play(engine)
    told()
    for process in ray_processes():
        if process.name() == "raylet":
            process.kill()
    try:
        play(engine)
    except RunFailed as error:
        print("failed", error)
    engine.stop()
    """
    code, lines, _ = run_script(tmp_path, body)
    told = "engine ray: the raylet of the Ray on this machine was killed by signal 9; the run can be resumed with another Ray"
    assert code == 0 and lines == [f"failed {told}"]
