"""Plays one round with a model of several gibibytes: a server and two clients as processes of their own, over TLS, on this machine.

python -m tests.federation.large --gibibytes 5

The bits of what comes out are compared with a sum that is made here, of what each client has to answer. Two clients that train at the
same time need twice the memory of one; ``--in-turn`` holds the second one up until the first has reported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import hansa
from hansa import opening
from hansa.core.blocks import Block
from hansa.core.store import MemoryStore
from hansa.core.worker import WorkCall, Worker
from hansa.federated.server import Server
from hansa.federation import audit, parcels
from hansa.job import to_text
from tests.federation.parties import end, joined, process, served

NAMES = ("client-000", "client-001")
SLICE = 1 << 24
"""Entries that are compared at once."""

EVERY = 0.1
"""Seconds between two looks at a process's memory."""


@dataclass
class Peak:
    """GiB of a process at its worst. own: memory that is nobody's file. resident: with the pages of files that it has mapped, which the
    system takes back where it needs them."""

    own: float = 0.0
    resident: float = 0.0

    def look(self, pid: int) -> None:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        said = {
            name: float(value.split()[0]) / 2**20 for name, _, value in (line.partition(":") for line in lines) if "kB" in value
        }
        self.own = max(self.own, said.get("RssAnon", 0.0))
        self.resident = max(self.resident, said.get("VmHWM", 0.0))


@dataclass(frozen=True)
class Measured:
    """gibibytes: of the params. seconds: from the start of the server to its end. same: whether the bits are the right ones."""

    gibibytes: float
    seconds: float
    same: bool
    peaks: dict[str, Peak] = field(default_factory=dict)


