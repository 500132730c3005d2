"""Each client's own split into training, validation and test rows.

It depends on the seed, the client's id and its own labels, and on nothing else: not on who else takes part, so that a client
splits alone, where its data is, just as it would in a simulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Annotated, Any, Protocol

import numpy as np
from annotated_types import Ge, Lt

from hansa.core.errors import InputError
from hansa.core.randomness import generator
from hansa.data.sources import Task

Fraction = Annotated[float, Ge(0), Lt(1)]


class Names(Protocol):
    """Clients' ids by their position."""

    def __getitem__(self, position: int, /) -> str: ...


@dataclass(frozen=True)
class Split:
    """Fractions of every client's rows that are held out; the rest is for training.

    stratify: keep the shares of the classes in every part (classification only). A class with at least two rows at a client then
              keeps at least one for training, even where a part becomes smaller for it, and a class with a single row is held out
              only if there is nothing else.
    """

    validation: Fraction = 0.0
    test: Fraction = 0.2
    stratify: bool = True

    def __post_init__(self) -> None:
        if self.validation + self.test >= 1:
            raise InputError(
                f"split: validation={self.validation:g} and test={self.test:g} leave nothing for training; their sum must be below 1"
            )

    def indices(self, y: np.ndarray | int, key: tuple[int, str], task: Task) -> dict[str, np.ndarray]:
        """Positions of a client's rows by use, int64, ascending: "train", and each held-out part whose fraction is above zero.

        y:    the client's labels (rows,), or the number of its rows where it has none.
        key:  the seed and the client's id.

        A part has ``fraction * rows`` rows, rounded to the nearest whole number (it may be none at a small client). Raises
        InputError when no row is left for training.
        """
        rows = y if isinstance(y, int) else len(y)
        sizes = {"test": _nearest(rows * self.test), "validation": _nearest(rows * self.validation)}
        if rows - sum(sizes.values()) < 1:
            raise self._empty(key[1], rows)
        parts = {name: np.zeros(0, dtype=np.int64) for name in sizes} | {"train": np.arange(rows, dtype=np.int64)}
        if any(sizes.values()):
            random = generator(key[0], "split", key[1])
            stratified = self.stratify and task == "classification" and not isinstance(y, int)
            parts = _drawn(np.unique(y, return_inverse=True)[1] if stratified else np.zeros(rows, np.int64), sizes, random)
        fractions = {"train": 1.0, "validation": self.validation, "test": self.test}
        return {name: parts[name] for name, fraction in fractions.items() if fraction > 0}

    def training_rows(self, rows: Any) -> Any:
        """How many rows a client of so many rows trains on, or many clients, int64 (clients,), do. It is the least number: a client
        that holds out more than half of its rows, and keeps a row of every class for training, may train on more."""
        return rows - _nearest(rows * self.test) - _nearest(rows * self.validation)

    def refuse_empty(self, rows: np.ndarray, ids: Names) -> None:
        """InputError for the first of the clients (their numbers of rows, their ids) that is left with no row for training."""
        empty = np.flatnonzero(self.training_rows(rows) < 1)
        if len(empty):
            raise self._empty(ids[int(empty[0])], int(rows[empty[0]]))

    def _empty(self, client: str, rows: int) -> InputError:
        return InputError(
            f"client {client}: has {rows:,} rows, and split.validation={self.validation:g} with split.test={self.test:g} leaves "
            "none for training; lower these, or leave the client out"
        )


def _drawn(label: np.ndarray, sizes: dict[str, int], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Parts of the given sizes, drawn from every class (numbered from 0) in proportion, and what is left as "train"."""
    counts = np.bincount(label)
    order, ends = np.argsort(label, kind="stable"), np.cumsum(counts).tolist()
    queues = [random.permutation(order[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    lots = random.permutation(len(queues))
    free = np.maximum(counts - 1, 0)  # a row of every class stays
    spare = (counts == 1).astype(np.int64)
    parts, taken = {}, np.zeros(len(queues), dtype=np.int64)
    for name, size in sizes.items():
        take = _apportion(counts * size / len(label), free, size, lots)
        free = free - take
        short = _apportion(np.zeros(len(queues)), spare, size - int(take.sum()), lots)
        spare = spare - short
        take = take + short
        held = [queue[start : start + n] for queue, start, n in zip(queues, taken, take, strict=True)]
        parts[name] = np.sort(np.concatenate(held)).astype(np.int64)
        taken = taken + take
    left = [queue[start:] for queue, start in zip(queues, taken, strict=True)]
    return parts | {"train": np.sort(np.concatenate(left)).astype(np.int64)}


def _nearest(value: Any) -> Any:
    return floor(value + 0.5) if isinstance(value, float) else np.floor(value + 0.5).astype(np.int64)


def _apportion(quotas: np.ndarray, most: np.ndarray, total: int, lots: np.ndarray) -> np.ndarray:
    """Whole numbers near ``quotas``, at most ``most`` each, that add up to ``total`` where possible, by largest remainder.

    Equal remainders are ordered by ``lots``: in a fixed order, the same class would be favoured at every client.
    """
    if total == 0:
        return np.zeros_like(most)
    given = np.minimum(np.floor(quotas).astype(np.int64), most)
    order = np.lexsort((lots, -(quotas - given))).tolist()
    left, room = total - int(given.sum()), (most - given).tolist()
    while left > 0 and any(room):
        for k in order:
            if room[k] and left:
                room[k] -= 1
                left -= 1
    return most - np.array(room, dtype=np.int64)
