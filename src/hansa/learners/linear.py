"""Linear models by loss, in NumPy: hand-derived gradients and Hessians, local training stacked over the clients of a block.

The objective of a client with rows (x_i, y_i), i = 1..n, is the mean

    F(W, b) = 1/n sum_i loss(W x_i + b, y_i) + l2/2 |W|^2 + l2/2 |b/s|^2 + l1 |W|_1

where the third term is there only if the intercept is penalised (``intercept_scaling`` s > 0). Weighted by rows over all clients it is
the pooled objective. A model with an L1 penalty is not smooth and is fitted by its parts alone (:class:`hansa.core.contracts.Additive`),
as clients that hold columns do it. Params: ``coef`` (outputs, features) and ``intercept`` (outputs,), float64.

Features are an array, or :class:`~hansa.core.coded.Coded` where a preparation made hundreds of mostly empty columns: these are
multiplied as they are, and only the mini-batches of local training are dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.coded import Coded
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.local import Plan, Trained
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.updates import Update, prefixed
from hansa.learners import measures
from hansa.learners.losses import Loss, loss_named
from hansa.learners.rows import flat
from hansa.learners.stacked import train_stacked

STRIPE = 1 << 12
"""Rows whose losses are taken at a time, so that what is made on the way stays in the processor's cache."""


@dataclass(frozen=True)
class Objective:
    """Which linear model: its loss by name, the penalties on the scale of the mean loss, and its intercept."""

    loss: str
    l2: float = 0.0
    l1: float = 0.0
    epsilon: float = 0.1
    intercept: bool = True
    intercept_scaling: float = 0.0


