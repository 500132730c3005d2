"""The learner for an estimator of scikit-learn that a user has."""

from __future__ import annotations

from typing import Any


def learner_of(estimator: Any) -> Any:
    """The learner that trains it. What it cannot train is said when its options are first asked for."""
    kind = type(estimator).__name__
    if kind == "OneVsRestClassifier":
        from hansa.learners.one_vs_rest import OneVsRest

        return OneVsRest(learner_of(estimator.estimator))
    from hansa.learners.forest import FORESTS, Forests

    if kind in FORESTS:
        return Forests(estimator=estimator)
    from hansa.learners.sklearn import Sklearn

    return Sklearn(estimator=estimator)
