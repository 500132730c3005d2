"""A model of JAX functions that knows the data.

The objective of a client with rows (x_i, y_i), i = 1..n, is the mean

    F(w) = 1/n sum_i loss(apply(w, x_i), y_i) + l2/2 |w|^2

over all params w. Params cross the learner's border as NumPy arrays, so that nothing else needs JAX.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.local import Plan, Trained
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.pixels import as_array
from hansa.core.randomness import derive
from hansa.core.updates import Update, prefixed
from hansa.learners import jax_training, outputs
from hansa.learners.factories import named
from hansa.learners.framework import Bound
from hansa.learners.jax import JaxLearner
from hansa.learners.jax_losses import losses
from hansa.learners.jax_model import Model, functions_of, modelled
from hansa.learners.labels import encode
from hansa.learners.tasks import refuse_labels, refuse_outputs

ROWS_AT_ONCE = 1024
"""Rows of one forward pass outside training: enough for the arithmetic, and few for what convolutions hold in between."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained model: an ordinary function of JAX, (rows, ...) -> outputs, with its params as the tree that ``init`` made."""

    apply: Any
    params: Any

    def __call__(self, x: Any) -> Any:
        return self.apply(self.params, x)


@dataclass(frozen=True)
class BoundJax(Bound):
    """A model, its loss and its metrics, for the data of a schema."""

    options: JaxLearner
    schema: Schema

    @cached_property
    def _found(self) -> tuple[Model, tuple[int, ...]]:
        functions = functions_of(self.options.model, self.options.options)
        return modelled(functions, self.what, self._example())

    @property
    def model(self) -> Model:
        return self._found[0]

    @property
    def what(self) -> str:
        """What the model is called in a message."""
        return "the model" if isinstance(self.options.model, tuple | list) else named(self.options.model)

    def _example(self) -> np.ndarray:
        if not self.schema.shape:
            raise InputError("the params of a JAX model come from the data: bind the learner to a schema with a shape first")
        return self.features(np.zeros((2, *self.schema.shape), dtype=self.schema.dtype))

    def bind(self, schema: Schema) -> BoundJax:
        return bound(self.options, schema)

    def arrays(self, table: Table) -> Table:
        """x to JAX's floating type (float32), whole numbers to int32; y to class numbers, or to floats where there are none.

        InputError for features that are not numbers and for a label that is not one of the classes.
        """
        x = self.features(table.x)
        if table.y is None:
            return Table(x)
        y = np.asarray(table.y)
        if self.schema.classes is not None:
            y = encode(y, self.schema.classes)
        return Table(x, _narrow(y.astype(np.float64) if self.needs & {"numbers", "two classes"} else y))

    def features(self, x: Any) -> Any:
        """Features as the model takes them."""
        values = as_array(x)
        if values.dtype.kind not in "biuf":
            raise InputError(f"the features have type {values.dtype} and JAX takes numbers only; add a preparation to the job")
        return _narrow(values)

    def kinds(self) -> Kinds:
        return dict.fromkeys(self.model.names, "weight")

    def init(self, seed: int) -> Params:
        """What the model's own ``init`` gives under a key of the seed."""
        key = jax.random.key(derive(seed, "init") >> 33)  # 31 bits fit JAX's integers, whatever its precision
        return self.model.flat(jax.jit(self.model.init)(key, self._example()[:1]))

    def train(self, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
        return jax_training.train(self.model, self.options.loss, self.options.l2, params, block, plan)

    def gradient(self, params: Params, block: LoadedBlock) -> Update:
        """Gradient of each client's F at ``params``: ``gradient/<name>``; metric ``loss``, without the penalty."""
        sums, gradients = np.zeros(len(block)), []
        for k, table in enumerate(block.tables):
            mean = {name: self.options.l2 * value for name, value in params.items()}
            for x, y, rows in _chunks(table):
                g, part = _compiled(_gradient)(self.model, self.options.loss, params, x, y, rows)
                sums[k] += float(part)
                for name, value in g.items():
                    mean[name] += np.asarray(value) / len(table)
            gradients.append(mean)
        stacked = {name: np.stack([client[name] for client in gradients]) for name in params}
        return Update(prefixed(stacked, "gradient"), block.weight, {"loss": (sums, block.rows.astype(np.float64))})

    def losses(self, candidates: Sequence[Params], block: LoadedBlock) -> Update:
        """Each client's F under several params: ``losses`` (clients, candidates), float64."""
        values = np.zeros((len(block), len(candidates)))
        for c, params in enumerate(candidates):
            penalty = 0.5 * self.options.l2 * sum(float(np.sum(np.square(w, dtype=np.float64))) for w in params.values())
            for k, table in enumerate(block.tables):
                values[k, c] = self._told(params, table)["loss"].sum() / max(len(table), 1) + penalty
        return Update({"losses": values}, block.weight)

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", *(named(metric) for metric in self.options.measured))

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """``loss`` (without the penalty) and the metrics of each client's rows."""
        whole = Table(*(np.concatenate([getattr(table, side) for table in block.tables]) for side in "xy"))
        told, ends = self._told(params, whole), np.cumsum(block.rows)
        own = (slice(end - rows, end) for rows, end in zip(block.rows, ends, strict=True))
        return stack([self._measured({name: value[k] for name, value in told.items()}, whole.y[k]) for k in own])

    def _measured(self, told: dict[str, np.ndarray], y: np.ndarray) -> dict[str, tuple[float, float]]:
        result = {"loss": (float(told["loss"].sum()), float(len(y)))}
        for metric in self.options.measured:
            name = named(metric)
            own = (float(told[name].sum()), float(len(y))) if callable(metric) else None
            result[name] = own or outputs.measure(metric, told["output"], y, self.options.loss)
        return result

    def _told(self, params: Params, table: Table) -> dict[str, np.ndarray]:
        """For each row: its ``output``, its ``loss`` and each metric of the user's own, the latter in float64."""
        own = tuple((named(metric), metric) for metric in self.options.measured if callable(metric))
        parts: list[dict[str, np.ndarray]] = []
        for x, y, rows in _chunks(table):
            part = _compiled(_tell)(self.model, (("loss", self.options.loss), *own), params, x, y)
            parts.append({name: np.asarray(value)[:rows] for name, value in part.items()})
        told = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {name: value if name == "output" else value.astype(np.float64) for name, value in told.items()}

    def outputs(self, params: Params, x: np.ndarray) -> np.ndarray:
        """What the model gives for prepared rows."""
        parts = [np.asarray(_compiled(_apply)(self.model, params, part))[:rows] for part, _, rows in _chunks(Table(x))]
        return np.concatenate(parts)

    def predict(self, params: Params, x: Any) -> np.ndarray:
        """Labels for classification, numbers for regression, (rows,); the outputs for a loss of one's own without classes."""
        return outputs.prediction(self.outputs(params, self.features(x)), self.options.loss, self.schema.classes)

    def export(self, params: Params) -> Fitted:
        """The model with these params, an ordinary function of JAX."""
        return Fitted(self.model.apply, self.model.nested({name: jnp.array(value) for name, value in params.items()}))

    def step(self, params: Params) -> Any:
        """:meth:`export` as the last step of a scikit-learn pipeline."""
        from hansa.learners.step import step_of

        return step_of(self.export(params), outputs_of, self.options.loss, self.schema.classes)


def outputs_of(fitted: Fitted, x: np.ndarray) -> np.ndarray:
    """What a trained model gives for prepared rows."""
    rows = _narrow(x)
    starts = range(0, max(len(rows), 1), ROWS_AT_ONCE)
    return np.concatenate([np.asarray(fitted(rows[start : start + ROWS_AT_ONCE])) for start in starts])


def bound(options: JaxLearner, schema: Schema) -> BoundJax:
    """The learner for these data; it has tried the model on an example, see :meth:`JaxLearner.bind`."""
    learner = BoundJax(options, schema)
    refuse_labels(options.loss, schema.classes)
    if schema.shape:
        refuse_outputs(learner.what, options.loss, learner._found[1], schema.classes)
    return learner


def _narrow(values: Any) -> Any:
    """In the types that JAX computes with: 32 bits, unless it was told to use 64."""
    kind = jnp.int_ if values.dtype.kind in "iu" else jnp.float_
    return values.astype(jax.dtypes.canonicalize_dtype(kind), copy=False)


def _chunks(table: Table) -> Iterator[tuple[np.ndarray, Any, int]]:
    """Consecutive rows in parts of a few sizes, padded by zeros: (x, y, rows that count); at least one part."""
    for start in range(0, max(len(table), 1), ROWS_AT_ONCE):
        x = table.x[start : start + ROWS_AT_ONCE]
        y = None if table.y is None else jax_training.padded([table.y[start : start + ROWS_AT_ONCE]])
        yield jax_training.padded([np.asarray(x)]), y, len(x)


@cache
def _compiled(function: Any) -> Any:
    static = (0,) if function is _apply else (0, 1)
    return jax.jit(function, static_argnums=static, compiler_options=jax_training.compile_options())


def _apply(model: Model, params: Params, x: Any) -> Any:
    return model.outputs(params, x)


def _tell(model: Model, functions: tuple[tuple[str, Any], ...], params: Params, x: Any, y: Any) -> dict[str, Any]:
    output = model.outputs(params, x)
    return {"output": output} | {name: losses(function, output, y) for name, function in functions}


def _gradient(model: Model, loss: Any, params: Params, x: Any, y: Any, rows: Any) -> tuple[Params, Any]:
    def total(weights: Params) -> Any:
        return jnp.where(jnp.arange(len(x)) < rows, losses(loss, model.outputs(weights, x), y), 0.0).sum()

    value, gradient = jax.value_and_grad(total)(params)
    return gradient, value
