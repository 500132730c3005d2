"""The exchange before the first round: clients tell facts of their data, so that a job is refused before it computes.

All of them do where they are few. Of many, a sample does (:func:`asked`), what holds for all is told by their index
(:class:`Everyone`), and a client's own table is checked when it is first loaded for work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.contracts import Collective, Learner, Message, State
from hansa.core.errors import InputError
from hansa.core.params import Kinds, Params
from hansa.core.sampling import sample
from hansa.core.updates import Update
from hansa.data import rules
from hansa.data.facts import facts_of
from hansa.data.rules import Facts, Policy
from hansa.data.sources import Task

ASKED = 1_000
"""At most so many clients describe their data before the first round."""


def asked(clients: int, seed: int) -> np.ndarray:
    """Positions of the clients that describe their data, ascending, the same ones for the same seed."""
    return sample(clients, ASKED, seed, "describe")


@dataclass(frozen=True)
class Everyone:
    """What is known of all clients without asking them.

    clients: how many there are.
    rows:    training rows of all together.
    classes: labels that may occur, in ascending order; empty where only the clients can tell.
    """

    clients: int
    rows: int
    classes: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Describe:
    """An algorithm of one round without params, played without a schema: ``state["facts"]`` is client id -> facts."""

    name: Literal["describe"] = field(default="describe", kw_only=True)

    collective: Collective = field(default="gather", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset(), init=False, repr=False)

    def init(self, params: Params, kinds: Kinds) -> State:
        return {"params": {}, "facts": {}}

    def broadcast(self, state: State, round: int) -> Message:
        return Message()

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        # A block holds one split, and the facts are of all of them.
        return Update({"facts": [facts_of(client.load()) for client in block.clients]}, block.weight)

    def update(self, state: State, total: Any) -> State:
        return {**state, "facts": dict(zip(total.clients, total.values["facts"], strict=True)), "done": True}


@dataclass(frozen=True)
class Description:
    """What all clients' data have in common.

    features: names of the columns, empty where the features are one array.
    shape:    of one example; (columns,) for a table.
    dtype:    of the features.
    classes:  labels in ascending order for classification, else None.
    rows:     training rows of all clients together.
    facts:    what each client told, by id (:mod:`hansa.data.facts`).
    clients:  how many there are; more than have told facts where only a sample was asked.
    split:    what the clients have each of their own: rows of the same columns, or columns of the same rows.
    """

    features: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    classes: tuple[Any, ...] | None
    rows: int
    task: Task
    facts: Facts = field(repr=False)
    clients: int
    split: Literal["rows", "columns"] = "rows"

    def example(self) -> Table:
        """One made-up raw row, without a label: mean numbers and the most frequent categories of the first client."""
        columns = next(iter(self.facts.values()))["columns"]
        if not self.features:
            return Table(np.zeros((1, *self.shape), dtype=self.dtype))
        import pandas as pd

        return Table(pd.DataFrame({name: _typical(columns[name]) for name in self.features}))

    def plain(self) -> dict[str, Any]:
        """For reports, as JSON-plain values: ``task``, ``features``, ``classes``, ``rows``, and ``clients``, by id.

        A client has ``rows`` by split and ``labels``, the training rows of each class by the label's text; or ``target``, the
        ``mean``, ``std``, ``min`` and ``max`` of a regression's. Where only a sample of the clients was asked, ``population`` is
        the number of all. Where the clients share their rows, ``columns`` has the names of each one's.
        """
        sampled: dict[str, Any] = {"population": self.clients} if self.clients > len(self.facts) else {}
        if self.split == "columns":
            sampled["columns"] = {client: list(own["columns"]) for client, own in self.facts.items()}
        return {
            **sampled,
            "task": self.task,
            "features": list(self.features),
            "classes": None if self.classes is None else list(self.classes),
            "rows": self.rows,
            "clients": {client: {"rows": dict(own["rows"]), **self._labels(own["labels"])} for client, own in self.facts.items()},
        }

    def _labels(self, labels: Mapping[str, Any] | None) -> dict[str, Any]:
        if labels is None:
            return {}
        if self.classes is None:
            return {"target": {name: labels[name] for name in ("mean", "std", "min", "max")}}
        counts = dict(labels["counts"]["train"])
        return {"labels": {str(label): counts.get(label, 0) for label in self.classes}}


def _typical(column: Mapping[str, Any]) -> Any:
    import pandas as pd

    if column["kind"] == "number":
        return pd.Series([0.0 if column["mean"] is None else column["mean"]])
    return pd.Series([next(iter(column["values"]), np.nan)], dtype=object)


def check(
    facts: Facts,
    *,
    task: Task,
    needs: frozenset[str],
    prepared: bool,
    constant: Policy = "refuse",
    single_class: Policy = "refuse",
    everyone: Everyone | None = None,
) -> Description:
    """What the clients have in common. Raises InputError for the first thing that cannot work.

    needs:         of the learner: "classes", "two classes", "numbers", "counts" (targets that are not negative).
    prepared:      a preparation fills gaps and turns categories into numbers.
    constant:      a column with one and the same value at all clients.
    single_class:  a client whose training rows are all of one class: a mistake with natural clients, and the point of a partition
                   that skews labels.
    everyone:      what is known of all clients where more is than ``facts`` tell, which may then be those of a sample.
    """
    if not facts:
        raise InputError("data: there are no clients; a job needs at least one")
    facts = {client: facts[client] for client in sorted(facts)}
    counted = Everyone(len(facts), sum(own["rows"]["train"] for own in facts.values()))
    everyone = everyone or counted
    try:
        classes = _refuse(facts, task, needs, prepared, constant, single_class, everyone.classes)
    except InputError as error:
        if everyone.clients == len(facts):
            raise
        raise InputError(f"{error} ({len(facts):,} of {everyone.clients:,} clients were asked)") from None
    first = next(iter(facts.values()))
    array = first["columns"]["x"] if first["layout"] == "array" else None
    return Description(
        features=() if array else tuple(first["columns"]),
        shape=tuple(array["shape"]) if array else (len(first["columns"]),),
        dtype=array["dtype"] if array else "float64",
        classes=classes,
        rows=counted.rows if everyone.clients == len(facts) else everyone.rows,
        task=task,
        facts=facts,
        clients=everyone.clients,
    )


def _refuse(
    facts: Facts,
    task: Task,
    needs: frozenset[str],
    prepared: bool,
    constant: Policy,
    single_class: Policy,
    known: tuple[Any, ...],
) -> tuple[Any, ...] | None:
    """InputError for the first rule that is broken; returns the classes."""
    for client, own in facts.items():
        if own["rows"]["train"] == 0:
            raise InputError(f"client {client}: has no training rows; leave it out")
    rules.same_columns(facts)
    rules.usable_values(facts, prepared)
    rules.no_stray_marks(facts)
    if constant == "refuse":
        rules.no_constants(facts)
    return rules.labels(facts, task, needs, single_class, known)
