"""scikit-learn's forests: grown with scikit-learn's own trees at the clients, and given back as an ordinary fitted forest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.contracts import Schema
from hansa.core.decision_trees import OF_NODE, TREES, checked, depths, joined, no_trees
from hansa.core.errors import InputError
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.randomness import combine, derive
from hansa.learners import measures
from hansa.learners.given import LEARNERS, named, plain, refuse_values, refused, unfitted
from hansa.learners.labels import encode
from hansa.learners.rows import flat

FORESTS = LEARNERS["forest"]

_NODES = {
    "left": "left_child", "right": "right_child", "feature": "feature", "threshold": "threshold", "impurity": "impurity",
    "samples": "n_node_samples", "weight": "weighted_n_node_samples", "missing_left": "missing_go_to_left",
}  # fmt: skip
"""Names of scikit-learn's node fields."""


@dataclass(frozen=True)
class Forests:
    """A forest of scikit-learn, for the algorithm ``forest``.

    estimator:  a class name of `FORESTS`, or a forest object.
    options:    its arguments, where it is given by name: ``{n_estimators = 200}``.

    ``n_estimators`` is the number of trees of the whole forest. What depends on the rows (``max_samples``, ``class_weight`` by
    frequency, ``min_samples_leaf``) is of each client's own rows. Each client's random state follows from the job's seed, the client and
    ``random_state``.
    """

    name: Literal["forest"] = field(default="forest", kw_only=True)
    estimator: Any = "RandomForestClassifier"
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def unfitted(self) -> Any:
        """The forest object; InputError for one that is none of `FORESTS`, and for options that it cannot have."""
        from sklearn import ensemble

        estimator = unfitted(self.estimator, self.options, FORESTS, (ensemble,), "a forest that Hansa grows")
        refuse_values(estimator)
        return estimator

    def plain(self) -> dict[str, Any]:
        """The options as a job file can hold them: a forest object as its name and the arguments that were changed."""
        return plain(self.name, self.estimator, self.options)

    @property
    def can(self) -> frozenset[str]:
        _refuse(self.unfitted)
        return frozenset({"trees"})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"classes" if type(self.unfitted).__name__.endswith("Classifier") else "numbers"})

    def bind(self, schema: Schema) -> BoundForest:
        return BoundForest(self.unfitted, schema)


def _refuse(estimator: Any) -> None:
    """InputError for options that cannot be kept where no one has all rows."""
    kind, options = type(estimator).__name__, estimator.get_params()
    for option in ("oob_score", "warm_start"):
        if options[option]:
            why = "needs the rows of all clients in one place" if option == "oob_score" else "goes on with trees that are there"
            raise refused(kind, options, option, why, "leave it out")
    if not (options["random_state"] is None or isinstance(options["random_state"], (int, np.integer))):
        raise refused(kind, options, "random_state", "is no number", "write one, or None")


