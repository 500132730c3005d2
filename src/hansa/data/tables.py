"""From whatever a table holds to what the rest of Hansa can rely on.

Columns are numbers (float64, NaN where missing; true and false are 1 and 0) or categories (objects: str, NaN where missing); labels
are int64, bool or str classes or float64 targets; client ids are str. The rules look at the whole table, so that all clients of a source
get equal dtypes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hansa.core.errors import InputError, did_you_mean
from hansa.data.sources import Task

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES = 20
"""Whole-number labels with more distinct values than this are taken for targets of a regression."""

Kind = Literal["number", "category"]

TIMES = ("date", "datetime", "datetime64", "period", "time", "timedelta", "timedelta64")
"""What pandas calls values that are dates, times of the day or spans of time."""

NAMELESS = re.compile(r"Unnamed: \d+")
"""What pandas calls a column of a CSV file that has no name."""

DAY_OR_TIME = re.compile(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?")
"""A date or a time as ISO 8601 writes it."""

STRAY = 0.1
"""A column of texts that all differ, of which fewer than this share are no numbers, was meant to hold numbers."""


def kind_of(column: pd.Series) -> Kind | None:
    """Whether a column holds numbers or categories; None when every value is missing."""
    import pandas as pd

    if column.isna().all():
        return None
    if pd.api.types.is_object_dtype(column.dtype):
        return (
            "number"
            if pd.api.types.infer_dtype(column) in ("integer", "floating", "mixed-integer-float", "decimal", "boolean")
            else "category"
        )
    return "number" if pd.api.types.is_numeric_dtype(column.dtype) else "category"


def plain_column(column: pd.Series) -> pd.Series:
    """A column as float64 numbers or as an object column of str, with NaN for what is missing."""
    import pandas as pd

    if pd.api.types.is_complex_dtype(column.dtype):
        raise InputError(
            f"data: column {str(column.name)!r} holds complex numbers, and models need real ones; give their parts as columns"
        )
    kind = kind_of(column)
    if kind == "number" or (kind is None and pd.api.types.is_numeric_dtype(column.dtype)):
        return pd.Series(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return pd.Series(_as_text(column), dtype=object)


def _as_text(column: pd.Series) -> np.ndarray:
    # Objects (rows,): str, NaN where missing. One string for equal values, except where 1, 1.0 and True may stand side by side.
    import pandas as pd

    values = np.full(len(column), np.nan, dtype=object)
    if pd.api.types.is_object_dtype(column.dtype) and pd.api.types.infer_dtype(column) != "string":
        present = column.notna().to_numpy()
        values[present] = [str(value) for value in column[present]]
        return values
    codes, distinct = pd.factorize(column)
    texts = np.array([str(value) for value in distinct], dtype=object)
    values[codes >= 0] = texts[codes[codes >= 0]]
    return values


def plain_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Every column made plain, names as str, rows numbered from zero."""
    import pandas as pd

    made = {}
    for k, name in enumerate(column_names(frame)):
        column = frame.iloc[:, k].reset_index(drop=True)
        _refuse_times(column, name)
        made[name] = plain_column(column)
        _refuse_strays(made[name], name)
    return pd.DataFrame(made)


def column_names(frame: pd.DataFrame) -> list[str]:
    """The names of a data frame's columns as str. Raises InputError when two columns have the same."""
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"data: column {twice!r} occurs {names.count(twice)} times; give every column its own name")
    return names


def _refuse_times(column: pd.Series, name: str) -> None:
    import pandas as pd

    held = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    kind = pd.api.types.infer_dtype(held, skipna=True)
    if kind in TIMES or (kind == "string" and _written_times(held)):
        raise InputError(
            f"data: column {name!r} holds dates or times, and models need numbers or categories; leave it out, for files with "
            f"data.drop = [{name!r}], and store what matters of it (the hour, the weekday) as columns of numbers or text"
        )


