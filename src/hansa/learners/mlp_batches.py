"""The mini-batches of several clients as rectangles, so that one vectorised step covers them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hansa.core.blocks import Table
from hansa.core.local import Schedule


@dataclass(frozen=True)
class Batches:
    """The mini-batches of some clients.

    rows:  (clients, steps, width) row numbers in the client's table. Those behind the count repeat a row of the client, so that they
           may be read; a client that has finished counts none.
    count: (clients, steps), how many of them are real.
    """

    rows: np.ndarray
    count: np.ndarray

    def labels(self, tables: Sequence[Table]) -> np.ndarray:
        """The rows' labels (clients, steps, width)."""
        padded = np.zeros((len(tables), max(1, *map(len, tables))) if tables else (0, 1), dtype=tables[0].y.dtype)
        for k, table in enumerate(tables):
            padded[k, : len(table)] = table.y
        return padded[np.arange(len(tables))[:, None, None], self.rows]

    def real(self) -> np.ndarray:
        """Which rows count, bool (clients, steps, width)."""
        return np.arange(self.rows.shape[2]) < self.count[..., None]


def batches(times: Schedule, clients: np.ndarray) -> Batches:
    """The mini-batches of ``clients``, by their places in the block."""
    steps, per_epoch, rows, batch = (v[clients, None] for v in (times.steps, times.steps_per_epoch, times.rows, times.batch))
    step = np.arange(int(steps.max(initial=0)))
    epoch, place = np.divmod(step, np.maximum(per_epoch, 1))
    start = np.minimum(place * batch, rows)
    count = np.where(step < steps, np.minimum(rows - start, batch), 0)
    lane = np.minimum(start[..., None] + np.arange(int(batch.max(initial=0))), np.maximum(rows - 1, 0)[..., None])
    return Batches(times.order[clients[:, None, None], np.minimum(epoch, times.epochs - 1)[..., None], lane], count)
