"""What the learners of modules and functions have in common, whatever the framework: a loss, metrics beside it, and how they travel."""

from __future__ import annotations

from typing import Any

from hansa.core.contracts import Schema
from hansa.learners.tasks import measured, needs_of, refuse_unknown


class Judged:
    """Options with a ``loss`` and with ``metrics``; InputError for names of either that are not known."""

    loss: Any
    metrics: tuple[Any, ...] | None

    def __post_init__(self) -> None:
        refuse_unknown(self.loss, self.metrics)

    @property
    def needs(self) -> frozenset[str]:
        """What the loss needs of the labels; nothing is demanded for a function of the user's own."""
        return needs_of(self.loss)

    @property
    def measured(self) -> tuple[Any, ...]:
        """The metrics beside the loss."""
        return measured(self.loss, self.metrics)


class Bound:
    """A learner that knows the data, made of its ``options`` and their ``schema`` alone."""

    options: Any
    schema: Schema

    def __getstate__(self) -> dict[str, Any]:
        # The model is built again where the learner arrives: it may lie on a device, and is as large as the params.
        return {"options": self.options, "schema": self.schema}

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.options.needs)

    @property
    def can(self) -> frozenset[str]:
        return frozenset(self.options.can)
