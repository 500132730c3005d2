"""A Dask cluster as the engine uses it: started here or connected to, and asked whether it can do the work, within seconds."""

from __future__ import annotations

import logging
import multiprocessing
import platform
import re
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from hansa.core.errors import InputError, RunFailed, missing_extra
from hansa.engines.machine import refuse_unimportable

PORT = 8786
"""Of a Dask scheduler that was given no other."""

TIMEOUT = 10.0
"""Seconds that a scheduler has to answer, and to name a worker."""

REPLACEMENT = 30.0
"""Seconds after which a worker of a cluster on this machine that has died is there again, or will not be."""

PAUSE = 0.001
"""Seconds between two messages to the scheduler. Dask's own are 10 ms, most of a round: a message that follows another, and be that only
to say that the last round's tasks are not needed any more, waits so long."""

FRESH = 1.0
"""Seconds for which an answer about the workers is used again: to ask takes a good part of a round."""

GUARD = "a script that starts a cluster is imported again by each worker, so write its own calls under\nif __name__ == '__main__':"


@dataclass
class Cluster:
    """client: this process's connection. local: the cluster, where it was started here and so ends with the connection."""

    client: Any
    local: Any
    _closing: ExitStack = field(repr=False)
    _known: set[str] = field(default_factory=set, init=False)
    _until: float = field(default=0.0, init=False)

    def workers(self) -> set[str]:
        """The addresses of the workers that are there now. RunFailed where the scheduler is lost."""
        if self.client.status != "running":  # it may come back, but what it was told is lost
            raise self.lost()
        try:
            found = set(self.client.nthreads())
            if self.local is not None and len(found) < len(self.local.worker_spec):
                # A nanny replaces a worker that dies, but not one that dies again before it has settled: then its place is empty.
                self.local.scale(len(self.local.worker_spec))
        except Exception as error:
            raise self.lost() from error
        self._known, self._until = found, time.monotonic() + FRESH
        return found

    def workers_lately(self) -> set[str]:
        """As :meth:`workers`, as it was told within the last second, unless it was doubted since."""
        if self.client.status == "running" and time.monotonic() < self._until:
            return self._known
        return self.workers()

    def doubt(self) -> None:
        """Something happened that may be because workers came or went."""
        self._until = 0.0

    def awaited(self, count: int) -> set[str]:
        """The workers; where there are fewer than asked for, those that are about to be replaced here are waited for."""
        until = time.monotonic() + REPLACEMENT
        size = 0 if self.local is None else len(self.local.worker_spec)
        while len(found := self.workers()) < count <= size and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def lost(self) -> RunFailed:
        return RunFailed(
            f"engine dask: the scheduler at {self.client.scheduler.address} is lost, or was told to drop this run's tasks; "
            "the run can be resumed when one is there again"
        )

    def close(self) -> None:
        self._closing.close()


def connect(address: str, workers: int) -> Cluster:
    """The cluster whose scheduler is at ``address``, or one of so many worker processes on this machine.

    Raises InputError where no scheduler answers, where it has no workers, and where these have other versions than this process;
    RunFailed when workers cannot be started here.
    """
    try:
        import distributed
    except ImportError as error:
        raise missing_extra("dask", "dask") from error
    with ExitStack() as opened:
        local = None if address else _started(workers, opened)
        client = (
            _joined(address, opened) if local is None else opened.enter_context(distributed.Client(local, set_as_default=False))
        )
        client.scheduler_comm.interval = PAUSE
        return Cluster(client, local, opened.pop_all())


def _started(workers: int, opened: ExitStack) -> Any:
    from dask.system import CPU_COUNT
    from distributed import LocalCluster

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError(f"engine dask: {GUARD}")
    refuse_unimportable("dask")
    try:
        # What workers hold is kept within bounds by themselves and is not Dask's to spill, and a worker that is paused for the
        # memory it uses gets no tasks. What dies of a lack of it is replaced, and reported here: logs would say it again.
        cluster = LocalCluster(
            n_workers=workers or CPU_COUNT,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # a scheduler serves HTTP also without a dashboard; on a port that is free
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            preload=[__name__],
            scheduler_kwargs={"allowed_failures": 1, "dashboard": False},
        )
    except Exception as error:
        raise RunFailed(f"engine dask: a cluster cannot be started here ({type(error).__name__}: {error}); {GUARD}") from error
    opened.callback(cluster.close, timeout=TIMEOUT)
    return cluster


def dask_setup(worker: Any) -> None:
    """What each worker process that is started here does first, as a module that it preloads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides


def _joined(address: str, opened: ExitStack) -> Any:
    from distributed import Client
    from distributed.comm.registry import get_backend

    url = scheduler_url(address)
    try:
        # A client that cannot even begin to connect is not to be made: at its end it waits 20 s for itself, and prints that it did.
        get_backend(url.partition("://")[0])
        client = opened.enter_context(Client(url, timeout=TIMEOUT, set_as_default=False))
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"engine dask: no scheduler answers at {url} ({type(error).__name__}: {error}); start one with `dask scheduler`, or "
            "correct engine.address"
        ) from error
    _refuse_workers(client, url)
    return client


def scheduler_url(address: str) -> str:
    """``dask://host:8786``, ``tcp://host:8786``, ``host:8786`` or ``host`` as Dask writes it; other schemes as they are."""
    found = re.fullmatch(r"(?:(?P<scheme>[a-z]+)://)?(?P<host>\[[^\[\]]+\]|[^\[\]:/\s]+)(?::(?P<port>[0-9]+))?/?", address)
    if found is None:
        raise InputError(f"engine.address = {address!r}: is not the address of a scheduler; write dask://host:{PORT}")
    scheme = "tcp" if found["scheme"] in (None, "dask") else found["scheme"]
    return f"{scheme}://{found['host']}:{found['port'] or PORT}"


def _refuse_workers(client: Any, url: str) -> None:
    """InputError where there are no workers, or some that would not do the same as this process."""
    try:
        client.wait_for_workers(1, timeout=TIMEOUT)
    except TimeoutError as error:
        raise InputError(
            f"engine dask: the cluster at {url} has no workers; start some with `dask worker {url}` (a cluster that grows when asked: "
            "set its minimum to 1)"
        ) from error
    here, there = versions(), client.run(versions, on_error="return")
    for worker, found in there.items():
        if isinstance(found, Exception):
            raise InputError(
                f"engine dask: worker {worker} cannot run Hansa ({type(found).__name__}: {found}); install the same packages there as here"
            )
        _refuse_versions(worker, found, here)


def _refuse_versions(worker: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    for package, version in here.items():
        if there[package] != version:
            raise InputError(
                f"engine dask: worker {worker} has {package} {there[package]} and this process {version}; install the same there as here"
            )


def versions() -> dict[str, str]:
    """What must be the same here and at a worker for messages to be read and results to be equal; patch releases may differ."""
    import numpy as np

    from hansa import __version__

    numpy = ".".join(np.__version__.split(".")[:2])
    return {"Python": ".".join(platform.python_version_tuple()[:2]), "numpy": numpy, "hansa": __version__}
