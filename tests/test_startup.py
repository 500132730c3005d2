"""What is loaded before the first round: a small job must not wait for frameworks that it does not use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "jax", "sklearn", "scipy", "pandas", "pyarrow", "matplotlib", "jinja2", "rich", "click")

FIRST_ROUND = """
import json, os, sys
import numpy as np
import hansa

x, y = np.random.default_rng(0).standard_normal((200, 20)).astype("float32"), np.arange(200) % 2
job = hansa.Job(
    data=hansa.from_arrays(x, y), learner=hansa.MLP(hidden=(16,)), algorithm=hansa.FedAvg(), partition=hansa.IID(clients=10),
    rounds=hansa.Rounds(count=1),
)
updates = 0

def look(stage):
    global updates
    updates += stage == "update"
    if updates == 2:  # the first one describes the data
        print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]), flush=True)
        os._exit(0)

hansa.run(job, directory=sys.argv[1], quiet=True, observe=look)
"""


def test_the_first_round_of_a_numpy_job_loads_no_framework(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FIRST_ROUND, str(tmp_path), *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == []
