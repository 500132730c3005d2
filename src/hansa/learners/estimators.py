"""The learner for an estimator of scikit-learn that a user has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hansa.core.errors import refuse_class
from hansa.learners.given import changed, refuse_values, refused

_OF_KMEANS = {
    "init": ("is of the algorithm", "leave it out, or write algorithm.centers"),
    "n_init": ("starts more than once", "leave it out; algorithm.restarts chooses among starts"),
    "max_iter": ("is of the job", "write rounds.count"),
    "tol": ("is of the algorithm", "write algorithm.tolerance"),
    "random_state": ("is not what the start is drawn by", "leave it out, and write the job's seed"),
    "algorithm": ("is another way to the same clusters", "leave it out"),
}
_OF_PCA = {
    "whiten": ("scales the projection by deviations", "leave it out, and scale what the model gives"),
    "svd_solver": ("is for rows in one place", "leave it out; components are those of the summed moments"),
    "tol": ("is of another solver", "leave it out"),
    "iterated_power": ("is of another solver", "leave it out"),
    "n_oversamples": ("is of another solver", "leave it out"),
    "power_iteration_normalizer": ("is of another solver", "leave it out"),
    "random_state": ("is of another solver", "leave it out"),
}
"""Arguments that say nothing here unless they are left as they are: why, and what to write instead."""


def learner_of(estimator: Any) -> Any:
    """The learner that trains it. What it cannot train is said when its options are first asked for.

    Raises InputError for a class in the place of an object.
    """
    refuse_class(estimator, "learner")
    kind = type(estimator).__name__
    if kind in ("OneVsRestClassifier", "BaggingClassifier", "BaggingRegressor", "KMeans", "PCA"):
        refuse_values(estimator)
    if kind == "OneVsRestClassifier":
        from hansa.learners.one_vs_rest import OneVsRest

        return OneVsRest(learner_of(estimator.estimator))
    if kind in ("BaggingClassifier", "BaggingRegressor"):
        from hansa.learners.bagging import bagged

        return bagged(estimator)
    if kind == "KMeans":
        return _kmeans(estimator)
    if kind == "PCA":
        return _pca(estimator)
    from hansa.learners.forest import FORESTS, Forests

    if kind in FORESTS:
        return Forests(estimator=estimator)
    from hansa.learners.sklearn import Sklearn

    return Sklearn(estimator=estimator)


def _kmeans(estimator: Any) -> Any:
    from hansa.learners.kmeans import KMeans

    # One start is what "auto" comes to, and what is made here.
    _refuse(estimator, _OF_KMEANS, but={"n_init": 1})
    return KMeans(clusters=estimator.n_clusters)


def _pca(estimator: Any) -> Any:
    from hansa.learners.pca import PCA

    solver = estimator.svd_solver
    _refuse(estimator, _OF_PCA, but={"svd_solver": solver if solver in ("full", "covariance_eigh") else "auto"})
    wanted = estimator.n_components
    if wanted is not None and not isinstance(wanted, (int, np.integer)):
        why = "depends on the variances, which nobody knows before"
        raise refused("PCA", {"n_components": wanted}, "n_components", why, "write how many, or None for all")
    return PCA(components=0 if wanted is None else int(wanted))


def _refuse(estimator: Any, meaningless: Mapping[str, tuple[str, str]], but: Mapping[str, Any]) -> None:
    """InputError for the first argument without a meaning that was changed to another value than in ``but``."""
    given = changed(estimator)
    for option, (why, instead) in meaningless.items():
        if option in given and not (option in but and given[option] == but[option]):
            raise refused(type(estimator).__name__, given, option, why, instead)
