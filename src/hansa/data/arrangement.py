"""What the clients' tables are to each other: more rows of the same columns, or more columns of the same rows.

Whatever depends on it is asked of the arrangement: what the clients have in common, how the preparation is fitted and put together, and
how a model is judged on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from hansa.core.blocks import Block, Client
from hansa.core.contracts import Algorithm, Learner, Schema
from hansa.core.errors import InputError
from hansa.core.loop import Exchange, Steps, evaluate_steps
from hansa.core.metrics import Metrics
from hansa.core.params import Params
from hansa.core.updates import Gathered, Total
from hansa.core.worker import EvaluateCall, ScoreCall
from hansa.data import columns
from hansa.data.describe import Description, asked, check
from hansa.data.features import Columns
from hansa.data.preparation import FitPreparation, Preparer, feature_names, fitted_transformer, prepared_dtype
from hansa.data.preparation_parts import FitParts, joined_transformer, part_of, restricted
from hansa.data.recipes import Population
from hansa.data.rules import Facts


class Arrangement(Protocol):
    """See the two below."""

    def asked(self, clients: int, seed: int) -> Sequence[int]:
        """Positions of the clients that describe their data before the first round, ascending."""
        ...

    def describe(self, facts: Facts, **rules: Any) -> Description:
        """What the clients' data is together; InputError for what cannot work. ``rules`` are those of :func:`hansa.data.describe.check`."""
        ...

    def schema(self, description: Description) -> Schema: ...

    def preparation(self, transformer: Any, description: Description) -> tuple[Any, Algorithm]:
        """The unfitted scikit-learn transformer of all columns, and the algorithm that fits it: ``state["fitted"]``."""
        ...

    def prepared(self, schema: Schema, fitted: Any) -> Schema:
        """The schema of what a fitted preparation gives."""
        ...

    def fitted(self, transformer: Any, fitted: Any) -> Any:
        """The scikit-learn transformer of all columns, fitted."""
        ...

    def evaluation(
        self,
        learner: Learner,
        params: Params,
        schema: Schema,
        *,
        blocks: Sequence[Block],
        seed: int,
        round: int,
        split: str,
        quorum: float = 1.0,
    ) -> Steps[tuple[Gathered, Metrics]]:
        """The steps of an evaluation; they return the metrics of each client that answered, of nobody where none are a client's own,
        and totals."""
        ...

    def sharing(self, algorithm: Algorithm, name: str) -> tuple[list[str], list[str]]:
        """For reports, in words: what leaves the clients in training and evaluation, and what does not. name: the algorithm's."""
        ...


@dataclass(frozen=True)
class ByRows:
    """Every client has rows of its own, and all have the same columns."""

    def asked(self, clients: int, seed: int) -> Sequence[int]:
        found: list[int] = asked(clients, seed).tolist()
        return found

    def describe(self, facts: Facts, **rules: Any) -> Description:
        return check(facts, **rules)

    def schema(self, description: Description) -> Schema:
        return _schema(description)

    def preparation(self, transformer: Any, description: Description) -> tuple[Any, Algorithm]:
        if hasattr(transformer, "build"):
            transformer = _built(transformer, description)
        return transformer, FitPreparation.of(transformer, columns.layout(description), columns.candidates(description))

    def prepared(self, schema: Schema, fitted: Any) -> Schema:
        return _prepared(schema, fitted)

    def fitted(self, transformer: Any, fitted: Any) -> Any:
        return fitted_transformer(transformer, fitted)

    def evaluation(
        self,
        learner: Learner,
        params: Params,
        schema: Schema,
        *,
        blocks: Sequence[Block],
        seed: int,
        round: int,
        split: str,
        quorum: float = 1.0,
    ) -> Steps[tuple[Gathered, Metrics]]:
        return evaluate_steps(EvaluateCall(params, schema, seed, round, split), blocks, quorum)

    def sharing(self, algorithm: Algorithm, name: str) -> tuple[list[str], list[str]]:
        who = {
            "sum": "every round: the sum over a block of clients",
            "gather": "every round: each single client",
            "gang": "in every step, between the members of a gang, which belong to one owner: parts",
        }[algorithm.collective]
        left = [f"{who} of what {name} needs, and the training loss", "at every evaluation: per metric a sum and a count"]
        return left, ["every row: no patient, picture or record was sent", "every client's validation and test rows"]


