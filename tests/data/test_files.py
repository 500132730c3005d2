"""Files: what is read is what was written, whatever the format and however it is cut into files; and what cannot work is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from hansa.core.errors import InputError
from hansa.data import BuiltIn, File
from hansa.data.parts import Parts


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    """A folder with one CSV file per hospital of the heart disease data."""
    rows = BuiltIn("heart_disease").read()
    frame = rows.x.assign(ill=rows.y, hospital=rows.client)
    for name, own in frame.groupby("hospital"):
        own.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def test_files_by_client_hold_the_rows_of_the_whole(hospitals: Path) -> None:
    whole = BuiltIn("heart_disease").read()
    read = File(path=str(hospitals / "*.csv"), label="ill", client="@file", drop=("hospital",)).read()
    order = np.argsort(whole.client, kind="stable")  # files come in the order of their names
    assert_frame_equal(read.x, whole.x.iloc[order].reset_index(drop=True))
    assert np.array_equal(read.y, whole.y[order])
    assert np.array_equal(read.client, whole.client[order])
    named = File(path=str(hospitals / "*.csv"), label="ill", client="hospital").read()
    assert_frame_equal(named.x, read.x)
    assert np.array_equal(named.client, read.client)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_every_format_gives_the_same(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame(
        {"n": [1, 2, 3], "gap": [0.5, np.nan, 2.0], "text": ["a", None, "b"], "flag": [True, False, True], "y": [0, 1, 1]}
    )
    path = tmp_path / f"table{ending}"
    frame.to_parquet(path) if ending == ".parquet" else frame.to_csv(path, index=False)
    rows = File(path=str(path), label="y").read()
    assert rows.x["n"].tolist() == [1.0, 2.0, 3.0]
    assert rows.x["flag"].tolist() == [1.0, 0.0, 1.0]
    assert rows.x["text"].isna().tolist() == [False, True, False]
    assert [str(dtype) for dtype in rows.x.dtypes] == ["float64", "float64", "object", "float64"]
    assert rows.client is None


def test_features_come_in_the_order_in_which_they_are_listed(hospitals: Path) -> None:
    rows = File(path=str(hospitals / "Cleveland.csv"), label="ill", features=("chol", "age")).read()
    assert list(rows.x.columns) == ["chol", "age"]


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,0\n2,1\n")
    source = File(path=str(path), label="y")
    assert source.read() is source.read()
    path.write_text("x,y\n1,0\n2,1\n3,1\n")
    os.utime(path, ns=(1, 1))
    assert len(source.read()) == 3


@pytest.mark.parametrize(
    ("column", "task"),
    [
        (["yes", "no", "yes"], "classification"),
        (["True", "False", "True"], "classification"),
        (["1", "2", "3"], "classification"),
        (["1.0", "2.0", "3.0"], "regression"),
        ([str(k) for k in range(21)], "regression"),
        ([str(k) for k in range(20)], "classification"),
    ],
)
def test_the_task_is_told_from_the_label(tmp_path: Path, column: list[str], task: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"{k},{value}\n" for k, value in enumerate(column)))
    rows = File(path=str(path), label="y").read()
    assert rows.task == task
    assert rows.y is not None
    assert rows.y.dtype.kind == ("f" if task == "regression" else {"y": "U", "T": "b"}.get(column[0][0], "i"))


def test_an_option_overrides_the_task_and_positive_makes_two_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,grade\n1,1.0\n2,2.0\n3,3.0\n")
    read = File(path=str(path), label="grade", task="classification").read()
    assert read.y is not None
    assert (read.task, read.y.tolist(), read.y.dtype) == ("classification", [1, 2, 3], np.int64)
    one = File(path=str(path), label="grade", positive=2).read()
    assert one.y is not None
    assert (one.task, one.y.tolist()) == ("classification", [0, 1, 0])


def test_whole_numbers_name_clients_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y,site\n1,0,3\n2,1,12\n")
    read = File(path=str(path), label="y", client="site").read()
    assert read.client is not None
    assert read.client.tolist() == ["3", "12"]


def test_an_empty_column_takes_its_type_from_the_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,t,y\n1,,0\n2,,1\n")
    (tmp_path / "b.csv").write_text("n,t,y\n,u,0\n,,1\n")
    rows = File(path=str(tmp_path / "*.csv"), label="y", client="@file").read()
    assert [str(dtype) for dtype in rows.x.dtypes] == ["float64", "object"]
    assert rows.x["t"].isna().tolist() == [True, True, False, True]


def test_a_path_may_be_a_path_object_and_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,0\n2,1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in (File, Parts):
        assert kind(path=path, label="y") == kind(path=str(path), label="y")
        assert kind(path=Path("~/a.csv"), label="y").task in (None, "classification")
    assert len(File(path=Path("~") / "a.csv", label="y").read()) == 2


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", [File, Parts])
def test_the_index_of_a_data_frame_is_no_column_unless_it_is_named(tmp_path: Path, kind: Any, named: bool) -> None:
    frame = pd.DataFrame({"x": np.arange(12.0), "y": [0, 1] * 6, "owner": list("aab" * 4)})
    frame.index = frame.index.rename("row") if named else frame.index
    for owner, own in frame.groupby("owner"):
        own.drop(columns="owner").to_parquet(tmp_path / f"{owner}.parquet")
    index = "row" if named else "__index_level_0__"

    def columns(**options: Any) -> list[str]:
        source = kind(path=str(tmp_path / "*.parquet"), client="@file", **options)
        return list((source.table(0, 0) if kind is Parts else source.read()).x.columns)

    written = list(pd.read_parquet(tmp_path / "a.parquet").columns)
    assert columns(label="y") == [name for name in written if name != "y"]
    assert columns(label="y", drop=(index,)) == ["x"]
    assert columns(label="y", features=(index, "x")) == [index, "x"]
    assert columns(label=index) == ["x", "y"]
    if kind is Parts:
        assert columns(label="y", filters=((index, ">", 1),)) == ["x"]


def test_an_index_in_one_file_alone_is_no_difference(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(4.0), "y": [0, 1, 0, 1]})
    frame.to_parquet(tmp_path / "a.parquet")
    frame[1:].to_parquet(tmp_path / "b.parquet")
    frame[frame.y == 1].to_parquet(tmp_path / "c.parquet")
    path = str(tmp_path / "*.parquet")
    assert File(path=path, label="y").read().x["x"].tolist() == [0.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 3.0]
    assert Parts(path=path, label="y").plan.features == ("x",)


BAD: list[tuple[dict[str, str], dict[str, object], str]] = [
    ({"a.csv": "x,y\n1,0\n"}, {"label": "z"}, r"data.label: .*a.csv has no column 'z' \(allowed: x, y\)"),
    ({"a.csv": "age,y\n1,0\n"}, {"features": ("agee",)}, r"data.features: .* has no column 'agee' \(did you mean 'age'\?\)"),
    ({"a.csv": "x,y\n1,0\n"}, {"drop": ("q",)}, "data.drop: .* has no column 'q'"),
    ({"a.csv": "x,y\n1,0\n"}, {"client": "site"}, "data.client: .* has no column 'site'"),
    ({"a.csv": "x,y\n1,0\n"}, {"drop": ("x",)}, "no feature column is left in .*a.csv"),
    ({"a.csv": "x,y\n1,0\n"}, {"features": ("x", "y")}, "data.features: 'y' is the label"),
    ({"a.csv": "x,y\n1,0\n"}, {"features": ("x",), "drop": ("x",)}, "data.drop: column 'x' is also asked for"),
    ({"a.csv": "x,y\n1,0\n", "b.csv": "x,z,y\n1,2,0\n"}, {}, "b.csv has a column 'z' and .*a.csv has not"),
    ({"a.csv": "x,y\n1,0\n", "b.csv": "x,y\n?,0\n2,1\n"}, {}, r"column 'x' holds numbers in .*a.csv and text in .*b.csv \(such as '\?'\)"),
    ({"a.csv": "x,y\n1,0\n", "b.csv": "x,y\n2,no\n"}, {}, r"column 'y' holds numbers in .*a.csv and text in .*b.csv \(such as 'no'\)"),
    ({"a.csv": "x,y\n1,\n2,1\n3,\n"}, {}, r"column 'y' is empty in 2 of 3 rows \(first: row 0"),
    ({"a.csv": "x,y,c\n1,0,\n2,1,a\n"}, {"client": "c"}, "column 'c' of .*a.csv is empty in 1 of 2 rows"),
    ({"a.csv": "x,y\n1,0.5\n"}, {"task": "classification"}, 'holds 0.5, which is no class; set data.task = "regression"'),
    ({"a.csv": "x,y\n1,a\n"}, {"task": "regression"}, "holds text such as 'a', a regression needs numbers"),
    ({"a.csv": "x,y\n1,a\n"}, {"task": "clasification"}, "did you mean 'classification'"),
    ({"a.csv": "x,y\n1,a\n"}, {"positive": "b"}, "data.positive: label column 'y' never is 'b'"),
    ({"a.csv": "x,y\n1,a\n"}, {"positive": "a", "task": "regression"}, "a regression has no positive label"),
    ({"a.csv": "x,y\n1,0\n"}, {"features": "x"}, r"data.features = 'x': is one text, and a list .* write features = \['x'\]"),
    ({"a.csv": "x,y\n\xe9,0\n"}, {}, r"a.csv is not in UTF-8, .* save it again as UTF-8, .*encoding=\"latin-1\""),
    ({"a.csv": "x,\xff\n1,0\n"}, {}, "a.csv is not in UTF-8"),
    ({"a.csv": "x,y\nold,1\n" + "".join(f"{k},0\n" for k in range(98))}, {}, "column 'x' holds numbers, and text such as 'old' in 1 of"),
    ({"a.csv": ""}, {}, "a.csv is empty; a table has a line of column names"),
    ({"a.csv": "x,y\n"}, {}, "holds no rows"),
    ({"a.csv": "x,y\n1,2,3\n"}, {}, "a.csv cannot be read as a table"),
    ({"a.csv": "x,y\n1,0\n2,1,5\n"}, {}, "a.csv cannot be read as a table"),
    ({"a.parquet": "no parquet"}, {"path": "*.parquet"}, "a.parquet cannot be read as a table"),
    ({"a.csv.gz": "no archive"}, {"path": "*.gz"}, "a.csv.gz cannot be read as a table"),
    ({"a.txt": "x,y\n"}, {"path": "*.txt"}, "a.txt is none of the files that can be read"),
    ({"a.csv": "x,y\n"}, {"path": "b.csv"}, r"no file matches .*b.csv in .* \(did you mean 'a.csv'\?\)"),
    ({"d/a.csv": "x,y\n"}, {"path": "d"}, r"d is a folder; write .*d/\*.csv"),
    ({"d/a.csv": "x,y\n1,0\n", "e/a.csv": "x,y\n1,0\n"}, {"path": "*/*.csv", "client": "@file"}, "names both .* and .* 'a'"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "options", "sentence"), BAD)
def test_what_cannot_work_is_said_in_one_sentence(
    tmp_path: Path, files: dict[str, str], options: dict[str, object], sentence: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    given: dict[str, object] = {"path": "*.csv", "label": "y"} | options
    given["path"] = str(tmp_path / str(given["path"]))
    with pytest.raises(InputError, match=sentence) as caught:
        File(**given).read()  # type: ignore[arg-type]  # options of several types
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [File, Parts])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (",n,y\n0,1.5,1\n1,2.5,0\n", r"column 'Unnamed: 0' of .* has no name, .* data\.drop = \['Unnamed: 0'\]"),
        ("n,n,y\n1,2,1\n3,4,0\n", "several columns 'n'"),
        ("n;y\n1;1\n2;0\n", r"has ';' between its columns, .* sep=';'"),
        ("n;y\n1,5;1\n2,5;0\n", r"has ';' between its columns, .* decimal=','"),
        ("n\ty\n1\t1\n2\t0\n", "between its columns"),
        ("", "is empty; a table has a line of column names"),
        ("day,y\n2020-01-01,1\n2020-01-02,0\n2020-01-01,0\n", "column 'day' .*holds dates or times"),
    ],
)
def test_what_is_no_plain_csv_is_refused_in_the_same_words(tmp_path: Path, source: Any, text: str, said: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        made = source(str(path), "y")
        made.read() if source is File else made.plan


@pytest.mark.parametrize("source", [File, Parts])
def test_a_column_without_a_name_may_be_left_out_or_asked_for(tmp_path: Path, source: Any) -> None:
    path = tmp_path / "table.csv"
    pd.DataFrame({"n": [1.5, 2.5, 3.5], "y": [1, 0, 1]}).to_csv(path)
    for options, names in (({"drop": ("Unnamed: 0",)}, ["n"]), ({"features": ("Unnamed: 0", "n")}, ["Unnamed: 0", "n"])):
        made = source(str(path), "y", **options)
        x = made.read().x if source is File else made.table(0, 0).x
        assert list(x.columns) == names
        assert x["n"].tolist() == [1.5, 2.5, 3.5]


def test_a_file_without_rows_says_nothing_about_types(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1.0, 2.0], "c": ["a", "b"], "y": [0, 1]})
    frame.to_csv(tmp_path / "1.csv", index=False)
    alone = File(str(tmp_path / "1.csv"), "y").read()
    frame[:0].to_csv(tmp_path / "0.csv", index=False)
    frame[:0].to_csv(tmp_path / "2.csv", index=False)
    read = File(str(tmp_path / "*.csv"), "y", client="@file").read()
    assert_frame_equal(read.x, alone.x)
    assert read.task == alone.task == "classification"
    assert read.client is not None and read.client.tolist() == ["1", "1"]


@pytest.mark.parametrize("source", [File, Parts])
def test_a_folder_is_refused_with_the_pattern_of_what_lies_in_it(tmp_path: Path, source: Any) -> None:
    (tmp_path / "1.csv").write_text("n,y\n1,0\n2,1\n")
    with pytest.raises(InputError, match=r"is a folder; write .*/\*\.csv for"):
        made = source(str(tmp_path), "y")
        made.read() if source is File else made.plan


def test_a_url_is_sent_to_the_source_that_reads_it() -> None:
    with pytest.raises(InputError, match=r'write data\.name = "parts"'):
        File("memory://a/b.csv", "y").read()
