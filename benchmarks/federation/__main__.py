"""`make bench-federation`: load on one server, the limit beside it, and Flower's SuperLink; writes docs/benchmarks-federation.md.

python -m benchmarks.federation --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

import hansa
from benchmarks.federation.page import page
from hansa.federated.server import Server

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".bench"


@dataclass(frozen=True)
class Load:
    """clients: that are connected all the time, and all in every round. hidden: of the perceptron on 784 features and 10 classes."""

    name: str
    clients: int
    hidden: tuple[int, ...]

    @property
    def parameters(self) -> int:
        widths = (784, *self.hidden, 10)
        return sum((a + 1) * b for a, b in pairwise(widths))


LOADS = (Load("1,000 clients", 1000, (200, 200)), Load("100 clients", 100, (1024, 832)))


@dataclass
class Watched:
    """The peak resident memory of a process."""

    pid: int
    peak: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        process = psutil.Process(self.pid)
        while not self.over.wait(0.1):
            self.peak = max(self.peak, process.memory_info().rss)


def invite(home: Path, clients: int) -> None:
    """Certificates for a crowd, as the server's authority gives them; joining itself is not what is measured."""
    from hansa.federation.authority import Authority
    from hansa.federation.state import State

    authority = Authority.open_or_create(home / "server" / "authority", "Hansa federation")
    state = State.open(f"sqlite:///{home / 'server' / 'state.sqlite'}")
    for number in range(clients):
        name = f"client-{number:05d}"
        credentials = authority.member(name, "client")
        credentials.save(home / name)
        who = credentials.identity
        state.admit(name, "client", who.serial, who.expires.timestamp())
    state.close()


def job(load: Load, rounds: int) -> hansa.Job:
    return hansa.Job(
        data=hansa.Elsewhere(),
        learner=hansa.MLP(hidden=load.hidden),
        algorithm=hansa.FedAvg(),
        rounds=hansa.Rounds(count=rounds, block=1),
        evaluation=hansa.Evaluation(every=rounds + 1),
        split=hansa.Split(test=0.0),
        engine=hansa.Federation(clients=load.clients),
    )


def serve(home: Path, load: Load, rounds: int) -> None:
    """In a process of its own: play the job; print the address first, then how long the rounds took, and the processor."""
    used: list[float] = []
    with Server(job(load, rounds), home=home / "server", listen="127.0.0.1:0", quiet=True) as server:
        print(server.address, flush=True)
        threading.Thread(target=note, args=(server, rounds, used), daemon=True).start()
        done = server.train()
        while len(used) < rounds:
            time.sleep(0.01)
    seconds = [record["seconds"] for record in done.history]
    print(json.dumps({"seconds": seconds[1:], "cpu": [after - before for before, after in pairwise(used)]}), flush=True)


def note(server: Server, rounds: int, used: list[float]) -> None:
    """Processor seconds of this process at the end of each round."""
    while len(used) < rounds:
        if server.run_id and server.office.state.run(server.run_id).round > len(used):
            used.append(time.process_time())
        time.sleep(0.05)


def measure(load: Load, rounds: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "server").mkdir()
        invite(home, load.clients)

        def start(*arguments: str) -> Any:
            return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)

        server = start("-m", "benchmarks.federation", "--serve", str(home), "--load", load.name, "--rounds", str(rounds))
        address = server.stdout.readline().strip()
        watched = Watched(server.pid)
        threading.Thread(target=watched.watch, daemon=True).start()
        crowd = start("-m", "benchmarks.federation.crowd", str(home), address, "0", str(load.clients))
        said = crowd.communicate()[0]
        if crowd.returncode:
            server.kill()
            raise RuntimeError(f"the clients of {load.name} failed; see above")
        served = json.loads(server.stdout.readline())
        watched.over.set()
        server.wait()
        limit = start("-m", "benchmarks.federation.raw", str(home), "serve")
        raw_address = f"127.0.0.1:{limit.stdout.readline().strip()}"
        counts = (str(load.clients), str(4 * load.parameters), str(rounds))
        raw = json.loads(start("-m", "benchmarks.federation.raw", str(home), "load", raw_address, *counts).communicate()[0])
        limit.kill()
        limit.wait()
    told = json.loads(said)
    return {
        "clients": load.clients, "parameters": load.parameters, **served, "peak": watched.peak,
        "next": quantiles(told["next"][load.clients :]), "upload": quantiles(told["upload"][load.clients :]), "raw": raw[1:],
    }  # fmt: skip


def quantiles(values: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", default="")
    parser.add_argument("--serve", type=Path)
    parser.add_argument(
        "--flower", type=int, nargs="*", default=[2, 10], help="SuperNodes to measure Flower with; none without numbers"
    )
    parser.add_argument("--add", action="store_true", help="keep on the page what the last run measured and this one leaves out")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks-federation.md")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, next(load for load in LOADS if load.name == given.load), given.rounds)
        return
    from benchmarks.federation.beside_flower import compare

    last = HOME / "federation.json"
    results: dict[str, Any] = json.loads(last.read_text()) if given.add and last.exists() else {"loads": {}, "beside": {}}

    def keep(part: str, name: str, found: dict[str, Any]) -> None:
        results[part][name] = found
        last.parent.mkdir(exist_ok=True)
        last.write_text(json.dumps(results))
        print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)

    for load in LOADS:
        if given.load in load.name:
            keep("loads", load.name, measure(load, given.rounds))
    for nodes in given.flower:
        keep("beside", str(nodes), compare(nodes, given.rounds))
    given.output.write_text(page(results["loads"], results["beside"], given.rounds))
    print(f"wrote {given.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
