"""What learners that look at no labels have in common: features as the arrays that they compute with."""

from __future__ import annotations

from typing import Any

import numpy as np

from hansa.core.blocks import Table
from hansa.core.coded import Coded
from hansa.learners.rows import flat


def features_of(table: Table) -> Any:
    """The features as float64 (rows, features); codes stay codes."""
    return table.x if isinstance(table.x, Coded) else flat(np.asarray(table.x, dtype=np.float64))


def squared_norms(x: Any) -> np.ndarray:
    """The squared length of each row, (rows,)."""
    if not isinstance(x, Coded):
        return np.asarray(np.einsum("nf,nf->n", x, x))
    scale = np.append(np.ones(x.width) if x.scale is None else x.scale**2, 0.0)
    return np.asarray(np.einsum("nf,nf->n", x.numbers, x.numbers) + scale[x.codes].sum(axis=0))