def _written_times(texts: Any) -> bool:
    """Whether all of a column's texts are dates or times; one glance tells that of most."""
    import pandas as pd

    first = next(text for text in texts if isinstance(text, str))
    return DAY_OR_TIME.fullmatch(first) is not None and all(DAY_OR_TIME.fullmatch(text) for text in pd.unique(texts.dropna()))


def _refuse_strays(column: pd.Series, name: str) -> None:
    # Such a column would be taken for one of names. Texts with a digit in them may well be that: numbers of patients with a letter.
    import pandas as pd

    texts = column.dropna() if column.dtype == object else column[:0]
    glance = pd.to_numeric(texts[:: 1 + len(texts) // 100], errors="coerce")
    if 2 * int(glance.isna().sum()) >= len(glance):
        return
    distinct = pd.unique(texts)
    if len(distinct) <= MOST_CLASSES or 2 * len(distinct) <= len(texts):
        return
    odd = texts[pd.to_numeric(texts, errors="coerce").isna()]
    if 0 < len(odd) < STRAY * len(texts) and not odd.str.contains(r"\d").any():
        raise InputError(
            f"data: column {name!r} holds numbers, and text such as {odd.iloc[0]!r} in {len(odd):,} of {len(column):,} rows; "
            "write numbers there or leave these cells empty, so that the column is one of numbers"
        )


def listed_names(option: str, given: Iterable[Any]) -> tuple[str, ...]:
    """The names of columns in an option that takes a list of them. Raises InputError for a single text, which is none."""
    if isinstance(given, str):
        raise InputError(f"data.{option} = {given!r}: is one text, and a list of columns is needed; write {option} = [{given!r}]")
    return tuple(str(name) for name in given)


def choose_features(
    names: Sequence[str], label: str | None, client: str | None, features: Iterable[str], drop: Iterable[str], where: str
) -> list[str]:
    """The feature columns: ``features`` as listed, else every column but the label, the client's and those in ``drop``.

    Raises InputError for a name that is not in the table, and when nothing is left.
    """
    features, drop = list(listed_names("features", features)), list(listed_names("drop", drop))
    wanted = [*(("features", name) for name in features), *(("drop", name) for name in drop)]
    if label is not None:
        wanted.insert(0, ("label", label))
    if client is not None:
        wanted.append(("client", client))
    for option, name in wanted:
        if name not in names:
            raise InputError(f"data.{option}: {where} has no column {name!r}{did_you_mean(name, names)}")
    both = [name for name in [*features, *([] if label is None else [label])] if name in drop]
    if both:
        raise InputError(f"data.drop: column {both[0]!r} is also asked for; take it out of data.drop")
    if label in features:
        raise InputError(f"data.features: {label!r} is the label; take it out of data.features")
    chosen = features or [name for name in names if name not in (label, client, *drop)]
    nameless = [] if features else [name for name in chosen if NAMELESS.fullmatch(name)]
    if nameless:
        raise InputError(
            f"data: column {nameless[0]!r} of {where} has no name, as the row numbers that pandas writes with a data frame have none; "
            f"leave it out with data.drop = {nameless}, or give it a name"
        )
    if not chosen:
        raise InputError(f"data: no feature column is left in {where}; take columns out of data.drop")
    return chosen


def client_ids(values: Any, where: str) -> np.ndarray:
    """Ids of the clients as str (rows,); whole numbers are written without a decimal point."""
    import pandas as pd

    column = pd.Series(values)
    refuse_gaps(column, where, "every row needs a client")
    if kind_of(column) == "number":
        column = pd.Series([int(v) if float(v).is_integer() else v for v in column], dtype=object)
    return _as_text(column).astype(str)


def labels_of(values: Any, task: Task | None, positive: Any, where: str) -> tuple[np.ndarray, Task]:
    """Labels as int64, bool or str classes, or float64 targets, with the task that they make.

    Without ``task``, labels are classes when they are text, true or false, or whole numbers with at most :data:`MOST_CLASSES`
    distinct values. ``positive`` makes its rows 1 and all others 0.
    """
    if task not in (None, "classification", "regression"):
        raise InputError(f"data.task: {task!r} is no task{did_you_mean(str(task), ('classification', 'regression'))}")
    y = _plain_labels(values, where)
    if task is None and y.dtype.kind == "f" and np.isnan(y).any() and _few_whole(y[~np.isnan(y)]):
        import pandas as pd

        refuse_gaps(pd.Series(y), where, "labels of few whole numbers are classes, and every row needs one")
    if positive is not None:
        if task == "regression":
            raise InputError("data.positive: a regression has no positive label; take out data.positive, or data.task")
        return _ones(y, positive, where), "classification"
    if task is None:
        few = y.dtype.kind == "i" and len(np.unique(y)) <= MOST_CLASSES
        task = "classification" if few or y.dtype.kind in "bU" else "regression"
    if task == "regression":
        if y.dtype.kind == "U":
            raise InputError(
                f'{where} holds text such as {str(y[0])!r}, a regression needs numbers; set data.task = "classification"'
            )
        return y.astype(np.float64), task
    if y.dtype.kind == "f":
        if not (np.isfinite(y).all() and (y == np.round(y)).all()):
            example = float(y[~(y == np.round(y))][0]) if (y != np.round(y)).any() else float(y[~np.isfinite(y)][0])
            raise InputError(f'{where} holds {example:g}, which is no class; set data.task = "regression"')
        y = y.astype(np.int64)
    return y, task


def _few_whole(y: np.ndarray) -> bool:
    return bool(len(y)) and len(np.unique(y)) <= MOST_CLASSES and bool((y == np.round(y)).all())


def _plain_labels(values: Any, where: str) -> np.ndarray:
    # bool, int64, float64 or str; NaN in an array of floats stays, for the check of the clients to name whose it is.
    array = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f"{where} has shape {array.shape}, but one label a row is needed: shape (rows,)")
    if array.dtype.kind not in "biufU":
        array = _from_objects(values, where)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _from_objects(values: Any, where: str) -> np.ndarray:
    import pandas as pd

    column = pd.Series(values)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    column = column.infer_objects()
    refuse_gaps(column, where, "every row needs a label")
    if pd.api.types.is_bool_dtype(column.dtype):
        return column.to_numpy(dtype=bool)
    if pd.api.types.is_integer_dtype(column.dtype):
        return column.to_numpy(dtype=np.int64)
    if pd.api.types.is_float_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64)
    # True and false in one place, 1 and 0 in another.
    if all(isinstance(value, bool | int | np.bool_ | np.integer) for value in column):
        return column.to_numpy().astype(np.int64)
    if not pd.api.types.is_object_dtype(column.dtype) and not pd.api.types.is_string_dtype(column.dtype):
        raise InputError(f"{where} holds values of type {column.dtype}; labels are text, whole numbers, or targets of a regression")
    return np.array([value.decode() if isinstance(value, bytes) else str(value) for value in column], dtype=str)


def refuse_stray_meaning(positive: Any, task: Task | None) -> None:
    """Raise InputError for options that say what labels mean, where no column holds any."""
    option = "positive" if positive is not None else "task" if task not in (None, "unlabelled") else None
    if option is not None:
        raise InputError(f"data.{option}: says what labels mean, and data.label names none; name their column, or leave it out")


def _ones(y: np.ndarray, positive: Any, where: str) -> np.ndarray:
    found = np.unique(y)
    match = [value for value in found.tolist() if value == positive or str(value) == str(positive)]
    if not match:
        raise InputError(f"data.positive: {where} never is {positive!r}{did_you_mean(str(positive), [str(v) for v in found[:20]])}")
    return (y == match[0]).astype(np.int64)


def refuse_gaps(column: pd.Series, where: str, why: str) -> None:
    """Raise InputError when cells of a column that must be complete are empty."""
    missing = column.isna().to_numpy()
    if missing.any():
        first = int(np.flatnonzero(missing)[0])
        raise InputError(
            f"{where} is empty in {int(missing.sum()):,} of {len(column):,} rows (first: row {first}, counted from 0); "
            f"{why}: fill these or delete their rows"
        )
