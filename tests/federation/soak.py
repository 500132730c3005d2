"""Kills the server, clients, or all of them, at random, again and again in one run, and compares what comes out with a run in peace.

python -m tests.federation.soak --faults 100
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w
from safetensors.numpy import load_file

import hansa
from hansa.federated.server import Server
from hansa.federation import audit
from hansa.job import to_text
from tests.federation.forge import Forge, Forged
from tests.federation.parties import NAMES, job, joined, same_bits, served, simulated
from tests.federation.test_faults import LOCAL, free_port


@dataclass(frozen=True)
class Soaked:
    """killed: how often whom. records: of the rounds, one each. same: whether the params have the bits of a run without faults."""

    faults: int
    killed: dict[str, int]
    rounds: int
    records: int
    seconds: float
    same: bool


class Members:
    """The processes of a federation, each of which is started again when it was killed."""

    def __init__(self, folder: Path, forge: Forge, port: int) -> None:
        self._folder, self._forge, self._port = folder, forge, port
        self.running: dict[str, Forged] = {}

    def start(self, name: str) -> None:
        home = self._folder / name
        if name == "server":
            where = ("--home", home, "--listen", f"127.0.0.1:{self._port}", "--quiet")
            arguments: tuple[str | Path, ...] = ("server", self._folder / "job.toml", *where)
        else:
            arguments = ("client", "--home", home, "--data", home / "mine.toml", "--quiet")
        self.running[name] = self._forge.start(arguments, self._folder / f"{name}.log")

    def progress(self) -> tuple[str, int]:
        """Status and round of the run."""
        with sqlite3.connect(f"file:{self._folder / 'server' / 'state.sqlite'}?mode=ro", uri=True) as connection:
            rows = connection.execute("SELECT status, round FROM runs ORDER BY submitted").fetchall()
        connection.close()
        return rows[0] if rows else ("waiting", 0)


def soak(folder: Path, faults: int, seed: int = 1, clients: int = 3, every: float = 2.0, patience: float = 1800.0) -> Soaked:
    """Deliver ``faults`` kills, one about every ``every`` rounds; fails where the run does not end well within ``patience`` seconds."""
    chance, names, began = random.Random(seed), NAMES[:clients], time.monotonic()
    rounds = int(faults * every) + 2
    given = job(rounds, algorithm=hansa.Scaffold(local=LOCAL), partition=hansa.IID(clients=clients))
    port, killed = free_port(), Counter[str]()
    with Server(home=folder / "server", listen=f"127.0.0.1:{port}", quiet=True) as server:
        for home in joined(server, given, folder, names):
            (home / "server.toml").write_text(tomli_w.dumps({"address": f"127.0.0.1:{port}"}))
    (folder / "job.toml").write_text(to_text(served(given, clients=clients)))
    with Forge() as forge:
        members = Members(folder, forge, port)
        for name in ("server", *names):
            members.start(name)
        delivered = 0
        while (now := members.progress())[0] in ("waiting", "running"):
            assert time.monotonic() - began < patience, f"after {patience:g} s it stands at {now}"
            if delivered < faults and now[1] >= delivered * every:
                time.sleep(chance.uniform(0.0, 0.5))
                if members.progress()[0] not in ("waiting", "running"):
                    break
                whom = ("server", *names) if chance.random() < 0.1 else (chance.choice(("server", "server", *names)),)
                for name in whom:
                    members.running[name].kill()
                time.sleep(chance.choice((0.0, 0.0, 0.3)))
                for name in whom:
                    members.start(name)
                delivered += 1
                killed[whom[0] if len(whom) == 1 else "all"] += 1
            for name, process in members.running.items():
                status = process.poll()
                assert status in (None, 0), f"{name} ended with {status}:\n{process.log.read_text()[-4000:]}"
            time.sleep(0.02)
        assert now[0] == "finished", f"the run {now[0]}:\n{(folder / 'server.log').read_text()[-4000:]}"
        for process in members.running.values():
            process.kill()
    return Soaked(delivered, dict(killed), *_outcome(folder, given, names, rounds), time.monotonic() - began, _same(folder, given))


def _outcome(folder: Path, given: hansa.Job, names: tuple[str, ...], rounds: int) -> tuple[int, int]:
    for name in ("server", *names):
        assert audit.verify(folder / name / "audit.jsonl")
    records = [json.loads(line) for line in (_run(folder) / "metrics.jsonl").read_text().splitlines()]
    assert all(record["clients"] == len(names) and not record["failures"] for record in records)
    assert [record["round"] for record in records] == list(range(1, rounds + 1))
    return rounds, len(records)


def _same(folder: Path, given: hansa.Job) -> bool:
    return same_bits(load_file(_run(folder) / "params.safetensors"), simulated(given, folder))


def _run(folder: Path) -> Path:
    return min((folder / "server" / "runs").iterdir())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--faults", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--clients", type=int, default=3)
    given = arguments.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hansa-soak-")))
        print(json.dumps(asdict(soak(folder, given.faults, given.seed, given.clients))))


if __name__ == "__main__":
    main()
