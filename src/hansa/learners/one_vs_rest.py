"""One against the rest: a binary learner for several classes, by a problem for each of them.

The problems are trained side by side in one learner and not as tasks of their own: they share every row, so a block is loaded and visited
once for all of them, a round is one exchange, and any algorithm, engine and transform serves without knowing of it. Their params do not
meet (the Hessian is block diagonal), so the problems of a class have the bits that they have alone, wherever the algorithm treats
params entry by entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.contracts import Schema, UnboundLearner
from hansa.core.errors import InputError
from hansa.core.local import Plan, Trained
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.updates import Update, under
from hansa.learners import measures
from hansa.learners.estimators import learner_of
from hansa.learners.labels import encode

BINARY = ("sklearn", "mlp")
"""Learners whose models are scikit-learn's classifiers, of which a OneVsRestClassifier is made."""

ABILITIES = frozenset({"train", "gradient", "hessian"})


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
        return BoundOneVsRest(self.learner, self.learner.bind(replace(schema, classes=(0, 1), features=())), schema, self.can)


@dataclass(frozen=True)
class BoundOneVsRest:
    """The learner that knows the data. Params are those of the binary learner, each under the number of its class: ``0/coef``; of two
    classes only the second has a problem, ``1/coef``.

    one: the binary learner, for the labels 0 and 1.
    """

    unbound: UnboundLearner
    one: Any
    schema: Schema
    can: frozenset[str]

    @property
    def _problems(self) -> tuple[str, ...]:
        classes = self.schema.classes or ()
        return ("1",) if len(classes) == 2 else tuple(str(number) for number in range(len(classes)))

    def kinds(self) -> Kinds:
        return {f"{of}/{name}": kind for of in self._problems for name, kind in self.one.kinds().items()}

    def init(self, seed: int) -> Params:
        """Of each class as the binary learner begins alone."""
        return {f"{of}/{name}": value for of in self._problems for name, value in self.one.init(seed).items()}

    def arrays(self, table: Table) -> Table:
        """x as the binary learner has it; y to class numbers (int64)."""
        x = self.one.arrays(Table(table.x)).x
        return Table(x) if table.y is None else Table(x, encode(table.y, self.schema.classes))

    def _each(self, params: Params, block: LoadedBlock) -> Iterator[tuple[str, Params, LoadedBlock]]:
        """Every problem with its own params and labels."""
        for of in self._problems:
            tables = tuple(Table(table.x, (table.y == int(of)).astype(np.int64)) for table in block.tables)
            yield of, under(params, of), replace(block, tables=tables)

    def train(self, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
        several = {
            of: self.one.train(own, its, replace(plan, drift=None if plan.drift is None else under(plan.drift, of)))
            for of, own, its in self._each(params, block)
        }
        merged = {f"{of}/{name}": value for of, trained in several.items() for name, value in trained.params.items()}
        steps = next(iter(several.values())).steps
        return Trained(merged, steps, _summed([trained.metrics for trained in several.values()]))

    def gradient(self, params: Params, block: LoadedBlock) -> Update:
        several = {of: self.one.gradient(own, its) for of, own, its in self._each(params, block)}
        return Update(_gradients(several), block.weight, _summed([told.metrics for told in several.values()]))

    def hessian(self, params: Params, block: LoadedBlock) -> Update:
        several = {of: self.one.hessian(own, its) for of, own, its in self._each(params, block)}
        blocks = [told.values["hessian"] for told in several.values()]
        ends = np.cumsum([part.shape[1] for part in blocks])
        hessian = np.zeros((len(block), ends[-1], ends[-1]))
        for part, end in zip(blocks, ends, strict=True):
            hessian[:, end - part.shape[1] : end, end - part.shape[1] : end] = part
        objective = np.sum([told.values["objective"] for told in several.values()], axis=0)
        values = {**_gradients(several), "objective": objective, "hessian": hessian}
        return Update(values, block.weight, _summed([told.metrics for told in several.values()]))

    def losses(self, candidates: Sequence[Params], block: LoadedBlock) -> Update:
        told = [
            self.one.losses([under(params, of) for params in candidates], its).values["losses"]
            for of, _, its in self._each(candidates[0], block)
        ]
        return Update({"losses": np.sum(told, axis=0)}, block.weight)

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """loss, the sum of those of the classes' problems, and accuracy; of two classes what the binary learner measures."""
        several = [self.one.evaluate(own, its) for _, own, its in self._each(params, block)]
        if len(several) == 1:
            return several[0]
        chosen = self._numbers(params, np.concatenate([table.x for table in block.tables]))
        ends = np.cumsum(block.rows)
        right = stack([
            {"accuracy": measures.accuracy(chosen[end - len(table) : end], table.y)}
            for end, table in zip(ends, block.tables, strict=True)
        ])  # fmt: skip
        return _summed(several) | right

    def _numbers(self, params: Params, x: np.ndarray) -> np.ndarray:
        """Of each row the number of the class that is surest of it."""
        sure = [_surety(self.one.export(under(params, of)), x) for of in self._problems]
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
        estimators = [named.export(under(params, of)) for of in self._problems]
        fitted = OneVsRestClassifier(clone(estimators[0]))
        fitted.estimators_ = estimators
        fitted.label_binarizer_ = LabelBinarizer(sparse_output=True).fit(np.asarray(self.schema.classes))
        fitted.classes_ = fitted.label_binarizer_.classes_
        fitted.n_features_in_ = estimators[0].n_features_in_
        if hasattr(estimators[0], "feature_names_in_"):
            fitted.feature_names_in_ = estimators[0].feature_names_in_
        return fitted


def _gradients(several: Mapping[str, Update]) -> dict[str, Any]:
    return {
        f"gradient/{of}/{name}": value for of, told in several.items() for name, value in under(told.values, "gradient").items()
    }


def _summed(several: Sequence[Metrics]) -> Metrics:
    """The loss of all problems together, over the same rows."""
    return (
        {"loss": (np.sum([metrics["loss"][0] for metrics in several], axis=0), several[0]["loss"][1])}
        if "loss" in several[0]
        else {}
    )


def _surety(fitted: Any, x: np.ndarray) -> np.ndarray:
    """How sure a binary classifier is of label 1, as OneVsRestClassifier compares it."""
    return np.ravel(fitted.decision_function(x)) if hasattr(fitted, "decision_function") else fitted.predict_proba(x)[:, 1]


def _even(fitted: Any) -> float:
    """The surety at which either label is as good."""
    return 0.0 if hasattr(fitted, "decision_function") else 0.5
