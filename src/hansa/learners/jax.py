"""A model of pure JAX functions as a learner: its options. JAX itself is imported when the learner is bound to data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from hansa.core.contracts import Schema
from hansa.core.errors import missing_extra
from hansa.learners.framework import Judged

if TYPE_CHECKING:
    from hansa.learners.jax_bound import BoundJax


@dataclass(frozen=True)
class JaxLearner(Judged):
    """Two pure functions, ``init(key, x)`` that makes params and ``apply(params, x)`` that gives outputs, trained by gradient steps.

    model:    the pair ``(init, apply)``, or an object with these two methods, such as a ``flax.linen`` module; or a function that
              makes one of these, as a Python object or by name: ``"package.module:factory"`` or ``"path/to/file.py:factory"``.
              ``"hansa.learners.jax_models:perceptron"`` is at hand. Params are a tree of floating arrays; x is (rows, ...).
    options:  arguments of the factory.
    loss:     by name: "cross_entropy" (outputs (rows, classes)), "binary_cross_entropy" (one logit per row), "mse", "l1", "huber",
              "poisson_nll" (the output is the log of the rate); or a function of JAX arrays (output, target) -> one value per row.
    metrics:  beside the loss: "accuracy", "auc" (two classes), "mse", "mae", or functions of the same form as a loss; None takes
              those that suit the loss.
    l2:       penalty l2/2 |w|^2 on every param, biases included.

    All steps of all clients of a block are one compiled loop. A new shape is compiled once, in about a second: rows and steps are
    padded so that few shapes occur. The same job gives the same bits on the same kind of device; it runs where JAX runs by default.
    """

    model: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: Any = "cross_entropy"
    metrics: tuple[Any, ...] | None = None
    l2: Annotated[float, Ge(0)] = 0.0
    name: Literal["jax"] = field(default="jax", kw_only=True)

    can: frozenset[str] = field(default=frozenset({"train", "gradient"}), init=False, repr=False)

    def bind(self, schema: Schema) -> BoundJax:
        """The learner for these data. InputError when labels and loss do not go together, when the model cannot take such rows or
        has too few outputs for the classes, and when JAX is not installed."""
        try:
            from hansa.learners.jax_bound import bound
        except ModuleNotFoundError as error:
            if error.name not in ("jax", "jaxlib"):
                raise
            raise missing_extra("JAX", "jax") from error
        return bound(self, schema)
