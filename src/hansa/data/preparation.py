"""Federated preprocessing: an ordinary scikit-learn transformer, fitted without anyone looking at pooled rows.

Only sums over clients travel: counts, sums, sums of squared deviations, counts of categories, byte histograms of order statistics.
The result is what scikit-learn's own ``fit`` would give on the pooled rows, and is exported as that object.

A round is one exchange. Independent parts (the branches of a ColumnTransformer) advance in the same rounds, a later step of a
Pipeline waits for the earlier ones, because it is fitted on what they let through.

=======================================================  ======================================================  =======
transformer                                              what the clients return                                 rounds
=======================================================  ======================================================  =======
StandardScaler                                           counts and sums; sums of squared deviations             2
MinMaxScaler, MaxAbsScaler, RobustScaler                 counts; byte histograms                                 9
SimpleImputer, "mean"                                    counts and sums                                         1
SimpleImputer, "median"                                  counts; byte histograms                                 9
SimpleImputer, "most_frequent" or "constant"             counts                                                  1
OneHotEncoder, OrdinalEncoder                            counts of the candidate values                          1
ColumnTransformer with sparse parts                      how many cells are stored                               1
=======================================================  ======================================================  =======
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.coded import Coded
from hansa.core.contracts import Collective, Learner, Message, State
from hansa.core.errors import InputError, RunFailed
from hansa.core.params import Kinds, Params
from hansa.core.updates import Total, Update, under
from hansa.data.preparing.layout import Layout
from hansa.data.preparing.plain import from_plain, to_plain

if TYPE_CHECKING:
    from hansa.data.preparing.assembly import Assembled, Pending
    from hansa.data.preparing.questions import Question

ColumnKind = Literal["number", "category"]
ROOT = "preparation"
WIDE = 128
"""Columns from which a sparse matrix stays one: below, dense rows are small and faster to multiply."""
_rehearsed: set[str] = set()  # what has been seen to work in this process: a comparison fits the same many times


@dataclass(frozen=True)
class Standard:
    """The usual preparation of a table: numbers are filled and scaled, categories are filled and one-hot encoded; to sparse columns
    where there are many.

    numeric:      what missing numbers are replaced by; "median" takes nine rounds, "mean" one.
    scale:        numbers to mean zero and variance one.
    categorical:  what missing categories are: the most frequent one, or ("missing") a category of their own.
    """

    name: Literal["standard"] = field(default="standard", kw_only=True)
    numeric: Literal["mean", "median"] = "mean"
    scale: bool = True
    categorical: Literal["most_frequent", "missing"] = "most_frequent"

    def build(
        self, kinds: Mapping[Any, ColumnKind], missing: Mapping[Any, bool], values: Mapping[Any, Sequence[Any]] | None = None
    ) -> Any:
        """The unfitted scikit-learn transformer.

        kinds:    column name, or position in an array -> "number" or "category".
        missing:  the same columns -> whether any client has missing values there.
        values:   column -> the values that it has, where they are known. With :data:`WIDE` categories in all, they become sparse
                  columns.
        """
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        numbers = [column for column, kind in kinds.items() if kind == "number"]
        categories = [column for column, kind in kinds.items() if kind == "category"]
        numeric: list[tuple[str, Any]] = []
        if any(missing.get(column, False) for column in numbers):
            numeric.append(("impute", SimpleImputer(strategy=self.numeric, keep_empty_features=True)))
        if self.scale:
            numeric.append(("scale", StandardScaler()))
        numeric_part = Pipeline(numeric or [("keep", "passthrough")])
        if not categories:
            return numeric_part
        categorical: list[tuple[str, Any]] = []
        if self.categorical == "most_frequent" and any(missing.get(column, False) for column in categories):
            categorical.append(("impute", SimpleImputer(strategy="most_frequent", keep_empty_features=True)))
        wide = sum(len((values or {}).get(column, ())) for column in categories) >= WIDE
        categorical.append(("encode", OneHotEncoder(handle_unknown="ignore", sparse_output=wide)))
        parts = [("numeric", numeric_part, numbers), ("categorical", Pipeline(categorical), categories)]
        # A threshold of one: sparse unless there is no zero at all.
        return ColumnTransformer([part for part in parts if part[2]], sparse_threshold=1.0 if wide else 0.3)


def supported(transformer: Any) -> None:
    """Raise InputError, with the step's name, where a transformer has a part that cannot be fitted from sums."""
    from hansa.data.preparing.recipe import check

    check(transformer)