@dataclass(frozen=True)
class BoundForest:
    """A forest that knows the data.

    Params: ``wanted``, the number of trees; ``agreed`` [features, classes], no classes for a regression; and the trees as
    :data:`hansa.core.decision_trees.TREES`. A forest without trees, as it begins, says that all classes are equally likely, and 0.
    """

    estimator: Any
    schema: Schema
    can: frozenset[str] = frozenset({"trees"})

    @property
    def _features(self) -> int:
        return int(np.prod(self.schema.shape))

    @property
    def _classes(self) -> int:
        return 0 if self.schema.classes is None else len(self.schema.classes)

    def kinds(self) -> Kinds:
        return {}

    def init(self, seed: int) -> Params:
        """No trees; the seed changes nothing."""
        agreed = np.array([self._features, self._classes])
        return {"wanted": np.array(self.estimator.n_estimators), "agreed": agreed, **no_trees(max(1, self._classes))}

    def arrays(self, table: Table) -> Table:
        """x to float32 (rows, features), as scikit-learn's trees take it; y to class numbers (int64) or float64."""
        x = flat(np.asarray(table.x, dtype=np.float32))
        return Table(x) if table.y is None else Table(x, encode(table.y, self.schema.classes))

    def trees(self, block: LoadedBlock, counts: Sequence[int]) -> dict[str, list[np.ndarray]]:
        """As many trees of each client as are asked for: by the names of :data:`~hansa.core.decision_trees.TREES` an array per client.

        A client's first trees are the same, however many are asked for.
        """
        keys = combine(np.array([c.key for c in block.clients], dtype=np.uint64), derive(block.seed, "forest", self._random_state))
        grown = [
            self._grown(table, count, int(key >> np.uint64(32)))
            for table, count, key in zip(block.tables, counts, keys, strict=True)
        ]
        return {name: [trees[name] for trees in grown] for name in TREES}

    @property
    def _random_state(self) -> int:
        return -1 if self.estimator.random_state is None else int(self.estimator.random_state)

    def _grown(self, table: Table, count: int, seed: int) -> dict[str, np.ndarray]:
        width = max(1, self._classes)
        if not count:
            return no_trees(width)
        from sklearn.base import clone

        changed: dict[str, Any] = {"n_estimators": count, "random_state": seed, "n_jobs": 1, "verbose": 0}
        weights = getattr(self.estimator, "class_weight", None)
        if isinstance(weights, Mapping):
            changed["class_weight"] = self._weights(weights, np.unique(table.y))
        forest = clone(self.estimator).set_params(**changed).fit(table.x, table.y)
        # A client may lack classes: its trees' columns are those that it has.
        columns = forest.classes_ if self._classes else np.zeros(1, dtype=np.int64)
        return joined([_arrays(one, columns, width) for one in forest.estimators_])

    def _weights(self, weights: Mapping[Any, float], present: np.ndarray) -> dict[int, float]:
        """The weights of a client's classes, by their numbers."""
        numbers = dict(enumerate(self.schema.classes or ()))
        return {int(number): float(weights.get(numbers[int(number)], 1.0)) for number in present}

    @property
    def metric_names(self) -> tuple[str, ...]:
        if not self._classes:
            return "loss", "mse", "mae"
        return ("loss", "accuracy", "auc") if self._classes == 2 else ("loss", "accuracy")

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """For classes loss (the log loss, shares clipped as scikit-learn does), accuracy and, for two of them, auc; for numbers loss
        and mse (the mean squared error) and mae."""
        said = self._said(params, np.concatenate([table.x for table in block.tables]))
        ends = np.cumsum(block.rows)
        rows = [said[end - len(table) : end] for end, table in zip(ends, block.tables, strict=True)]
        return stack([self._measure(one, table.y) for one, table in zip(rows, block.tables, strict=True)])

    def _measure(self, said: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, float]]:
        if not self._classes:
            squared = measures.squared_error(said, y)
            return {"loss": squared, "mse": squared, "mae": measures.absolute_error(said, y)}
        least = np.finfo(said.dtype).eps
        chosen = np.clip(said[np.arange(len(y)), y], least, 1 - least)
        result = {"loss": (float(-np.log(chosen).sum()), float(len(y))), "accuracy": measures.accuracy(said.argmax(axis=1), y)}
        return result | ({"auc": measures.concordance(said[:, 1], y)} if self._classes == 2 else {})

    def _said(self, params: Params, x: np.ndarray) -> np.ndarray:
        """Shares of the classes (rows, classes), or numbers (rows,)."""
        if not len(params["nodes"]) or not len(x):  # scikit-learn predicts for one row at least
            return np.full((len(x), self._classes), 1.0 / self._classes) if self._classes else np.zeros(len(x))
        forest = self._built(params).set_params(n_jobs=1)
        x = flat(np.asarray(x, dtype=np.float32))
        return np.asarray(forest.predict_proba(x) if self._classes else forest.predict(x))

    def predict(self, params: Params, x: np.ndarray) -> np.ndarray:
        """Labels for classification, numbers for regression, (rows,)."""
        said = self._said(params, x)
        return np.asarray(self.schema.classes)[said.argmax(axis=1)] if self._classes else said

    def export(self, params: Params) -> Any:
        """The forest, fitted: ``predict``, ``feature_importances_`` and ``apply`` work without Hansa.

        Raises InputError for params that hold no trees, or trees that cannot be walked.
        """
        if not len(params["nodes"]):
            raise InputError(
                "the forest has no trees: the run ended before the clients grew some (resume it, or look for their failures in its report)"
            )
        return named(self._built(params), self.schema)

    def _built(self, params: Params) -> Any:
        from sklearn.base import clone

        width = max(1, self._classes)
        try:
            trees = checked({name: np.asarray(params[name]) for name in TREES}, self._features, width, shares=self._classes > 0)
        except InputError as error:
            raise InputError(f"the forest's trees {error}; restore the params, or run the job again") from None
        forest = clone(self.estimator)
        forest._validate_estimator()
        forest.n_features_in_, forest.n_outputs_ = self._features, 1
        if self._classes:
            forest.classes_, forest.n_classes_ = np.asarray(self.schema.classes), self._classes
        ends = np.cumsum(trees["nodes"])
        forest.estimators_ = [
            _tree(
                forest,
                {name: trees[name][end - size : end] for name in OF_NODE},
                int(depth),
                int(seed),
                self._features,
                self._classes,
            )
            for size, end, depth, seed in zip(trees["nodes"], ends, depths(trees), trees["seed"], strict=True)
        ]
        return forest


def _arrays(fitted: Any, columns: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """A fitted tree of scikit-learn as arrays; ``columns`` are the places of its classes among all."""
    state = fitted.tree_.__getstate__()
    nodes, value = state["nodes"], np.zeros((len(state["nodes"]), width))
    value[:, columns] = state["values"][:, 0, : len(columns)]
    own = {name: np.ascontiguousarray(nodes[theirs], dtype=OF_NODE[name]) for name, theirs in _NODES.items()}
    tree = {"nodes": np.array([len(nodes)], dtype=np.int64), "seed": np.array([fitted.random_state], dtype=np.int64)}
    return {**tree, **own, "value": value}


def _tree(forest: Any, arrays: Mapping[str, np.ndarray], depth: int, seed: int, features: int, classes: int) -> Any:
    """A fitted tree of scikit-learn, as one of a forest, from checked arrays."""
    from sklearn.tree._tree import NODE_DTYPE, Tree

    nodes = np.zeros(len(arrays["left"]), dtype=NODE_DTYPE)
    for name, theirs in _NODES.items():
        nodes[theirs] = arrays[name]
    leaves = nodes["left_child"] == -1
    nodes["feature"][leaves], nodes["threshold"][leaves] = -2, -2.0
    walked = Tree(features, np.array([max(1, classes)], dtype=np.intp), 1)
    values = np.ascontiguousarray(arrays["value"][:, None, :])
    walked.__setstate__({"max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": values})
    one = forest._make_estimator(append=False)
    one.random_state, one.n_features_in_, one.n_outputs_, one.tree_ = seed, features, 1, walked
    one.max_features_ = _most_features(one.max_features, features)
    if classes:
        one.classes_, one.n_classes_ = np.arange(classes, dtype=np.float64), classes
    return one


def _most_features(given: Any, features: int) -> int:
    """What scikit-learn makes of ``max_features``."""
    if given in ("sqrt", "log2"):
        return max(1, int((np.sqrt if given == "sqrt" else np.log2)(features)))
    return features if given is None else int(given) if isinstance(given, (int, np.integer)) else max(1, int(given * features))
