"""The same rounds by Flower's SuperLink with SuperNodes, and by Hansa's server with client processes: seconds a round."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w

import hansa
from benchmarks.__main__ import interpreter

ROOT = Path(__file__).parents[2]
LINK, NODE = 28091, 28100
LIMIT = 600.0


def compare(nodes: int, rounds: int) -> dict[str, Any]:
    """Seconds of every round but the first, of both."""
    return {"flower": flower(nodes, rounds), "hansa": ours(nodes, rounds)}


def flower(nodes: int, rounds: int) -> list[float]:
    binaries = Path(interpreter("flower")).parent
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        home, marks = Path(folder), Path(folder) / "marks"
        settings = {"superlink": {"default": "bench", "bench": {"address": f"127.0.0.1:{LINK}", "insecure": True}}}
        (home / "config.toml").write_text(tomli_w.dumps(settings))
        path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **single, "FLWR_HOME": folder, "FLWR_TELEMETRY_ENABLED": "0", "PATH": path}

        def start(name: str, *arguments: str) -> Any:
            with (home / "log").open("ab") as log:
                command = [str(binaries / name), *arguments]
                return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

        running = [start("flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(LINK))]
        try:
            answers(LINK)
            for node in range(nodes):
                where = ("--superlink", f"127.0.0.1:{LINK}", "--port", str(NODE + node))
                config = f"partition-id={node} num-partitions={nodes}"
                running.append(start("flower-supernode", "--insecure", *where, "--node-config", config))
            for node in range(nodes):
                answers(NODE + node)
            config = f'rounds={rounds} nodes={nodes} marks="{marks}" root="{ROOT}"'
            command = [str(binaries / "flwr"), "run", str(Path(__file__).parent / "flower-app"), "bench", "--run-config", config]
            asked = subprocess.run(command, env=environment, capture_output=True, text=True)
            if asked.returncode:
                raise RuntimeError(f"flwr run: {asked.stdout}{asked.stderr}")
            until = time.monotonic() + LIMIT
            while time.monotonic() < until:
                times = [float(line.split()[1]) for line in marks.read_text().splitlines()] if marks.exists() else []
                if len(times) > rounds:
                    return [b - a for a, b in pairwise(times[1:])]
                time.sleep(0.2)
            raise RuntimeError(f"Flower did not finish: {asked.stdout}{asked.stderr}\n{(home / 'log').read_text()[-3000:]}")
        finally:
            for process in running:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def answers(port: int) -> None:
    """Wait until something listens at a port of this machine."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens at port {port} of this machine")


def ours(nodes: int, rounds: int) -> list[float]:
    """Client processes on loopback with certificates, as `hansa simulate-federation` starts them."""
    from hansa.federated.client import Client
    from hansa.federated.server import Server

    job = hansa.Job(
        data=hansa.Elsewhere(),
        learner=hansa.MLP(hidden=(200, 200)),
        algorithm=hansa.FedAvg(local=hansa.Local(epochs=1, batch_size=10, learning_rate=0.1)),
        rounds=hansa.Rounds(count=rounds, block=1),
        evaluation=hansa.Evaluation(every=rounds + 1),
        engine=hansa.Federation(clients=nodes),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(job, home=Path(folder) / "server", listen="127.0.0.1:0", quiet=True) as server,
    ):
        running = []
        for node in range(nodes):
            home = Path(folder) / f"client-{node:03d}"
            Client.join(server.address, server.token(home.name), home)
            mine = {"data": {"name": "fashion_mnist"}, "partition": {"name": "iid", "clients": 100}, "client": home.name}
            (home / "mine.toml").write_text(tomli_w.dumps(mine))
            command = [
                sys.executable,
                "-m",
                "hansa.cli.main",
                "client",
                "--quiet",
                "--home",
                str(home),
                "--data",
                str(home / "mine.toml"),
            ]
            running.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))
        try:
            return [float(record["seconds"]) for record in server.train().history[1:]]
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait()
