"""Lloyd's k-means on sums: each round every client counts and adds the rows nearest to each centre (Lloyd 1982; for data that stays
where it is, Dhillon and Modha 2000).

The start takes two rounds. In "sample" every client adds some of its rows to slots that all clients share; slots that exactly one row
was added to are rows drawn evenly from all. In "weigh" they are weighted by how many rows are nearest to each, and the server clusters
these few weighted rows: k-means++ (Arthur and Vassilvitskii 2007) and Lloyd, the best of some restarts, as the last step of k-means||
(Bahmani et al. 2012, step 8). Then "lloyd" until the centres stand still, and "measure" for the inertia of where they stopped.

A sampled row is seen by the server as it is, although not whose it is. Where no row may be seen, give ``centers``: nothing but sums over
the clusters then leaves a client.

A cluster that no row is nearest to keeps its centre (scikit-learn moves it to the row that is farthest from its own, which no sum
shows).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Collective, Message, State
from hansa.core.errors import InputError
from hansa.core.params import Kinds, Params
from hansa.core.updates import Total, Update

STEPS = 100
"""Steps of Lloyd's method on the sampled rows."""


@dataclass(frozen=True)
class Lloyd:
    """k-means; scikit-learn's result for the same start.

    tolerance:  on the squared movement of all centres together, in units of the mean variance of a feature; scikit-learn's ``tol``.
    sample:     slots for each cluster; about a third of them become candidates for the start.
    restarts:   of the clustering of the candidates at the server; the best is taken.
    centers:    where to begin, one list of features for each cluster; empty to begin from a sample.
    """

    name: Literal["lloyd"] = field(default="lloyd", kw_only=True)
    tolerance: Annotated[float, Ge(0)] = 1e-4
    sample: Annotated[int, Ge(3)] = 30
    restarts: Annotated[int, Ge(1)] = 10
    centers: tuple[tuple[float, ...], ...] = ()

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"clusters"}), init=False, repr=False)

    @property
    def shows(self) -> str:
        """What the server sees of single rows, for the run's account of what was shared; empty for nothing."""
        if self.centers:
            return ""
        return "once, to begin: some rows as they are, added to slots that all clients share, so that it is not seen whose they are"

    def init(self, params: Params, kinds: Kinds) -> State:
        state = {"params": params, "phase": "sample", "candidates": None, "threshold": None, "done": False}
        if not self.centers:
            return state
        shape = params["centers"].shape
        if {len(center) for center in self.centers} != {shape[1]} or len(self.centers) != shape[0]:
            lengths = sorted({len(center) for center in self.centers})
            raise InputError(
                f"algorithm.centers: {len(self.centers)} centres of {' or '.join(map(str, lengths))} features given, the learner has "
                f"{shape[0]} clusters and the data {shape[1]} features (write {shape[0]} lists of {shape[1]} numbers)"
            )
        return {**state, "phase": "lloyd", "params": {**params, "centers": np.array(self.centers, dtype=np.float64)}}

    def broadcast(self, state: State, round: int) -> Message:
        clusters = len(state["params"]["centers"])
        if state["phase"] == "sample":
            return Message({}, {"slots": self.sample * clusters})
        if state["phase"] == "weigh":
            return Message({"centers": state["candidates"]}, {"spread": False})
        return Message({"centers": state["params"]["centers"]}, {"spread": state["threshold"] is None})

    def work(self, learner: Any, message: Message, block: LoadedBlock) -> Update:
        if "slots" in message.extra:
            told: Update = learner.sampled(message.extra["slots"], block)
        else:
            told = learner.clustered(message.params["centers"], block, spread=message.extra["spread"])
        return told

    def update(self, state: State, total: Total) -> State:
        params, values = state["params"], total.values
        if state["phase"] == "sample":
            return {**state, "phase": "weigh", "candidates": _candidates(values["rows"], values["hits"], len(params["centers"]))}
        if state["phase"] == "weigh":
            centers = _best(state["candidates"], values["counts"], len(params["centers"]), self.restarts)
            return {**state, "phase": "lloyd", "candidates": None, "params": {**params, "centers": centers}}
        told = {"counts": values["counts"], "inertia": np.asarray(values["inertia"])}
        if state["phase"] == "measure":
            return {**state, "params": {**params, **told}, "done": True}
        threshold = state["threshold"]
        if threshold is None:
            rows = values["counts"].sum()
            variance = values["squares"] / rows - (values["sums"].sum(axis=0) / rows) ** 2
            threshold = self.tolerance * float(np.maximum(variance, 0.0).mean())
        centers = _means(values["sums"], values["counts"], params["centers"])
        moved = float(((centers - params["centers"]) ** 2).sum())
        params = {**params, **told, "centers": centers, "iterations": params["iterations"] + 1}
        state = {**state, "threshold": threshold, "params": params}
        if moved == 0.0:
            return {**state, "done": True}  # counts and inertia are those of these centres
        return {**state, "phase": "measure" if moved <= threshold else "lloyd"}


