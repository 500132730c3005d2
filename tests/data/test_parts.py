"""Tables in parts: together they are the table, however it is cut; alone each is all that its reader needs."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from pyarrow import ipc
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import hansa
from hansa.core.blocks import Client
from hansa.core.errors import InputError
from hansa.data import Column, File, Holders, Split
from hansa.data.builtin import data_home
from hansa.data.parts import Parts
from hansa.data.recipes import clients
from hansa.data.tables import plain_frame
from hansa.job import from_table, from_text, is_plain, to_table

ENDINGS = ("parquet", "arrow", "feather", "csv", "csv.gz")
FLIGHTS = data_home() / "flights-3m.parquet"
ROWS = 400


def table_of(rows: int, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "n": draw.integers(-5, 6, rows),
            "f": np.where(draw.random(rows) < 0.2, np.nan, draw.normal(size=rows)),
            "t": pd.Series(draw.choice(["a", "b", "c d", None], rows), dtype=object),
            "flag": draw.random(rows) < 0.5,
            "when": pd.Timestamp("2001-01-01") + pd.to_timedelta(draw.integers(0, 10**6, rows), unit="s"),
            "y": draw.integers(0, 3, rows),
        }
    )


def write(frame: pd.DataFrame, path: Path, group: int) -> None:
    """A file of the kind of its ending, in groups of so many rows where it has any."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if path.name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=group)
    elif path.name.endswith((".arrow", ".feather")):
        with ipc.new_file(path, table.schema) as file:
            for batch in table.to_batches(max_chunksize=group):
                file.write_batch(batch)
    else:
        text = frame.to_csv(index=False).encode()
        path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)


def whole(source: Parts) -> tuple[pd.DataFrame, np.ndarray]:
    tables = [source.table(k, 0) for k in range(len(source.ids))]
    return pd.concat([table.x for table in tables], ignore_index=True), np.concatenate([table.y for table in tables])


FILTERS: list[tuple[tuple[Any, ...], Any]] = [
    (("n", ">=", 2), lambda frame: frame.n >= 2),
    (("n", "!=", 0), lambda frame: frame.n != 0),
    (("f", "<", 0.5), lambda frame: frame.f < 0.5),
    (("f", "!=", 0.0), lambda frame: frame.f.notna() & (frame.f != 0)),
    (("f", "is null"), lambda frame: frame.f.isna()),
    (("t", "is not null"), lambda frame: frame.t.notna()),
    (("t", "in", ["a", "c d"]), lambda frame: frame.t.isin(["a", "c d"])),
    (("t", "not in", ["a"]), lambda frame: frame.t.notna() & (frame.t != "a")),
    (("flag", "==", True), lambda frame: frame.flag),
    (("when", "<=", "2001-01-06"), lambda frame: frame.when <= pd.Timestamp("2001-01-06")),
    (("when", ">", date(2001, 1, 3)), lambda frame: frame.when > pd.Timestamp("2001-01-03")),
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(any),
    ending=st.sampled_from(ENDINGS),
    group=st.integers(1, 70),
    rows=st.integers(1, 90),
    chosen=st.lists(st.sampled_from(range(len(FILTERS))), max_size=2, unique=True),
    seed=st.integers(0, 3),
)
@example(
    lengths=[0, 1], ending="parquet", group=1, rows=1, chosen=[6], seed=0
)  # a file that calls a column without values by no type
def test_the_parts_together_are_the_table_in_order(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], ending: str, group: int, rows: int, chosen: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("table")
    frame = table_of(sum(lengths), seed)
    ends = np.cumsum(lengths)
    for number, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        write(frame.iloc[end - length : end], folder / f"{number}.{ending}", group)
    kept = np.ones(len(frame), dtype=bool)
    for k in chosen:
        kept &= FILTERS[k][1](frame).to_numpy(dtype=bool)
    source = Parts(
        path=f"{folder}/*.{ending}",
        label="y",
        labels="numbers",
        drop=("when",),
        rows=rows,
        filters=tuple(FILTERS[k][0] for k in chosen),
    )
    if not kept.any():
        with pytest.raises(InputError, match=r"data\.filters: no row of .* passes"):
            _ = source.ids
        return
    x, y = whole(source)
    expected = frame[kept].reset_index(drop=True)
    assert_frame_equal(x, plain_frame(expected[["n", "f", "t", "flag"]]))
    assert y.tolist() == expected.y.tolist()
    sizes = source.sizes(np.arange(len(source.ids)), 0)
    assert sizes.tolist() == [len(source.table(k, 0)) for k in range(len(source.ids))]
    assert sizes.min() > 0
    if ending != "csv.gz":
        assert sizes.max() <= rows


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_in_parts_is_the_table_that_file_reads(tmp_path: Path, ending: str) -> None:
    frame = table_of(ROWS).drop(columns="when")
    for k in range(4):
        write(frame.iloc[100 * k : 100 * k + 100], tmp_path / f"{k}.{ending}", 30)
        if ending in ("arrow", "feather"):
            write(frame.iloc[100 * k : 100 * k + 100], tmp_path / f"{k}.parquet", 30)
    rows = File(path=f"{tmp_path}/*.{ending if ending not in ('arrow', 'feather') else 'parquet'}", label="y").read()
    source = Parts(path=f"{tmp_path}/*.{ending}", label="y", rows=70)
    x, y = whole(source)
    assert_frame_equal(x, rows.x)
    assert rows.y is not None
    assert y.tobytes() == rows.y.tobytes()
    assert y.dtype == rows.y.dtype
    assert (source.task, source.classes) == ("classification", (0, 1, 2))


