"""Data in memory: the same rows whatever holds them, checked when they are read."""

from __future__ import annotations

import pickle
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import hansa
from hansa.core.blocks import Table
from hansa.core.errors import InputError
from hansa.data import BuiltIn, from_arrays, from_table, from_torch

HEART = BuiltIn("heart_disease").read()


def test_arrays_are_taken_as_they_are() -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 1, 0, 1])
    rows = from_arrays(x, y, clients=[2, 2, 10, 10]).read()
    assert rows.x is x
    assert (rows.task, rows.client.tolist()) == ("classification", ["2", "2", "10", "10"])  # type: ignore[union-attr]  # None, and so an error, where there are no clients


def test_a_frame_an_arrow_table_and_a_built_in_set_are_the_same() -> None:
    frame = HEART.x.assign(ill=HEART.y, hospital=HEART.client)
    for table in (frame, pa.Table.from_pandas(frame), frame.convert_dtypes()):
        rows = from_table(table, label="ill", client="hospital").read()
        assert_frame_equal(rows.x, HEART.x)
        assert np.array_equal(rows.y, HEART.y)
        assert np.array_equal(rows.client, HEART.client)


def test_labels_of_every_kind_become_plain() -> None:
    x = np.zeros((4, 1))
    kinds: list[tuple[Any, Any, str]] = [
        ([True, False, True, True], [True, False, True, True], "b"),
        (np.array(["b", "a", "a", "b"], dtype=object), ["b", "a", "a", "b"], "U"),
        (pd.Series(["b", "a", "a", "b"], dtype="category"), ["b", "a", "a", "b"], "U"),
        (pd.Series([3, 1, 1, 3], dtype="Int64"), [3, 1, 1, 3], "i"),
        (np.array([3, 1, 1, 3], dtype=np.uint8), [3, 1, 1, 3], "i"),
        (np.array([0.5, 1, 1, 3], dtype=np.float32), [0.5, 1, 1, 3], "f"),
    ]
    for given, expected, kind in kinds:
        y = from_arrays(x, given).read().y
        assert y is not None
        assert (y.tolist(), y.dtype.kind) == (expected, kind)


def test_columns_become_numbers_or_text_whatever_their_type() -> None:
    frame = pd.DataFrame(
        {
            "mixed": np.array([1, True, "1"], dtype=object),
            "truth": np.array([True, None, False], dtype=object),
            "whole": np.array([1, None, 3], dtype=object),
            "kind": pd.Categorical([2, 1, 2]),
            "none": np.array([None, None, None], dtype=object),
            5: pd.array([1, None, 3], dtype="Int8"),
        }
    )
    x = from_arrays(frame, [0, 1, 0]).read().x
    shown = {name: ["" if pd.isna(value) else value for value in x[name]] for name in x.columns}
    assert shown == {
        "mixed": ["1", "True", "1"],
        "truth": [1.0, "", 0.0],
        "whole": [1.0, "", 3.0],
        "kind": ["2", "1", "2"],
        "none": ["", "", ""],
        "5": [1.0, "", 3.0],
    }
    assert_frame_equal(from_arrays(x, [0, 1, 0]).read().x, x)  # plain columns stay as they are


