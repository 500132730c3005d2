"""scikit-learn's linear models: the estimator says what is minimised, Hansa how, and the user gets the estimator back, fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from hansa.core.contracts import Schema
from hansa.core.params import Params
from hansa.learners.given import LEARNERS, named, plain, refuse_values, refused, unfitted
from hansa.learners.linear import LinearModel, Objective

MARGINS = ("hinge", "log_loss", "modified_huber", "squared_hinge", "perceptron")
DISTANCES = ("squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive")
SMOOTH = ("log_loss", "softmax", "squared_error", "poisson", "squared_hinge")
"""Losses with a Hessian that Newton's method can use."""

IN_PARTS = ("log_loss", "softmax", "squared_error")
"""Losses whose second derivative is bounded, so that clients who hold columns can each step at the same time."""

ESTIMATORS = LEARNERS["sklearn"]


@dataclass(frozen=True)
class Sklearn:
    """A scikit-learn linear model.

    estimator:  a class name of `ESTIMATORS`, or an estimator object.
    options:    its arguments, where it is given by name: ``{C = 0.5}``.

    The penalty is scikit-learn's own: C and Ridge's alpha weigh the penalty against the *sum* of losses over all clients, the alpha
    of Lasso, ElasticNet, SGD and Poisson models against the mean. With an L1 penalty (Lasso, ElasticNet, LogisticRegression with
    l1_ratio) the model is for data whose columns are split over the clients.
    """

    name: Literal["sklearn"] = field(default="sklearn", kw_only=True)
    estimator: Any = "LogisticRegression"
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def unfitted(self) -> Any:
        """The estimator object; InputError for one that is not a linear model of `ESTIMATORS`, and for options that it cannot have."""
        from sklearn import linear_model, svm

        estimator = unfitted(self.estimator, self.options, ESTIMATORS, (linear_model, svm), "a linear model that Hansa trains")
        refuse_values(estimator)
        objective_of(estimator, rows=1, classes=(0, 1))
        return estimator

    def plain(self) -> dict[str, Any]:
        """The options as a job file can hold them: an estimator object as its name and the arguments that were changed."""
        return plain(self.name, self.estimator, self.options)

    @property
    def needs(self) -> frozenset[str]:
        kind = type(self.unfitted).__name__
        if kind in ("LogisticRegression", "SGDClassifier", "LinearSVC"):
            return frozenset({"classes"})
        return frozenset({"numbers", "counts"} if kind == "PoissonRegressor" else {"numbers"})

    @property
    def can(self) -> frozenset[str]:
        objective = objective_of(self.unfitted, rows=1, classes=(0, 1))
        steps = {"train", "gradient", "hessian"} if objective.loss in SMOOTH else {"train", "gradient"}
        parts = {"parts"} if objective.loss in IN_PARTS else set()
        return frozenset(parts if objective.l1 else steps | parts)

    def bind(self, schema: Schema) -> BoundSklearn:
        objective = objective_of(self.unfitted, schema.rows, schema.classes)
        return BoundSklearn(objective, schema, self.needs, self.can, self.unfitted)


@dataclass(frozen=True)
class BoundSklearn(LinearModel):
    """The linear model that exports itself as its estimator."""

    estimator: Any = None

    def export(self, params: Params) -> Any:
        """The estimator, fitted: ``predict`` works without Hansa."""
        from sklearn.base import clone

        fitted = clone(self.estimator)
        coef, outputs = np.array(params["coef"]), self.outputs
        intercept = np.array(params["intercept"]) if self.objective.intercept else np.zeros(outputs)
        scalar = type(fitted).__name__ in ("LinearRegression", "Ridge", "Lasso", "ElasticNet", "PoissonRegressor")
        flat = scalar or type(fitted).__name__ == "SGDRegressor"
        fitted.coef_ = coef[0] if flat else coef
        fitted.intercept_ = float(intercept[0]) if scalar else intercept
        fitted.n_features_in_ = coef.shape[1]
        if type(fitted).__name__ == "PoissonRegressor":
            fitted._base_loss = fitted._get_loss()  # predict takes its link function from there
        if self.schema.classes is not None:
            fitted.classes_ = np.asarray(self.schema.classes)
        return named(fitted, self.schema)


def objective_of(estimator: Any, rows: int, classes: tuple[Any, ...] | None) -> Objective:
    """What the estimator minimises, on the scale of the mean loss over ``rows`` rows; InputError for options outside of it."""
    options = estimator.get_params()
    kind = type(estimator).__name__
    _refuse(kind, options, classes)
    intercept = bool(options["fit_intercept"])
    if kind == "LogisticRegression":
        loss = "softmax" if classes is not None and len(classes) > 2 else "log_loss"
        weight, share = 0.0 if _unpenalised(options) else 1.0 / (options["C"] * rows), _share_of_l1(options)
        return Objective(loss, l2=(1.0 - share) * weight, l1=share * weight, intercept=intercept)
    if kind == "LinearSVC":
        return Objective(
            options["loss"], l2=1.0 / (options["C"] * rows), intercept=intercept, intercept_scaling=options["intercept_scaling"]
        )
    if kind in ("SGDClassifier", "SGDRegressor"):
        l2 = options["alpha"] if options["penalty"] else 0.0
        return Objective(options["loss"], l2=l2, epsilon=options["epsilon"], intercept=intercept)
    if kind == "PoissonRegressor":
        return Objective("poisson", l2=options["alpha"], intercept=intercept)
    if kind in ("Lasso", "ElasticNet"):
        share = options.get("l1_ratio", 1.0)
        return Objective("squared_error", l2=(1.0 - share) * options["alpha"], l1=share * options["alpha"], intercept=intercept)
    return Objective("squared_error", l2=options.get("alpha", 0.0) / rows, intercept=intercept)


def _share_of_l1(options: Mapping[str, Any]) -> float:
    named = {"l1": 1.0, "l2": 0.0}.get(options.get("penalty", "deprecated"))
    return float(options.get("l1_ratio") or 0.0) if named is None else named


def _unpenalised(options: Mapping[str, Any]) -> bool:
    return options.get("penalty", "deprecated") is None or np.isinf(options["C"])


def _refuse(kind: str, options: Mapping[str, Any], classes: tuple[Any, ...] | None) -> None:
    def refuse(option: str, why: str, instead: str) -> None:
        raise refused(kind, options, option, why, instead)

    if options.get("class_weight") is not None:
        refuse("class_weight", "is not supported", "write class_weight = None")
    if options.get("positive"):
        refuse("positive", "is a constraint that gradient methods do not keep", "write positive = False")
    penalty = options.get("penalty", "deprecated")
    if kind != "LogisticRegression" and penalty not in ("deprecated", "l2", None):
        refuse("penalty", "is not smooth", "write penalty = 'l2', or None")
    if kind == "LinearSVC" and options["multi_class"] != "ovr":
        refuse("multi_class", "is not a sum over classes", "write multi_class = 'ovr'")
    if kind in ("SGDClassifier", "SGDRegressor"):
        allowed = MARGINS + DISTANCES if kind == "SGDClassifier" else DISTANCES
        if options["loss"] not in allowed or (kind == "SGDClassifier" and options["loss"] in DISTANCES):
            refuse("loss", "is not supported", f"one of {', '.join(MARGINS if kind == 'SGDClassifier' else DISTANCES)}")
        if options["average"]:
            refuse("average", "is a property of one worker's path", "write average = False")
    if isinstance(options.get("alpha"), np.ndarray):
        refuse("alpha", "has one value per output", "give one number")
