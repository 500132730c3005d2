"""Principal components from summed moments: scikit-learn's, up to sign to 1e-8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA as Theirs

import hansa
from hansa.algorithms.principal_components import PrincipalComponents
from hansa.core.blocks import Table
from hansa.core.coded import Coded
from hansa.core.errors import InputError
from hansa.learners.pca import PCA
from tests.conformance import problem

ATTRIBUTES = (
    "explained_variance_", "explained_variance_ratio_", "singular_values_", "mean_", "noise_variance_", "n_components_", "n_samples_",
)  # fmt: skip


@pytest.mark.parametrize("components", [0, 1, 3])
@pytest.mark.parametrize("name", ["iris", "breast_cancer", "diabetes"])
def test_equals_scikit_learn_on_pooled_rows(name: str, components: int) -> None:
    x = np.concatenate([client.load()["train"].x for client in problem.clients(name)])
    theirs = Theirs(n_components=components or None, svd_solver="covariance_eigh").fit(x)
    learner = PCA(components=components)
    state = problem.play(PrincipalComponents(), learner, name, 1)
    assert state["done"]
    bound = learner.bind(problem.schema(name))
    ours = bound.export(state["params"])
    signs = np.sign((ours.components_ * theirs.components_).sum(axis=1))[:, None]
    np.testing.assert_allclose(ours.components_, signs * theirs.components_, rtol=0, atol=1e-8)
    for attribute in ATTRIBUTES:
        np.testing.assert_allclose(getattr(ours, attribute), getattr(theirs, attribute), rtol=0, atol=1e-8, err_msg=attribute)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x) * signs.T, atol=1e-7)
    np.testing.assert_allclose(bound.predict(state["params"], x), ours.transform(x), atol=1e-12)
    total, count = (
        side.sum() for side in bound.evaluate(state["params"], problem.loaded(bound, name, tuple(range(7))))["explained_variance"]
    )
    np.testing.assert_allclose(total / count, theirs.explained_variance_ratio_.sum(), rtol=1e-9)


def test_an_unlabelled_file_can_be_run_from_toml(tmp_path: Path) -> None:
    x, _ = problem.rows("iris")
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", header="a,b,c,d", comments="")
    job = tmp_path / "job.toml"
    job.write_text(f"""
        split = {{test = 0.0}}
        [data]
        name = "file"
        path = "{tmp_path}/x.csv"
        [partition]
        name = "iid"
        clients = 3
        [learner]
        name = "pca"
        components = 2
        [algorithm]
        name = "principal_components"
    """)
    run = hansa.run(job, directory=tmp_path / "runs", quiet=True)
    assert len(run.history) == 1
    assert run.model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    theirs = Theirs(2).fit(x)
    np.testing.assert_allclose(np.abs(run.model.components_), np.abs(theirs.components_), atol=1e-8)
    assert (run.directory / "report.html").is_file()


def test_one_hot_columns_give_the_components_of_the_dense_ones() -> None:
    rng = np.random.default_rng(0)
    x = np.hstack([np.eye(40)[rng.integers(40, size=300)], rng.standard_normal((300, 2))])
    bound = PCA(components=5).bind(hansa.core.contracts.Schema((), (42,), "float64", None, 300))
    found = []
    for features in (x, Coded.of(sparse.csr_matrix(x))):
        client = problem.clients("iris")[0]
        block = hansa.core.blocks.LoadedBlock(0, (client,), (bound.arrays(Table(features)),), np.ones(1), 0, 1)
        told = bound.moments(block)
        params = PrincipalComponents().update(
            {"params": bound.init(0)}, hansa.core.updates.Total({n: v[0] for n, v in told.values.items()}, 1.0, 1)
        )["params"]
        found.append((params, *(side.sum() for side in bound.evaluate(params, block)["explained_variance"])))
    np.testing.assert_allclose(found[0][0]["components"], found[1][0]["components"], atol=1e-10)
    np.testing.assert_allclose(found[0][1:], found[1][1:], rtol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="at most 4 principal components"):
        PCA(components=5).bind(problem.schema("iris"))
    with pytest.raises(InputError, match=r"0\.3 GB per client"):
        PCA().bind(hansa.core.contracts.Schema((), (6000,), "float64", None, 10_000))