@dataclass(frozen=True)
class FitPreparation:
    """The algorithm that fits a transformer: one round is one exchange; played without a schema, so that tables are raw.

    All clients must take part in all rounds. The state is plain JSON values; a run may stop and go on between any two rounds.
    Made by :meth:`of`.

    blank:  the fitted preparation before any round, plain values: ``layout``, ``candidates``, ``transformer``; ``known``, all about
            the parts that are fitted; and ``asked``, what the parts have been told that still wait.
    """

    blank: Mapping[str, Any] = field(repr=False)

    collective: Collective = field(default="sum", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset(), init=False, repr=False)

    @classmethod
    def of(cls, transformer: Any, layout: Layout, candidates: Mapping[Any, Sequence[Any]] | None = None) -> FitPreparation:
        """Fit ``transformer``, a scikit-learn object that is not changed.

        layout:      of all clients' raw features (:meth:`Layout.joined`).
        candidates:  column name (position in an array) -> all values that any client has there; missing ones may be left out.

        Raises InputError for whatever cannot work, before any client is asked: a part that cannot be fitted from sums, unknown
        columns, text where numbers are needed, an encoder without candidate values. All rounds are rehearsed on made-up rows.
        """
        from hansa.data.preparing.recipe import to_recipe
        from hansa.data.preparing.sample import sample_of

        supported(transformer)
        given = {} if candidates is None else candidates
        sample = sample_of(layout, given)
        blank = {
            "layout": layout.plain(),
            "candidates": [[key, to_plain(list(values))] for key, values in given.items()],
            "transformer": to_recipe(transformer, sample),
            "known": {},
            "asked": {},
        }
        text = json.dumps(blank, allow_nan=False)
        algorithm = cls(json.loads(text))
        if text not in _rehearsed:
            algorithm._rehearse(sample.x[:-1])
            _rehearsed.add(text)
        return algorithm

    def init(self, params: Params, kinds: Kinds) -> State:
        return {"params": params, "clients": None, **_progress(dict(self.blank))}

    def broadcast(self, state: State, round: int) -> Message:
        return Message({}, {"fitted": state["fitted"]})

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update:
        answers = measure_all([table.x for table in block.tables], message.extra["fitted"])
        # These are plain sums: a client's rows are counted in them, so that no client may weigh more than one.
        return Update({name: np.stack([answer[name] for answer in answers]) for name in answers[0]}, np.ones(len(block)))

    def update(self, state: State, total: Total) -> State:
        if state["clients"] not in (None, total.clients):
            raise RunFailed(
                f"preparation: {total.clients} clients took part in this round, {state['clients']} in the rounds before; sums over "
                "different clients do not belong together (set rounds.quorum = 1.0, or start the preparation again)"
            )
        fitted = state["fitted"]
        known, asked = dict(fitted["known"]), dict(fitted["asked"])
        for part, question in _questions(fitted):
            learnt = question.learn(asked.pop(part.path, {}), under(total.values, part.path or ROOT))
            if learnt.get("rows") == 0:
                raise InputError("preparation: the clients have no rows at all; give at least one client a training row")
            (known if part.ask(learnt) is None else asked)[part.path] = learnt
        return {**state, "clients": total.clients, **_progress({**fitted, "known": known, "asked": asked})}

    def _rehearse(self, x: Any) -> None:
        state = self.init({}, {})
        while not state["done"]:
            sums = measure(x, state["fitted"])
            state = self.update(state, Total(sums, 1.0, 1))
        _as_floats(_assembled(state["fitted"]).sample.x, feature_names(state["fitted"]))


