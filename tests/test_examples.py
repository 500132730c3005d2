"""Every example does what it says, offline, in seconds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer

import hansa
from hansa import opening
from hansa.cli.starter import starter_text
from hansa.data import recipes
from hansa.job import is_plain, load

EXAMPLES = Path(__file__).parent.parent / "examples"

ENDS = {
    "hospitals": ("played all 60 rounds", {"test/auc": (0.84, 1.0), "test/accuracy": (0.79, 1.0)}),
    "newton": ("converged after", {"test/auc": (0.84, 1.0)}),
    "iid_digits": ("played all 20 rounds", {"test/accuracy": (0.93, 1.0)}),
    "dirichlet_breast_cancer": ("rounds", {"test/accuracy": (0.93, 1.0), "validation/accuracy": (0.93, 1.0)}),
    "phones": ("played all 40 rounds and 8 min 26 s of virtual time", {"test/accuracy": (0.9, 1.0)}),
    "split_features": ("converged after", {"test/mse": (2000.0, 3500.0)}),
    "regression": ("converged after 2 rounds", {"test/mse": (2000.0, 3500.0)}),
}
"""Example -> how it ends, and the range of its metrics."""

ELSEWHERE = {"mnist_fedavg"}
"""Examples that need data which is not at hand everywhere: read here, run for docs/mnist.md."""


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == {*ENDS, *ELSEWHERE}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"gang", "own_files", "sklearn_pipeline", "torch_module"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_job_is_valid_and_can_be_resumed_from_its_folder(path: Path) -> None:
    assert is_plain(load(path))


@pytest.mark.parametrize("name", ENDS)
def test_a_job_ends_as_it_says(name: str, tmp_path: Path) -> None:
    ended, ranges = ENDS[name]
    run = hansa.run(EXAMPLES / f"{name}.toml", directory=tmp_path, quiet=True)
    assert ended in run.ended
    for metric, (least, most) in ranges.items():
        assert least <= run.metrics[metric] <= most, (metric, run.metrics)


def test_the_hospitals_are_the_starter_job() -> None:
    assert (EXAMPLES / "hospitals.toml").read_text("utf-8") == starter_text()


def test_the_regression_equals_scikit_learn_on_pooled_rows(tmp_path: Path) -> None:
    job = load(EXAMPLES / "regression.toml")
    run = hansa.run(job, directory=tmp_path, quiet=True)
    rows = recipes.pooled(opening.clients_of(job))[0].load()
    fitted = clone(run.model).fit(rows["train"].x, rows["train"].y)
    np.testing.assert_allclose(run.model.predict(rows["test"].x), fitted.predict(rows["test"].x), rtol=1e-8)


def test_own_files_are_clients_by_their_names(tmp_path: Path) -> None:
    run = module("own_files").main(tmp_path)
    assert set(run.by_client) == {"north", "south", "west"}
    assert run.metrics["test/accuracy"] >= 0.9
    assert hansa.resume(run.directory, quiet=True).metrics == run.metrics  # a glob of files is a job that its folder can hold


def test_a_pipeline_comes_back_fitted(tmp_path: Path) -> None:
    run = module("sklearn_pipeline").main(str(tmp_path))
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    assert np.mean(run.model.predict(x) == y) >= 0.97


def test_a_module_comes_back_trained(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the example needs hansa[torch]")
    run = module("torch_module").main(str(tmp_path))
    assert isinstance(run.model, torch.nn.Sequential)
    assert run.metrics["test/accuracy"] >= 0.8


def test_a_gang_trains_a_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the example needs hansa[torch]")
    run = module("gang").main(str(tmp_path))
    assert isinstance(run.model, torch.nn.Sequential)
    assert run.metrics["test/accuracy"] >= 0.9
