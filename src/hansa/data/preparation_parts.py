"""The preparation of columns that are split over clients: each fits its own, exactly, since it has all rows of them.

The clients advance together, each with the questions of :mod:`hansa.data.preparation` for its own columns; what they answer is put
together as one ColumnTransformer, whose parts are the clients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hansa.core.blocks import LoadedBlock
from hansa.core.contracts import Collective, Learner, Message, State
from hansa.core.errors import InputError, RunFailed
from hansa.core.params import Kinds, Params
from hansa.core.updates import Total, Update
from hansa.data import columns
from hansa.data.describe import Description
from hansa.data.preparation import FitPreparation, measure


def part_of(description: Description, client: str) -> Description:
    """What one client told of its own columns."""
    own = description.facts[client]
    array = own["columns"]["x"] if own["layout"] == "array" else None
    return replace(
        description, features=() if array else tuple(own["columns"]), facts={client: own}, clients=1,
        shape=tuple(array["shape"]) if array else (len(own["columns"]),), dtype=array["dtype"] if array else "float64",
        classes=None if own["labels"] is None else description.classes,
    )  # fmt: skip


def restricted(transformer: Any, own: Sequence[str]) -> Any:
    """An unfitted transformer as far as it is about a client's own columns, by name. Raises InputError where that cannot be told."""
    from sklearn.base import clone
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    def has_columns(part: Any) -> bool:
        return isinstance(part, ColumnTransformer) or (
            isinstance(part, Pipeline) and any(has_columns(step) for _, step in part.steps)
        )

    if isinstance(transformer, Pipeline) and has_columns(transformer):
        name, first = transformer.steps[0]
        if not any(has_columns(step) for _, step in transformer.steps[1:]):
            fitted = clone(transformer)
            fitted.steps = [(name, restricted(first, own)), *fitted.steps[1:]]
            return fitted
        raise InputError(
            "preparation: a ColumnTransformer after another step names no client's columns; put it first in the pipeline"
        )
    if not isinstance(transformer, ColumnTransformer):
        return clone(transformer)
    parts = []
    for name, part, chosen in transformer.transformers:
        listed = [chosen] if isinstance(chosen, str) else chosen
        if not isinstance(listed, (list, tuple)) or not all(isinstance(column, str) for column in listed):
            raise InputError(
                f"preparation, step {name}: chooses its columns by {chosen!r}, which means others at every client that holds columns; "
                "list them by name"
            )
        kept = [column for column in listed if column in own]
        if kept:
            parts.append((name, part, kept))
    if not parts and isinstance(transformer.remainder, str):
        return transformer.remainder if transformer.remainder == "passthrough" else ColumnTransformer([], remainder="drop")
    restricted_to = clone(transformer)
    restricted_to.transformers = parts
    return restricted_to


def joined_transformer(each: Mapping[str, tuple[Any, Sequence[Any]]]) -> Any:
    """One transformer of all columns from each client's: client -> (its transformer, its columns by name or by place)."""
    from sklearn.compose import ColumnTransformer

    return ColumnTransformer([(client, own, list(chosen)) for client, (own, chosen) in each.items()], sparse_threshold=0.0)


@dataclass(frozen=True)
class FitParts:
    """The algorithm that fits a preparation whose columns are split; ``state["fitted"]`` has ``parts``, client -> what is fitted of it,
    and ``joined``, the whole once all are. All clients must take part in all rounds.

    blank: ``joined`` before any round.
    each:  client -> the algorithm that would fit its part alone.
    """

    blank: Mapping[str, Any] = field(repr=False)
    each: Mapping[str, FitPreparation] = field(repr=False)

    collective: Collective = field(default="gather", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset(), init=False, repr=False)

    @classmethod
    def of(cls, joined: Any, description: Description, each: Mapping[str, tuple[Any, Description]]) -> FitParts:
        """joined, each: the transformers of all columns and of each client's, with what is told of these."""
        whole = replace(description, facts={"": _together(description)})
        fits = {client: FitPreparation.of(own, columns.layout(one), columns.candidates(one)) for client, (own, one) in each.items()}
        return cls(FitPreparation.of(joined, columns.layout(whole), columns.candidates(whole)).blank, fits)

    def init(self, params: Params, kinds: Kinds) -> State:
        return self._with(params, {client: fit.init({}, {}) for client, fit in self.each.items()})

    def _with(self, params: Params, states: Mapping[str, State]) -> State:
        done = all(state["done"] for state in states.values())
        known = {_below(client, path): own for client, s in states.items() for path, own in s["fitted"]["known"].items()}
        fitted = {
            "parts": {client: state["fitted"] for client, state in states.items()},
            "joined": json.loads(json.dumps({**self.blank, "known": known})) if done else None,
        }
        phases = sorted({phase for state in states.values() for phase in state["phase"].split(", ") if phase})
        return {"params": params, "fitted": fitted, "done": done, "phase": ", ".join(phases), "each": dict(states)}

    def broadcast(self, state: State, round: int) -> Message:
        return Message({}, {"fitted": state["fitted"]["parts"]})

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        fitted = message.extra["fitted"]
        answers = [measure(table.x, fitted[client.id]) for client, table in zip(block.clients, block.tables, strict=True)]
        return Update({"answers": answers}, block.weight)

    def update(self, state: State, total: Any) -> State:
        if set(total.clients) != set(self.each):
            raise RunFailed(
                f"preparation: {len(total.clients)} of {len(self.each)} clients took part in this round, and each has columns that "
                "nobody else has (set rounds.quorum = 1.0, or start the preparation again)"
            )
        states = dict(state["each"])
        for client, answers in zip(total.clients, total.values["answers"], strict=True):
            if not states[client]["done"]:
                states[client] = self.each[client].update(states[client], Total(answers, 1.0, 1))
        return self._with(state["params"], {client: states[client] for client in self.each})


def _below(client: str, path: str) -> str:
    from hansa.data.preparing.recipe import join

    return join(client, path) if path else client


def _together(description: Description) -> dict[str, Any]:
    """The facts that one client with all columns would have told."""
    every = list(description.facts.values())
    if description.features:
        merged = {name: column for own in every for name, column in own["columns"].items()}
        return {**every[0], "columns": {name: merged[name] for name in description.features}}
    x = {**every[0]["columns"]["x"], "shape": list(description.shape), "dtype": description.dtype}
    x["missing"] = sum(own["columns"]["x"]["missing"] for own in every)
    return {**every[0], "columns": {"x": x}}
