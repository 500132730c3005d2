"""`make bench-engines`: ours on every engine, and theirs, on the same table to the same objective; writes docs/benchmarks-engines.md.

    python -m benchmarks.engines --rows 300000 --work kmeans pca --repetitions 1

Peers are installed into .bench/, each into a virtual environment of its own, from benchmarks/requirements-*.txt. The tables are made from
flights-3m.parquet in the folder that the environment variable HANSA_DATA_HOME names.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.__main__ import HOME, ROOT, _machine, _watch, interpreter
from benchmarks.engines import table
from benchmarks.engines.page import page

LIMIT = 400
"""Seconds that one run of a contender may take."""

ENGINES = ("inline", "processes", "dask", "ray", "spark")
WORKS = ("logistic", "kmeans", "pca", "floor")


@dataclass(frozen=True)
class Contender:
    """name: as in the tables; peer: whose environment it needs ("" for ours); module: of benchmarks.engines; engine: or solver."""

    name: str
    peer: str
    module: str
    engine: str = ""
    works: tuple[str, ...] = ("logistic", "kmeans", "pca")


CONTENDERS = (
    *(Contender(f"Hansa, {engine}", "", "ours", engine) for engine in ENGINES),
    Contender("scikit-learn, lbfgs", "", "scikit", "lbfgs", ("logistic",)),
    Contender("scikit-learn, newton-cholesky", "", "scikit", "newton-cholesky", ("logistic",)),
    Contender("scikit-learn, saga", "", "scikit", "saga", ("logistic",)),
    Contender("scikit-learn", "", "scikit", "", ("kmeans", "pca")),
    Contender("dask-ml", "daskml", "daskml"),
    Contender("Spark MLlib", "mllib", "mllib"),
    *(Contender(engine, "", "floor", engine, ("floor",)) for engine in ENGINES),
)


def run(contender: Contender, work: str, rows: int, known: dict[str, int]) -> dict[str, Any]:
    """One run in processes of its own: what it reports, and the peak memory of all its processes together (PSS)."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **single, "PYTHONPATH": str(ROOT), "BENCH_START": str(time.time()), "PYTHONWARNINGS": "ignore"}
    command = [interpreter(contender.peer), "-m", f"benchmarks.engines.{contender.module}", "--work", work, "--rows", str(rows)]
    command += ["--engine", contender.engine, "--iterations", json.dumps(known)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    peak: list[int] = [0]
    threading.Thread(target=_watch, args=(process.pid, peak), daemon=True).start()
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return {"error": f"not done after {LIMIT} s", "peak": peak[0]}
    lines = [line[line.index("RESULT ") :] for line in out.splitlines() if "RESULT " in line]
    if not lines:
        return {"error": (err or out).strip().splitlines()[-1] if (err or out).strip() else f"exit code {process.returncode}"}
    return {**json.loads(lines[-1].removeprefix("RESULT ")), "peak": peak[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--work", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", default=[], help="parts of names; all without")
    parser.add_argument("--add", action="store_true", help="keep on the page what the last run measured and this one leaves out")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks-engines.md")
    given = parser.parse_args()
    if "HANSA_DATA_HOME" not in os.environ:
        sys.exit("bench-engines: set the environment variable HANSA_DATA_HOME to the folder that holds flights-3m.parquet")
    chosen = [c for c in CONTENDERS if not given.contenders or any(part in c.name for part in given.contenders)]
    for contender in chosen:
        interpreter(contender.peer)
    table.make(given.rows)
    table.solve(given.rows)
    last = HOME / f"engines-{given.rows}.json"
    results: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(last.read_text()) if given.add and last.exists() else {}
    for work in given.work:
        results[work] = {c.name: [] for c in chosen if work in c.works} | (results.get(work, {}) if given.contenders else {})
        for repetition in range(given.repetitions):
            for contender in chosen:
                if work in contender.works:
                    _once(contender, work, given.rows, results[work][contender.name], f"{repetition + 1}/{given.repetitions}")
                    last.write_text(json.dumps(results))
    packages = ("numpy", "scipy", "scikit-learn", "distributed", "ray", "pyspark")
    versions = {"Python": platform.python_version(), **{name: version(name) for name in packages}, **_peers()}
    command = f"python -m benchmarks.engines --rows {given.rows} --repetitions {given.repetitions}"
    given.output.write_text(page(results, given.rows, versions, _machine(), command), "utf-8")
    print(f"wrote {given.output}")


def _once(contender: Contender, work: str, rows: int, before: list[dict[str, Any]], which: str) -> None:
    # Iterations that the first repetition found to be enough need not be looked for again.
    known = {
        name: found["iterations"] if contender.module == "mllib" else [found["iterations"]]
        for run in before
        for name, found in run.get("results", {}).items()
        if found.get("fit") is not None and contender.module in ("mllib", "scikit") and contender.engine != "lbfgs"
    }
    result = run(contender, work, rows, known)
    before.append(result)
    told = result.get("error") or ", ".join(f"{name} {_told(found)}".strip() for name, found in result["results"].items())
    print(f"{work} {which}  {contender.name:<30} {told}", flush=True)


def _told(found: dict[str, Any]) -> str:
    if "ours" in found:
        return f"{found['ours']:.2f} ms a round" + (f", its own map {found['native']:.2f} ms" if "native" in found else "")
    if found["fit"] is None:
        return f"not there after {found['last_fit']:.1f} s (gap {found['last_gap']:.1e})"
    return f"{found['fit']:.2f} s, {found['iterations']} iterations"


def _peers() -> dict[str, str]:
    lines = (ROOT / "benchmarks" / "requirements-daskml.txt").read_text().splitlines()
    return {"dask-ml": next(line.partition("==")[2] for line in lines if line.startswith("dask-ml=="))}


if __name__ == "__main__":
    main()
