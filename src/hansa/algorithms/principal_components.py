"""Principal components from summed moments (Pearson 1901; by the eigenvectors of the covariance, Jolliffe 2002, chapter 1).

One round: the clients return the sums of x and of x x', the server takes the eigenvectors of

    C = (sum x x' - n m m') / (n - 1)

It is exact up to the rounding of the products, which grows with the square of mean over deviation: scale features first whose mean is
a million times their deviation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Collective, Message, State
from hansa.core.errors import InputError
from hansa.core.params import Kinds, Params
from hansa.core.updates import Total, Update


@dataclass(frozen=True)
class PrincipalComponents:
    """One round, after which nothing is left to do; the upload of a client is p^2 + p + 1 numbers."""

    name: Literal["principal_components"] = field(default="principal_components", kw_only=True)

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"moments"}), init=False, repr=False)

    def init(self, params: Params, kinds: Kinds) -> State:
        return {"params": params, "done": False}

    def broadcast(self, state: State, round: int) -> Message:
        return Message()

    def work(self, learner: Any, message: Message, block: LoadedBlock) -> Update:
        told: Update = learner.moments(block)
        return told

    def update(self, state: State, total: Total) -> State:
        rows, sums = float(total.values["rows"]), total.values["sum"]
        if rows < 2:
            raise InputError("algorithm principal_components: one row has no variance; give at least two training rows")
        mean = sums / rows
        covariance = (total.values["products"] - rows * np.outer(mean, mean)) / (rows - 1)
        variance, vectors = np.linalg.eigh(covariance)
        components = np.ascontiguousarray(vectors.T[::-1][: len(state["params"]["components"])])
        # An eigenvector has no sign of its own: scikit-learn's rule, the largest entry is positive.
        components *= np.sign(components[np.arange(len(components)), np.abs(components).argmax(axis=1)])[:, None]
        found = {
            "mean": mean, "components": components, "variance": np.maximum(variance[::-1][: len(components)], 0.0),
            "total": np.asarray(np.trace(covariance)), "rows": np.asarray(rows),
        }  # fmt: skip
        return {**state, "params": found, "done": True}
