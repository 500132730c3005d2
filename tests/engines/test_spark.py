"""Spark: the same bits on either path, whatever dies; recipes loaded where they are used; errors that name what is missing."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from hansa.algorithms.fedavg import FedAvg
from hansa.core.blocks import Client, blocks_of
from hansa.core.contracts import Engine, Schema
from hansa.core.errors import InputError, RunFailed
from hansa.core.local import Local
from hansa.core.loop import Terms, play_round
from hansa.core.params import Params
from hansa.core.store import MemoryStore
from hansa.core.updates import Failure
from hansa.data.parts_frames import from_partitions
from hansa.engines.inline import Inline
from hansa.engines.spark import Spark
from hansa.learners.mlp import MLP
from hansa.options import build
from tests.engines.spark_deeds import Act, Deadly, Frozen, Member, Unreadable, load, sum_of_ranks

pytestmark = pytest.mark.usefixtures("spark")

SCHEMA = Schema(shape=(64,), classes=tuple(range(10)), rows=1500)
CLIENTS = 10
BLOCKS = blocks_of(range(CLIENTS), 2)
ALGORITHM = FedAvg(local=Local(batch_size=16))
PATIENT = 240
"""Seconds that a script with a Spark of its own may take on a busy machine."""


@cache
def recipes(ballast: int = 0, log: str = "") -> list[Client]:
    """Ragged clients whose rows travel with their recipes, which ballast makes larger."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    made = []
    for k in range(CLIENTS):
        cut = slice(130 * k, 130 * k + 60 + 7 * k)
        arguments = {"x": x[cut] / 16, "y": y[cut], "ballast": os.urandom(ballast), "log": log, "name": f"c{k}"}
        made.append(Client(f"c{k}", load, arguments, rows=60 + 7 * k))
    return made