@dataclass(frozen=True)
class LinearModel:
    """A bound linear learner: an objective and the schema of the data."""

    objective: Objective
    schema: Schema
    needs: frozenset[str] = frozenset()
    can: frozenset[str] = field(default=frozenset({"train", "gradient", "hessian", "parts"}))

    @property
    def loss(self) -> Loss:
        return loss_named(self.objective.loss, self.objective.epsilon)

    @property
    def outputs(self) -> int:
        classes = self.schema.classes
        return 1 if classes is None or (len(classes) == 2 and self.objective.loss != "softmax") else len(classes)

    @property
    def l1(self) -> float:
        return self.objective.l1

    @property
    def l2(self) -> float:
        return self.objective.l2

    @property
    def intercept(self) -> bool:
        return self.objective.intercept

    def bind(self, schema: Schema) -> LinearModel:
        return LinearModel(self.objective, schema)

    def kinds(self) -> Kinds:
        return {"coef": "weight", "intercept": "weight"} if self.objective.intercept else {"coef": "weight"}

    def init(self, seed: int) -> Params:
        """Zeros, as scikit-learn's solvers start; the seed changes nothing."""
        features = int(np.prod(self.schema.shape))
        params = {"coef": np.zeros((self.outputs, features))}
        return params | ({"intercept": np.zeros(self.outputs)} if self.objective.intercept else {})

    def arrays(self, table: Table) -> Table:
        """x to float64 (rows, features); y to class numbers (int64) or float64."""
        # What is computed on split columns needs more of a matrix than codes can do.
        coded = isinstance(table.x, Coded) and not self.schema.parts
        x = table.x if coded else flat(np.asarray(table.x, dtype=np.float64))
        if table.y is None:
            return Table(x)
        return Table(x, encode(table.y, self.schema.classes))

    def targets(self, y: np.ndarray) -> np.ndarray:
        """What the loss compares scores with: (..., outputs)."""
        kind = self.loss.target
        if kind == "number":
            return y[..., None].astype(np.float64)
        hot = (y[..., None] == np.arange(self.outputs)) if self.outputs > 1 else (y[..., None] == 1)
        return hot.astype(np.float64) if kind == "one_hot" else np.where(hot, 1.0, -1.0)

    def _scores(self, params: Params, x: np.ndarray) -> np.ndarray:
        scores = x @ params["coef"].T
        return scores + params["intercept"] if self.objective.intercept else scores

    def _penalty(self, params: Params) -> float:
        o = self.objective
        penalty = 0.5 * o.l2 * float(np.sum(params["coef"] ** 2))
        if o.intercept_scaling and o.intercept:
            penalty += 0.5 * o.l2 * float(np.sum(params["intercept"] ** 2)) / o.intercept_scaling**2
        return penalty

    def _add_penalty_gradient(self, gradient: Params, params: Params) -> None:
        o = self.objective
        if o.l2:
            gradient["coef"] += o.l2 * params["coef"]
            if o.intercept_scaling and o.intercept:
                gradient["intercept"] += o.l2 / o.intercept_scaling**2 * params["intercept"]

    def batch_gradient(self, params: Params, x: np.ndarray, y: np.ndarray, share: np.ndarray) -> tuple[Params, np.ndarray]:
        """Gradients of the mini-batches of several clients at once, and their losses per row (clients, batch).

        params stacked; x (clients, batch, features); y (clients, batch); share (clients, batch): 1/rows of the batch, 0 for padding.
        """
        scores = x @ params["coef"].transpose(0, 2, 1)
        if self.objective.intercept:
            scores += params["intercept"][:, None, :]
        targets = self.targets(y)
        slope = self.loss.slope(scores, targets) * share[..., None]
        gradient = {"coef": slope.transpose(0, 2, 1) @ x}
        if self.objective.intercept:
            gradient["intercept"] = slope.sum(axis=1)
        self._add_penalty_gradient(gradient, params)
        return gradient, self.loss.value(scores, targets).sum(axis=-1)

    def train(self, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
        return train_stacked(params, block, plan, self.batch_gradient)

    def _one(self, params: Params, table: Table, *, hessian: bool) -> dict[str, Any]:
        n = len(table)
        value, slope, curve = self._derivatives(params, table, curved=hessian)
        slope /= n
        gradient = {"coef": slope.T @ table.x} | ({"intercept": slope.sum(axis=0)} if self.objective.intercept else {})
        self._add_penalty_gradient(gradient, params)
        result: dict[str, Any] = {"loss": value, **prefixed(gradient, "gradient")}
        if curve is not None:
            result["objective"] = value / n + self._penalty(params)
            result["hessian"] = self._hessian(curve, table.x)
        return result

    def _derivatives(self, params: Params, table: Table, *, curved: bool) -> tuple[float, np.ndarray, np.ndarray | None]:
        """The sum of the losses; slope and, where asked for, curve of each, (rows, outputs)."""
        scores, targets = self._scores(params, table.x), self.targets(table.y)
        slope, curve, value = np.empty_like(scores), np.empty_like(scores) if curved else None, 0.0
        for start in range(0, len(table), STRIPE):
            rows = slice(start, start + STRIPE)
            losses, slope[rows] = self.loss.value_and_slope(scores[rows], targets[rows])
            value += float(losses.sum())
            if curve is not None:
                assert self.loss.curve is not None
                derived = self.loss.curve_of
                curve[rows] = self.loss.curve(scores[rows], targets[rows]) if derived is None else derived(slope[rows])
        return value, slope, curve

    def _hessian(self, curve: np.ndarray, x: Any) -> np.ndarray:
        """Mean Hessian over the flattened params: all of ``coef`` row by row, then ``intercept``."""
        n, k, d = len(x), self.outputs, x.shape[1]
        curve = curve / n
        gram = _coded_gram if isinstance(x, Coded) else _gram
        e = d + 1 if self.objective.intercept else d
        blocks = np.zeros((k, e, k, e))
        for a in range(k):
            for b in range(k) if self.objective.loss == "softmax" else (a,):
                weight = curve[:, a] * ((a == b) - n * curve[:, b]) if self.objective.loss == "softmax" else curve[:, a]
                blocks[a, :, b, :] = gram(x, weight, self.objective.intercept)
        hessian = blocks.reshape(k * e, k * e)
        if k > 1:
            order = np.arange(k * e).reshape(k, e)
            order = np.concatenate([order[:, :d].ravel(), order[:, d:].ravel()])
            hessian = hessian[np.ix_(order, order)]
        o = self.objective
        scaled = o.l2 / o.intercept_scaling**2 if o.intercept_scaling else 0.0
        hessian[np.diag_indices(k * e)] += np.concatenate([np.full(k * d, o.l2), np.full(k * (e - d), scaled)])
        return hessian

    def _stack(self, results: list[dict[str, Any]], block: LoadedBlock) -> Update:
        losses = np.array([result.pop("loss") for result in results])
        values = {name: np.stack([np.asarray(result[name]) for result in results]) for name in results[0]}
        return Update(values, block.weight, {"loss": (losses, block.rows.astype(np.float64))})

    def gradient(self, params: Params, block: LoadedBlock) -> Update:
        return self._stack([self._one(params, table, hessian=False) for table in block.tables], block)

    def value_and_gradient(self, params: Params, block: LoadedBlock) -> Update:
        """As :meth:`gradient`, with ``objective`` (clients,), the mean loss with its penalty."""
        told = self.gradient(params, block)
        losses, rows = told.metrics["loss"]
        return Update({"objective": losses / rows + self._penalty(params), **told.values}, told.weight, told.metrics)

    def curvature(self, params: Params, block: LoadedBlock) -> Update:
        """For each client the diagonal of the Hessian, ``diagonal/<name>``, and with an intercept ``border/coef``, the entry that each
        coefficient shares with it. A loss that is flat in places tells of where it is steepest; one without a second derivative nothing.
        """
        told = [self._curvature(params, table) for table in block.tables]
        return Update({name: np.stack([one[name] for one in told]) for name in told[0]}, block.weight)

    def _curvature(self, params: Params, table: Table) -> dict[str, np.ndarray]:
        loss, o = self.loss, self.objective
        if loss.curve is None and loss.steepest is None:
            return {}
        if loss.steepest is not None:
            curve = np.full((len(table), self.outputs), loss.steepest)
        else:
            assert loss.curve is not None
            curve = loss.curve(self._scores(params, table.x), self.targets(table.y))
            curve = curve * (1.0 - curve) if o.loss == "softmax" else curve
        curve = np.ascontiguousarray(curve.T) / len(table)
        plain, squared = _moments(curve, table.x)
        told = {"diagonal/coef": squared + o.l2}
        if o.intercept:
            scaled = o.l2 / o.intercept_scaling**2 if o.intercept_scaling else 0.0
            told |= {"diagonal/intercept": curve.sum(axis=1) + scaled, "border/coef": plain}
        return told

    def hessian(self, params: Params, block: LoadedBlock) -> Update:
        return self._stack([self._one(params, table, hessian=True) for table in block.tables], block)

    def losses(self, candidates: Sequence[Params], block: LoadedBlock) -> Update:
        def mean_loss(params: Params, table: Table) -> float:
            value = self.loss.value(self._scores(params, table.x), self.targets(table.y)).sum()
            return float(value) / len(table) + self._penalty(params)

        return Update({"losses": np.array([[mean_loss(p, t) for p in candidates] for t in block.tables])}, block.weight)

    def columns(self, client: str) -> np.ndarray:
        return np.array(self.schema.of(client).places, dtype=np.int64)

    def partial(self, params: Params, client: str, x: np.ndarray) -> np.ndarray:
        part: np.ndarray = x @ params["coef"][:, self.columns(client)].T
        return part

    def values(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self.loss.value(scores, targets).sum(axis=-1)

    def slopes(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self.loss.slope(scores, targets)

    def curvatures(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        assert self.loss.curve is not None
        curve = self.loss.curve(scores, targets)
        own = curve[:, :, None] * np.eye(self.outputs)
        return own - curve[:, :, None] * curve[:, None, :] if self.objective.loss == "softmax" else own

    def judge(self, params: Params, scores: np.ndarray, y: np.ndarray) -> Metrics:
        scores = scores + params["intercept"] if self.intercept else scores
        return {name: (np.asarray(total), np.asarray(count)) for name, (total, count) in self._measure(scores, y).items()}

    @property
    def metric_names(self) -> tuple[str, ...]:
        if self.schema.classes is None:
            return "loss", "mse", "mae"
        return ("loss", "accuracy", "auc") if self.outputs == 1 else ("loss", "accuracy")

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """loss (without penalty); accuracy and, for two classes, auc; for numbers mse and mae."""
        return stack([self._measure(self._scores(params, table.x), table.y) for table in block.tables])

    def _measure(self, scores: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, float]]:
        value = float(self.loss.value(scores, self.targets(y)).sum())
        result = {"loss": (value, float(len(y)))}
        if self.schema.classes is None:
            predicted = self._mean(scores)
            return result | {"mse": measures.squared_error(predicted, y), "mae": measures.absolute_error(predicted, y)}
        result["accuracy"] = measures.accuracy(self._choose(scores), y)
        return result | ({"auc": measures.concordance(scores[:, 0], y)} if self.outputs == 1 else {})

    def _choose(self, scores: np.ndarray) -> np.ndarray:
        return (scores[:, 0] > 0).astype(np.int64) if self.outputs == 1 else scores.argmax(axis=1)

    def _mean(self, scores: np.ndarray) -> np.ndarray:
        return np.exp(scores[:, 0]) if self.objective.loss == "poisson" else scores[:, 0]

    def predict(self, params: Params, x: np.ndarray) -> np.ndarray:
        """Labels for classification, numbers for regression, (rows,)."""
        x = x if isinstance(x, Coded) else flat(np.asarray(x, dtype=np.float64))
        scores = self._scores(params, x)
        if self.schema.classes is None:
            return self._mean(scores)
        return np.asarray(self.schema.classes)[self._choose(scores)]

    def export(self, params: Params) -> Any:
        return params


def _moments(weight: np.ndarray, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the rows of x and of its squares, each (k, columns), under weights (k, rows)."""
    if isinstance(x, Coded):
        return x.moments(weight)
    squared = np.zeros((len(weight), x.shape[1]))
    for start in range(0, len(x), STRIPE):
        squared += weight[:, start : start + STRIPE] @ x[start : start + STRIPE] ** 2
    return weight @ x, squared


def _gram(x: np.ndarray, weight: np.ndarray, intercept: bool) -> np.ndarray:
    extended = np.hstack([x, np.ones((len(x), 1))]) if intercept else x
    return np.asarray((extended * weight[:, None]).T @ extended)


def _coded_gram(x: Coded, weight: np.ndarray, intercept: bool) -> np.ndarray:
    own = x.gram(weight)
    if not intercept:
        return own
    extended = np.empty((len(own) + 1, len(own) + 1))
    extended[:-1, :-1], extended[-1, -1] = own, weight.sum()
    extended[-1, :-1] = extended[:-1, -1] = weight @ x
    return extended


def encode(y: np.ndarray, classes: tuple[Any, ...] | None) -> np.ndarray:
    """Labels to class numbers (int64), or numbers to float64 where there are no classes. InputError for an unknown label."""
    if classes is None:
        return np.asarray(y, dtype=np.float64)
    known = np.asarray(classes)
    numbers = np.searchsorted(known, y)
    wrong = (numbers >= len(known)) | (known[np.minimum(numbers, len(known) - 1)] != y)
    if wrong.any():
        raise InputError(f"label {y[wrong][0].item()!r} is in no client's training rows; the known labels are {list(classes)}")
    return numbers
