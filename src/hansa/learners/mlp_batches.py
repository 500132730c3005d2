"""The mini-batches of several clients as rectangles, so that one vectorised step covers them all."""

from __future__ import annotations

import numpy as np

from hansa.core.local import Schedule


def lanes(times: Schedule, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (clients, steps, width) of the mini-batches of ``clients``, and how many of each count (clients, steps).

    Entries behind the count repeat a row of the client, so that they may be read; a client that has finished counts none.
    """
    steps, per_epoch, rows, batch = (v[clients, None] for v in (times.steps, times.steps_per_epoch, times.rows, times.batch))
    step = np.arange(int(steps.max(initial=0)))
    epoch, place = np.divmod(step, np.maximum(per_epoch, 1))
    start = np.minimum(place * batch, rows)
    count = np.where(step < steps, np.minimum(rows - start, batch), 0)
    lane = np.minimum(start[..., None] + np.arange(int(batch.max(initial=0))), np.maximum(rows - 1, 0)[..., None])
    return times.order[clients[:, None, None], np.minimum(epoch, times.epochs - 1)[..., None], lane], count
