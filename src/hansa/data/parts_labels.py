"""What the label column of a table in parts means: the same for every part, and told by as few of its values as will do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from hansa.core.errors import InputError, did_you_mean
from hansa.data.parts_columns import WORDS, is_whole, kind_of_type
from hansa.data.sources import Task
from hansa.data.tables import MOST_CLASSES

Labels: TypeAlias = Literal["classes", "numbers"]


class Options(Protocol):
    """The options that say what a label means."""

    @property
    def label(self) -> str | None: ...
    @property
    def positive(self) -> str | int | float | bool | None: ...
    @property
    def above(self) -> float | None: ...
    @property
    def labels(self) -> Labels | None: ...


@dataclass(frozen=True)
class Meaning:
    """How labels are read.

    classes:   that may occur, in ascending order; None for a regression.
    positive:  the value of the column that becomes 1.
    above:     values greater than this become 1.
    """

    label: str
    task: Task
    classes: tuple[Any, ...] | None
    positive: Any = None
    above: float | None = None

    def read(self, column: Any, part: str) -> np.ndarray:
        """The labels of a part: int64, bool or str classes, float64 targets. Raises InputError when one is missing."""
        missing = column.is_null(nan_is_null=True).to_numpy()
        if missing.any():
            raise InputError(
                f"label column {self.label!r} is empty in {int(missing.sum()):,} of {len(missing):,} rows of {part}, and every row needs a "
                f'label; leave these out with data.filters = [["{self.label}", "is not null"]]'
            )
        values = _values(column)
        if self.above is not None:
            return (values > self.above).astype(np.int64)
        if self.positive is not None:
            return (values == self.positive).astype(np.int64)
        if self.classes is None:
            return values.astype(np.float64)
        y = _as_classes(values, f"label column {self.label!r} of {part}")
        unknown = sorted(set(np.unique(y).tolist()) - set(self.classes))
        if unknown:
            raise InputError(f"label column {self.label!r} is {unknown[0]!r} in {part} and never was before; make the job again")
        return y


def meaning_of(options: Options, kind: Any, columns: Iterable[Any]) -> Meaning:
    """What the labels mean, from the options, the column's Arrow type and its values.

    columns: of the chunks, in order; as many are read as it takes. A regression needs none, two classes as many as it takes to see
             both, more classes all.
    """
    assert options.label is not None  # a table without labels has no meaning of them
    what, where = kind_of_type(kind), f"label column {options.label!r}"
    if what in ("time", "other"):
        raise InputError(f"{where} holds {WORDS[what]} ({kind}); labels are text, whole numbers, or targets of a regression")
    if options.above is not None:
        if what != "number":
            raise InputError(f"data.above: {where} holds {WORDS[what]}, which is not above {options.above:g}; use data.positive")
        meaning = Meaning(options.label, "classification", (0, 1), above=options.above)
        return _both(meaning, columns, f"data.above = {options.above:g}")
    if options.positive is not None:
        meaning = Meaning(options.label, "classification", (0, 1), positive=_like(options.positive, kind, where))
        return _both(meaning, columns, f"data.positive = {options.positive!r}")
    if options.labels == "numbers" or (options.labels is None and what == "number" and not is_whole(kind)):
        if what == "text":
            raise InputError(f"{where} holds text, a regression needs numbers; take out data.labels")
        return Meaning(options.label, "regression", None)
    return _listed(options, what == "flag", columns, where)


def _both(meaning: Meaning, columns: Iterable[Any], option: str) -> Meaning:
    seen: set[int] = set()
    for column in columns:
        seen |= set(np.unique(meaning.read(column.drop_null(), "the table")).tolist())
        if len(seen) == 2:
            return meaning
    always = "no row" if seen == {0} else "every row"
    raise InputError(f"{option}: {always} of label column {meaning.label!r} is so; both must occur")


def _listed(options: Options, flag: bool, columns: Iterable[Any], where: str) -> Meaning:
    """The classes that occur, or a regression where whole numbers are too many to be classes."""
    assert options.label is not None
    seen: set[Any] = set()
    for column in columns:
        values = _values(column.unique().drop_null())
        if len(values):
            seen |= set(np.unique(_as_classes(values, where)).tolist())
        if options.labels is None and len(seen) > MOST_CLASSES and not isinstance(next(iter(seen)), str):
            return Meaning(options.label, "regression", None)
        if flag and len(seen) == 2:
            break
    if len(seen) < 2:
        raise InputError(
            f"{where} is {seen.pop()!r} in every row; at least two classes are needed" if seen else f"{where} is empty"
        )
    return Meaning(options.label, "classification", tuple(sorted(seen)))


def _as_classes(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind != "f":
        return values
    broken = values[~(np.isfinite(values) & (values == np.round(values)))]
    if len(broken):
        raise InputError(f'{where} holds {broken[0]:g}, which is no class; set data.labels = "numbers"')
    return values.astype(np.int64)


def _like(positive: Any, kind: Any, where: str) -> Any:
    """``positive`` as a value of the label column."""
    what = kind_of_type(kind)
    if what == "text":
        return str(positive)
    if isinstance(positive, str):
        words = {"true": 1, "false": 0}
        if what == "flag" and positive.lower() in words:
            return words[positive.lower()]
        try:
            return float(positive)
        except ValueError:
            raise InputError(
                f"data.positive: {where} holds {WORDS[what]} and never is {positive!r}"
                + (did_you_mean(positive, words) if what == "flag" else "")
            ) from None
    return positive


def _values(column: Any) -> np.ndarray:
    """A column without gaps as int64, float64, bool or str."""
    if kind_of_type(column.type) == "text":
        return np.array(column.to_pylist(), dtype=str)
    return column.to_numpy(zero_copy_only=False) if _single(column) else column.to_numpy()


def _single(column: Any) -> bool:
    return not hasattr(column, "num_chunks")
