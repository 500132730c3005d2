"""A federation in one test: a server, and clients as threads of this process or as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

import hansa
from hansa.data.elsewhere import Elsewhere
from hansa.federated.client import Client
from hansa.federated.server import Server
from hansa.federation.options import Federation
from hansa.federation.policy import Policy
from hansa.options import describe

NAMES = ("client-000", "client-001", "client-002", "client-003")


def job(count: int = 3, **changes: Any) -> hansa.Job:
    """Four clients with parts of a real table, one client a block."""
    given: dict[str, Any] = {
        "data": hansa.BuiltIn("breast_cancer"),
        "partition": hansa.IID(clients=len(NAMES)),
        "split": hansa.Split(test=0.2),
        "learner": hansa.MLP(hidden=(8,)),
        "algorithm": hansa.FedAvg(local=hansa.Local(epochs=1, batch_size=16, learning_rate=0.1)),
        "preparation": hansa.Standard(),
        "rounds": hansa.Rounds(count=count, block=1),
        "seed": 5,
    }
    return hansa.Job(**(given | changes))


def served(job: hansa.Job, **options: Any) -> hansa.Job:
    """The same as a server has it."""
    engine = Federation(**({"clients": len(NAMES)} | options))
    return replace(job, data=Elsewhere(), partition=hansa.Column(), engine=engine)


def simulated(job: hansa.Job, folder: Path) -> Any:
    """The params of the job played here."""
    return hansa.run(job, directory=folder / "simulated", quiet=True).params


def same_bits(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(np.asarray(one[name]), np.asarray(other[name])) for name in one)


def mine(job: hansa.Job, name: str) -> dict[str, Any]:
    """What a client's ``--data`` says."""
    return {"data": describe(job.data), "partition": describe(job.partition), "client": name}


def joined(server: Server, job: hansa.Job, folder: Path, names: Sequence[str] = NAMES) -> list[Path]:
    """Homes of clients that have joined, with their ``mine.toml``."""
    homes = []
    for name in names:
        home = folder / name
        Client.join(server.address, server.token(name), home)
        (home / "mine.toml").write_text(tomli_w.dumps(mine(job, name)))
        homes.append(home)
    return homes


@contextlib.contextmanager
def threads(homes: Sequence[Path], policies: dict[str, Policy] | None = None) -> Iterator[list[Client]]:
    """Clients at work in threads of this process."""
    clients = [Client(data=home / "mine.toml", home=home, policy=(policies or {}).get(home.name)) for home in homes]
    with working(clients):
        yield clients


@contextlib.contextmanager
def working(clients: Sequence[Client]) -> Iterator[None]:
    """The same, for clients that are there."""
    errors: list[BaseException] = []

    def run(client: Client) -> None:
        try:
            client.run()
        except BaseException as error:  # noqa: BLE001  # raised by who started the threads
            errors.append(error)

    running = [threading.Thread(target=run, args=(client,), daemon=True) for client in clients]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        for client in clients:
            client.stop.set()
            client.hang_up()
        for thread in running:
            thread.join(20)
    if errors:
        raise errors[0]


def process(arguments: Sequence[str], log: Path, fault: str = "") -> subprocess.Popen[bytes]:
    """A process of the command line; its output goes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HANSA_FAULT": fault}
    with log.open("ab") as output:
        return subprocess.Popen([sys.executable, "-m", "hansa.cli.main", *arguments], stdout=output, stderr=output, env=environment)


def end(*processes: subprocess.Popen[bytes]) -> None:
    """Ask them to end, and kill those that do not."""
    for one in processes:
        with contextlib.suppress(ProcessLookupError):
            one.send_signal(signal.SIGTERM)
    for one in processes:
        try:
            one.wait(10)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()


def until(met: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of ``met()``; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := met()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value