@pytest.mark.parametrize(("rows", "sizes"), [(25, [20, 20, 20, 20, 10]), (30, [30] * 3), (7, [5] * 18), (1000, [90])])
def test_row_groups_are_merged_across_files_up_to_the_bound_and_larger_ones_split(
    tmp_path: Path, rows: int, sizes: list[int]
) -> None:
    frame = table_of(90)
    for name, start, stop in (("a", 0, 30), ("b", 30, 40), ("c", 40, 90)):
        write(frame[start:stop], tmp_path / f"{name}.parquet", 10)
    source = Parts(path=f"{tmp_path}/*.parquet", label="y", drop=("when",), rows=rows)
    assert source.sizes(np.arange(len(source.ids)), 0).tolist() == sizes


def test_parts_are_holders_and_their_ids_ascend(tmp_path: Path) -> None:
    write(table_of(1100).drop(columns="when"), tmp_path / "a.parquet", 100)
    source = Parts(path=f"{tmp_path}/a.parquet", label="y", rows=1)
    assert isinstance(source, Holders)
    names = [source.ids[k] for k in range(len(source.ids))]
    assert len(names) == 1100
    assert names == sorted(names)
    assert names[7] == "part-0007"


def test_every_file_is_a_part_where_asked(tmp_path: Path) -> None:
    frame = table_of(ROWS)
    for name, start in (("north", 0), ("east", 150), ("west", 300)):
        write(frame.iloc[start : start + 150], tmp_path / f"{name}.parquet", 40)
    source = Parts(path=f"{tmp_path}/*.parquet", label="y", drop=("when",), client="@file", rows=10)
    assert [source.ids[k] for k in range(3)] == ["east", "north", "west"]
    assert source.sizes(np.arange(3), 0).tolist() == [150, 150, 100]
    assert source.table(1, 0).y.tolist() == frame.y[:150].tolist()


# What a reader needs


def sent(client: Client) -> Client:
    received = pickle.loads(pickle.dumps(client))  # noqa: S301  # of our own making
    assert isinstance(received, Client)
    return received


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv"])
def test_a_recipe_needs_its_own_file_alone(tmp_path: Path, ending: str) -> None:
    frame = table_of(300).drop(columns="when")
    for k in range(3):
        write(frame.iloc[100 * k : 100 * k + 100], tmp_path / f"{k}.{ending}", 100)
    found = clients(Parts(path=f"{tmp_path}/*.{ending}", label="y", rows=100), Column(), Split(test=0.0), 0)
    recipes = [sent(client) for client in found]
    (tmp_path / f"0.{ending}").unlink()
    (tmp_path / f"2.{ending}").write_bytes(b"")
    train = recipes[1].load()["train"]
    assert train.y.tolist() == frame.y[100:200].tolist()
    for lost in (recipes[0], recipes[2]):
        with pytest.raises(
            InputError, match=r"cannot be read as a table|had [0-9,]+ when it was cut into parts; make the job again"
        ):
            lost.load()


