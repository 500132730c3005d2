"""The public API is a decision: this list changes only on purpose, and importing it stays light."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import hansa

PUBLIC = [
    "Adam",
    "Admin",
    "Bagging",
    "BuiltIn",
    "Client",
    "Column",
    "CoordinateDescent",
    "Dask",
    "Devices",
    "DiLoCo",
    "Dirichlet",
    "Diverged",
    "Elsewhere",
    "Evaluation",
    "Features",
    "FedAvg",
    "FedProx",
    "Federation",
    "File",
    "Forest",
    "Forests",
    "GradientDescent",
    "HansaError",
    "IID",
    "Inline",
    "InputError",
    "JaxLearner",
    "Job",
    "KMeans",
    "LBFGS",
    "Layout",
    "Lloyd",
    "Local",
    "MLP",
    "Models",
    "Newton",
    "OneVsRest",
    "PCA",
    "Parts",
    "Policy",
    "PrincipalComponents",
    "Processes",
    "Ray",
    "Relay",
    "Rounds",
    "Run",
    "RunFailed",
    "SGD",
    "Scaffold",
    "Search",
    "Server",
    "Shards",
    "SharingADMM",
    "Sklearn",
    "Spark",
    "Split",
    "Standard",
    "Synchronous",
    "Synthetic",
    "TorchLearner",
    "Torchrun",
    "Trace",
    "__version__",
    "compare",
    "fit_each",
    "from_arrays",
    "from_partitions",
    "from_table",
    "from_torch",
    "resume",
    "resume_each",
    "resume_search",
    "run",
    "search",
]

HEAVY = ("sklearn", "torch", "pandas", "pyarrow", "matplotlib", "pydantic", "rich", "scipy")

IMPORTED = """
import json, sys
{statement}
print(json.dumps(sorted(name for name in {heavy!r} if name in sys.modules)))
"""


def imported_by(statement: str) -> list[str]:
    """Which of the heavy packages a fresh process holds after the statement."""
    program = IMPORTED.format(statement=statement, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_the_public_names_are_these() -> None:
    assert hansa.__all__ == PUBLIC
    assert dir(hansa) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert name == "__version__" or getattr(hansa, name).__doc__


def test_the_first_page_names_all_that_is_public() -> None:
    assert not [name for name in PUBLIC if name not in (hansa.__doc__ or "") and name not in ("Client", "Run", "__version__")]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'hansa' has no attribute 'Slurm'"):
        _ = hansa.Slurm


def test_importing_hansa_loads_no_framework() -> None:
    assert imported_by("import hansa") == []
    assert "numpy" not in subprocess.run(
        [sys.executable, "-c", "import hansa, sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["new"]])
def test_help_and_the_starter_job_load_no_framework(arguments: list[str]) -> None:
    program = f"from hansa.cli.main import main; main({arguments!r}, standalone_mode=False)"
    assert imported_by(program) == []
