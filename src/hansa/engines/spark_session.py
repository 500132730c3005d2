"""The Spark that an engine works on: found in this process, started here, or reached at an address; and ended if it was started.

A Spark of one's own has no web page and says nothing: what the Java process writes goes to a file that is gone with it, and the end
of that file is shown where Spark does not start.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

from hansa.core.errors import InputError, RunFailed, missing_extra
from hansa.engines.machine import cores, environment

DIAL = 3.0
"""Seconds within which a master or a Connect server must answer."""

PATIENCE = 60.0
"""Seconds within which a cluster must have a worker for this process."""

LEAVE = 10.0
"""Seconds that a Java process is given to end."""

LOCAL = re.compile(r"local(-cluster)?(\[.*\])?")
MASTERS = ("spark://", "sc://", "k8s://", "local")
"""How an address begins that Spark takes for a master, or Spark Connect for a server; beside "yarn"."""

ONCE = re.compile(r"local(\[[^,\]]*\])?")


@dataclass(frozen=True)
class Cluster:
    """A Spark: its context, or for Spark Connect, which has none, its session; and what is to be done when it is needed no more."""

    context: Any
    session: Any
    end: Callable[[], None]

    def frames(self) -> Any:
        """The session, made over the context where there is none."""
        with tolerant():
            from pyspark.sql import SparkSession

            return self.session or SparkSession.getActiveSession() or SparkSession(self.context)

    def tries(self) -> int:
        """How often a task may be tried before its job is given up."""
        conf = self.context.getConf() if self.context is not None else self.session.conf
        master = conf.get("spark.master", "")
        if ONCE.fullmatch(master):
            return 1
        local = re.fullmatch(r"local\[[^,\]]+,\s*(\d+)\]", master)  # where the general setting does not count
        return int(local[1]) if local else int(conf.get("spark.task.maxFailures", "4"))

    def slots(self) -> int:
        """How many tasks can run at once."""
        if self.context is not None:
            jvm = self.context._jsc.sc()
            return int(jvm.maxNumConcurrentTasks(jvm.resourceProfileManager().defaultResourceProfile()))
        return int(self.session.range(2**14).selectExpr("spark_partition_id()").distinct().count())

    def wait_for_slots(self) -> None:
        """Return when there is a slot, or when slots come only with work. RunFailed where none comes."""
        if self.context is None or self.context.getConf().get("spark.dynamicAllocation.enabled", "false") == "true":
            return
        until = time.monotonic() + PATIENCE
        while not self.slots():
            if time.monotonic() > until:
                raise RunFailed(
                    f"engine spark: {self.context.master} has given no worker within {PATIENCE:.0f} seconds; "
                    "see that it has workers with free cores and memory"
                )
            time.sleep(0.1)

    def host(self) -> str:
        """A name or number of this machine that the workers can dial."""
        if self.context is not None:
            return str(self.context.getConf().get("spark.driver.host"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
            probe.connect((self.session.client.host, 9))
            return str(probe.getsockname()[0])

    def idle(self) -> bool:
        """Whether no task runs; False where one cannot know."""
        if self.context is None:
            return False
        tracker = self.context.statusTracker()
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        return not any(stage is not None and stage.numActiveTasks for stage in stages)

    @contextmanager
    def tagged(self, tag: str) -> Iterator[None]:
        """Jobs that are started in it, by this thread, can be cancelled by their tag."""
        sc, session = self.context, self.session
        add, remove = (session.addTag, session.removeTag) if sc is None else (sc.addJobTag, sc.removeJobTag)
        add(tag)
        try:
            yield
        finally:
            remove(tag)

    def cancel(self, tag: str) -> None:
        """End the jobs of a tag, from any thread."""
        (self.context.cancelJobsWithTag if self.context is not None else self.session.interruptTag)(tag)


def open_spark(address: str, workers: int) -> Cluster:
    """The Spark at an address, or where none is given the one of this process, or else a new one on this machine.

    Raises InputError for an address where nobody answers and for what is not installed, RunFailed where Spark does not start.
    """
    try:
        with tolerant():
            from pyspark import SparkContext
    except ImportError as error:
        raise missing_extra("pyspark", "spark") from error
    if address.startswith("sc://"):
        return _connected(address)
    if address and address != "yarn" and not address.startswith(MASTERS):
        raise InputError(
            f"engine.address = {address!r}: is not the address of a Spark (write 'spark://host:7077', 'sc://host:15002', 'yarn', "
            "'k8s://host:6443' or 'local[2,4]')"
        )
    if ONCE.fullmatch(address):
        raise InputError(
            f"engine.address = {address!r}: lets no task fail, so that the first worker that is lost ends the run "
            "(write engine.workers = 2 without an address, or address = 'local[2,4]' where a task may fail three times)"
        )
    active = SparkContext._active_spark_context
    if active is not None:
        if address not in ("", active.master):
            raise InputError(
                f"engine.address = {address!r}: this process has a Spark at {active.master} already, and can have only one "
                "(stop that, or leave the address out)"
            )
        return Cluster(active, None, _leave_it)
    remote = sys.modules.get("pyspark.sql.connect.session")  # not imported: whoever has such a session has imported it
    session = remote.SparkSession.getActiveSession() if remote is not None and not address else None
    return Cluster(None, session, _leave_it) if session is not None else _started(address, workers)


def _leave_it() -> None:
    """What this engine has not started it does not end."""


# A Spark of one's own


def _started(address: str, workers: int) -> Cluster:
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway

    _find_java()
    if address.startswith("spark://"):
        _dial(address, "Spark master", address.removeprefix("spark://").split(","))
    conf = SparkConf(loadDefaults=False)
    for key, value in _settings(address or f"local[{workers or cores()},4]", workers).items():
        conf.set(key, value)
    before, gateway = signal.getsignal(signal.SIGINT), None
    log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed by _end
    try:
        with tolerant(), environment({"PYSPARK_PYTHON": os.environ.get("PYSPARK_PYTHON") or sys.executable}):
            if SparkContext._gateway is None:
                gateway = launch_gateway(conf, {"stdout": log, "stderr": log})
            context = SparkContext(conf=conf, gateway=gateway)
    except Exception as error:
        why = _last_words(log) or said(error)
        _end(None, gateway, log, before)
        raise RunFailed(f"engine spark: Spark does not start at {conf.get('spark.master')!r} ({why})") from error
    end = partial(_end, context, gateway, log, before)
    atexit.register(end)
    return Cluster(context, None, end)


def _settings(master: str, workers: int) -> dict[str, str]:
    import psutil

    settings = {
        "spark.master": master,
        "spark.app.name": "hansa",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.driver.memory": f"{max(1024, psutil.virtual_memory().total // 4 // 2**20)}m",  # results of a round pass through it
        "spark.driver.maxResultSize": "0",
        # A gang that does not fit is refused before it is begun; should slots go in between, Spark would wait ten silent minutes.
        "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "1s",
        "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "5",
    }
    if LOCAL.fullmatch(master):
        settings |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            # The workers of this machine import what this process can.
            "spark.executorEnv.PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        cluster = re.fullmatch(r"local-cluster\[[^,]+,[^,]+,\s*(\d+)\s*\]", master)
        if cluster:
            settings["spark.executor.memory"] = f"{cluster[1]}m"
    elif workers:
        settings["spark.cores.max"] = str(workers)
    return settings


def _end(context: Any, gateway: Any, log: TextIO, before: Any) -> None:
    """Stop a context and the Java process under it, and put back the answer to Ctrl-C that Spark replaced; once."""
    from pyspark import SparkContext

    if log.closed:
        return
    if context is not None:
        context.stop()
    if gateway is not None:
        gateway.shutdown()
        SparkContext._gateway = SparkContext._jvm = None
        gateway.proc.stdin.close()  # the sign for it to go
        try:
            gateway.proc.wait(LEAVE)
        except subprocess.TimeoutExpired:
            gateway.proc.kill()
            gateway.proc.wait()
    log.close()
    signal.signal(signal.SIGINT, before)


def _find_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if shutil.which(os.path.join(home, "bin", "java") if home else "java") is None:
        where = f"JAVA_HOME = {home!r} has no bin/java" if home else "there is no java on the PATH, and JAVA_HOME is not set"
        raise InputError(
            f"engine spark: {where}; install Java 17 or later (apt install openjdk-17-jre-headless, brew install openjdk@17)"
        )


def _last_words(log: TextIO) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.readlines()[-200:] if re.search(r"error|exception|giving up", line, re.IGNORECASE)]
    return lines[-1][:300] if lines else ""


# Spark Connect


def _connected(address: str) -> Cluster:
    _dial(address, "Spark Connect server", [address.removeprefix("sc://").split("/")[0].rpartition("@")[2]], port=15002)
    with tolerant():
        try:
            from pyspark.sql.connect.session import SparkSession
        except ImportError as error:
            raise InputError(
                f"engine.address = {address!r}: Spark Connect needs packages that are not installed; "
                "write: pip install 'pyspark[connect]'"
            ) from error
        try:
            session = SparkSession.builder.remote(address).create()
        except Exception as error:
            raise RunFailed(f"engine spark: no session at {address} ({said(error)})") from error
    return Cluster(None, session, session.stop)


@contextmanager
def tolerant() -> Iterator[None]:
    """Without the warning by which PySpark greets a pandas that is newer than itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
        yield


