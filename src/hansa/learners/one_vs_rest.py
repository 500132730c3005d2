"""One against the rest: a binary learner for several classes, by a problem for each of them.

The problems are trained side by side (:mod:`hansa.learners.beside`): the one of a class has the bits that it has alone, wherever the
algorithm treats params entry by entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.contracts import Schema, UnboundLearner
from hansa.core.errors import InputError
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Params
from hansa.core.updates import under
from hansa.learners import measures
from hansa.learners.beside import ABILITIES, Beside
from hansa.learners.estimators import learner_of
from hansa.learners.labels import encode

BINARY = ("sklearn", "mlp", "bagging")
"""Learners whose models are scikit-learn's classifiers, of which a OneVsRestClassifier is made."""


@dataclass(frozen=True)
class OneVsRest:
    """Several classes by a binary learner; the model is a fitted ``sklearn.multiclass.OneVsRestClassifier``.

    learner: of two classes: a learner, as a table in a job file, or an estimator of scikit-learn. ``OneVsRestClassifier(estimator)`` may
             also be given itself as a job's learner.
    """

    name: Literal["one_vs_rest"] = field(default="one_vs_rest", kw_only=True)
    learner: UnboundLearner

    def __post_init__(self) -> None:
        given: Any = self.learner
        if not hasattr(given, "bind") and hasattr(given, "get_params"):
            given = learner_of(given)
        if getattr(given, "name", None) not in BINARY:
            raise InputError(
                f"learner.learner: {type(given).__name__} gives no classifier of scikit-learn to set beside others "
                "(write a linear model of scikit-learn, or name = 'mlp')"
            )
        if given.needs & {"numbers", "counts"}:
            raise InputError("learner.learner: it is for numbers, and one against the rest is for classes (write a classifier)")
        object.__setattr__(self, "learner", given)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"classes"})

    @property
    def can(self) -> frozenset[str]:
        return self.learner.can & ABILITIES

    def bind(self, schema: Schema) -> BoundOneVsRest:
        """Raises InputError where the binary learner and the data do not go together."""
        one = self.learner.bind(replace(schema, classes=(0, 1), features=()))
        return BoundOneVsRest(one, schema, self.can, self.learner)


@dataclass(frozen=True)
class BoundOneVsRest(Beside):
    """The learner that knows the data. Params are those of the binary learner, each under the number of its class: ``0/coef``; of two
    classes only the second has a problem, ``1/coef``. ``one`` is the binary learner, for the labels 0 and 1.

    unbound: the binary learner, before it knows the data.
    """

    unbound: UnboundLearner

    @property
    def problems(self) -> tuple[str, ...]:
        classes = self.schema.classes or ()
        return ("1",) if len(classes) == 2 else tuple(str(number) for number in range(len(classes)))

    def arrays(self, table: Table) -> Table:
        """x as the binary learner has it; y to class numbers (int64)."""
        x = self.one.arrays(Table(table.x)).x
        return Table(x) if table.y is None else Table(x, encode(table.y, self.schema.classes))

    def posed(self, problem: str, block: LoadedBlock) -> LoadedBlock:
        """All rows, labelled 1 where they are of the problem's class."""
        number = int(problem)
        return replace(block, tables=tuple(Table(table.x, (table.y == number).astype(np.int64)) for table in block.tables))

    def said(self, losses: np.ndarray) -> np.ndarray:
        """Their sum."""
        return np.asarray(losses.sum(axis=0))

    @property
    def metric_names(self) -> tuple[str, ...]:
        own = self.one.metric_names
        return own if len(self.problems) == 1 else (*(name for name in own if name == "loss"), "accuracy")

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """loss, the sum of those of the classes' problems, and accuracy; of two classes what the binary learner measures."""
        several = [self.one.evaluate(own, its) for _, own, its in self.each(params, block)]
        if len(several) == 1:
            return several[0]
        chosen = self._numbers(params, np.concatenate([table.x for table in block.tables]))
        ends = np.cumsum(block.rows)
        right = stack([
            {"accuracy": measures.accuracy(chosen[end - len(table) : end], table.y)}
            for end, table in zip(ends, block.tables, strict=True)
        ])  # fmt: skip
        return self.together(several) | right

    def _numbers(self, params: Params, x: np.ndarray) -> np.ndarray:
        """Of each row the number of the class that is surest of it."""
        if not len(x):  # scikit-learn predicts for one row at least
            return np.zeros(0, dtype=np.int64)
        sure = [_surety(self.one.export(under(params, of)), x) for of in self.problems]
        return np.argmax(sure, axis=0) if len(sure) > 1 else (sure[0] > _even(self.one.export(under(params, "1")))).astype(np.int64)

    def predict(self, params: Params, x: np.ndarray) -> np.ndarray:
        """Labels, (rows,)."""
        return np.asarray(self.schema.classes)[self._numbers(params, self.one.arrays(Table(x)).x)]

    def export(self, params: Params) -> Any:
        """The classifier, fitted: ``predict`` works without Hansa."""
        from sklearn.base import clone
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.preprocessing import LabelBinarizer

        named = self.unbound.bind(replace(self.schema, classes=(0, 1)))
        estimators = [named.export(under(params, of)) for of in self.problems]
        fitted = OneVsRestClassifier(clone(estimators[0]))
        fitted.estimators_ = estimators
        fitted.label_binarizer_ = LabelBinarizer(sparse_output=True).fit(np.asarray(self.schema.classes))
        fitted.classes_ = fitted.label_binarizer_.classes_
        fitted.n_features_in_ = estimators[0].n_features_in_
        if hasattr(estimators[0], "feature_names_in_"):
            fitted.feature_names_in_ = estimators[0].feature_names_in_
        return fitted


def _surety(fitted: Any, x: np.ndarray) -> np.ndarray:
    """How sure a binary classifier is of label 1, as OneVsRestClassifier compares it."""
    return np.ravel(fitted.decision_function(x)) if hasattr(fitted, "decision_function") else fitted.predict_proba(x)[:, 1]


def _even(fitted: Any) -> float:
    """The surety at which either label is as good."""
    return 0.0 if hasattr(fitted, "decision_function") else 0.5
