"""A round that a gang plays: its call, and how what the members give becomes the next state."""

from __future__ import annotations

from collections.abc import Generator
from math import isfinite
from typing import Any

import numpy as np

from hansa.core.contracts import State
from hansa.core.errors import Diverged, InputError
from hansa.core.loop import Observer, Outcome, unobserved
from hansa.core.params import size_in_bytes
from hansa.core.synchrony import Assembly, Basis, GangCall, Layout, Part


def gang_steps(
    state: State,
    *,
    algorithm: Any,
    basis: Basis,
    layout: Layout,
    seed: int,
    home: str,
    round: int,
    rate: float,
    observe: Observer = unobserved,
) -> Generator[Any, Any, Outcome]:
    """The steps of one round of a gang; there is one call in it.

    home: folder of the checkpoints.

    Raises InputError where there is none, Diverged when the loss is not finite any more.
    """
    if not home:
        raise InputError(
            f"algorithm {algorithm.name}: a gang keeps its checkpoints in a run folder, and there is none here; write hansa.run(job)"
        )
    observe("broadcast")
    message = algorithm.broadcast(state, round)
    observe("work")
    parts: list[Part] = yield Assembly(GangCall(basis, algorithm, layout, seed, round, rate, home, message.params or None))
    observe("update")
    total, rows = sum(part.loss[0] for part in parts), sum(part.loss[1] for part in parts)
    if not isfinite(total):
        raise Diverged(f"round {round}: the loss is {total / max(rows, 1)}; lower algorithm.learning_rate (or scale the features)")
    state = algorithm.update({**state, "rate": rate}, parts)
    down, up = size_in_bytes(message.params) * layout.members, sum(size_in_bytes(part.params) for part in parts)
    clients = len(basis.clients)
    return Outcome(state, {"loss": (np.asarray(total), np.asarray(float(rows)))}, clients, down, up)