def measure(x: Any, fitted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """One client's answers to the next questions of a preparation; their shapes do not depend on the number of rows."""
    return measure_all([x], fitted)[0]


def measure_all(tables: Sequence[Any], fitted: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """:func:`measure` for several clients."""
    layout, questions = Layout.from_plain(fitted["layout"]), _questions(fitted)
    answers = []
    for x in tables:
        raw = layout.cast(x)
        found = {f"{part.path or ROOT}/{n}": v for part, question in questions for n, v in question.measure(part.rows(raw)).items()}
        answers.append({name: np.asarray(value, dtype=np.float64) for name, value in found.items()})
    return answers


def _questions(fitted: Mapping[str, Any]) -> list[tuple[Pending, Question]]:
    asked = [(part, part.ask(fitted["asked"].get(part.path, {}))) for part in _assembled(fitted).pending]
    return [(part, question) for part, question in asked if question is not None]


def _progress(fitted: dict[str, Any]) -> dict[str, Any]:
    questions = _questions(fitted)
    return {"fitted": fitted, "done": not questions, "phase": ", ".join(sorted({question.name for _, question in questions}))}


@dataclass(frozen=True)
class Preparer:
    """Applies a fitted preparation at a client; what it knows is all in ``fitted``."""

    def prepare(self, table: Table, fitted: Any) -> Table:
        """``x`` as a dense, contiguous array (rows, features), float32 where the transformer gives that, else float64; as
        :class:`~hansa.core.coded.Coded` where the transformer gives a sparse matrix of at least :data:`WIDE` columns.

        Raises InputError for a table whose columns are not those of the layout, and for values that the transformer refuses.
        """
        from hansa.data.preparing.assembly import applied

        transformer = _complete(fitted)
        x = Layout.from_plain(fitted["layout"]).cast(table.x)
        if not isinstance(transformer, str):
            x = applied(transformer.transform, x) if len(x) else _assembled(fitted).sample.x[:0]
        return Table(Coded.of(x) if is_wide(x) else _as_floats(x), table.y)


def fitted_transformer(transformer: Any, fitted: Mapping[str, Any]) -> Any:
    """A copy of ``transformer``, fitted: an ordinary scikit-learn object that needs nothing of Hansa.

    Raises InputError when ``fitted`` is not complete, or is of another transformer.
    """
    from hansa.data.preparing.assembly import assemble

    _complete(fitted)
    assembled = assemble(transformer, fitted["known"], _raw_sample(fitted))
    if assembled.pending:
        raise InputError(
            f"the preparation that was fitted has no step {assembled.pending[0].path!r}; give the transformer that was fitted"
        )
    return assembled.fitted


def feature_names(fitted: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the prepared columns, as scikit-learn gives them."""
    transformer, raw = _complete(fitted), _raw_sample(fitted).x
    names = list(raw.columns) if hasattr(raw, "columns") else [f"x{position}" for position in range(raw.shape[1])]
    return tuple(str(name) for name in (names if isinstance(transformer, str) else transformer.get_feature_names_out(names)))


def prepared_dtype(fitted: Mapping[str, Any]) -> Literal["float32", "float64"]:
    """The dtype of a prepared example."""
    _complete(fitted)
    return "float32" if _as_floats(_assembled(fitted).sample.x).dtype == np.float32 else "float64"


def is_wide(x: Any) -> bool:
    """Whether prepared rows are kept as codes."""
    from scipy import sparse

    return bool(sparse.issparse(x)) and x.shape[1] >= WIDE


def _complete(fitted: Mapping[str, Any]) -> Any:
    assembled = _assembled(fitted)
    if assembled.pending:
        raise InputError(
            f"the preparation is not fitted yet: step {assembled.pending[0].path or ROOT} waits; play its rounds until done"
        )
    return assembled.fitted


def _as_floats(x: Any, names: Sequence[str] = ()) -> np.ndarray:
    from scipy import sparse

    from hansa.data.preparing.sample import numbers

    dense = x.toarray() if sparse.issparse(x) else x
    if isinstance(dense, np.ndarray) and dense.dtype in (np.float32, np.float64):
        return np.ascontiguousarray(dense)
    single = hasattr(dense, "dtypes") and hasattr(dense, "columns") and bool((dense.dtypes == np.float32).all())
    return np.ascontiguousarray(numbers(dense, names), dtype=np.float32 if single else np.float64)


def _raw_sample(fitted: Mapping[str, Any]) -> Any:
    from hansa.data.preparing.sample import sample_of

    return sample_of(Layout.from_plain(fitted["layout"]), {key: from_plain(values) for key, values in fitted["candidates"]})


def _assembled(fitted: Mapping[str, Any]) -> Assembled:
    # What is asked at the moment is left out of the key: many rounds only add to it.
    return _assembled_from(json.dumps({name: value for name, value in fitted.items() if name != "asked"}, allow_nan=False))


@lru_cache(maxsize=64)
def _assembled_from(text: str) -> Assembled:
    from hansa.data.preparing.assembly import assemble
    from hansa.data.preparing.recipe import from_recipe

    fitted = json.loads(text)
    return assemble(from_recipe(fitted["transformer"]), fitted["known"], _raw_sample(fitted))
