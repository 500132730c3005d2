"""Federated averaging with the coordinate-wise median in place of the mean.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018, algorithm 1, option
I. A median must see the updates one by one, so this is a ``gather`` algorithm, which secure aggregation has to refuse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hansa.algorithms.fedavg import FedAvg, apply_delta
from hansa.core.contracts import Collective, State
from hansa.core.updates import under


@dataclass(frozen=True)
class FedMedian(FedAvg):
    """FedAvg whose server takes, entry by entry, the median of the clients' changes; every client counts as one."""

    name: Literal["fedmedian"] = field(default="fedmedian", kw_only=True)  # type: ignore[assignment]  # each algorithm has its own name

    collective: Collective = field(default="gather", init=False, repr=False)

    def update(self, state: State, total: Any) -> State:
        delta = {name: np.median(values, axis=0).astype(values.dtype) for name, values in under(total.values, "delta").items()}
        return {**state, **apply_delta(self.server, state, delta)}