def test_a_recipe_needs_its_own_row_group_and_columns_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = table_of(300)
    write(frame, path, 100)
    source = Parts(path=str(path), label="y", features=("n", "t"), rows=100)
    expected = source.table(1, 0)
    metadata = pq.read_metadata(path)
    data = bytearray(path.read_bytes())
    for group in range(3):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if group != 1 or column.path_in_schema not in ("n", "t", "y"):
                start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
                data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    again = sent(clients(source, Column(), Split(test=0.0), 0)[1]).load()["train"]
    assert_frame_equal(again.x, expected.x)
    assert again.y.tolist() == expected.y.tolist()
    with pytest.raises(InputError, match="cannot be read as a table"):
        source.table(0, 0)


def test_a_filter_passes_over_row_groups_by_their_statistics(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = table_of(300).drop(columns="when").assign(year=np.repeat([2000, 2001, 2002], 100))
    write(frame, path, 100)
    first = pq.read_metadata(path).row_group(0)
    data = bytearray(path.read_bytes())
    for number in range(first.num_columns):
        column = first.column(number)
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    source = Parts(path=str(path), label="y", filters=(("year", ">=", 2001),), rows=100)
    assert source.sizes(np.arange(2), 0).tolist() == [100, 100]
    assert whole(source)[1].tolist() == frame.y[100:].tolist()


def test_a_part_alone_is_the_part(tmp_path: Path) -> None:
    for k in range(3):
        write(table_of(100, k), tmp_path / f"{k}.parquet", 40)
    source = Parts(path=f"{tmp_path}/*.parquet", label="y", drop=("when",), rows=50)
    for k in range(len(source.ids)):
        one = pickle.loads(pickle.dumps(source.alone(k)))  # noqa: S301  # of our own making
        assert (len(one.ids), one.ids[0], one.classes) == (1, source.ids[k], source.classes)
        assert one.sizes(np.array([0]), 0) == source.sizes(np.array([k]), 0)
        assert_frame_equal(one.table(0, 0).x, source.table(k, 0).x)


def test_a_plan_of_many_parts_is_small_to_send(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": np.arange(20_000.0), "y": np.arange(20_000.0)}), tmp_path / "a.parquet", row_group_size=10_000)
    source = Parts(path=f"{tmp_path}/a.parquet", label="y", rows=1)
    assert len(source.ids) == 20_000
    assert len(pickle.dumps(source)) < 8 * 20_000


def test_labels_of_two_classes_are_read_until_both_were_seen(tmp_path: Path) -> None:
    for k in range(2):
        pq.write_table(pa.table({"x": [0.0, 1.0, 2.0], "y": [0, 1, 9]}), tmp_path / f"{k}.parquet")
    path = tmp_path / "1.parquet"
    column = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    for options in ({"positive": 9}, {"above": 5.0}):
        assert Parts(path=f"{tmp_path}/*.parquet", label="y", rows=3, **options).classes == (0, 1)  # type: ignore[arg-type]  # options of several types
    with pytest.raises(InputError, match=r"1.parquet cannot be read as a table"):
        _ = Parts(path=f"{tmp_path}/*.parquet", label="y", rows=3).classes


# VmHWM and not ru_maxrss: that begins with the memory of the process that started this one.
MEMORY = """
import sys
import pandas
from hansa.data.parts import Parts
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
source = Parts(path=sys.argv[1], label="y", rows=int(sys.argv[2]))
parts, before, total = len(source.ids), peak(), 0.0
for k in range(parts):
    table = source.table(k, 0)
    total += float(table.x.sum().sum()) + float(table.y.sum())
print(parts, total, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
def test_memory_is_that_of_a_part_and_not_of_the_table(tmp_path: Path) -> None:
    columns, groups = 20, 20
    values = np.arange(100_000) % 1000 * 0.5
    table = pa.table({**{f"x{k}": values for k in range(columns)}, "y": values})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as file:
        for _ in range(groups):
            file.write_table(table)
    grown = {}
    for rows, parts in ((100_000, groups), (100_000 * groups, 1)):
        command = [sys.executable, "-c", MEMORY, str(tmp_path / "a.parquet"), str(rows)]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
        assert (int(told[0]), float(told[1])) == (parts, groups * (columns + 1) * values.sum())
        grown[parts] = int(told[2])
    assert grown[1] > groups * table.nbytes
    assert grown[groups] < groups * table.nbytes / 2


# Jobs


def job(source: Any, engine: Any = None, learner: Any = None) -> hansa.Job:
    return hansa.Job(
        data=source,
        learner=learner or LogisticRegression(tol=1e-10),
        algorithm=hansa.Newton(),
        preparation=hansa.Standard(),
        split=Split(test=0.0),
        engine=engine or hansa.Inline(),
    )


def test_processes_give_the_bits_of_inline(tmp_path: Path) -> None:
    frame = table_of(ROWS)
    for k in range(4):
        write(frame.iloc[100 * k : 100 * k + 100], tmp_path / f"{k}.parquet", 30)
    source = Parts(path=f"{tmp_path}/*.parquet", label="y", positive=1, drop=("when",), rows=60, filters=(("n", ">", -4),))
    one = hansa.run(job(source), directory=tmp_path / "runs", quiet=True)
    two = hansa.run(job(source, hansa.Processes(workers=2)), directory=tmp_path / "runs", quiet=True)
    assert {name: value.tobytes() for name, value in one.params.items()} == {name: v.tobytes() for name, v in two.params.items()}
    assert one.params["coef"].any()


@pytest.mark.skipif(not FLIGHTS.exists(), reason="set HANSA_DATA_HOME to the folder with flights-3m.parquet")
def test_flights_in_parts_give_the_model_of_scikit_learn_on_the_pooled_rows(tmp_path: Path) -> None:
    airports = ["OAK", "SFO", "LAX", "ORD", "DFW", "ATL"]
    source = Parts(
        path=str(FLIGHTS),
        label="delay",
        above=15,
        drop=("date", "destination"),
        filters=(("date", "<", datetime(2001, 1, 9)), ("origin", "in", airports)),
        rows=20_000,
    )
    run = hansa.run(job(source), directory=tmp_path / "runs", quiet=True)
    frame = pq.read_table(FLIGHTS, filters=[("date", "<", datetime(2001, 1, 9)), ("origin", "in", airports)]).to_pandas()
    assert (len(source.ids), len(frame) > 20_000) == (2, True)
    assert source.sizes(np.arange(len(source.ids)), 0).sum() == len(frame)
    scaled = StandardScaler().fit_transform(frame[["distance"]].astype(float).to_numpy())
    coded = OneHotEncoder(sparse_output=False).fit_transform(frame[["origin"]].to_numpy(dtype=object))
    pooled = LogisticRegression(tol=1e-12, solver="newton-cholesky", max_iter=1000)
    pooled.fit(np.hstack([scaled, coded]), (frame.delay > 15).to_numpy())
    np.testing.assert_allclose(run.model[-1].coef_, pooled.coef_, atol=1e-6)
    np.testing.assert_allclose(run.model[-1].intercept_, pooled.intercept_, atol=1e-6)
    predicted = run.model.predict_proba(frame[["distance", "origin"]].astype({"distance": float}))
    np.testing.assert_allclose(predicted, pooled.predict_proba(np.hstack([scaled, coded])), atol=1e-6)


def test_a_regression_in_parts_gives_the_model_of_scikit_learn(tmp_path: Path) -> None:
    frame = table_of(ROWS)[["n", "flag"]].assign(
        y=lambda own: own.n * 2.0 + own.flag - 0.5 + np.random.default_rng(1).normal(size=ROWS)
    )
    write(frame, tmp_path / "a.csv", 0)
    source = Parts(path=f"{tmp_path}/a.csv", label="y", rows=64)
    assert (source.task, source.classes, len(source.ids)) == ("regression", None, 7)
    run = hansa.run(job(source, learner=Ridge()), directory=tmp_path / "runs", quiet=True)
    x = StandardScaler().fit_transform(frame[["n", "flag"]].astype(float))
    pooled = Ridge().fit(x, frame.y)
    np.testing.assert_allclose(run.model[-1].coef_, pooled.coef_, atol=1e-6)
    np.testing.assert_allclose(run.model[-1].intercept_, pooled.intercept_, atol=1e-6)


def test_a_job_file_says_it_all_and_can_be_read_back() -> None:
    text = """
        [data]
        name = "parts"
        path = "flights/*.parquet"
        label = "delay"
        above = 15
        drop = ["date"]
        rows = 50_000
        filters = [
            ["date", ">=", 2001-01-01], ["date", "<", 2001-02-01T12:00:00], ["origin", "in", ["OAK", "SFO"]], ["delay", "is not null"],
        ]
        storage = { anon = true }

        [learner]
        name = "sklearn"

        [algorithm]
        name = "newton"
        """
    made = from_text(text)
    assert made.data.filters[:2] == (("date", ">=", "2001-01-01"), ("date", "<", "2001-02-01T12:00:00"))
    assert is_plain(made)
    assert from_table(to_table(made)).data == made.data


# Other places, other formats


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of fsspec's file system in memory."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    yield "memory://parts"
    system.rm("/parts", recursive=True)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_url_is_read_like_a_path(tmp_path: Path, bucket: str, ending: str) -> None:
    import fsspec

    for k in range(2):
        write(table_of(100, k), tmp_path / f"{k}.{ending}", 30)
        with fsspec.open(f"{bucket}/{k}.{ending}", "wb") as file:
            file.write((tmp_path / f"{k}.{ending}").read_bytes())
    options: dict[str, Any] = {"label": "y", "drop": ("when",), "rows": 40, "filters": (("n", ">", 0),)}
    near, far = Parts(path=f"{tmp_path}/*.{ending}", **options), Parts(path=f"{bucket}/*.{ending}", **options)
    assert far.plan.paths == tuple(f"memory:///parts/{k}.{ending}" for k in range(2))
    assert len(near.ids) == len(far.ids)
    for k in range(len(near.ids)):
        assert_frame_equal(near.table(k, 0).x, far.table(k, 0).x)
    one = Parts(path=f"{bucket}/1.{ending}", **options)
    assert whole(one)[1].tolist() == table_of(100, 1).query("n > 0").y.tolist()


def test_types_come_from_the_files_and_not_from_the_rows_of_a_part(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"c": pa.array(["u", None, None]).dictionary_encode(), "d": pa.nulls(3), "y": [0, 1, 1]}), tmp_path / "a.parquet"
    )
    pq.write_table(
        pa.table({"c": pa.array([None, "v", "u"], pa.large_string()), "d": pa.array([1, None, 3], pa.int8()), "y": [1, 0, 1]}),
        tmp_path / "b.parquet",
    )
    source = Parts(path=f"{tmp_path}/*.parquet", label="y", rows=1)
    for k in range(6):
        assert [str(kind) for kind in source.table(k, 0).x.dtypes] == ["object", "float64"]
    x, _ = whole(source)
    assert x.c.fillna("-").tolist() == ["u", "-", "-", "-", "v", "u"]
    assert x.d.fillna(-1).tolist() == [-1, -1, -1, 1, -1, 3]


def test_lines_of_csv_are_rows_whatever_ends_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"x ",t,y\r\n1,"a,b",0\r\n\r\n2.5,NA,1\r\n\n3,"say ""x""",1\r\n,,0')
    for rows in (1, 2, 3, 4, 9):
        x, y = whole(Parts(path=f"{tmp_path}/a.csv", label="y", rows=rows))
        assert x["x "].fillna(-1).tolist() == [1.0, 2.5, 3.0, -1]
        assert x["t"].fillna("-").tolist() == ["a,b", "-", 'say "x"', "-"]
        assert y.tolist() == [0, 1, 1, 0]


def test_a_long_csv_file_is_cut_where_its_lines_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hansa.data import parts_files

    frame = table_of(ROWS).drop(columns="when")
    write(frame, tmp_path / "a.csv", 0)
    (tmp_path / "b.csv").write_text(frame.to_csv(index=False, lineterminator="\r\n"))
    expected = whole(Parts(path=f"{tmp_path}/a.csv", label="y"))
    for step in (1, 2, 7, 100):
        monkeypatch.setattr(parts_files, "HEAD", 200)
        monkeypatch.setattr(parts_files, "STEP", step)
        for name in ("a", "b"):
            source = Parts(path=f"{tmp_path}/{name}.csv", label="y", rows=60)
            assert source.sizes(np.arange(7), 0).tolist() == [60] * 6 + [40]
            x, y = whole(source)
            assert_frame_equal(x, expected[0])
            assert y.tolist() == expected[1].tolist()


LABELS: list[tuple[list[Any], dict[str, Any], str, tuple[Any, ...] | None, list[Any]]] = [
    (["a", "b", "a"], {}, "classification", ("a", "b"), ["a", "b", "a"]),
    (["a", "b", "a"], {"positive": "b"}, "classification", (0, 1), [0, 1, 0]),
    ([True, False, True], {}, "classification", (False, True), [True, False, True]),
    ([True, False, True], {"positive": False}, "classification", (0, 1), [0, 1, 0]),
    ([True, False, True], {"positive": "False"}, "classification", (0, 1), [0, 1, 0]),
    ([3, 1, 2], {}, "classification", (1, 2, 3), [3, 1, 2]),
    ([3, 1, 2], {"positive": 2}, "classification", (0, 1), [0, 0, 1]),
    ([3, 1, 2], {"positive": "2"}, "classification", (0, 1), [0, 0, 1]),
    ([3, 1, 2], {"above": 1}, "classification", (0, 1), [1, 0, 1]),
    ([3, 1, 2], {"labels": "numbers"}, "regression", None, [3.0, 1.0, 2.0]),
    ([3.0, 1.0, 1.0], {"labels": "classes"}, "classification", (1, 3), [3, 1, 1]),
    ([3.0, 1.0, 1.0], {}, "regression", None, [3.0, 1.0, 1.0]),
    ([0.5, 1.5, 2.5], {"above": 1.5}, "classification", (0, 1), [0, 0, 1]),
    (list(range(20)), {}, "classification", tuple(range(20)), list(range(20))),
    (list(range(21)), {}, "regression", None, [float(k) for k in range(21)]),
    (list(range(21)), {"labels": "classes"}, "classification", tuple(range(21)), list(range(21))),
]


@pytest.mark.parametrize(("labels", "options", "task", "classes", "read"), LABELS)
def test_labels_mean_the_same_in_every_part(
    tmp_path: Path, labels: list[Any], options: dict[str, Any], task: str, classes: tuple[Any, ...] | None, read: list[Any]
) -> None:
    pq.write_table(pa.table({"x": np.arange(float(len(labels))), "y": labels}), tmp_path / "a.parquet", row_group_size=2)
    source = Parts(path=f"{tmp_path}/a.parquet", label="y", rows=1, **options)
    assert (source.task, source.classes) == (task, classes)
    y = whole(source)[1]
    assert y.tolist() == read
    assert y.dtype.kind == ("f" if task == "regression" else np.asarray(read).dtype.kind)


# What cannot work


class Locked(Exception):
    """What no library of Python's own raises."""


def test_what_a_remote_file_system_raises_is_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(*_: Any, **__: Any) -> None:
        raise Locked("no keys were found")

    MemoryFileSystem().pipe("/parts/a.parquet", b"")
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "isdir", refuse)
        with pytest.raises(InputError, match=r"data\.path: memory://parts/\*\.parquet cannot be opened: no keys were found"):
            Parts(path=f"{bucket}/*.parquet", label="y").plan  # noqa: B018  # made when it is asked for


A = {"x": [1.0, 2.0], "y": [0, 1]}
BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"a": A}, {"path": "b.parquet"}, r"data.path: no file matches .*b.parquet in .* \(did you mean 'a.parquet'\?\)"),
    ({"a": A}, {"path": "."}, r"is a folder; write .*\*.parquet"),
    ({"a": A}, {"path": "memory://nowhere/*.parquet"}, "data.path: no file matches memory://nowhere"),
    ({"a": A}, {"path": "nosuch://x/*.parquet"}, "data.path: nosuch://x/.* cannot be opened: Protocol not known: nosuch"),
    ({"a": A}, {"label": "z"}, r"data.label: .*a.parquet has no column 'z' \(allowed: x, y\)"),
    ({"a": A}, {"features": ("xx",)}, "data.features: .* has no column 'xx'"),
    ({"a": A}, {"filters": (("xx", ">", 1),)}, "data.filters: .* has no column 'xx'"),
    ({"a": A, "b": {"x": [1.0], "z": [1.0], "y": [1]}}, {}, "b.parquet has a column 'z' and .*a.parquet has not"),
    ({"a": A, "b": {"y": [1]}}, {"features": ("x",)}, "a.parquet has a column 'x' and .*b.parquet has not"),
    ({"a": A, "b": {"x": ["u"], "y": [1]}}, {}, "column 'x' holds numbers in .*a.parquet and text in .*b.parquet; write it the same way"),
    ({"a": A, "b": {"x": [2.0], "y": ["u"]}}, {}, "column 'y' holds numbers in .*a.parquet and text in .*b.parquet"),
    ({"a": {**A, "d": [datetime(2001, 1, 1)] * 2}}, {}, r"column 'd' of .* holds dates or times \(timestamp.*; name it in data.drop"),
    ({"a": {**A, "d": [[1], [2]]}}, {}, "column 'd' of .* neither numbers nor text .* store what matters of it as columns"),
    ({"a": A}, {"path": "zip://a.parquet::a.zip"}, "zip://a.parquet::a.zip is a file inside another, .* unpack a.zip"),
    ({"a": {"x": [1.0], "y": [datetime(2001, 1, 1)]}}, {}, r"label column 'y' holds dates or times"),
    ({"a": A}, {"filters": (("x", "=>", 1),)}, "data.filters: '=>' in .* is no comparison"),
    ({"a": A}, {"filters": (("x", ">"),)}, "data.filters: '>' takes one value, and .* has 0"),
    ({"a": A}, {"filters": (("x", "is null", 1),)}, "data.filters: 'is null' takes no value"),
    ({"a": A}, {"filters": ("x", ">", 1)}, r"data.filters: 'x' is no filter \(write "),
    ({"a": A}, {"filters": (("x", "in", 1),)}, "data.filters: 'in' takes a list of values"),
    ({"a": A}, {"filters": (("x", ">", None),)}, "data.filters: None in .* is neither a number nor text"),
    ({"a": A}, {"filters": (("x", ">", "1"),)}, "data.filters: column 'x' holds numbers, and '1' cannot be compared with them"),
    ({"a": {**A, "d": [datetime(2001, 1, 1)] * 2}}, {"drop": ("d",), "filters": (("d", ">", "2001"),)}, "'2001' is no value of column 'd'"),
    ({"a": A}, {"filters": (("x", ">", 9),)}, r"data.filters: no row of .* passes \[\['x', '>', 9\]\]; loosen a filter"),
    ({"a": A}, {"above": 1}, "data.above = 1: no row of label column 'y' is so"),
    ({"a": A}, {"above": -1}, "data.above = -1: every row of label column 'y' is so"),
    ({"a": A}, {"positive": 7}, "data.positive = 7: no row of label column 'y' is so"),
    ({"a": A}, {"positive": "u"}, "data.positive: label column 'y' holds numbers and never is 'u'"),
    ({"a": {"x": [1.0, 2.0], "y": ["u", "v"]}}, {"above": 1}, "data.above: label column 'y' holds text, which is not above 1"),
    ({"a": {"x": [1.0, 2.0], "y": ["u", "v"]}}, {"labels": "numbers"}, "holds text, a regression needs numbers"),
    ({"a": {"x": [1.0, 2.0], "y": [0.5, 1.0]}}, {"labels": "classes"}, 'holds 0.5, which is no class; set data.labels = "numbers"'),
    ({"a": {"x": [1.0, 2.0], "y": [1, 1]}}, {}, "label column 'y' is 1 in every row; at least two classes are needed"),
    ({"a": A}, {"above": 0, "positive": 1}, "data.above: data.positive says already"),
    ({"a": A}, {"above": 0, "labels": "numbers"}, "data.above: makes classes of the labels"),
    ({"a": {"x": pa.array([], pa.float64()), "y": pa.array([], pa.int64())}}, {}, "holds no rows"),
    ({"a.csv": "x,y\n1,0\n2,1,5\n"}, {"path": "*.csv"}, "a.csv cannot be read as a table: CSV parse error"),
    ({"a.csv": ""}, {"path": "*.csv"}, "a.csv is empty"),
    ({"a.csv": "x,x,y\n1,2,0\n"}, {"path": "*.csv"}, "a.csv has several columns 'x'"),
    ({"a.csv": 'x,y\n"1\n2",0\n3,1\n'}, {"path": "*.csv"}, "a.csv cannot be read as a table: a quote is not closed on its own line"),
    ({"a.csv": 'x,y\n3,1\n"1,0'}, {"path": "*.csv"}, "a.csv cannot be read as a table: "),
    ({"a.txt": "x,y\n"}, {"path": "*.txt"}, "a.txt is none of the files that can be read in parts"),
    ({"a.parquet": "no parquet"}, {"path": "*.parquet"}, "a.parquet cannot be read as a table"),
    ({"a.arrow": "no arrow file"}, {"path": "*.arrow"}, "a.arrow cannot be read as a table"),
    ({"d/a.csv": "x,y\n1,0\n", "e/a.csv": "x,y\n1,1\n"}, {"path": "*/*.csv", "client": "@file"}, "names both .* and .* 'a'"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "options", "sentence"), BAD)
