"""Rows as learners compute with them: each one a line of numbers, of however many there are."""

from __future__ import annotations

import math
from typing import Any


def flat(x: Any) -> Any:
    """An array, or pixels, of rows of any shape as (rows, features); a held-out part may have no rows."""
    return x.reshape(len(x), math.prod(x.shape[1:]))
