"""`make bench`: ours and theirs on the same work, interleaved, in their own processes; writes docs/benchmarks.md.

    python -m benchmarks --workloads W1 W2 --repetitions 5

Peers are installed into .bench/, each into a virtual environment of its own, from benchmarks/requirements-*.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import venv
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.aggregation import measure as measure_aggregation
from benchmarks.page import page
from benchmarks.startup import measure as measure_startup

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".bench"
LAST = HOME / "results.json"
LIMIT = 900
"""Seconds that one run of a contender may take."""


@dataclass(frozen=True)
class Contender:
    """name: as in the table; peer: whose environment it needs ("" for ours); command: after the interpreter."""

    name: str
    peer: str
    command: tuple[str, ...]
    workloads: tuple[str, ...] = ("W1", "W2", "W3")
    launcher: tuple[str, ...] = field(default=("-m",))


def hansa(learner: str, processes: int) -> tuple[str, ...]:
    return ("benchmarks.contenders.hansa", "--learner", learner, "--processes", str(processes))


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
SINGLE, ALL = ("W1", "W2"), ("W1", "W2", "W3", "W4")
CONTENDERS = (
    Contender("Hansa MLP, inline", "", hansa("mlp", 1), ("W1", "W2", "W4")),
    Contender("Hansa MLP, 2 processes", "", hansa("mlp", 2), ("W1", "W2", "W4")),
    Contender("Hansa nn.Module, inline", "", hansa("torch", 1), SINGLE),
    Contender("Hansa nn.Module, 2 processes", "", hansa("torch", 2)),
    Contender("Hansa JAX, 2 processes", "", hansa("jax", 2)),
    Contender("plain PyTorch loop", "", ("benchmarks.contenders.torch_loop",), SINGLE),
    Contender("plain PyTorch loop, 2 processes", "", ("benchmarks.contenders.torch_loop", "--processes", "2"), ALL),
    Contender("hand-written JAX loop", "", ("benchmarks.contenders.jax_loop",), ALL),
    Contender("Flower, 2 actors", "flower", ("benchmarks.contenders.flower",)),
    Contender("pfl-research", "pfl", ("benchmarks.contenders.pfl",), SINGLE),
    Contender("pfl-research, 2 processes", "pfl", ("benchmarks.contenders.pfl",), ALL, launcher=TORCHRUN),
    Contender("FedJAX", "fedjax", ("benchmarks.contenders.fedjax_loop",)),
)


def interpreter(peer: str) -> str:
    """The Python of a peer's environment, which is made on first use."""
    if not peer:
        return sys.executable
    folder = HOME / peer
    wanted = ROOT / "benchmarks" / f"requirements-{peer}.txt"
    made = folder / ".installed"
    if not made.exists() or made.read_text() != wanted.read_text():
        print(f"installing {peer} into {folder} ...", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "-r", wanted], check=True)
        made.write_text(wanted.read_text())
    return str(folder / "bin" / "python")


def run(contender: Contender, workload: str) -> dict[str, Any]:
    """One run in processes of its own: what it reports, and the peak memory of all its processes together (PSS)."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if contender.peer == "fedjax":
        single["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = {**os.environ, **single, "PYTHONPATH": str(ROOT), "BENCH_START": str(time.time()), "PYTHONWARNINGS": "ignore"}
    command = [interpreter(contender.peer), *contender.launcher, *contender.command, "--workload", workload]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak: list[int] = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        for part in [*psutil.Process(process.pid).children(recursive=True), process]:
            part.kill()
        return {"error": f"not done after {LIMIT} s"}
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return {"error": (err or out).strip().splitlines()[-1] if (err or out).strip() else f"exit code {process.returncode}"}
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    result["round"] = statistics.median(result["seconds"])
    result["peak"] = peak[0]
    return result


def _watch(pid: int, peak: list[int]) -> None:
    try:
        root = psutil.Process(pid)
        while root.is_running():
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            peak[0] = max(peak[0], total)
            time.sleep(0.25)
    except psutil.NoSuchProcess:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3", "W4"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--contenders", nargs="+", default=[], help="parts of names; all without")
    parser.add_argument(
        "--add", action="store_true", help="keep on the page the workloads of the last run that this one leaves out"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks.md")
    given = parser.parse_args()
    chosen = [c for c in CONTENDERS if not given.contenders or any(part in c.name for part in given.contenders)]
    for contender in chosen:
        interpreter(contender.peer)
    results: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(LAST.read_text()) if given.add and LAST.exists() else {}
    results |= {w: {c.name: [] for c in chosen if w in c.workloads} for w in given.workloads}
    for workload in given.workloads:
        for repetition in range(given.repetitions):
            for contender in chosen:
                if workload in contender.workloads:
                    result = run(contender, workload)
                    results[workload][contender.name].append(result)
                    shown = result.get("error") or f"{result['round'] * 1e3:.1f} ms a round, accuracy {result['accuracy']:.3f}"
                    print(f"{workload} {repetition + 1}/{given.repetitions}  {contender.name:<32} {shown}", flush=True)
    versions = {
        "Python": platform.python_version(), "NumPy": version("numpy"), "PyTorch": version("torch"), **_peers(),
    }  # fmt: skip
    LAST.write_text(json.dumps(results))
    measured = measure_aggregation(given.repetitions), measure_startup(given.repetitions)
    text = page(dict(sorted(results.items())), *measured, versions, _machine())
    given.output.write_text(text, "utf-8")
    print(f"wrote {given.output}")


def _peers() -> dict[str, str]:
    found = {}
    for peer, package in (("flower", "flwr"), ("pfl", "pfl"), ("fedjax", "fedjax"), ("fedjax", "jax")):
        lines = (ROOT / "benchmarks" / f"requirements-{peer}.txt").read_text().splitlines()
        found[package] = next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))
    return found


def _machine() -> str:
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?"
    )
    return f"{model}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} {platform.release()}"


if __name__ == "__main__":
    main()
