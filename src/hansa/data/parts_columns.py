"""From Arrow columns to what the rest of Hansa can rely on, by their types alone: a part cannot look at what the others hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hansa.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "flag", "text", "time", "empty", "other"]
"""What a column's type says of it; "empty" for a column without any value, "other" for lists, structures and bytes."""

WORDS: dict[str, str] = {
    "number": "numbers", "flag": "true and false", "text": "text", "time": "dates or times", "empty": "nothing",
    "other": "values that are neither numbers nor text",
}  # fmt: skip

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
MEMBERSHIP = ("in", "not in")
PRESENCE = ("is null", "is not null")
OPERATORS = (*COMPARISONS, *MEMBERSHIP, *PRESENCE)

Filter = tuple[Any, ...]
"""``(column, operator, value)``, or ``(column, "is null")`` and ``(column, "is not null")``."""


def kind_of_type(kind: Any) -> Kind:
    """What the values of an Arrow type are."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return kind_of_type(kind.value_type)
    if types.is_boolean(kind):
        return "flag"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    return "empty" if types.is_null(kind) else "time" if types.is_temporal(kind) else "other"


def is_whole(kind: Any) -> bool:
    """Whether an Arrow type holds whole numbers only."""
    import pyarrow.types as types

    return bool(types.is_integer(kind.value_type if types.is_dictionary(kind) else kind))


def index_columns(schema: Any) -> tuple[str, ...]:
    """The columns of a file's Arrow schema that pandas wrote for the index of a data frame, and reads back as one: row numbers, or
    names of rows."""
    told = schema.pandas_metadata or {}
    return tuple(name for name in told.get("index_columns", ()) if isinstance(name, str))


def without_index(names: Iterable[str], index: Iterable[str], named: Iterable[str | None]) -> list[str]:
    """The columns of a table without those that hold a data frame's index, unless options name them as columns."""
    hidden = set(index).difference(named)
    return [name for name in names if name not in hidden]


def common_type(kinds: Iterable[Any]) -> Any:
    """The Arrow type as which a column is read that has the given types, all of one kind, in different files."""
    import pyarrow as pa

    known = [kind for kind in kinds if kind_of_type(kind) != "empty"]
    if not known:
        return pa.float64()
    what = kind_of_type(known[0])
    if what == "number":
        return pa.int64() if all(is_whole(kind) for kind in known) else pa.float64()
    return {"flag": pa.bool_(), "text": pa.string()}.get(what, known[0])


def as_type(column: Any, kind: Any) -> Any:
    """An Arrow column as another type of the same kind; whole numbers above 2**53 lose their last digits as float64."""
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column if column.type == kind else column.cast(kind, safe=False)


def features_frame(table: Any, names: Sequence[str]) -> pd.DataFrame:
    """Columns of an Arrow table as a data frame: float64 with NaN where missing, or objects: str, NaN where missing."""
    import pandas as pd
    import pyarrow as pa

    made = {}
    for name in names:
        column = table[name]
        if kind_of_type(column.type) == "text":
            made[name] = pd.Series(_texts(column), dtype=object)
        else:
            made[name] = pd.Series(as_type(column, pa.float64()).to_numpy(), dtype=np.float64)
    return pd.DataFrame(made)


def _texts(column: Any) -> np.ndarray:
    # One string object for equal values.
    coded = column.combine_chunks().dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy()
    distinct = np.array([*coded.dictionary.to_pylist(), np.nan], dtype=object)
    return distinct[codes]  # -1 is the last one, NaN


def plain_filters(given: Any) -> tuple[Filter, ...]:
    """Filters as tuples, dates in them as ISO text. Raises InputError for what is no filter."""
    if not isinstance(given, list | tuple):
        raise InputError(f'data.filters = {given!r}: must be a list of filters (write [["year", ">=", 2001]])')
    return tuple(_plain_filter(entry) for entry in given)


def _plain_filter(given: Any) -> Filter:
    if not isinstance(given, list | tuple) or len(given) < 2 or not isinstance(given[0], str):
        raise InputError(f'data.filters: {given!r} is no filter (write ["year", ">=", 2001] or ["year", "is not null"])')
    name, operator, *rest = given
    if operator not in OPERATORS:
        raise InputError(f"data.filters: {operator!r} in {list(given)!r} is no comparison{did_you_mean(str(operator), OPERATORS)}")
    wanted = 0 if operator in PRESENCE else 1
    if len(rest) != wanted:
        values = "takes no value" if wanted == 0 else "takes one value"
        raise InputError(f"data.filters: {operator!r} {values}, and {list(given)!r} has {len(rest)} (one list for each filter)")
    if operator in MEMBERSHIP:
        if not isinstance(rest[0], list | tuple) or not rest[0]:
            raise InputError(f"data.filters: {operator!r} takes a list of values, and {list(given)!r} has {rest[0]!r}")
        return name, operator, tuple(_plain_value(value, given) for value in rest[0])
    return name, operator, *(_plain_value(value, given) for value in rest)


def _plain_value(value: Any, given: Any) -> str | int | float | bool:
    if isinstance(value, date | datetime):
        return value.isoformat()
    if not isinstance(value, str | int | float | bool):
        raise InputError(f"data.filters: {value!r} in {list(given)!r} is neither a number nor text; write ISO text for dates")
    return value


def expression(filters: Sequence[Filter], types: Mapping[str, Any]) -> Any:
    """All filters as one Arrow expression, None without any; a missing value (also NaN) passes no comparison.

    types: column -> Arrow type. Raises InputError for a value of another kind than its column's.
    """
    import pyarrow.compute as pc

    made = None
    for name, operator, *rest in filters:
        field, kind = pc.field(name), types[name]
        missing = field.is_null(nan_is_null=True)
        if operator in PRESENCE:
            one = missing if operator == "is null" else ~missing
        elif operator in MEMBERSHIP:
            among = field.isin([_scalar(value, name, kind) for value in rest[0]])
            one = (among if operator == "in" else ~among) & ~missing
        else:
            value = _scalar(rest[0], name, kind)
            compared = {
                "==": field == value, "!=": field != value, "<": field < value, "<=": field <= value, ">": field > value,
                ">=": field >= value,
            }  # fmt: skip
            one = compared[operator] & ~missing
        made = one if made is None else made & one
    return made


def _scalar(value: Any, name: str, kind: Any) -> Any:
    import pyarrow as pa

    what = kind_of_type(kind)
    fits = {"number": int | float, "flag": bool, "text": str, "time": str}.get(what)
    if fits is None or not isinstance(value, fits) or (what == "number" and isinstance(value, bool)):
        raise InputError(f"data.filters: column {name!r} holds {WORDS[what]}, and {value!r} cannot be compared with them")
    if what != "time":
        return pa.scalar(value, pa.string()) if what == "text" else pa.scalar(value)
    try:
        return pa.scalar(value).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"data.filters: {value!r} is no value of column {name!r}, which is {kind} ({str(error).splitlines()[0]}); write ISO text"
        ) from error
