"""scikit-learn's estimators as a learner is given them, by name or as objects, and as it gives them back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import numpy as np

from hansa.core.contracts import Schema
from hansa.core.errors import InputError, did_you_mean

LEARNERS: dict[str, tuple[str, ...]] = {
    "sklearn": (
        "LogisticRegression", "SGDClassifier", "LinearSVC", "LinearRegression", "Ridge", "Lasso", "ElasticNet", "SGDRegressor",
        "PoissonRegressor",
    ),
    "forest": ("RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor", "ExtraTreesRegressor"),
    "kmeans": ("KMeans",),
    "pca": ("PCA",),
    "one_vs_rest": ("OneVsRestClassifier",),
    "bagging": ("BaggingClassifier", "BaggingRegressor"),
}  # fmt: skip
"""Estimators that are trained as they are, by the name of their learner."""

NEAREST = {
    "MLPClassifier": "hansa.MLP()",
    "MLPRegressor": "hansa.MLP(task='regression')",
    "DecisionTreeClassifier": "RandomForestClassifier()",
    "ExtraTreeClassifier": "ExtraTreesClassifier()",
    "GradientBoostingClassifier": "RandomForestClassifier()",
    "HistGradientBoostingClassifier": "RandomForestClassifier()",
    "DecisionTreeRegressor": "RandomForestRegressor()",
    "ExtraTreeRegressor": "ExtraTreesRegressor()",
    "GradientBoostingRegressor": "RandomForestRegressor()",
    "HistGradientBoostingRegressor": "RandomForestRegressor()",
    "SVC": "LinearSVC()",
    "NuSVC": "LinearSVC()",
    "Perceptron": "SGDClassifier(loss='perceptron')",
    "RidgeClassifier": "LogisticRegression()",
    "LogisticRegressionCV": "LogisticRegression(), and hansa.search for C",
    "SVR": "SGDRegressor(loss='epsilon_insensitive')",
    "LinearSVR": "SGDRegressor(loss='epsilon_insensitive')",
    "HuberRegressor": "SGDRegressor(loss='huber')",
    "RidgeCV": "Ridge(), and hansa.search for alpha",
    "LassoCV": "Lasso(), and hansa.search for alpha",
    "ElasticNetCV": "ElasticNet(), and hansa.search for alpha",
    "MiniBatchKMeans": "KMeans()",
    "TruncatedSVD": "PCA()",
    "IncrementalPCA": "PCA()",
}
"""What comes nearest to estimators that are not."""


def kind_of(estimator: Any) -> str:
    """The class name of an estimator that is given by it, or as an object."""
    return estimator if isinstance(estimator, str) else type(estimator).__name__


def unfitted(given: Any, options: Mapping[str, Any], known: Sequence[str], homes: Sequence[ModuleType], what: str) -> Any:
    """The estimator object: a copy of the one given, or made by its name with options.

    known: class names; homes: where the classes are; what: of these an estimator is called that is none of them.

    Raises InputError for one that is not known, and for options that it does not have.
    """
    from sklearn.base import clone

    kind = kind_of(given)
    if kind not in known:
        raise InputError(f"learner: {kind!r} is not {what} ({_instead_of(kind, known)})")
    if not isinstance(given, str):
        return clone(given)
    made = next(getattr(home, kind) for home in homes if hasattr(home, kind))
    allowed = made().get_params()
    for option in options:
        if option not in allowed:
            raise InputError(f"learner.options.{option}: {kind} has no such argument{did_you_mean(option, allowed)}")
    return made(**options)


def _instead_of(kind: str, known: Sequence[str]) -> str:
    """What to write in the place of an estimator that this learner does not train."""
    for learner, kinds in LEARNERS.items():
        if kind in kinds:
            return f"write learner.name = {learner!r}; in Python the object itself, {kind}(...), as the job's learner"
    if kind in NEAREST:
        return f"nearest to it is {NEAREST[kind]}"
    # Only what is almost the name: names of classifiers are all alike.
    close = get_close_matches(kind, known, n=1, cutoff=0.85)
    every = ", ".join(name for kinds in LEARNERS.values() for name in kinds)
    return f"did you mean {close[0]!r}?" if close else f"Hansa trains {every}, perceptrons, and modules of PyTorch and JAX"


def refuse_values(estimator: Any) -> None:
    """InputError for the first argument whose value scikit-learn itself refuses when it fits."""
    from sklearn.utils._param_validation import InvalidParameterError

    try:
        estimator._validate_params()
    except InvalidParameterError as error:
        kind, options = type(estimator).__name__, estimator.get_params(deep=False)
        found = re.fullmatch(r"The '(\w+)' parameter of \w+ must be (.*)\. Got .* instead\.", str(error), re.DOTALL)
        if found is None:
            raise InputError(f"learner {kind}: {error}") from None
        raise refused(kind, options, found[1], "is a value that scikit-learn refuses", f"write {found[2]}") from None


def changed(estimator: Any) -> dict[str, Any]:
    """The arguments of an estimator that are not what they are by default."""
    defaults = type(estimator)().get_params()
    return {name: value for name, value in estimator.get_params().items() if repr(value) != repr(defaults[name])}


def plain(name: str, given: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """A learner's options as a job file can hold them: an estimator object as its name and the arguments that were changed."""
    options = options if isinstance(given, str) else changed(given)
    written = {name: v if isinstance(v, (bool, int, float, str)) else f"<{v!r}>" for name, v in options.items()}
    return {"name": name, "estimator": kind_of(given), "options": written}


def refused(kind: str, options: Mapping[str, Any], option: str, why: str, instead: str) -> InputError:
    """The error for an argument that has no meaning here."""
    return InputError(f"learner {kind}: {option} = {options[option]!r} {why} ({instead})")


def named(fitted: Any, schema: Schema) -> Any:
    """The same fitted estimator, which knows the names of its columns where it is given the raw ones."""
    if len(schema.features) == fitted.n_features_in_ and schema.preparer is None:
        fitted.feature_names_in_ = np.asarray(schema.features, dtype=object)
    return fitted
