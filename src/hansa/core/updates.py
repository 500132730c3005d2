"""Updates: what the clients of a block return, stacked; and totals: what is left of them after the sum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hansa.core.accounting import Spent
from hansa.core.metrics import Metrics
from hansa.core.params import Params


@dataclass(frozen=True)
class Update:
    """What the clients of one block return.

    values:   name -> array with a leading client axis. With the ``gather`` collective an entry may instead be a list with one
              item per client, for values that differ in size.
    weight:   float64 (clients,), what each client counts for.
    metrics:  name -> (sum, count), each (clients,).
    state:    what each client keeps for itself, stacked; it stays with the client and is never part of what is returned.
    clients:  their ids; set by the loop.
    spent:    what the work took; set by whoever did it, here and in the others.
    """

    values: dict[str, Any]
    weight: np.ndarray
    metrics: Metrics = field(default_factory=dict)
    state: Params = field(default_factory=dict)
    clients: tuple[str, ...] = ()
    spent: Spent = field(default=Spent(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.weight)


@dataclass(frozen=True)
class Total:
    """The sum over clients: ``values[name] = sum_k weight_k * value_k``, with the sum of the weights and the number of clients."""

    values: Params
    weight: float
    clients: int
    metrics: Metrics = field(default_factory=dict)
    spent: Spent = field(default=Spent(), compare=False, repr=False)

    def mean(self, name: str) -> Any:
        """Weighted mean over the clients of one entry."""
        return self.values[name] / self.weight

    def means(self, prefix: str) -> Params:
        """Weighted means of all entries named ``prefix/...``, with the prefix taken off."""
        return {name: value / self.weight for name, value in under(self.values, prefix).items()}


@dataclass(frozen=True)
class Gathered:
    """Single updates, for algorithms that must see them one by one: ids, and values stacked over all clients in client order."""

    clients: tuple[str, ...]
    values: dict[str, Any]
    weight: np.ndarray
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A piece of work that gave no result: whose, when and why. It is a value: the loop decides what it means.

    clients:    ids of the clients whose work is missing.
    kind:       the exception's class name, or "WorkerLost" when its process is gone.
    message:    one line.
    traceback:  the text of the traceback where the error happened, empty for a lost worker.
    bad_input:  the error lies in what the client was given (its data), so that another try cannot help.
    """

    clients: tuple[str, ...]
    kind: str
    message: str
    traceback: str = field(default="", repr=False)
    bad_input: bool = False
    spent: Spent = field(default=Spent(), compare=False, repr=False)


@dataclass(frozen=True)
class Absorbed:
    """What is left of a block whose total was added, where the work was done, to that of another block.

    The other one's total comes in the place of both. That gives the bits of the sum where both belong to one node of the tree of
    :mod:`hansa.core.reduction`, all of whose blocks are in that total: a block without a total lets its sibling pass unchanged.
    """

    spent: Spent = field(default=Spent(), compare=False, repr=False)


def prefixed(params: Params, prefix: str) -> Params:
    """The entries renamed to ``prefix/name``."""
    return {f"{prefix}/{name}": value for name, value in params.items()}


def under(values: Params, prefix: str) -> Params:
    """The entries named ``prefix/...``, with the prefix taken off."""
    start = len(prefix) + 1
    return {name[start:]: value for name, value in values.items() if name.startswith(f"{prefix}/")}
