"""Objective and gradient at one point, from any learner that offers gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import InOnePass, Learner
from hansa.core.params import Params
from hansa.core.updates import Update


def value_and_gradient(learner: Learner, params: Params, block: LoadedBlock) -> Update:
    """``objective`` (clients,), the mean loss with its penalty, and ``gradient/<name>``; in one pass where a learner offers that."""
    if isinstance(learner, InOnePass):
        return learner.value_and_gradient(params, block)
    told = learner.gradient(params, block)
    value = learner.losses([params], block).values["losses"][:, 0]
    return replace(told, values={"objective": np.asarray(value, dtype=np.float64), **told.values})
