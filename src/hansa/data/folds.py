"""Cross-validation inside every client: a fold is a split, so that a fit on it is a job like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, overload

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import Client
from hansa.core.randomness import generator
from hansa.data.recipes import Population
from hansa.data.sources import Task
from hansa.data.split import Split


@dataclass(frozen=True)
class Fold(Split):
    """A client's training rows, cut into ``count`` folds of which number ``number`` is held out as "fold"; its test rows are left out.

    Validation rows are what they are in ``whole``, so that early stopping never looks at the fold. The cut depends on the seed, the
    client's id and its own labels, and on nothing else. Folds differ by one row at most; with ``stratify`` so do the rows of
    each class. A client with a single training row trains on it in every fold.
    """

    test: float = field(default=0.0, init=False)
    whole: Split = field(default_factory=Split, kw_only=True)
    number: Annotated[int, Ge(0)] = field(default=0, kw_only=True)
    count: Annotated[int, Ge(2)] = field(default=5, kw_only=True)

    @classmethod
    def of(cls, whole: Split, number: int, count: int) -> Fold:
        return cls(validation=whole.validation, stratify=whole.stratify, whole=whole, number=number, count=count)

    def indices(self, y: np.ndarray | int, key: tuple[int, str], task: Task) -> dict[str, np.ndarray]:
        parts = self.whole.indices(y, key, task)
        train = parts["train"]
        held = np.zeros(0, dtype=np.int64)
        if len(train) > 1:
            random = generator(key[0], "folds", key[1])
            label = np.zeros(len(train), dtype=np.int64)
            if self.stratify and task == "classification" and not isinstance(y, int):
                label = np.unique(y[train], return_inverse=True)[1]
            # Rows are dealt class by class, and the classes in an order of the client's own: the first folds get what does not
            # divide evenly, and it should not be the same class at every client.
            turn = random.permutation(int(label.max()) + 1)[label]
            order = random.permutation(len(train))
            dealt = order[np.argsort(turn[order], kind="stable")]
            held = np.sort(dealt[self.number :: self.count])
        kept = np.ones(len(train), dtype=bool)
        kept[held] = False
        return {"train": train[kept], "fold": train[held]} | {name: parts[name] for name in parts if name == "validation"}

    def training_rows(self, rows: Any) -> Any:
        train = self.whole.training_rows(rows)
        held = -((self.number - train) // self.count)
        return train - held * (train > 1)


@dataclass(frozen=True)
class Interleaved(Sequence[Client]):
    """Populations of one job whose splits differ, as the clients of one engine: number k of population f is number
    ``k * len(populations) + f``. So a worker that owns a client owns it in all of them, and data in memory is sent to it once."""

    populations: tuple[Population, ...]

    def __len__(self) -> int:
        return len(self.populations) * len(self.populations[0])

    @overload
    def __getitem__(self, position: int) -> Client: ...
    @overload
    def __getitem__(self, position: slice) -> list[Client]: ...
    def __getitem__(self, position: int | slice) -> Client | list[Client]:
        if not isinstance(position, slice):
            number, which = divmod(position, len(self.populations))
            return self.populations[which][number]
        found, first = list[Client](), dict[int, Client]()
        for place in range(*position.indices(len(self))):
            number, which = divmod(place, len(self.populations))
            own = self.populations[which][number]
            shared = first.setdefault(number, own)
            arguments = {name: own.arguments[name] if name == "split" else value for name, value in shared.arguments.items()}
            found.append(replace(own, arguments=arguments))
        return found