# Both


def _dial(address: str, what: str, places: list[str], port: int = 7077) -> None:
    """InputError unless something listens at one of the places; Spark itself would try for minutes."""
    why: OSError | ValueError | None = None
    for place in places:
        host, _, given = place.rpartition(":") if ":" in place else (place, "", str(port))
        try:
            socket.create_connection((host.strip("[]"), int(given)), DIAL).close()
            return
        except (OSError, ValueError) as error:
            why = error
    raise InputError(f"engine spark: no {what} answers at {address} ({why}); see that it runs, and the port")


def said(error: BaseException) -> str:
    """What an error of Spark says, in one line, without the stack traces of two languages."""
    java = getattr(error, "java_exception", None)
    text = str(java.getMessage() if java is not None else error)
    python = re.findall(r"^(\w[\w.]*(?:Error|Exception|Failed)): (.+)$", text, re.MULTILINE)
    if "Traceback (most recent call last)" in text and python:
        return ": ".join(python[-1])[:300]
    cause = re.search(r"most recent failure: (?:Lost task \S+ in stage \S+ \(TID \d+\) \([^)]*\): )?(.*)", text)
    line = (cause[1] if cause else text).strip().splitlines()[0] if text.strip() else type(error).__name__
    return line.removeprefix("org.apache.spark.").strip()[:300]
