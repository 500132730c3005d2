"""Bagging: members that are each trained on a sample of their own of the rows, and vote (Breiman, Bagging predictors, Machine Learning 24,
1996).

Breiman draws as many rows as there are, with replacement, from all of them. Nobody has all of them here: every client draws from its
own rows, as many as it has, so that it counts for a member as it counts for the whole (a bootstrap by strata). What a client draws
follows from the job's seed, the client and the member, is the same in every round, and is known to nobody else. A client of a single row
has nothing to draw from, and gives it to every member.

The members are trained side by side (:mod:`hansa.learners.beside`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from hansa.core.blocks import Client, LoadedBlock, Table
from hansa.core.contracts import Schema, UnboundLearner
from hansa.core.errors import InputError
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Params
from hansa.core.randomness import combine, derive, permutations, uniforms
from hansa.core.updates import under
from hansa.learners import measures
from hansa.learners.beside import ABILITIES, Beside
from hansa.learners.estimators import learner_of
from hansa.learners.given import named, refused
from hansa.learners.labels import encode

MEMBERS = ("sklearn", "mlp", "one_vs_rest")
"""Learners whose models are scikit-learn's, of which a BaggingClassifier or BaggingRegressor is made."""


@dataclass(frozen=True)
class Bagging:
    """Members of one kind, each trained on rows that every client draws for it from its own; they vote. The model is a fitted
    ``sklearn.ensemble.BaggingClassifier``, or ``BaggingRegressor``.

    learner:    of a member: a learner, as a table in a job file, or an estimator of scikit-learn. ``BaggingClassifier(estimator)`` and
                ``BaggingRegressor(estimator)`` may also be given themselves as a job's learner.
    members:    how many.
    share:      of its rows that a client draws for a member, at least one; a penalty that weighs against the sum of losses weighs
                against that of so many rows.
    bootstrap:  draw with replacement. Without, a member has each row at most once, and with ``share = 1`` all of them: members of a
                perceptron then differ by where they begin and by the order of their rows, those of a linear model not at all.
    """

    name: Literal["bagging"] = field(default="bagging", kw_only=True)
    learner: UnboundLearner
    members: Annotated[int, Ge(1)] = 10
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    bootstrap: bool = True

    def __post_init__(self) -> None:
        given: Any = self.learner
        if not hasattr(given, "bind") and hasattr(given, "get_params"):
            given = learner_of(given)
        if getattr(given, "name", None) == "forest":
            raise InputError("learner.learner: a forest is an ensemble of trees already (give it as the job's learner itself)")
        if getattr(given, "name", None) not in MEMBERS:
            raise InputError(
                f"learner.learner: {type(given).__name__} gives no estimator of scikit-learn to be the member of an ensemble "
                "(write a linear model of scikit-learn, name = 'mlp', or name = 'one_vs_rest')"
            )
        object.__setattr__(self, "learner", given)

    @property
    def needs(self) -> frozenset[str]:
        return self.learner.needs

    @property
    def can(self) -> frozenset[str]:
        return self.learner.can & ABILITIES

    def bind(self, schema: Schema) -> BoundBagging:
        """Raises InputError where the member and the data do not go together."""
        classes = None if schema.classes is None else tuple(range(len(schema.classes)))
        one = self.learner.bind(replace(schema, classes=classes, features=(), rows=max(1, round(self.share * schema.rows))))
        return BoundBagging(one, schema, self.can, self)


def bagged(estimator: Any) -> Bagging:
    """The learner for scikit-learn's object; InputError for options that cannot be kept where no one has all rows."""
    kind, options = type(estimator).__name__, estimator.get_params(deep=False)
    _refuse(kind, options)
    share = 1.0 if options["max_samples"] is None else float(options["max_samples"])
    return Bagging(learner_of(options["estimator"]), members=options["n_estimators"], share=share, bootstrap=options["bootstrap"])


def _refuse(kind: str, options: Mapping[str, Any]) -> None:
    why = {
        "estimator": (options["estimator"] is None, "is a decision tree", f"write RandomForest{kind.removeprefix('Bagging')}()"),
        "max_samples": (
            isinstance(options["max_samples"], (int, np.integer)), "counts rows, and every client draws from its own",
            "write a share of them, between 0 and 1",
        ),
        "max_features": (
            isinstance(options["max_features"], (int, np.integer)) or options["max_features"] != 1.0,
            "leaves columns out, and members have all of them", "leave it out",
        ),
        "bootstrap_features": (options["bootstrap_features"], "draws columns, and members have all of them", "leave it out"),
        "oob_score": (options["oob_score"], "needs the rows of all clients in one place", "leave it out; split.test does it"),
        "warm_start": (options["warm_start"], "goes on with members that are there", "leave it out"),
        "random_state": (
            options["random_state"] is not None, "is not what is drawn by", "leave it out; the draws follow from the job's seed",
        ),
    }  # fmt: skip
    for option, (wrong, reason, instead) in why.items():
        if wrong:
            raise refused(kind, options, option, reason, instead)


