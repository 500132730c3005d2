"""Forests: each client grows its share of the trees on its own rows, and the union is the forest.

Breiman: Random Forests, Machine Learning 45, 2001; Geurts, Ernst, Wehenkel: Extremely Randomized Trees, Machine Learning 63, 2006. How a
tree is grown is the learner's affair. That the trees of a forest may be grown on parts of the rows is Breiman's pasting (Pasting Small
Votes, Machine Learning 36, 1999), with a client in place of a small sample: what one client alone has seen, its trees alone know.

Two rounds: the clients tell their weights, and each grows as many trees as it is due. Trees are seen one by one and are no sum, so this
is a ``gather`` algorithm, which secure aggregation has to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Collective, Learner, Message, State, Transform
from hansa.core.decision_trees import TREES, checked, joined
from hansa.core.errors import InputError
from hansa.core.params import Kinds, Params
from hansa.core.updates import Gathered, Update


@dataclass(frozen=True)
class Forest:
    """The union of trees that the clients grow, as many of each as its weight is worth: its rows, or the same for all
    (``rounds.weighting``).

    A client that is due to grow trees and fails is asked again in the next round, until ``rounds.count`` rounds are played.
    """

    name: Literal["forest"] = field(default="forest", kw_only=True)

    collective: Collective = field(default="gather", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"trees"}), init=False, repr=False)

    def check(self, rounds: int, transforms: Sequence[Transform]) -> None:
        if rounds < 2:
            raise InputError(
                f"rounds.count = {rounds}: in the first round of algorithm 'forest' the clients tell their weights, in the second they "
                "grow trees (set rounds.count to 2 or more)"
            )

    def init(self, params: Params, kinds: Kinds) -> State:
        return {"params": params, "due": None, "done": False}

    def broadcast(self, state: State, round: int) -> Message:
        return Message({}, {} if state["due"] is None else {"due": state["due"]})

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        if "due" not in message.extra:
            return Update({}, block.weight)
        grow: Any = learner  # a learner that offers "trees"
        due = message.extra["due"]
        return Update(grow.trees(block, [int(due.get(client.id, 0)) for client in block.clients]), block.weight)

    def update(self, state: State, total: Gathered) -> State:
        params = state["params"]
        if state["due"] is None:
            shares = _shared_out(int(params["wanted"]), total.weight)
            due = {client: int(share) for client, share in zip(total.clients, shares, strict=True) if share}
            return {**state, "due": due}
        grown, due = [params], dict(state["due"])
        for place, client in enumerate(total.clients):
            if client in due:
                own = {name: values[place] for name, values in total.values.items()}
                grown.append(_believed(client, own, due.pop(client), params))
        return {**state, "params": {**params, **joined(grown)}, "due": due, "done": not due}


def _shared_out(wanted: int, weight: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to ``wanted`` and are nearest to the weights' shares of it (largest remainders; the first of equals)."""
    exact = wanted * np.asarray(weight, dtype=np.float64) / float(np.sum(weight))
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: wanted - int(whole.sum())]] += 1
    return whole


def _believed(client: str, given: dict[str, Any], due: int, params: Params) -> dict[str, np.ndarray]:
    """A client's trees; InputError for anything else than the trees that it was asked for."""
    features, classes = (int(number) for number in params["agreed"])
    try:
        trees = checked({name: given.get(name) for name in TREES}, features, params["value"].shape[1], shares=classes > 0)
    except InputError as error:
        raise InputError(f"client {client}: its trees {error}; they are not used") from None
    if len(trees["nodes"]) != due:
        raise InputError(f"client {client}: it sent {len(trees['nodes'])} trees and {due} were asked for; they are not used")
    return trees