def _means(sums: np.ndarray, counts: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1.0)[:, None], otherwise)


def _candidates(rows: np.ndarray, hits: np.ndarray, clusters: int) -> np.ndarray:
    """Slots as rows: those that one row was added to, and where these are too few also the means of several."""
    order = np.argsort(np.where(hits == 0, np.inf, hits), kind="stable")
    chosen = order[: max(clusters, int((hits == 1).sum()))]
    chosen = chosen[hits[chosen] > 0]
    if len(chosen) < clusters:
        raise InputError(
            f"algorithm.sample: only {len(chosen)} of {len(hits)} slots were filled and {clusters} clusters need as many rows to begin "
            "from; raise algorithm.sample, or give algorithm.centers"
        )
    return np.asarray(rows[chosen] / hits[chosen, None])


def _best(rows: np.ndarray, weight: np.ndarray, clusters: int, restarts: int) -> np.ndarray:
    """The best of some k-means clusterings of weighted rows; a function of them alone, so that every resumed run finds the same."""
    random = np.random.default_rng(zlib.crc32(rows.tobytes()))
    weight = np.maximum(weight, 0.0) if weight.sum() > 0 else np.ones(len(rows))
    best, least = rows[:clusters], np.inf
    for _ in range(restarts):
        centers = _plus_plus(rows, weight, clusters, random)
        for _ in range(STEPS):
            labels = _distances(rows, centers).argmin(axis=1)
            belongs = (labels == np.arange(clusters)[:, None]) * weight
            new = _means(belongs @ rows, belongs.sum(axis=1), centers)
            if np.array_equal(new, centers):
                break
            centers = new
        cost = float(_distances(rows, centers).min(axis=1) @ weight)
        if cost < least:
            best, least = centers, cost
    return best


def _plus_plus(rows: np.ndarray, weight: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """k-means++ with weights; each next centre is the best of a few, as in scikit-learn."""
    tries = 2 + int(np.log(clusters))
    centers = [rows[random.choice(len(rows), p=weight / weight.sum())]]
    near = _distances(rows, np.stack(centers))[:, 0]
    while len(centers) < clusters:
        mass = near * weight
        # Fewer different rows than clusters: any row will do.
        drawn = random.choice(len(rows), size=tries, p=mass / mass.sum() if mass.sum() > 0 else None)
        each = np.minimum(near[:, None], _distances(rows, rows[drawn]))
        taken = int((each * weight[:, None]).sum(axis=0).argmin())
        centers.append(rows[drawn[taken]])
        near = each[:, taken]
    return np.stack(centers)


def _distances(rows: np.ndarray, centers: np.ndarray) -> np.ndarray:
    apart = rows[:, None, :] - centers[None]
    return np.einsum("nkf,nkf->nk", apart, apart)