@dataclass(frozen=True)
class BoundBagging(Beside):
    """The learner that knows the data. Params are those of a member, each under the member's number: ``0/coef``. ``one`` is a member,
    whose classes are the numbers of the data's."""

    options: Bagging

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(str(member) for member in range(self.options.members))

    def init(self, seed: int) -> Params:
        """The first member begins as it would alone, the others each elsewhere."""
        begun = {of: self.one.init(_seed(seed, of)) for of in self.problems}
        return {f"{of}/{name}": value for of, params in begun.items() for name, value in params.items()}

    def arrays(self, table: Table) -> Table:
        """As a member has it."""
        classes = self.schema.classes
        labels = table.y if table.y is None or classes is None else encode(table.y, classes)
        own: Table = self.one.arrays(Table(table.x, labels))
        return own

    def drawn(self, client: Client, rows: int, problem: str, seed: int) -> np.ndarray:
        """Which of its rows a client has drawn for a member, ascending, int64."""
        key = combine(np.array([client.key], dtype=np.uint64), derive(seed, "bagging", int(problem)))
        count = max(1, round(self.options.share * rows))
        if self.options.bootstrap:
            # The product may round up to `rows` itself.
            chosen = np.minimum((uniforms(key, count)[0] * rows).astype(np.int64), rows - 1)
        else:
            chosen = permutations(key, np.array([rows]))[0, :count]
        return np.sort(chosen)

    def posed(self, problem: str, block: LoadedBlock) -> LoadedBlock:
        """The rows that were drawn for the member, and randomness of its own."""
        seed = _seed(block.seed, problem)
        if self.options.share == 1.0 and not self.options.bootstrap:
            return replace(block, seed=seed)
        tables = tuple(
            table.take(self.drawn(client, len(table), problem, block.seed)) if len(table) else table
            for client, table in zip(block.clients, block.tables, strict=True)
        )
        return replace(block, tables=tables, seed=seed)

    def said(self, losses: np.ndarray) -> np.ndarray:
        """Their mean."""
        return np.asarray(losses.sum(axis=0) / len(losses))

    @property
    def metric_names(self) -> tuple[str, ...]:
        if self.schema.classes is None:
            return "loss", "mse", "mae"
        return ("loss", "accuracy", "auc") if len(self.schema.classes) == 2 else ("loss", "accuracy")

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """loss, the mean of the members'; what the vote comes to: accuracy and, for two classes, auc; for numbers mse and mae."""
        several = [self.one.evaluate(under(params, of), block) for of in self.problems]
        x, ends = np.concatenate([np.asarray(table.x) for table in block.tables]), np.cumsum(block.rows)
        said, score = self._voted(params, x)
        rows = [slice(int(end - count), int(end)) for end, count in zip(ends, block.rows, strict=True)]
        own = [self._measure(said[own], score[own], table.y) for own, table in zip(rows, block.tables, strict=True)]
        return self.together(several) | stack(own)

    def _voted(self, params: Params, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the classes (rows, classes), or numbers (rows,); and of two classes how sure the vote is of the second."""
        if not len(x):  # scikit-learn predicts for one row at least
            empty = np.zeros(0 if self.schema.classes is None else (0, len(self.schema.classes)))
            return empty, empty
        vote = self._fitted(params)
        said = vote.predict(x) if self.schema.classes is None else vote.predict_proba(x)
        return said, _score(vote, x, said)

    def _measure(self, said: np.ndarray, score: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, float]]:
        if self.schema.classes is None:
            return {"mse": measures.squared_error(said, y), "mae": measures.absolute_error(said, y)}
        right = {"accuracy": measures.accuracy(said.argmax(axis=1), y)}
        return right | ({"auc": measures.concordance(score, y)} if len(self.schema.classes) == 2 else {})

    def predict(self, params: Params, x: np.ndarray) -> np.ndarray:
        """Labels for classification, by the members' mean probabilities, or by their votes where they give none; numbers for
        regression, their mean; (rows,)."""
        return np.asarray(self._fitted(params).predict(np.asarray(self.one.arrays(Table(x)).x)))

    def export(self, params: Params) -> Any:
        """The ensemble, fitted: ``predict`` works without Hansa."""
        return named(self._fitted(params), self.schema)

    def _fitted(self, params: Params) -> Any:
        from sklearn.base import clone
        from sklearn.ensemble import BaggingClassifier, BaggingRegressor

        members = [self.one.export(under(params, of)) for of in self.problems]
        made = BaggingRegressor if self.schema.classes is None else BaggingClassifier
        own = {} if self.options.share == 1.0 else {"max_samples": self.options.share}
        fitted = made(clone(members[0]), n_estimators=len(members), bootstrap=self.options.bootstrap, **own)
        fitted.estimator_, fitted.estimators_, fitted.n_features_in_ = clone(members[0]), members, members[0].n_features_in_
        fitted.estimators_features_ = [np.arange(fitted.n_features_in_)] * len(members)
        if self.schema.classes is not None:
            fitted.classes_, fitted.n_classes_ = np.asarray(self.schema.classes), len(self.schema.classes)
        return fitted


def _seed(seed: int, problem: str) -> int:
    return seed if problem == "0" else derive(seed, "member", int(problem))


def _score(vote: Any, x: np.ndarray, said: np.ndarray) -> np.ndarray:
    """How sure the vote is of the second of two classes; elsewhere what it says."""
    if said.ndim == 1 or said.shape[1] != 2:
        return said
    counted = not hasattr(vote.estimators_[0], "predict_proba") and hasattr(vote, "decision_function")
    return np.asarray(vote.decision_function(x) if counted else said[:, 1])
