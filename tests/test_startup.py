"""What is loaded before the first round: a small job must not wait for frameworks that it does not use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


WHOLE_RUN = """
import json, pickle, sys
import numpy as np
import hansa

x, y = np.random.default_rng(0).standard_normal((200, 20)).astype("float32"), np.arange(200) % 2
job = hansa.Job(
    data=hansa.from_arrays(x, y), learner=hansa.MLP(hidden=()), algorithm=hansa.FedAvg(), partition=hansa.IID(clients=10),
    rounds=hansa.Rounds(count=1),
)
run = hansa.run(job, directory=sys.argv[1], quiet=True)
before = "sklearn" in sys.modules
kept = pickle.loads(pickle.dumps(run))
same = np.array_equal(kept.model.predict_proba(x), run.model.predict_proba(x))
print(json.dumps([before, "sklearn" in sys.modules, run.model is run.model, same, type(run.model).__name__]))
"""


def test_a_runs_model_is_made_when_it_is_asked_for(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WHOLE_RUN, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == [False, True, True, True, "LogisticRegression"]


@pytest.mark.parametrize(("module", "package"), [("grpc", "grpcio"), ("cryptography", "cryptography")])
def test_a_verb_of_the_federation_says_which_extra_is_missing(module: str, package: str, tmp_path: Path) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from hansa.cli.main import main; main()"
    command = [sys.executable, "-c", program, "join", "127.0.0.1:1", "hansa-x", "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"hansa: {package} is not installed; write: pip install 'hansa[federation]'\n"
