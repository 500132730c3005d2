"""Several problems of one learner, trained side by side as a learner of their own: the classes of one against the rest, the members of
an ensemble.

They are not tasks of their own: they share every client, so that a block is loaded once for all of them, a round is one exchange, and
any algorithm, engine and transform serves without knowing of it. Their params do not meet (the Hessian is block diagonal), so a problem
has the bits that it has alone, wherever the algorithm treats params entry by entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Curved, Schema
from hansa.core.local import Plan, Trained
from hansa.core.metrics import Metrics
from hansa.core.objective import value_and_gradient
from hansa.core.params import Kinds, Params
from hansa.core.updates import Update, under

ABILITIES = frozenset({"train", "gradient", "hessian"})
"""What problems can do side by side, if they can do it alone."""


@dataclass(frozen=True)
class Beside:
    """Params are those of the single learner, each under the name of its problem: ``0/coef``.

    one:     the single learner, as every problem has it.
    schema:  of the data.
    """

    one: Any
    schema: Schema
    can: frozenset[str]

    @property
    def problems(self) -> tuple[str, ...]:
        """Their names, the numbers that they are posed by."""
        raise NotImplementedError

    def posed(self, problem: str, block: LoadedBlock) -> LoadedBlock:
        """The block as a problem sees it: the same clients, their rows and labels its own."""
        raise NotImplementedError

    def said(self, losses: np.ndarray) -> np.ndarray:
        """The loss that is reported for each client (clients,), from those of the problems (problems, clients)."""
        raise NotImplementedError

    def kinds(self) -> Kinds:
        return {f"{of}/{name}": kind for of in self.problems for name, kind in self.one.kinds().items()}

    def init(self, seed: int) -> Params:
        """Every problem as the single learner begins alone."""
        return {f"{of}/{name}": value for of in self.problems for name, value in self.one.init(seed).items()}

    def each(self, params: Params, block: LoadedBlock) -> Iterator[tuple[str, Params, LoadedBlock]]:
        """Every problem with its own params and block."""
        for of in self.problems:
            yield of, under(params, of), self.posed(of, block)

    def train(self, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
        several = {
            of: self.one.train(own, its, replace(plan, drift=None if plan.drift is None else under(plan.drift, of)))
            for of, own, its in self.each(params, block)
        }
        merged = {f"{of}/{name}": value for of, trained in several.items() for name, value in trained.params.items()}
        steps = next(iter(several.values())).steps
        return Trained(merged, steps, self.together([trained.metrics for trained in several.values()]))

    def gradient(self, params: Params, block: LoadedBlock) -> Update:
        several = {of: self.one.gradient(own, its) for of, own, its in self.each(params, block)}
        return Update(_gradients(several), block.weight, self.together([told.metrics for told in several.values()]))

    def value_and_gradient(self, params: Params, block: LoadedBlock) -> Update:
        """As :meth:`gradient`, with ``objective`` (clients,), the sum of the objectives of all problems."""
        several = {of: value_and_gradient(self.one, own, its) for of, own, its in self.each(params, block)}
        values = {"objective": _objective(several), **_gradients(several)}
        return Update(values, block.weight, self.together([told.metrics for told in several.values()]))

    def curvature(self, params: Params, block: LoadedBlock) -> Update:
        """As the single learner tells it, of every problem; no values where it tells none."""
        values: dict[str, Any] = {}
        if isinstance(self.one, Curved):
            for of, own, its in self.each(params, block):
                for path, value in self.one.curvature(own, its).values.items():
                    kind, _, name = path.partition("/")
                    values[f"{kind}/{of}/{name}"] = value
        return Update(values, block.weight)

    def hessian(self, params: Params, block: LoadedBlock) -> Update:
        several = {of: self.one.hessian(own, its) for of, own, its in self.each(params, block)}
        blocks = [told.values["hessian"] for told in several.values()]
        ends = np.cumsum([part.shape[1] for part in blocks])
        hessian = np.zeros((len(block), ends[-1], ends[-1]))
        for part, end in zip(blocks, ends, strict=True):
            hessian[:, end - part.shape[1] : end, end - part.shape[1] : end] = part
        values = {**_gradients(several), "objective": _objective(several), "hessian": hessian}
        return Update(values, block.weight, self.together([told.metrics for told in several.values()]))

    def losses(self, candidates: Sequence[Params], block: LoadedBlock) -> Update:
        told = [
            self.one.losses([under(params, of) for params in candidates], its).values["losses"]
            for of, _, its in self.each(candidates[0], block)
        ]
        return Update({"losses": np.sum(told, axis=0)}, block.weight)

    def together(self, several: Sequence[Metrics]) -> Metrics:
        """The loss of all problems, over the rows that each of them has."""
        if "loss" not in several[0]:
            return {}
        return {"loss": (self.said(np.stack([metrics["loss"][0] for metrics in several])), several[0]["loss"][1])}


def _gradients(several: Mapping[str, Update]) -> dict[str, Any]:
    return {
        f"gradient/{of}/{name}": value for of, told in several.items() for name, value in under(told.values, "gradient").items()
    }


def _objective(several: Mapping[str, Update]) -> np.ndarray:
    return np.asarray(np.sum([told.values["objective"] for told in several.values()], axis=0))