def given(gibibytes: float, folder: Path) -> hansa.Job:
    """A perceptron with one layer of that size, and two clients with a handful of rows each."""
    width = int((gibibytes * 2**30 / 4) ** 0.5)
    rng = np.random.default_rng(3)
    rows = [(*rng.normal(size=3), label, name) for count, name in enumerate(NAMES, 2) for label in ("a", "b") for _ in range(count)]
    lines = ["x,y,z,label,client", *(",".join(str(value) for value in row) for row in rows)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return hansa.Job(
        data=hansa.File(path=str(folder / "rows.csv"), label="label", client="client"),
        split=hansa.Split(test=0.0),
        learner=hansa.MLP(hidden=(width, width)),
        algorithm=hansa.FedAvg(local=hansa.Local(epochs=1, batch_size=0, learning_rate=0.1)),
        rounds=hansa.Rounds(count=1, block=1),
        seed=5,
    )


def large(folder: Path, gibibytes: float, in_turn: bool = False, patience: float = 3600.0) -> Measured:
    """Play the round in a folder; fails where it does not end well within ``patience`` seconds."""
    job = given(gibibytes, folder)
    (folder / "job.toml").write_text(to_text(served(job, clients=len(NAMES), liveness=patience)))
    with Server(home=folder / "server", listen="127.0.0.1:0", quiet=True) as server:
        homes, port = joined(server, job, folder, NAMES), server.port
    for home in homes:
        (home / "server.toml").write_text(f'address = "127.0.0.1:{port}"\n')
    first, second = homes
    began, peaks = time.monotonic(), {name: Peak() for name in ("server", *NAMES)}
    where = ["--home", str(folder / "server"), "--listen", f"127.0.0.1:{port}", "--quiet"]
    running = {"server": process(["server", str(folder / "job.toml"), *where], folder / "server.log")}
    for home in homes:
        arguments = ["client", "--home", str(home), "--data", str(home / "mine.toml"), "--quiet"]
        running[home.name] = process(arguments, folder / f"{home.name}.log")
    try:
        held = False
        while running["server"].poll() is None:
            assert time.monotonic() - began < patience, f"it is not over after {patience:g} s"
            for name, one in running.items():
                peaks[name].look(one.pid)
                assert one.poll() is None or name == "server", f"{name} ended:\n{(folder / f'{name}.log').read_text()[-4000:]}"
            if in_turn and not held and _trains(second) and not _has_trained(first):
                running[second.name].send_signal(signal.SIGSTOP)
                held = True
            if held and _has_trained(first):
                running[second.name].send_signal(signal.SIGCONT)
                in_turn = held = False
            time.sleep(EVERY)
        seconds = time.monotonic() - began
        assert running["server"].returncode == 0, (folder / "server.log").read_text()[-4000:]
    finally:
        for one in running.values():
            if one.poll() is None:
                one.send_signal(signal.SIGCONT)
        end(*running.values())
    assert all(audit.verify(folder / name / "audit.jsonl") for name in running)
    return Measured(gibibytes, seconds, _same(folder, job), peaks)


def _trains(home: Path) -> str:
    """The task of training that a client has begun; empty where there is none yet."""
    return next((str(one["task"]) for one in _entries(home, "works") if one["kind"] == "train"), "")


def _has_trained(home: Path) -> bool:
    task = _trains(home)
    return bool(task) and any(one["task"] == task for one in _entries(home, "reported"))


def _entries(home: Path, action: str) -> list[Mapping[str, Any]]:
    """The details of such entries of an audit log, of which the last line may be incomplete."""
    path = home / "audit.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [entry["details"] for entry in found if entry["action"] == action]


def _same(folder: Path, job: hansa.Job) -> bool:
    """Whether the params are those before the round, moved along the weighted mean of what both clients changed.

    Memory holds what one client answers, and slices of the rest.
    """
    clients = opening.clients_of(job)
    with threadpool_limits(1):
        setting = opening.open_setting(job, clients)
        schema, learner = setting.bound()
        state = job.algorithm.init(learner.init(job.seed), learner.kinds())
        parcels.write(folder / "before", state["params"])
        before = state["params"] = parcels.read(folder / "before")
        message = job.algorithm.broadcast({**state, "rate": 1.0, "population": len(clients)}, 1)
        call, worker = WorkCall(job.algorithm, message, schema, job.seed, 1), Worker(job.learner, clients, MemoryStore())
        weights = []
        for position in range(len(clients)):
            loaded = worker.load(Block(position, (position,)), call, "train")
            update = job.algorithm.work(learner, message, loaded)
            weights.append(np.float32(update.weight[0]))
            parcels.write(folder / f"change-{position}", {name: value[0] for name, value in update.values.items()})
            del update
    changes = [parcels.read(folder / f"change-{position}") for position in range(len(clients))]
    after = _mapped(next((folder / "server" / "runs").iterdir()) / "params.safetensors")
    if after.keys() != before.keys():
        return False
    same = True
    for name, value in before.items():
        flat, moved = value.reshape(-1), after[name].reshape(-1)
        parts = [change[f"delta/{name}"].reshape(-1) for change in changes]
        for start in range(0, flat.size, SLICE):
            here = slice(start, start + SLICE)
            total = weights[0] * parts[0][here] + weights[1] * parts[1][here]
            expected = flat[here] + total / np.float32(sum(weights))
            same = same and moved.shape == flat.shape and np.array_equal(expected, moved[here])
            same = same and bool(total.any() or flat.size < SLICE)
    return same


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file of float32, where they lie."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__")
    assert all(told["dtype"] == "F32" for told in header.values())
    return {
        name: np.memmap(path, np.float32, "r", 8 + size + told["data_offsets"][0], tuple(told["shape"]))
        for name, told in header.items()
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gibibytes", type=float, default=1.0)
    arguments.add_argument("--in-turn", action="store_true", help="the clients train one after the other")
    arguments.add_argument("--folder", type=Path, help="where a folder is made for it, which is removed at its end")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="hansa-large-", dir=given.folder) as folder:
        free = shutil.disk_usage(folder).free / 2**30
        assert free > 10 * given.gibibytes, f"{folder}: {free:.0f} GiB are free, and ten times the model are needed"
        print(json.dumps(asdict(large(Path(folder), given.gibibytes, given.in_turn))))


if __name__ == "__main__":
    main()
