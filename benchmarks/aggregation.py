"""Aggregation alone: the weighted sum of 100 updates of 1,663,370 float32, beside NumPy's plain sum of the same bytes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from hansa.core.reduction import weighted_sum

CLIENTS, PARAMS = 100, 1_663_370


def measure(repetitions: int) -> dict[str, Any]:
    """Seconds of each, interleaved; the plain sum reads every byte once and is the limit of memory bandwidth."""
    values = np.random.default_rng(0).standard_normal((CLIENTS, PARAMS), dtype=np.float32)
    weight = np.arange(1.0, CLIENTS + 1)
    ours, limit = [], []
    for _ in range(max(3, repetitions)):
        for into, work in ((ours, lambda: weighted_sum(values, weight)), (limit, lambda: values.sum(axis=0))):
            began = time.perf_counter()
            work()
            into.append(time.perf_counter() - began)
    return {"ours": statistics.median(ours), "limit": statistics.median(limit), "bytes": values.nbytes}
