"""Labels as the numbers of their classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from hansa.core.errors import InputError


def encode(y: np.ndarray, classes: tuple[Any, ...] | None) -> np.ndarray:
    """Labels to class numbers (int64), or numbers to float64 where there are no classes. InputError for an unknown label."""
    if classes is None:
        return np.asarray(y, dtype=np.float64)
    known, y = np.asarray(classes), np.asarray(y)
    numbers = np.minimum(np.searchsorted(known, y), len(known) - 1)
    wrong = known[numbers] != y
    if wrong.any():
        label = y[wrong][0]
        shown = label.item() if isinstance(label, np.generic) else label
        raise InputError(f"label {shown!r} is in no client's training rows; the known labels are {list(classes)}")
    return numbers
