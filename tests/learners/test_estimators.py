"""scikit-learn's objects that find structure, as a job's learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hansa
from hansa.core.errors import InputError
from hansa.learners.estimators import learner_of

X, Y = load_iris(return_X_y=True)


@pytest.mark.parametrize(
    ("given", "learner"),
    [
        (KMeans(5), hansa.KMeans(clusters=5)),
        (KMeans(5, n_init=1, verbose=0, copy_x=False), hansa.KMeans(clusters=5)),
        (PCA(), hansa.PCA()),
        (PCA(np.int64(2), svd_solver="full", copy=False), hansa.PCA(components=2)),
    ],
)
def test_they_are_learners(given: Any, learner: Any) -> None:
    assert learner_of(given) == learner


def test_a_pipeline_with_components_comes_back_fitted(tmp_path: Path) -> None:
    data = hansa.from_arrays(X, Y, np.resize(["a", "b", "c"], len(X)))
    given = make_pipeline(StandardScaler(), PCA(2))
    job = hansa.Job(data=data, learner=given, algorithm=hansa.PrincipalComponents(), split=hansa.Split(test=0.0))
    ours, theirs = hansa.run(job, directory=tmp_path, quiet=True).model, given.fit(X)
    np.testing.assert_allclose(np.abs(ours.transform(X)), np.abs(theirs.transform(X)), atol=1e-8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            KMeans(init="random"),
            r"learner KMeans: init = 'random' is of the algorithm \(leave it out, or write algorithm.centers\)",
        ),
        (KMeans(init=X[:8]), "learner KMeans: init = array.* is of the algorithm"),
        (KMeans(n_init=10), "n_init = 10 starts more than once"),
        (KMeans(max_iter=20), r"max_iter = 20 is of the job \(write rounds.count\)"),
        (KMeans(random_state=0), "random_state = 0 is not what the start is drawn by"),
        (PCA(0.95), r"n_components = 0.95 depends on the variances.*\(write how many, or None for all\)"),
        (PCA("mle"), "n_components = 'mle' depends on the variances"),
        (PCA(whiten=True), "whiten = True scales the projection"),
        (PCA(svd_solver="randomized"), "svd_solver = 'randomized' is for rows in one place"),
    ],
)
def test_what_has_no_meaning_is_refused(given: Any, said: str) -> None:
    with pytest.raises(InputError, match="(?s)" + said):
        learner_of(given)