def test_torch_data_sets_are_read_alike_fast_and_slow() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data
    x, y = torch.arange(24, dtype=torch.float32).reshape(6, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    whole = data.TensorDataset(x, y)
    fast, slow = from_torch(whole).read(), from_torch(data.Subset(whole, range(6)), test=whole).read()
    assert np.array_equal(fast.x, slow.x)
    assert np.array_equal(fast.y, slow.y)
    assert fast.x.shape == (6, 2, 2)
    assert slow.test is not None
    assert np.array_equal(slow.test.x, fast.x)

    class Stream(data.IterableDataset):  # type: ignore[misc, name-defined]  # torch is imported where it is needed
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(InputError, match="Stream has no length"):
        from_torch(Stream())
    with pytest.raises(InputError, match=r"item 0 of TensorDataset is no pair"):
        from_torch(data.TensorDataset(x))


def test_a_source_survives_pickling_without_its_cache() -> None:
    source = from_arrays(np.eye(3), [0, 1, 0], clients=["a", "b", "a"], test=(np.eye(3), [0, 1, 0]))
    before = len(pickle.dumps(source))
    rows = source.read()
    assert len(pickle.dumps(source)) == before
    again = pickle.loads(pickle.dumps(source)).read()  # noqa: S301  # of our own making
    assert again.x.tobytes() == rows.x.tobytes()
    assert isinstance(again.test, Table)


@pytest.mark.parametrize(
    "times",
    [
        pd.date_range("2020-01-01", periods=3),
        pd.date_range("2020-01-01", periods=3, tz="UTC"),
        pd.to_datetime(["2020-01-01", None, None]),
        pd.to_timedelta([1, 2, 3], unit="s"),
        pd.period_range("2020-01", periods=3, freq="M"),
        pd.Series([date(2020, 1, 1), None, date(2020, 1, 2)], dtype=object),
        pd.Categorical(pd.date_range("2020-01-01", periods=3)),
        pd.Series(["2020-01-01", None, "2020-01-01 10:30"], dtype=object),
        pd.Categorical(["2020-01-01T10:30:00Z", "2020-01-02", "2020-01-02"]),
        pd.array([date(2020, 1, 1), None, date(2020, 1, 2)], dtype=pd.ArrowDtype(pa.date32())),
    ],
    ids=lambda times: str(times.dtype).split(",")[0],
)
def test_times_are_refused_as_such(times: Any) -> None:
    with pytest.raises(InputError, match=r"column 'when' holds dates or times, .* data.drop = \['when'\], and store what matters"):
        from_arrays(pd.DataFrame({"x": [1.0, 2.0, 3.0], "when": times}), [0, 1, 0]).read()


def test_a_stray_text_among_numbers_is_said_and_texts_that_may_be_names_are_not() -> None:
    numbers = [str(k) for k in range(99)]
    for odd, kind in (("old", object), ("?", object), ("old", "string")):
        with pytest.raises(
            InputError, match=rf"column 'age' holds numbers, and text such as {re.escape(repr(odd))} in 1 of 100 rows"
        ):
            from_arrays(pd.DataFrame({"age": pd.Series([*numbers, odd], dtype=kind)}), [0, 1] * 50).read()
    for names in ([*numbers, "A17"], [*numbers[:50], *map(chr, range(65, 90))], [*numbers[:15], "old"], [*numbers[:40], "old"] * 3):
        x = from_arrays(pd.DataFrame({"code": names}), np.arange(len(names)) % 2).read().x
        assert x["code"].tolist() == names


@pytest.mark.parametrize("names", [(0, 1, 2, 3), (7, 3.5, -1, 0), (("a", 1), ("a", 2), ("b", 1), ("b", 2))])
def test_a_frame_without_texts_for_names_is_its_array(names: tuple[Any, ...]) -> None:
    frame = pd.DataFrame(np.arange(12.0).reshape(3, 4))
    frame.columns = pd.Index(names, tupleize_cols=False)
    rows = from_arrays(frame, [0, 1, 0], test=(frame, [0, 1, 0])).read()
    assert np.array_equal(rows.x, frame.to_numpy())
    assert rows.test is not None
    assert np.array_equal(rows.test.x, frame.to_numpy())


@pytest.mark.parametrize("by", ["from_arrays", "from_table", "numbers only"])
def test_a_model_of_a_frame_without_texts_for_names_predicts_from_it(by: str, tmp_path: Path) -> None:
    bunch = hansa.BuiltIn("iris").read()
    frame = pd.DataFrame(np.asarray(bunch.x))
    if by == "from_arrays":
        data = from_arrays(frame, bunch.y)
    elif by == "from_table":
        data = from_table(frame.assign(y=bunch.y), "y")
    else:
        data = from_table(frame.assign(y=bunch.y).set_axis(range(5), axis=1), 4)
    preparation = ColumnTransformer([("n", StandardScaler(), [0, 1, 2, 3])])
    for prepare in (preparation, StandardScaler(), hansa.Standard(), None):
        job = hansa.Job(
            data=data, partition=hansa.IID(clients=3), learner=LogisticRegression(), algorithm=hansa.Newton(), preparation=prepare,
            rounds=hansa.Rounds(count=2),
        )  # fmt: skip
        model = hansa.run(job, directory=tmp_path, quiet=True).model
        assert not hasattr(model, "feature_names_in_")
        assert (model.predict(frame) == bunch.y).mean() > 0.8
    assert np.array_equal(model.predict(frame), model.predict(frame.to_numpy()))


RECORDS = np.array([(1.0, 0), (2.0, 1)], dtype=[("a", float), ("y", int)])
SHUFFLED = pd.DataFrame({"a": [1.0, 2.0, 3.0]}, index=[2, 0, 1])


def test_an_index_of_its_own_says_nothing_about_the_rows() -> None:
    """A series that was made without an index, or of other rows, is taken by place."""
    for y in (pd.Series([0, 1, 0], index=[2, 0, 1]), pd.Series([0, 1, 0], index=[5, 6, 7]), SHUFFLED["a"].to_numpy()):
        assert from_arrays(SHUFFLED, y).read().y is not None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: from_arrays(np.eye(3), [0, 1]), "y has 2 entries and x has 3 rows"),
        (lambda: from_arrays(np.eye(3), [0, 1, 0], clients=["a"]), "client has 1 entries and x has 3 rows"),
        (lambda: from_arrays(np.eye(3), [0, 1, 0], clients=["a", None, "b"]), "client is empty in 1 of 3 rows"),
        (lambda: from_arrays(np.ones(3), [0, 1, 0]), r"x has shape \(3,\); give \(rows, features\)"),
        (lambda: from_arrays(np.array([["a"]]), [0]), "x is an array of type <U1, which holds no numbers"),
        (lambda: from_arrays(np.empty((0, 3)), []), "x has no rows"),
        (lambda: from_arrays(np.eye(3), np.eye(3)), r"y has shape \(3, 3\), but one label a row is needed"),
        (lambda: from_arrays(np.eye(3), ["a", None, "b"]), "y is empty in 1 of 3 rows"),
        (lambda: from_arrays(np.eye(2), pd.to_datetime(["2020-01-01", "2020-01-02"])), "y holds values of type datetime64"),
        (lambda: from_arrays(np.eye(2), [0, 1], test=(np.eye(3), [0, 1, 0])), r"test has examples of shape \(3,\)"),
        (lambda: from_arrays(np.eye(2), [0, 1], test=(np.eye(2), [0])), "test has 2 rows and 1 labels"),
        (lambda: from_arrays(np.eye(2), [0, 1], test=(np.eye(2), None)), "test has no labels"),
        (lambda: from_arrays(pd.DataFrame([[1, 2]], columns=["a", "a"]), [0]), "column 'a' occurs 2 times"),
        (lambda: from_table(pd.DataFrame([[1, 2, 0]], columns=["a", "a", "y"]), "y"), "column 'a' occurs 2 times"),
        (lambda: from_table(pd.DataFrame([[1, 2, 0]], columns=["a", "y", "y"]), "y"), "column 'y' occurs 2 times"),
        (lambda: from_table(pd.DataFrame([[1, 2, 0]], columns=[0, "0", "y"]), "y"), "column '0' occurs 2 times"),
        (lambda: from_table(HEART.x, 7), r"data.label: the table has no column '7'"),
        (lambda: from_table(HEART.x, "sex", features="age"), r"data.features = 'age': is one text, .* write features = \['age'\]"),
        (lambda: from_table(HEART.x, "sex", drop="age"), r"data.drop = 'age': is one text, .* write drop = \['age'\]"),
        (
            lambda: from_arrays(sparse.eye_array(3, format="csr"), [0, 1, 0]),
            r"x is a sparse matrix \(csr_array\), .* x.toarray\(\)",
        ),
        (lambda: from_arrays(pd.DataFrame([[1, "a"]]), [0]), r"column 1 of x holds no numbers, .* frame.columns.astype\(str\)"),
        (lambda: from_table(HEART.x, label="il"), "the table has no column 'il'"),
        (lambda: from_table(RECORDS, "y"), r"the table is a structured array, .* write pandas\.DataFrame\(array\)"),
        (lambda: from_arrays(RECORDS, [0, 1]), r"x is a structured array; .* pandas\.DataFrame\(x\)"),
        (lambda: from_table(np.eye(3), 0), r"the table is of type ndarray, .* hansa\.from_arrays"),
        (
            lambda: from_arrays(SHUFFLED, SHUFFLED["a"].sort_index()),
            r"y has the index of x in another order, .* y\.loc\[x\.index\]",
        ),
        (lambda: from_arrays(SHUFFLED, [0, 1, 0], SHUFFLED["a"].sort_index()), "clients has the index of x in another order"),
        (lambda: from_arrays(np.eye(3), [0, 1, np.nan]), "y is empty in 1 of 3 rows .*labels of few whole numbers are classes"),
        (lambda: from_arrays(pd.DataFrame({"a": [1j, 2.0]}), [0, 1]), "column 'a' holds complex numbers"),
        (
            lambda: from_table(pd.DataFrame({"Unnamed: 0": [0, 1], "a": [1, 2], "y": [0, 1]}), "y"),
            "column 'Unnamed: 0' .* has no name",
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make().read()
