"""Clients as recipes, and blocks: the unit that an engine schedules and that is reduced first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from hansa.core.params import Params
from hansa.core.randomness import combine, derive


@dataclass(frozen=True)
class Table:
    """Rows of one client: features ``x`` (rows, ...) and labels ``y`` (rows, ...), or no labels.

    Before preparation ``x`` may be a data frame or :class:`~hansa.core.pixels.Pixels`; after it both are arrays of the learner's
    dtype, or what a learner computes with instead: pixels, :class:`~hansa.core.coded.Coded`, or a form of its own.
    """

    x: Any
    y: Any = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray) -> Table:
        """The given rows, in that order (a data frame stays one)."""
        x = self.x.iloc[rows] if hasattr(self.x, "iloc") else self.x[rows]
        return Table(x, None if self.y is None else self.y[rows])


Splits = Mapping[str, Table]
"""A client's rows by use: "train", and where the job asks for them "validation" and "test"."""


@dataclass(frozen=True)
class Client:
    """A holder of data, as a recipe: whoever does its work calls ``loader(**arguments)``, and calls it again after a loss.

    ``loader`` is a function that can be imported by name (so that a recipe can be sent to another process) and returns the
    client's :data:`Splits`. ``rows`` is the number of training rows.
    """

    id: str
    loader: Callable[..., Splits] = field(repr=False)
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    rows: int = 0

    def load(self) -> Splits:
        return self.loader(**self.arguments)

    @cached_property
    def key(self) -> int:
        """The client's 64-bit number for randomness, from its id alone."""
        return derive("client", self.id)


@dataclass(frozen=True)
class Block:
    """A fixed run of consecutive clients of the cohort, by their positions in the job's list of clients."""

    number: int
    members: tuple[int, ...]


def blocks_of(cohort: Sequence[int], size: int) -> list[Block]:
    """Cut a cohort (client positions, ascending) into blocks of ``size`` consecutive clients; the last may be shorter."""
    return [
        Block(number, tuple(int(member) for member in cohort[start : start + size]))
        for number, start in enumerate(range(0, len(cohort), size))
    ]


@dataclass(frozen=True)
class LoadedBlock:
    """A block where the work is done: its clients' data, weights and state.

    tables:  one per client, rows of the split that the call names.
    weight:  float64 (clients,), what each client counts for in a weighted mean (its rows, or one).
    state:   the clients' own entries, stacked (clients, ...), where the algorithm keeps any; else empty.
    """

    number: int
    clients: tuple[Client, ...]
    tables: tuple[Table, ...]
    weight: np.ndarray
    seed: int
    round: int
    state: Params = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clients)

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of each client's table, int64 (clients,)."""
        return np.array([len(table) for table in self.tables], dtype=np.int64)

    def keys(self, purpose: str) -> np.ndarray:
        """One 64-bit key per client for a purpose in this round, uint64 (clients,)."""
        own = np.array([client.key for client in self.clients], dtype=np.uint64)
        return combine(own, derive(self.seed, "round", self.round, purpose))

    def only(self, chosen: int | slice) -> LoadedBlock:
        """The block reduced to one of its clients, or to a run of them."""
        keep = chosen if isinstance(chosen, slice) else slice(chosen, chosen + 1)
        return replace(
            self,
            clients=self.clients[keep],
            tables=self.tables[keep],
            weight=self.weight[keep],
            state={name: value[keep] for name, value in self.state.items()},
        )
