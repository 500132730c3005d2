"""Which rows are in a batch, which of them a member computes, and with what weight.

A batch is drawn from all rows by the seed and the number of the step alone, so that every layout sees the same ones. A row's loss and
gradient are computed where the row lies. As the number of a batch's rows that lie with one member varies, members fill up to the largest
of these numbers with rows of weight zero: all then have batches of one size, which pipelines need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from hansa.core.blocks import Table
from hansa.core.contracts import Collectives, Schema
from hansa.core.errors import InputError
from hansa.core.randomness import generator
from hansa.core.worker import Worker


@dataclass(frozen=True)
class Batch:
    """A member's part of a step's batch.

    rows:   of its own rows, int64 (size,), the last of them fill.
    weight: float64 (size,), of a row's loss in the sum that this member differentiates: ``one``, or 0 for what fills.
    one:    shares / rows of the batch, so that the mean of the members' gradients is that of the batch's mean loss.
    real:   how many do not fill.
    """

    rows: np.ndarray
    weight: np.ndarray
    one: float
    real: int


@dataclass(frozen=True)
class Share:
    """A member's rows among all.

    table:  its own; one row of zeros that never counts where it has none.
    ends:   where each share ends in the order of all rows, ascending.
    number: which of the shares is its own.
    """

    table: Table
    ends: tuple[int, ...]
    number: int

    @property
    def rows(self) -> int:
        return self.ends[-1]

    def part(self, first: int, last: int) -> Share:
        """The share among the shares from ``first`` to ``last`` alone, as if there were no others."""
        begin = self.ends[first - 1] if first else 0
        return Share(self.table, tuple(end - begin for end in self.ends[first : last + 1]), self.number - first)

    def steps_of_pass(self, batch_size: int) -> int:
        return -(-self.rows // (batch_size or self.rows))

    def batches(self, first: int, count: int, batch_size: int, multiple: int, *path: int | str) -> Iterator[Batch]:
        """This member's parts of ``count`` batches from step ``first`` (of the whole run) on.

        batch_size: rows of a step over all shares, 0 for all.
        multiple:   of which a part's size shall be.
        path:       what the order of rows depends on beside the pass.
        """
        drawn = list(self._drawn(range(first, first + count), batch_size, path))
        begin = np.array((0, *self.ends[:-1]))[:, None]
        end = np.array(self.ends)[:, None]
        most = max(int(((begin <= rows) & (rows < end)).sum(axis=1).max()) for rows in drawn)
        size = max(multiple, -(-most // multiple) * multiple)
        for rows in drawn:
            own = rows[(begin[self.number] <= rows) & (rows < end[self.number])] - begin[self.number]
            padded, weight, one = np.zeros(size, dtype=np.int64), np.zeros(size), len(self.ends) / len(rows)
            padded[: len(own)], weight[: len(own)] = own, one
            yield Batch(padded, weight, one, len(own))

    def _drawn(self, steps: range, batch_size: int, path: tuple[int | str, ...]) -> Iterator[np.ndarray]:
        """Numbers of the rows of each step's batch among all rows."""
        size, drawn = batch_size or self.rows, -1
        for step in steps:
            number, place = divmod(step, self.steps_of_pass(batch_size))
            if number != drawn:
                drawn = number
                order = generator(*path, "pass", number).permutation(self.rows) if batch_size else np.arange(self.rows)
            yield order[place * size : (place + 1) * size]


def share_of(worker: Worker, schema: Schema, gang: Collectives, shares: int, number: int) -> Share:
    """Load a member's rows: a run of consecutive clients, chosen so that shares are even. Where there are fewer clients than shares
    they are cut, and every member reads all of them."""
    clients = worker.clients
    if len(clients) < shares:
        whole = [worker.table(position, "train", schema)[1] for position in range(len(clients))]
        total = sum(len(table) for table in whole)
        ends = tuple(total * (k + 1) // shares for k in range(shares))
        own = [(number and ends[number - 1], ends[number])]
        return Share(_cut(whole, *own[0]), ends, number)
    middle = [0.0, *accumulate(float(client.rows) for client in clients)]
    all_rows = max(middle[-1], 1.0)
    of = [min(shares - 1, int((middle[k] + middle[k + 1]) / 2 * shares / all_rows)) for k in range(len(clients))]
    mine = [worker.table(position, "train", schema)[1] for position, share in enumerate(of) if share == number]
    told = dict(gang.all_gather((number, sum(len(table) for table in mine))))
    return Share(_cut(mine, 0, told[number]), tuple(accumulate(told[k] for k in range(shares))), number)


def _cut(tables: list[Table], begin: int, end: int) -> Table:
    """Rows ``begin`` to ``end`` of the tables one behind the other; one row of zeros for none."""
    x, y = (np.concatenate([getattr(table, side) for table in tables]) if tables else np.zeros(0) for side in "xy")
    if end > begin:
        return Table(x[begin:end].copy(), y[begin:end].copy())
    if not len(x):
        raise InputError("parallel: there are more shares of the rows than clients with rows; write a smaller data or shard factor")
    return Table(np.zeros_like(x[:1]), np.zeros_like(y[:1]))
