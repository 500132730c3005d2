"""From the start of a process: to `import hansa`, to `hansa --help`, to the end of the first round of a small job."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

JOB = """
import hansa, sys, tempfile, time
job = hansa.Job(data=hansa.BuiltIn("digits"), learner=hansa.MLP(hidden=()), algorithm=hansa.FedAvg(), partition=hansa.IID(clients=10),
                rounds=hansa.Rounds(count=2))
ends = []
with tempfile.TemporaryDirectory() as folder:
    hansa.run(job, directory=folder, quiet=True, observe=lambda stage: ends.append(time.time()) if stage == "saved" else None)
print(ends[0])
"""
"""Softmax regression on the digits of scikit-learn, dealt to ten clients, all of them in every round; prints when round 1 was saved."""

KINDS = {
    "import hansa": ("-c", "import hansa, time; print(time.time())"),
    "hansa --help": ("-m", "hansa", "--help"),
    "the first round of ten clients": ("-c", JOB),
}
TARGETS = {"import hansa": 0.2, "hansa --help": 0.4, "the first round of ten clients": 1.0}
"""Seconds."""


def measure(repetitions: int) -> dict[str, float]:
    """Seconds of each, medians, interleaved, after a start that fills the caches of the file system."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repetition in range(repetitions + 1):
        for kind, command in KINDS.items():
            taken = _once(command)
            if repetition:
                seconds[kind].append(taken)
    return {kind: statistics.median(taken) for kind, taken in seconds.items()}


def _once(command: tuple[str, ...]) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.time()
    done = subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True, text=True)
    return (time.time() if "--help" in command else float(done.stdout)) - began