def rounds(engine: Engine, count: int = 3, algorithm: FedAvg = ALGORITHM) -> Params:
    learner = MLP(hidden=(24,)).bind(SCHEMA)
    state = algorithm.init(learner.init(0), learner.kinds())
    for number in range(1, count + 1):
        state = play_round(
            state,
            algorithm=algorithm,
            engine=engine,
            blocks=BLOCKS,
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


@pytest.fixture(scope="module", params=["rdd", "dataframe"])
def engine(request: Any, spark: Any) -> Iterator[Any]:
    running = Spark(workers=2, path=request.param).build()
    running.start(MLP(hidden=(24,)), recipes(), MemoryStore())
    yield running
    running.stop()


def numbers(results: dict[int, Any]) -> dict[int, int]:
    return {number: int(result.values["n"][0, 0]) for number, result in results.items()}


@pytest.mark.parametrize("workers", [1, 3])
def test_same_bits_with_any_number_of_tasks(spark: Any, workers: int) -> None:
    engine = Spark(workers=workers).build()
    engine.start(MLP(hidden=(24,)), recipes(), MemoryStore())
    try:
        assert same(rounds(engine), expected())
    finally:
        engine.stop()


def test_same_bits_on_either_path(engine: Any) -> None:
    assert same(rounds(engine), expected())


def test_same_bits_after_a_worker_is_killed_in_mid_round(engine: Any, tmp_path: Path) -> None:
    algorithm = Deadly(local=ALGORITHM.local, once=str(tmp_path / "once"))
    assert same(rounds(engine, algorithm=algorithm), expected())
    assert (tmp_path / "once").exists()


def test_a_block_whose_worker_dies_once_is_done_again(engine: Any, tmp_path: Path) -> None:
    results = dict(engine.map(Act(((1, "kill"), (3, "kill")), once=str(tmp_path / "once")), BLOCKS))
    assert numbers(results) == {number: number for number in range(5)}


def test_a_block_whose_worker_always_dies_is_lost_and_takes_no_other_with_it(engine: Any) -> None:
    results = dict(engine.map(Act(((2, "kill"),)), BLOCKS))
    failure = results.pop(2)
    assert isinstance(failure, Failure) and failure.kind == "WorkerLost" and failure.clients == ("c4", "c5")
    assert numbers(results) == {number: number for number in (0, 1, 3, 4)}


def test_what_a_client_raises_arrives_with_its_traceback(engine: Any) -> None:
    results = dict(engine.map(Act(((0, "raise"), (4, "unsendable"))), BLOCKS))
    assert results[0].kind == "KeyError" and 'raise KeyError("no such luck")' in results[0].traceback
    assert isinstance(results[4], Failure) and "cannot be sent" in results[4].message


def test_data_is_loaded_where_it_is_used_and_stays_there(spark: Any, tmp_path: Path) -> None:
    log = tmp_path / "loads"
    engine = Spark(workers=3).build()
    engine.start(MLP(hidden=(24,)), recipes(log=str(log)), MemoryStore())
    try:
        assert same(rounds(engine, 6), rounds_inline(6))
    finally:
        engine.stop()
    loads = log.read_text().split("\n")[:-1]
    assert {line.split()[1] for line in loads} == {f"c{k}" for k in range(CLIENTS)}
    assert str(os.getpid()) not in {line.split()[0] for line in loads}
    assert len(loads) == len(set(loads))  # no process loads a client twice


def rounds_inline(count: int) -> Params:
    engine = Inline().build()
    engine.start(MLP(hidden=(24,)), recipes(), MemoryStore())
    return rounds(engine, count)


def test_large_recipes_and_messages_arrive_and_are_taken_back(spark: Any, engine: Any) -> None:
    folder = spark.context._temp_dir
    before = set(os.listdir(folder))
    other = Spark(workers=2, path=engine.path).build()
    other.start(MLP(hidden=(24,)), recipes(ballast=300_000), MemoryStore())
    try:
        assert same(rounds(other), expected())
        for size in (400_000, 0):
            results = dict(other.map(Act(ballast=bytes(size)), BLOCKS))
            assert all(result.values["n"].tolist() == [[number, size]] for number, result in results.items())
    finally:
        other.stop()
    if engine.path == "rdd":
        assert set(os.listdir(folder)) == before


def test_a_data_frame_is_written_where_workers_read_it(spark: Any, tmp_path: Path) -> None:
    columns = ("id AS n", "IF(id % 3 = 0, 'a', 'b') AS `t.u`", "id % 2 = 0 AS y", "current_timestamp() AS w")
    frame = spark.frames().range(0, 90, 1, 3).selectExpr(*columns)
    with pytest.raises(InputError, match="an executor of Spark cannot read a data frame of its driver"):
        from_partitions(frame, "y")
    written = from_partitions(frame, "y", drop=("w",), scratch=str(tmp_path / "table"))
    assert written.path == str(tmp_path / "table" / "*.parquet")
    source = pickle.loads(pickle.dumps(written))  # noqa: S301  # its own: nothing of Spark is in it, which could not be pickled
    tables = [source.table(k, 0) for k in range(len(source.ids))]
    x = pd.concat([table.x for table in tables], ignore_index=True)
    assert list(x.columns) == ["n", "t.u"]
    assert x["n"].tolist() == [float(k) for k in range(90)]
    assert x["t.u"].tolist() == ["a" if k % 3 == 0 else "b" for k in range(90)]
    assert np.concatenate([table.y for table in tables]).tolist() == [int(k % 2 == 0) for k in range(90)]


def test_rounds_are_not_slowed_by_the_garbage_collector(engine: Any) -> None:
    # Spark collects after every task; what a worker has imported must not be looked through each time.
    list(engine.map(Frozen(), BLOCKS))
    results = dict(engine.map(Frozen(), BLOCKS))
    for result in results.values():
        frozen, looked_through = result.values["n"][0]
        assert frozen > 5 * looked_through > 0


def test_what_cannot_be_read_at_a_worker_is_said(engine: Any) -> None:
    with pytest.raises(InputError, match=r"engine spark: a worker cannot read what it was sent \(ValueError: not here"):
        list(engine.map(Unreadable(), BLOCKS))


# Gangs


def test_a_gang_that_loses_a_member_ends_with_one_sentence_and_is_not_tried_again(engine: Any, tmp_path: Path) -> None:
    # Spark cannot try a barrier stage again whose results are collected, and says so on two hundred lines.
    with pytest.raises(RunFailed, match=r"^gang member 1 of 2: its process ended before it was done$"):
        engine.gang(Member(str(tmp_path / "log")), 2)
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1"]
    assert same(rounds(engine), expected())


def test_a_gang_sums_in_rank_order_in_processes_of_its_own(engine: Any) -> None:
    here, there = Inline().build().gang(sum_of_ranks, 3), engine.gang(sum_of_ranks, 3)
    assert [total for total, _ in here] == [total for total, _ in there]
    assert len({pid for _, pid in there}) == 1 and there[0][1] != os.getpid()


def test_a_gang_without_enough_slots_is_refused_at_once(engine: Any) -> None:
    # Spark itself waits ten silent minutes for the missing slot.
    with pytest.raises(InputError, match=r"a gang of 4 members needs 4 slots at once, and there are 3 \(write engine.workers = 4"):
        engine.gang(sum_of_ranks, 4)


# Addresses


def test_a_job_names_spark_by_its_address() -> None:
    assert build("engine", "spark://host:7077") == Spark(address="spark://host:7077")
    assert build("engine", {"name": "spark", "workers": 2, "path": "dataframe"}) == Spark(workers=2, path="dataframe")
    with pytest.raises(InputError, match=r"engine.path = 'files'"):
        build("engine", {"name": "spark", "path": "files"})


def start(engine: Spark) -> None:
    engine.build().start(MLP(), recipes(), MemoryStore())


@pytest.mark.parametrize("master", ["local", "local[2]", "local[*]"])
def test_a_master_that_lets_no_task_fail_is_refused(master: str) -> None:
    with pytest.raises(InputError, match=r"lets no task fail.*local\[2,4\]"):
        start(Spark(address=master))


@pytest.mark.parametrize("address", ["spak://host:7077", "host:7077", "dask://host:8786"])
def test_what_is_no_address_of_a_spark_is_refused(address: str) -> None:
    with pytest.raises(
        InputError, match=rf"^engine.address = '{address}': is not the address of a Spark \(write 'spark://host:7077'"
    ):
        start(Spark(address=address))


def test_a_second_spark_in_a_process_is_refused() -> None:
    with pytest.raises(InputError, match=r"this process has a Spark at local\[3,4\] already"):
        start(Spark(address="local[2,4]"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def alone(monkeypatch: Any) -> None:
    """As in a process that has no Spark yet."""
    from pyspark import SparkContext

    monkeypatch.setattr(SparkContext, "_active_spark_context", None)


@pytest.mark.usefixtures("alone")
def test_nobody_at_the_address_is_said_at_once() -> None:
    port = free_port()
    with pytest.raises(InputError, match=rf"no Spark master answers at spark://127.0.0.1:{port} \(.*refused"):
        start(Spark(address=f"spark://127.0.0.1:{port}"))
    with pytest.raises(InputError, match=rf"no Spark Connect server answers at sc://127.0.0.1:{port} \(.*refused"):
        start(Spark(address=f"sc://127.0.0.1:{port}"))


@pytest.mark.usefixtures("alone")
def test_a_missing_java_is_said_with_how_to_install_it(monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(InputError, match=r"there is no java on the PATH, and JAVA_HOME is not set; install Java 17"):
        start(Spark())
    monkeypatch.setenv("JAVA_HOME", "/nonexistent")
    with pytest.raises(InputError, match=r"JAVA_HOME = '/nonexistent' has no bin/java; install Java 17"):
        start(Spark())


def test_a_missing_extra_is_said(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(InputError, match=r"pyspark is not installed; write: pip install 'hansa\[spark\]'"):
        start(Spark())


# With a Spark of their own


def run_script(folder: Path, body: str) -> str:
    """What a script prints. It must end well, say nothing else, and leave no Java process."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT) + textwrap.dedent(body))
    environment = {**os.environ, "PYTHONWARNINGS": "error", "SPARK_LOCAL_DIRS": str(folder)}  # what is killed leaves files there
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, script], stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder) as process:
        try:
            output, errors = process.communicate(timeout=PATIENT)
        except subprocess.TimeoutExpired:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
            raise
    assert (process.returncode, errors) == (0, ""), errors
    pids = [int(line.split()[1]) for line in output.splitlines() if line.startswith("java ")]
    until = time.monotonic() + 20  # it ends by itself when its parent is gone
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, pids))
    return "\n".join(line for line in output.splitlines() if not line.startswith("java "))


SCRIPT = """
    import os, signal, sys
    import psutil
    from pyspark import SparkContext
    from tests.engines.test_spark import *
    import hansa.engines.spark_jobs as jobs, hansa.engines.spark_session as session

    def begin(**options):
        engine = Spark(**options).build()
        engine.start(MLP(hidden=(24,)), recipes(), MemoryStore())
        if SparkContext._gateway.proc is not None:
            print("java", SparkContext._gateway.proc.pid)
        return engine
"""


def test_a_spark_that_was_started_is_quiet_and_ends_with_the_engine_and_one_that_was_found_stays(tmp_path: Path) -> None:
    body = """
        before = signal.getsignal(signal.SIGINT), dict(os.environ).get("PYSPARK_PYTHON")
        engine = begin(workers=2)
        print(same(rounds(engine), expected()))
        engine.stop()
        print(SparkContext._active_spark_context, SparkContext._gateway, [p for p in psutil.Process().children(recursive=True)])
        print(before == (signal.getsignal(signal.SIGINT), os.environ.get("PYSPARK_PYTHON")))

        os.environ["PYSPARK_PYTHON"] = sys.executable
        # One failure ends a job here: a user's own session, as pyspark makes it.
        with open(os.devnull) as null:
            keep = os.dup(2)
            os.dup2(os.open("spark.log", os.O_CREAT | os.O_WRONLY), 2)
            context = SparkContext("local[2]", conf=None)
            context.setLogLevel("OFF")
        engine = begin()
        print(same(rounds(engine), expected()))
        try:
            list(engine.map(Act(((1, "kill"),)), BLOCKS))
        except RunFailed as error:
            print(error)
        print(same(rounds(engine), expected()))
        engine.stop()
        print(context.parallelize([1, 2], 2).sum())
        os.dup2(keep, 2)
        os.kill(SparkContext._gateway.proc.pid, 0)  # the process goes when this one does
    """
    lines = run_script(tmp_path, body).splitlines()
    assert lines[:4] == ["True", "None None []", "True", "True"]
    assert (
        lines[4].startswith("engine spark: a task failed (") and "make its master 'local[2,4]' in place of 'local[2]'" in lines[4]
    )
    assert lines[5:] == ["True", "3"]


def test_same_bits_after_an_executor_is_killed_in_mid_round(tmp_path: Path) -> None:
    body = """
        def executors():
            below = psutil.Process(SparkContext._gateway.proc.pid).children(recursive=True)
            return {p.pid for p in below if p.status() != psutil.STATUS_ZOMBIE and p.name() == "java"}

        engine = begin(address="local-cluster[2,1,700]")
        application = engine._cluster.context.applicationId
        try:
            first = executors()
            algorithm = Deadly(local=ALGORITHM.local, once=os.path.abspath("once"), executor=True)
            print(same(rounds(engine, algorithm=algorithm), expected()), os.path.exists("once"), len(first), len(first - executors()))
        finally:
            engine.stop()
            import pathlib, pyspark, shutil
            work = pathlib.Path(pyspark.__file__).parent / "work"  # where Spark leaves what its workers wrote
            shutil.rmtree(work / application)
            if not any(work.iterdir()):
                work.rmdir()
    """
    assert run_script(tmp_path, body) == "True True 2 1"


def spark_process(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A server of Spark's own, as its scripts start it."""
    import pyspark

    environment = {
        **os.environ,
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(log.parent),
    }
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [str(Path(pyspark.__file__).parent / "bin" / arguments[0]), *arguments[1:]]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=log.parent)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENT
    while process.poll() is None and time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


def end(process: subprocess.Popen[bytes]) -> None:
    """As a user ends it, so that it removes its files; by force where it does not go."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(below, 5)
    for child in left:
        child.kill()


def test_a_standalone_cluster_and_one_without_workers_and_one_that_loses_all(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "master.log"
    master_class, worker_class = ("org.apache.spark.deploy.master.Master", "org.apache.spark.deploy.worker.Worker")
    master = spark_process(log, "spark-class", master_class, "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")
    address, servers = f"spark://127.0.0.1:{port}", [master]
    try:
        wait_for_port(port, master, log)
        body = f"""
            session.PATIENCE = 1.0
            try:
                begin(address={address!r})
            except RunFailed as error:
                print(error)
            print(SparkContext._gateway)
        """
        lines = run_script(tmp_path, body).splitlines()
        assert (
            lines[0]
            == f"engine spark: {address} has given no worker within 1 seconds; see that it has workers with free cores and memory"
        )
        assert lines[1] == "None"
        worker = ("--cores", "2", "--memory", "1g", "--webui-port", "0", "--work-dir", str(tmp_path / "work"), address)
        servers.append(spark_process(tmp_path / "worker.log", "spark-class", worker_class, "--host", "127.0.0.1", *worker))
        body = f"""
            engine = begin(address={address!r})
            print(engine._cluster.slots(), same(rounds(engine), expected()))
            print(engine.gang(sum_of_ranks, 2)[0][0] == Inline().build().gang(sum_of_ranks, 2)[0][0])
            worker = psutil.Process({servers[1].pid})
            for process in [worker, *worker.children(recursive=True)]:
                process.kill()
            jobs.PATIENCE = jobs.IDLE = 1.0
            try:
                list(engine.map(Act(), BLOCKS))
            except RunFailed as error:
                print(error)
            engine.stop()
        """
        lines = run_script(tmp_path, body).splitlines()
        assert lines[:2] == ["2 True", "True"] and lines[2].startswith("engine spark: no worker has taken a task for 1 seconds")
    finally:
        for server in servers:
            end(server)


@pytest.fixture(scope="module")
def connect(tmp_path_factory: Any) -> Iterator[str]:
    """The address of a Spark Connect server."""
    for package in ("grpc", "grpc_status", "google.rpc"):
        pytest.importorskip(package, reason="the packages of Spark Connect are not installed")
    port, log = free_port(), tmp_path_factory.mktemp("connect") / "log"
    settings = {
        "spark.ui.enabled": "false",
        "spark.connect.grpc.binding.port": port,
        "spark.connect.grpc.binding.address": "127.0.0.1",
    }
    options = [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
    server_class = "org.apache.spark.sql.connect.service.SparkConnectServer"
    server = spark_process(log, "spark-submit", "--master", "local[2,4]", *options, "--class", server_class, "spark-internal")
    try:
        wait_for_port(port, server, log)
        yield f"sc://127.0.0.1:{port}"
    finally:
        end(server)


def test_spark_connect(connect: str, tmp_path: Path) -> None:
    engine = Spark(address=connect).build()
    engine.start(MLP(hidden=(24,)), recipes(), MemoryStore())
    try:
        algorithm = Deadly(local=ALGORITHM.local, once=str(tmp_path / "once"))
        assert same(rounds(engine, algorithm=algorithm), expected()) and (tmp_path / "once").exists()
        failure = dict(engine.map(Act(((2, "kill"),)), BLOCKS))[2]
        assert isinstance(failure, Failure) and failure.kind == "WorkerLost"
        assert engine.gang(sum_of_ranks, 2)[0][0] == Inline().build().gang(sum_of_ranks, 2)[0][0]
        with pytest.raises(InputError, match="a gang of 3 members needs 3 slots at once, and there are 2"):
            engine.gang(sum_of_ranks, 3)
    finally:
        engine.stop()
    with pytest.raises(InputError, match="Spark Connect has no SparkContext"):
        start(Spark(address=connect, path="rdd"))
