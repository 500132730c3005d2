"""Laws of layouts: the dtype that pooled rows would have, agreed without pooling, and nothing read as what it is not."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from hansa.core.errors import InputError
from hansa.data.preparing.layout import Layout
from hansa.data.preparing.plain import from_plain, to_plain

PARTS = [
    pd.DataFrame({"whole": [1, 2], "gaps": [1, 2], "text": ["a", "b"], "truth": [True, False], "empty": [np.nan, np.nan]}),
    pd.DataFrame({"whole": [3, 4], "gaps": [np.nan, 2], "text": [None, "b"], "truth": [True, True], "empty": [np.nan, np.nan]}),
    pd.DataFrame(
        {"whole": [5, 6], "gaps": [np.nan, np.nan], "text": [np.nan, np.nan], "truth": [True, True], "empty": [np.nan, np.nan]}
    ),
]


def test_joined_is_the_layout_of_pooled_rows() -> None:
    joined = Layout.joined(map(Layout.of, PARTS))
    text = joined.names.index("text")  # which of its two types text gets, pandas decides by version
    pooled = Layout.of(pd.concat(PARTS))
    assert joined.names == pooled.names and joined.dtypes[text] in ("str", "object")
    assert joined.dtypes[:text] + joined.dtypes[text + 1 :] == ("int64", "float64", "bool", "empty")
    assert pooled.dtypes[:text] + pooled.dtypes[text + 1 :] == ("int64", "float64", "bool", "empty")
    assert Layout.from_plain(json.loads(json.dumps(joined.plain()))) == joined


def test_cast_gives_all_clients_the_same_dtypes() -> None:
    joined = Layout.joined(map(Layout.of, PARTS))
    cast = [joined.cast(part[list(reversed(part.columns))].assign(extra=1)) for part in PARTS]
    assert all((part.dtypes == cast[0].dtypes).all() and list(part.columns) == list(joined.names) for part in cast)
    pooled = pd.concat(PARTS)
    for name in joined.names:
        values = pd.concat(cast)[name]
        assert (values.isna() == pooled[name].isna()).all() and (values.dropna() == pooled[name].dropna()).all()


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (pd.Series([1, None], dtype="Int64"), "float64"),
        (pd.Series([1, 2], dtype="Int32"), "float64"),
        (pd.Series([1, 2], dtype="int32"), "int32"),
        (pd.Series([True, None], dtype="boolean"), "object"),
        (pd.Series(["a", "b"], dtype="category"), "object"),
        (pd.Series([1.5, np.nan], dtype="category"), "float64"),
        (pd.Series([1.5], dtype="float16"), "float32"),
        (pd.Series([True, np.nan], dtype=object), "object"),
        (pd.Series(["a"], dtype="string"), "object"),
    ],
)
def test_dtypes(column: pd.Series, dtype: str) -> None:
    layout = Layout.of(pd.DataFrame({"c": column}))
    assert layout.dtypes == (dtype,)
    assert layout.cast(pd.DataFrame({"c": column}))["c"].dtype == dtype


def test_arrays_and_kinds() -> None:
    assert Layout.joined([Layout.of(np.zeros((1, 2), dtype=np.float32)), Layout.of(np.zeros((3, 2)))]).dtypes == (
        "float64",
        "float64",
    )
    assert Layout.of_kinds({"a": "number", "b": "category"}) == Layout(("a", "b"), ("float64", "object"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"b": [1.0]}), "no column 'a'"),
        (pd.DataFrame({"a": ["x"]}), "'a' was described as int64 and cannot be read so"),
        (pd.DataFrame({"a": [1.5]}), "'a' was described as int64 and holds other values"),
        (pd.DataFrame({"a": [np.nan]}), "'a' was described as int64"),
        (np.zeros((1, 1)), "a data frame with columns"),
    ],
)
def test_other_tables_are_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Layout(("a",), ("int64",)).cast(table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((2, 3, 3)), r"shape \(2, 3, 3\)"),
        (np.array([["a"]]), "array .* of numbers"),
        (pd.DataFrame({1: [1.0]}), "name that is not text"),
        (pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}), "'t' has type datetime64"),
        (pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), "'a' stands twice"),
    ],
)
def test_what_has_no_layout(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Layout.of(table)


def test_infinite_values_and_other_columns_are_refused() -> None:
    with pytest.raises(InputError, match="'a' has infinite values"):
        Layout(("a",), ("float64",)).cast(pd.DataFrame({"a": [np.inf]}))
    with pytest.raises(InputError, match="column 1 has infinite values"):
        Layout((), ("float64", "float64")).cast(np.array([[0.0, -np.inf]]))
    with pytest.raises(InputError, match="the clients' columns differ: b, c"):
        Layout.joined([Layout(("a", "b"), ("bool",) * 2), Layout(("a", "c"), ("bool",) * 2)])


def test_plain_values_come_back_with_the_same_bits() -> None:
    values = [None, True, 3, 0.1, -0.0, float("inf"), "ä", (1, 2.5), [1, "b"], np.float32(0.1), np.uint8(3)]
    again = from_plain(json.loads(json.dumps(to_plain(values), allow_nan=False)))
    assert again == values and [type(value) for value in again] == [type(value) for value in values]
    assert np.signbit(again[4]) and np.isnan(from_plain(to_plain(float("nan"))))
    for array in (
        np.array([1.5, np.nan]),
        np.array(["a", "b"]),
        np.array(["a", 1, np.nan], dtype=object),
        np.arange(3, dtype=np.int8),
    ):
        back = from_plain(json.loads(json.dumps(to_plain(array), allow_nan=False)))
        assert back.dtype == array.dtype and pd.Series(back).equals(pd.Series(array))
    assert from_plain(to_plain(np.float32)) is np.float32 and from_plain(to_plain(int)) is np.int64
    with pytest.raises(InputError, match="function"):
        to_plain(len)
