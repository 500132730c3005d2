"""k-means on sums: scikit-learn's clusters from the same start, and a start from sums alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans as Theirs
from sklearn.datasets import load_iris, make_blobs
from sklearn.metrics import adjusted_rand_score

import hansa
from hansa.algorithms.lloyd import Lloyd
from hansa.core.blocks import Client, LoadedBlock, Table
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.learners.kmeans import KMeans
from hansa.learners.nearest import placed, sums_of
from tests.conformance import problem


def pooled(name: str) -> np.ndarray:
    return np.concatenate([client.load()["train"].x for client in problem.clients(name)])


@pytest.mark.parametrize("tolerance", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("name", ["iris", "breast_cancer", "diabetes"])
def test_equals_scikit_learn_from_the_same_start(name: str, tolerance: float) -> None:
    x = pooled(name)
    start = x[[3, 40, 77]]
    theirs = Theirs(n_clusters=3, init=start, n_init=1, tol=tolerance, max_iter=200).fit(x)
    algorithm = Lloyd(tolerance=tolerance, centers=tuple(map(tuple, start.tolist())))
    state: Any = None
    for number in range(1, 60):
        state = problem.play(algorithm, KMeans(clusters=3), name, 1, state=state, first=number)
        if state["done"]:
            break
    assert state["done"]
    ours = KMeans(clusters=3).bind(problem.schema(name)).export(state["params"])
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.inertia_, theirs.inertia_, rtol=1e-9)
    assert ours.n_iter_ in (theirs.n_iter_, theirs.n_iter_ + 1)  # theirs also ends where no label has changed
    assert np.array_equal(ours.predict(x), theirs.labels_)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), atol=1e-6)


def blobs() -> tuple[np.ndarray, np.ndarray]:
    x, owner = make_blobs(2000, centers=6, n_features=3, cluster_std=0.5, random_state=4)
    return x + 1e6, owner  # far from the origin, where differences of squares have no digits left


def blob_job(**changes: Any) -> hansa.Job:
    x, owner = blobs()
    options = {
        "data": hansa.from_arrays(x, clients=np.char.add("site-", owner.astype(str))),  # every client has one blob only
        "learner": KMeans(clusters=6),
        "algorithm": Lloyd(),
        "rounds": hansa.Rounds(count=50, block=2),
        "split": hansa.Split(test=0.1),
    }
    return hansa.Job(**{**options, **changes})


def test_finds_the_blobs_from_a_start_of_its_own(tmp_path: Path) -> None:
    x, owner = blobs()
    run = hansa.run(blob_job(), directory=tmp_path, quiet=True)
    assert "converged" in run.ended
    assert adjusted_rand_score(owner, run.model.predict(x)) > 0.99
    assert 0.5 < run.metrics["test/inertia"] < 1.0  # three features of variance a quarter
    best = Theirs(n_clusters=6, n_init=10, random_state=0).fit(x)
    assert run.model.score(x) > 1.02 * -best.inertia_


def test_the_start_does_not_depend_on_blocks(tmp_path: Path) -> None:
    runs = [hansa.run(blob_job(rounds=hansa.Rounds(count=2, block=b)), directory=tmp_path, quiet=True).params for b in (1, 6)]
    np.testing.assert_allclose(runs[0]["centers"], runs[1]["centers"], rtol=1e-12)


def test_a_sampled_slot_with_one_hit_is_a_row_of_somebody() -> None:
    bound = KMeans(clusters=3).bind(problem.schema("iris"))
    block = problem.loaded(bound, "iris", tuple(range(7)))
    told = bound.sampled(400, block)
    hits, rows = told.values["hits"].sum(axis=0), told.values["rows"].sum(axis=0)
    assert 0.28 < (hits == 1).mean() < 0.48  # 1/e for many small clients
    everybody = {tuple(row) for table in block.tables for row in table.x}
    assert {tuple(row) for row in rows[hits == 1]} <= everybody


def test_a_cluster_without_rows_keeps_its_centre() -> None:
    far = (1e3,) * 4
    start = (tuple(pooled("iris")[0].tolist()), far)
    state = problem.play(Lloyd(centers=start), KMeans(clusters=2), "iris", 10)
    assert state["params"]["centers"][1].tolist() == list(far)
    assert state["params"]["counts"][1] == 0


def test_labels_are_not_needed_and_not_looked_at(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    with_labels, without = (
        hansa.run(
            blob_job(data=hansa.from_arrays(x, labels, clients=[f"c{k % 3}" for k in range(150)]), learner=KMeans(clusters=3)),
            directory=tmp_path,
            quiet=True,
        )
        for labels in (y, None)
    )
    assert with_labels.job.learner.needs == frozenset()
    assert without.metrics.keys() == with_labels.metrics.keys() == {"test/inertia"}
    assert '"task": "unlabelled"' in (without.directory / "description.json").read_text()


def test_a_run_tells_that_rows_were_seen_only_where_they_were(tmp_path: Path) -> None:
    x, _ = blobs()
    given = Lloyd(centers=tuple(map(tuple, x[:6].tolist())))
    for algorithm, seen in ((Lloyd(), True), (given, False)):
        run = hansa.run(blob_job(algorithm=algorithm, rounds=hansa.Rounds(count=3)), directory=tmp_path, quiet=True)
        told = json.loads((run.directory / "sharing.json").read_text())
        assert any("some rows as they are" in line for line in told["left_the_clients"]) == seen
        assert told["stayed"][0].startswith("every other row" if seen else "every row")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"2 centres of 3 features given, the learner has 3 clusters and the data 4 features"):
        problem.play(Lloyd(centers=((0.0,) * 3,) * 2), KMeans(clusters=3), "iris", 1)
    with pytest.raises(InputError, match="ask for at most so many clusters"):
        KMeans(clusters=10**6).bind(problem.schema("iris"))
    with pytest.raises(InputError, match="needs a learner that offers clusters"):
        blob_job(learner=hansa.MLP())


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_sums_over_stripes_are_those_of_the_rows(scale: float) -> None:
    """Several stripes and a rest, rows halfway between two centres (the first takes them), clusters far smaller than their distances."""
    random = np.random.default_rng(3)
    centers = np.array([[-1.0, 0, 0], [1, 0, 0], [0, 3, 1]]) + 50
    x = centers[random.integers(3, size=50_000)] + scale * random.normal(size=(50_000, 3))
    x[::1000] = [50, 50, 50]
    bound = KMeans(clusters=3).bind(Schema(shape=(3,), rows=len(x)))
    told = bound.clustered(
        centers, LoadedBlock(0, (Client("a", dict, {}, len(x)),), (bound.arrays(Table(x)),), np.ones(1), 0, 1)
    ).values
    apart = ((x[:, None] - centers) ** 2).sum(axis=-1)
    labels = apart.argmin(axis=1)
    assert (labels[::1000] == 0).all()
    assert np.array_equal(told["counts"][0], np.bincount(labels, minlength=3))
    np.testing.assert_allclose(told["sums"][0], [x[labels == k].sum(axis=0) for k in range(3)], rtol=1e-12)
    np.testing.assert_allclose(told["inertia"][0], apart.min(axis=1).sum(), rtol=1e-9)
    assert np.array_equal(bound.predict({"centers": centers}, x), labels)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
def test_rows_that_lie_far_off_have_the_inertia_of_those_that_do_not(offset: float) -> None:
    random = np.random.default_rng(5)
    centers = random.normal(size=(4, 3))
    x = np.round(random.normal(size=(3000, 3)) * 64) / 64  # so that moving them is exact
    told = [sums_of(about + centers, placed(x + about)) for about in (offset, 0.0)]
    assert np.array_equal(told[0][1], told[1][1])
    np.testing.assert_allclose(told[0][2], told[1][2], rtol=max(1e-12, 1e-16 * offset))
    assert np.array_equal(np.asarray(placed(x)[:]), x)