def test_what_cannot_work_is_said_in_one_sentence(
    tmp_path: Path, files: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    for name, content in files.items():
        if isinstance(content, str):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        else:
            pq.write_table(pa.table(content), tmp_path / f"{name}.parquet")
    given = {"path": "*.parquet", "label": "y"} | options
    if "://" not in given["path"]:
        given["path"] = os.path.join(tmp_path, given["path"])
    with pytest.raises(InputError, match=sentence) as caught:
        _ = Parts(**given).plan
    assert "\n" not in str(caught.value)


def test_an_empty_label_names_its_part_and_the_filter_that_helps(tmp_path: Path) -> None:
    write(pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "y": [0.0, 1.0, np.nan, 1.0]}), tmp_path / "a.parquet", 2)
    source = Parts(path=f"{tmp_path}/a.parquet", label="y", above=0.5, rows=2)
    with pytest.raises(
        InputError, match=r"label column 'y' is empty in 1 of 2 rows of part-001.*filters = \[\[\"y\", \"is not null\"\]\]"
    ):
        source.table(1, 0)
    healed = Parts(path=f"{tmp_path}/a.parquet", label="y", above=0.5, rows=2, filters=(("y", "is not null"),))
    assert whole(healed)[1].tolist() == [0, 1, 1]


def test_text_behind_the_first_lines_of_a_csv_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hansa.data import parts_files

    monkeypatch.setattr(parts_files, "HEAD", 20)
    (tmp_path / "a.csv").write_text("x,y\n" + "1,0\n2,1\n" * 10 + "u,1\n")
    source = Parts(path=f"{tmp_path}/a.csv", label="y")
    with pytest.raises(InputError, match=r"a\.csv cannot be read as a table: .*u"):
        source.table(0, 0)
