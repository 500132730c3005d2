"""A multi-layer perceptron in NumPy, with gradients derived by hand: fast on the CPU, nothing to install.

Without hidden layers it is softmax (multinomial logistic) regression, or linear regression. The objective of a client with n rows is

    F(w) = 1/n sum_i loss_i(w) + l2/2 sum over layers |W|^2

with the cross entropy of the softmax, or half the squared error as scikit-learn has it; biases are not penalised. Params:
``layer0.weight`` (features, width), ``layer0.bias`` (width,), and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.local import Plan, Trained
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.pixels import as_array
from hansa.core.randomness import generator
from hansa.core.updates import Update, prefixed
from hansa.learners import measures
from hansa.learners.labels import encode
from hansa.learners.mlp_network import Activation, Network, Task
from hansa.learners.mlp_training import train
from hansa.learners.rows import flat

DRAWN = 1 << 22
"""Weights that are drawn at once, about: a large layer shall not take three times its memory."""

SLICE = 8192
"""Rows that pass through the network at once outside of training, so that memory does not grow with a client's rows."""


@dataclass(frozen=True)
class MLP:
    """A multi-layer perceptron.

    hidden:      widths of the hidden layers; none for softmax or linear regression.
    activation:  between the layers.
    task:        classification needs labels, regression numbers.
    l2:          weight of the penalty, on the scale of the mean loss; 0 is fastest.
    dtype:       of params, features and arithmetic.
    """

    name: Literal["mlp"] = field(default="mlp", kw_only=True)
    hidden: tuple[Annotated[int, Ge(1)], ...] = (200, 200)
    activation: Activation = "relu"
    task: Task = "classification"
    l2: Annotated[float, Ge(0)] = 0.0
    dtype: Literal["float32", "float64"] = "float32"

    can: frozenset[str] = field(default=frozenset({"train", "gradient"}), init=False, repr=False)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"classes" if self.task == "classification" else "numbers"})

    def bind(self, schema: Schema) -> BoundMLP:
        """The perceptron for these data. InputError where labels and task do not go together."""
        if self.task == "classification" and schema.classes is None:
            raise InputError("learner mlp: the labels are numbers, not classes; write learner.task = 'regression'")
        if self.task == "regression" and schema.classes is not None:
            raise InputError(
                f"learner mlp: the labels are {len(schema.classes)} classes, not numbers; write learner.task = 'classification'"
            )
        outputs = 1 if schema.classes is None else len(schema.classes)
        return BoundMLP(self, schema, Network((int(np.prod(schema.shape)), *self.hidden, outputs), self.activation, self.task))