@dataclass(frozen=True)
class ByColumns:
    """Every client has columns of its own, and all have the same rows in the same order; one client has the labels.

    places: client -> where its columns stand among those of all; for clients that are not in it, they follow in the clients' order.
    """

    places: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def asked(self, clients: int, seed: int) -> Sequence[int]:
        return range(clients)

    def describe(self, facts: Facts, **rules: Any) -> Description:
        facts = {client: facts[client] for client in sorted(facts)}
        holder = _refuse(facts)
        own = {client: check({client: one}, **_own_rules(rules, client == holder)) for client, one in facts.items()}
        places = self._places(own)
        order = np.argsort(np.concatenate([places[client] for client in own]))
        names = [name for one in own.values() for name in one.features]
        return replace(
            own[holder], features=tuple(names[k] for k in order) if names else (), shape=(len(order),), facts=facts, clients=len(facts),
            dtype=str(np.result_type(*(one.dtype for one in own.values()))), split="columns",
        )  # fmt: skip

    def _places(self, own: Mapping[str, Description]) -> Mapping[str, Sequence[int]]:
        if set(self.places) == set(own):
            return self.places
        ends = np.cumsum([one.shape[0] for one in own.values()])
        return {client: range(end - one.shape[0], end) for (client, one), end in zip(own.items(), ends.tolist(), strict=True)}

    def schema(self, description: Description) -> Schema:
        own = {client: part_of(description, client) for client in description.facts}
        places = self._places(own)
        parts = {client: replace(_schema(one), places=tuple(places[client])) for client, one in own.items()}
        return replace(_schema(description), parts=parts)

    def preparation(self, transformer: Any, description: Description) -> tuple[Any, Algorithm]:
        places = self._places({client: part_of(description, client) for client in description.facts})
        each = {}
        for client in description.facts:
            one = part_of(description, client)
            own = _built(transformer, one) if hasattr(transformer, "build") else restricted(transformer, one.features)
            each[client] = (own, one)
        joined = joined_transformer({client: (own, one.features or list(places[client])) for client, (own, one) in each.items()})
        return joined, FitParts.of(joined, description, each)

    def prepared(self, schema: Schema, fitted: Any) -> Schema:
        parts, start = {}, 0
        for client, own in fitted["parts"].items():
            part = _prepared(schema.of(client), own)
            parts[client] = replace(part, places=tuple(range(start, start + part.shape[0])))
            start += part.shape[0]
        return replace(_prepared(schema, fitted["joined"]), parts=parts)

    def fitted(self, transformer: Any, fitted: Any) -> Any:
        return fitted_transformer(transformer, fitted["joined"])

    def evaluation(
        self,
        learner: Any,
        params: Params,
        schema: Schema,
        *,
        blocks: Sequence[Block],
        seed: int,
        round: int,
        split: str,
        quorum: float = 1.0,
    ) -> Steps[tuple[Gathered, Metrics]]:
        total, _ = yield Exchange(ScoreCall(params, schema, seed, round, split), blocks, "sum", 1.0, round)
        assert isinstance(total, Total)
        y = total.values["labels"]
        labels = y if schema.classes is None else np.rint(y).astype(np.int64)
        return Gathered((), {}, np.zeros(0)), learner.judge(params, total.values["scores"], labels)

    def sharing(self, algorithm: Algorithm, name: str) -> tuple[list[str], list[str]]:
        left = [
            "before the first round: the label of every training row, from the client that holds them to the server",
            f"every round: the sum over a block of clients of what {name} needs: for every training row what their columns add to its "
            "score, and their coefficients",
            "every round, to every client: all coefficients, and for every training row a residual, from which its label can be told",
            "at every evaluation: for every held-out row the sum over a block of clients of what their columns add to its score, and "
            "its label",
        ]
        return left, ["every value of every feature: what was sent of a row are sums over columns, weighted by their coefficients"]


def arrangement_of(partition: Any, clients: Sequence[Client]) -> Arrangement:
    """How the clients of a partition make up the data."""
    if getattr(partition, "name", "") != "features":
        return ByRows()
    holders = clients.holders if isinstance(clients, Population) else None
    return ByColumns(holders.places) if isinstance(holders, Columns) else ByColumns()


def _schema(description: Description) -> Schema:
    return Schema(description.features, description.shape, description.dtype, description.classes, description.rows)


def _prepared(schema: Schema, fitted: Any) -> Schema:
    names = feature_names(fitted)
    return replace(
        schema, features=names, shape=(len(names),), dtype=prepared_dtype(fitted), preparation=fitted, preparer=Preparer()
    )  # fmt: skip


def _built(options: Any, description: Description) -> Any:
    return options.build(columns.kinds(description), columns.missing(description), columns.candidates(description))


def _own_rules(given: Mapping[str, Any], holder: bool) -> dict[str, Any]:
    return {**given, "everyone": None} if holder else {**given, "everyone": None, "needs": frozenset[str]()}


def _refuse(facts: Facts) -> str:
    """InputError for tables that do not stand side by side; returns the client with the labels."""
    first, reference = next(iter(facts.items()))
    whose: dict[str, str] = {}
    for client, own in facts.items():
        if own["layout"] != reference["layout"]:
            raise InputError(
                f"clients {first} and {client}: one has a {reference['layout']}, the other an {own['layout']}; give both alike"
            )
        if own["rows"] != reference["rows"]:
            here, there = (", ".join(f"{n:,} {split}" for split, n in one["rows"].items()) for one in (own, reference))
            raise InputError(
                f"clients {first} and {client}: one has {there} rows and the other {here}, and they must hold the same rows; match them"
            )
        for name in own["columns"] if own["layout"] == "table" else ():
            if name in whose:
                raise InputError(f"clients {whose[name]} and {client} both have a column {name!r}; leave it out at one of them")
            whose[name] = client
    holders = [client for client, own in facts.items() if own["labels"] is not None]
    if len(holders) != 1:
        who = f"clients {' and '.join(holders[:3])} have" if holders else "none of the clients has"
        raise InputError(
            f"data: {who} labels, and exactly one client must hold them where the columns are split (partition.labels)"
        )
    return holders[0]
