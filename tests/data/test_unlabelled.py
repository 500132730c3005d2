"""Data without labels: every source that may lack them says so, and a learner that needs them is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import hansa
from hansa.algorithms.principal_components import PrincipalComponents
from hansa.core.errors import InputError
from hansa.data import File, Parts
from hansa.learners.pca import PCA


@pytest.fixture
def files(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        pd.DataFrame(random.standard_normal((20, 3)), columns=["u", "v", "w"]).to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


def sources(files: Path) -> dict[str, Any]:
    frame = pd.concat([pd.read_parquet(files / f"{name}.parquet") for name in "abc"], ignore_index=True)
    return {
        "memory": hansa.from_arrays(frame, clients=np.repeat(["a", "b", "c"], 20)),
        "file": File(path=str(files / "*.parquet"), client="@file"),
        "parts": Parts(path=str(files / "*.parquet"), client="@file"),
    }


def job(data: Any, **changes: Any) -> hansa.Job:
    return hansa.Job(**{
        "data": data, "learner": PCA(components=2), "algorithm": PrincipalComponents(), "split": hansa.Split(test=0.25), **changes,
    })  # fmt: skip


def test_every_source_gives_the_same_model_without_labels(files: Path, tmp_path: Path) -> None:
    found = {name: hansa.run(job(data), directory=tmp_path / "runs", quiet=True) for name, data in sources(files).items()}
    for name, run in found.items():
        assert '"task": "unlabelled"' in (run.directory / "description.json").read_text(), name
        assert (run.directory / "report.html").is_file()
        assert np.array_equal(run.params["components"], found["memory"].params["components"]), name
        assert 0 < run.metrics["test/explained_variance"] < 1


@pytest.mark.parametrize("name", ["memory", "file", "parts"])
def test_a_learner_that_needs_labels_is_refused(name: str, files: Path, tmp_path: Path) -> None:
    wanted = job(sources(files)[name], learner=LogisticRegression(), algorithm=hansa.Newton())
    with pytest.raises(InputError, match=r"client a: has no labels, and the learner needs them; name their column in data\.label"):
        hansa.run(wanted, directory=tmp_path / "runs", quiet=True)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda path: File(path=path, positive=1).read(), "positive"),
        (lambda path: File(path=path, task="regression").read(), "task"),
        (lambda path: Parts(path=path, above=15.0), "above"),
        (lambda path: Parts(path=path, labels="classes"), "labels"),
    ],
)
def test_what_labels_mean_is_not_said_where_there_are_none(make: Any, option: str, files: Path) -> None:
    with pytest.raises(InputError, match=rf"data\.{option}: says what labels mean, and data\.label names none"):
        make(str(files / "*.parquet"))