@dataclass(frozen=True)
class BoundMLP:
    """A perceptron that knows the data."""

    options: MLP
    schema: Schema
    network: Network

    @property
    def needs(self) -> frozenset[str]:
        return self.options.needs

    @property
    def can(self) -> frozenset[str]:
        return self.options.can

    def bind(self, schema: Schema) -> BoundMLP:
        return self.options.bind(schema)

    def arrays(self, table: Table) -> Table:
        """x to (rows, features); y to class numbers (int64) or numbers. InputError for an unknown label."""
        x = flat(as_array(table.x).astype(self.options.dtype, copy=False))
        if table.y is None:
            return Table(x)
        y = encode(table.y, self.schema.classes)
        return Table(x, y if self.schema.classes is not None else y.astype(self.options.dtype))

    def init(self, seed: int) -> Params:
        """Uniform weights in +-sqrt(6 / fan_in) before relu (He et al. 2015, eq. 10), in +-sqrt(6 / (fan_in + fan_out)) before tanh
        and at the output (Glorot and Bengio 2010, eq. 16); biases of zero."""
        draw, params = generator(seed, "init"), {}
        for layer, (fan_in, fan_out) in enumerate(zip(self.network.widths, self.network.widths[1:], strict=False)):
            he = self.options.activation == "relu" and layer < self.network.layers - 1
            bound = np.sqrt(6 / fan_in) if he else np.sqrt(6 / (fan_in + fan_out))
            weight: np.ndarray = np.empty((fan_in, fan_out), self.options.dtype)
            params[f"layer{layer}.weight"] = weight
            for rows in np.array_split(weight, max(1, weight.size // DRAWN)):  # the same numbers, which are drawn in float64
                rows[:] = draw.uniform(-bound, bound, rows.shape)
            params[f"layer{layer}.bias"] = np.zeros(fan_out, self.options.dtype)
        return params

    def kinds(self) -> Kinds:
        return {f"layer{layer}.{part}": "weight" for layer in range(self.network.layers) for part in ("weight", "bias")}

    def train(self, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
        return train(self.network, params, block, plan, self.options.l2)

    def gradient(self, params: Params, block: LoadedBlock) -> Update:
        """Full gradient of each client's objective; the metric ``loss`` is without the penalty."""
        gradients, losses = zip(*(self._gradient(params, table) for table in block.tables), strict=True)
        stacked = {name: np.stack([gradient[name] for gradient in gradients]) for name in params}
        return Update(prefixed(stacked, "gradient"), block.weight, {"loss": (np.array(losses), block.rows.astype(np.float64))})

    def _gradient(self, params: Params, table: Table) -> tuple[Params, float]:
        gradient = {name: np.zeros_like(value) for name, value in params.items()}
        loss = 0.0

        def add(name: str, part: np.ndarray) -> None:
            gradient[name] += part

        for x, y in _slices(table):
            values = self.network.forward(params, x)
            delta, losses = self.network.slope(values.pop(), y, np.full(len(x), 1 / len(table), x.dtype))
            loss += float(losses.sum(dtype=np.float64))
            self.network.backward(params, values, delta, add)
        if self.options.l2:
            for layer in range(self.network.layers):
                gradient[f"layer{layer}.weight"] += self.options.l2 * params[f"layer{layer}.weight"]
        return gradient, loss

    def losses(self, candidates: Sequence[Params], block: LoadedBlock) -> Update:
        """Each client's objective, penalty included, under several params."""

        def objective(params: Params, table: Table) -> float:
            squares = sum(float(np.sum(params[f"layer{k}.weight"] ** 2, dtype=np.float64)) for k in range(self.network.layers))
            return self._loss(params, table) / len(table) + 0.5 * self.options.l2 * squares

        return Update({"losses": np.array([[objective(p, t) for p in candidates] for t in block.tables])}, block.weight)

    def _loss(self, params: Params, table: Table) -> float:
        return self._measure(params, table)["loss"][0]

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", "accuracy") if self.options.task == "classification" else ("loss", "mse", "mae")

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """loss (without penalty) and accuracy; for regression loss, mse and mae."""
        return stack([self._measure(params, table) for table in block.tables])

    def _measure(self, params: Params, table: Table) -> dict[str, tuple[float, float]]:
        scores, loss = [np.zeros((0, self.network.outputs))], 0.0
        for x, y in _slices(table):
            z = self.network.forward(params, x)[-1]
            scores.append(z.copy())
            loss += float(self.network.slope(z, y, np.ones(len(x), x.dtype))[1].sum(dtype=np.float64))
        z, result = np.concatenate(scores), {"loss": (loss, float(len(table)))}
        if self.options.task == "classification":
            return result | {"accuracy": measures.accuracy(z.argmax(axis=1), table.y)}
        error = z[:, 0], table.y.astype(np.float64)
        return result | {"mse": measures.squared_error(*error), "mae": measures.absolute_error(*error)}

    def predict(self, params: Params, x: np.ndarray) -> np.ndarray:
        """Labels for classification, numbers for regression, (rows,)."""
        x = flat(np.asarray(x, dtype=self.options.dtype))
        z = np.concatenate([self.network.forward(params, part)[-1] for part, _ in _slices(Table(x))])
        return z[:, 0] if self.schema.classes is None else np.asarray(self.schema.classes)[z.argmax(axis=1)]

    def export(self, params: Params) -> Any:
        """A fitted scikit-learn MLPClassifier or MLPRegressor; without hidden layers LogisticRegression or LinearRegression."""
        from hansa.learners.mlp_export import to_sklearn

        return to_sklearn(self.options, self.schema, params)


def _slices(table: Table) -> list[tuple[np.ndarray, Any]]:
    """The table in consecutive parts of at most ``SLICE`` rows; at least one."""
    return [
        (np.asarray(table.x[start : start + SLICE]), None if table.y is None else table.y[start : start + SLICE])
        for start in range(0, max(len(table), 1), SLICE)
    ]
