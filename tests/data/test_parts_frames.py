"""Tables of Dask, Ray and Spark: their partitions are the clients, and no rows come here to find out."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal
from sklearn.linear_model import LogisticRegression

import hansa
from hansa.core.errors import InputError
from hansa.data import Holders, Split, from_table
from hansa.data.parts_frames import Partitions, from_partitions, tell
from hansa.data.tables import plain_frame

dask = pytest.importorskip("dask")
dd = pytest.importorskip("dask.dataframe")


def table_of(rows: int) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "n": draw.integers(-5, 6, rows),
            "f": np.where(draw.random(rows) < 0.2, np.nan, draw.normal(size=rows)),
            "t": pd.Series(draw.choice(["a", "b", "c d", None], rows), dtype=object),
            "y": draw.integers(0, 3, rows),
        }
    )


FRAME = table_of(300)


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301  # of our own making


def whole(source: Holders) -> tuple[pd.DataFrame, np.ndarray]:
    tables = [source.table(k, 0) for k in range(len(source.ids))]
    return pd.concat([table.x for table in tables], ignore_index=True), np.concatenate([table.y for table in tables])


def dask_frame(parts: int = 4) -> Any:
    return dd.from_pandas(FRAME, npartitions=parts)


@pytest.mark.parametrize("parts", [1, 4, 7])
def test_partitions_of_dask_together_are_the_frame_in_order(parts: int) -> None:
    source = from_partitions(dask_frame(parts), "y")
    assert isinstance(source, Holders)
    assert len(source.ids) == parts
    for some in (source, sent(source)):
        x, y = whole(some)
        assert_frame_equal(x, plain_frame(FRAME.drop(columns="y")))
        assert y.tolist() == FRAME.y.tolist()
    assert (source.task, source.classes) == ("classification", (0, 1, 2))


def test_what_dask_was_told_to_do_is_done_where_the_partition_is_made() -> None:
    lazy = dask_frame().assign(n=lambda own: own.n * 2)
    lazy = lazy[lazy.n > 2]
    source = from_partitions(lazy, "y", features=("n",), positive=1)
    expected = FRAME[FRAME.n * 2 > 2]
    x, y = whole(source)
    assert x.n.tolist() == (expected.n * 2.0).tolist()
    assert y.tolist() == (expected.y == 1).astype(int).tolist()


def test_partitions_without_rows_are_left_out() -> None:
    lazy = dask_frame(6).map_partitions(lambda own: own[own.index >= 160])
    source = from_partitions(lazy, "y")
    assert len(source.ids) == 3
    assert whole(source)[1].tolist() == FRAME.y[160:].tolist()


def test_a_partition_alone_is_the_partition_and_small(tmp_path: Path) -> None:
    source = from_partitions(dask_frame(10), "y")
    assert isinstance(source, Partitions)
    for k in range(10):
        one = sent(source.alone(k))
        assert (len(one.ids), one.ids[0]) == (1, source.ids[k])
        assert one.sizes(np.array([0]), 0) == source.sizes(np.array([k]), 0)
        assert_frame_equal(one.table(0, 0).x, source.table(k, 0).x)
    assert len(pickle.dumps(source.alone(0))) < len(pickle.dumps(source)) / 3


def test_only_what_is_told_comes_from_the_scheduler() -> None:
    came: list[Any] = []

    def scheduler(graph: Any, keys: Any, **options: Any) -> Any:
        result = dask.get(graph, keys, **options)
        came.extend(result)
        return result

    with dask.config.set(scheduler=scheduler):
        source = from_partitions(dask_frame(), "y", positive=2)
        assert len(source.ids) == 4
    assert [told.rows for told in came] == [75] * 4
    assert max(len(told.labels) for told in came) == 3


def test_dask_and_memory_give_the_same_model(tmp_path: Path) -> None:
    def model(data: Any, engine: Any) -> Any:
        job = hansa.Job(
            data=data,
            learner=LogisticRegression(tol=1e-10),
            algorithm=hansa.Newton(),
            preparation=hansa.Standard(),
            split=Split(test=0.0),
            engine=engine,
        )
        return hansa.run(job, directory=tmp_path / "runs", quiet=True)

    source = from_partitions(dask_frame(), "y", positive=1)
    parts = model(source, hansa.Inline())
    processes = model(source, hansa.Processes(workers=2))
    owner = [f"part-{k:03d}" for k in range(4) for _ in range(75)]
    memory = model(from_table(FRAME.assign(part=owner), "y", client="part", positive=1), hansa.Inline())
    for name, value in memory.params.items():
        assert parts.params[name].tobytes() == value.tobytes()
        assert processes.params[name].tobytes() == value.tobytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label": "z"}, "data.label: the table has no column 'z'"),
        ({"label": "y", "features": ("q",)}, "data.features: the table has no column 'q'"),
        ({"label": "y", "above": 9}, "data.above = 9: no row of label column 'y' is so"),
        ({"label": "when"}, "label column 'when' holds dates or times"),
        ({"label": "y"}, "column 'when' holds dates or times, and models need numbers or categories; name it in drop"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    frame = dd.from_pandas(FRAME.drop(columns="t").assign(when=pd.Timestamp("2001-01-01")), npartitions=2)
    with pytest.raises(InputError, match=sentence) as caught:
        _ = from_partitions(frame, **{"drop": ("when",) if "holds" not in sentence else (), **options}).ids
    assert "\n" not in str(caught.value)


def test_one_text_for_a_list_of_columns_is_refused() -> None:
    for option in ("features", "drop"):
        with pytest.raises(InputError, match=rf"data.{option} = 'n': is one text, and a list of columns is needed"):
            from_partitions(dask_frame(), "y", **{option: "n"})


def test_a_persisted_frame_of_a_cluster_and_a_table_in_memory_are_refused() -> None:
    distributed = pytest.importorskip("distributed")
    with pytest.raises(InputError, match=r"DataFrame is no table of Dask, Ray or Spark; use hansa\.from_table"):
        from_partitions(FRAME, "y")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        source = from_partitions(dask_frame().persist(), "y")
        with pytest.raises(InputError, match=r"the Dask data frame is persisted.*before persist\(\)"):
            _ = source.ids


def test_what_a_partition_tells_is_enough_and_no_more() -> None:
    table = pa.table({"x": [1.0, 2.0], "y": pa.array(range(2)), "z": pa.array([3.5, 1.5])})
    many = pa.table({"y": pa.array(range(1000))})
    assert tell(table, ["x", "y"], "y", "all").labels.to_pylist() == [0, 1]
    assert tell(table, ["z"], "z", "ends").labels.to_pylist() == [1.5, 3.5]
    assert tell(table, ["z"], "z", "some").labels.to_pylist() == []
    assert len(tell(many, ["y"], "y", "some").labels) == 22
    assert tell(many, ["y"], "y", "none").labels.to_pylist() == []
    assert tell(table, ["x", "y"], "y", "all").rows == 2


RAY = """
import pickle, sys
import numpy as np, pandas as pd, pyarrow as pa, ray, cloudpickle
import hansa
from hansa.data.parts_frames import from_partitions
from hansa.data.tables import plain_frame
from pandas.testing import assert_frame_equal

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
frame = pd.DataFrame({"n": np.arange(60), "t": ["a", None, "b"] * 20, "y": [0, 1, 1] * 20})
blocks = [pa.Table.from_pandas(frame[k:k + 20], preserve_index=False) for k in (0, 20, 40)]
source = from_partitions(ray.data.from_arrow(blocks), "y", positive=1)
assert len(source.ids) == 3, len(source.ids)
assert source.classes == (0, 1)
tables = [source.table(k, 0) for k in range(3)]
assert_frame_equal(pd.concat([table.x for table in tables], ignore_index=True), plain_frame(frame.drop(columns="y")))
assert np.concatenate([table.y for table in tables]).tolist() == frame.y.tolist()
indexed = ray.data.from_arrow(pa.Table.from_pandas(frame[frame.n % 3 < 2]))
for options, columns in (({}, ("n", "t")), ({"features": ("__index_level_0__", "n")}, ("__index_level_0__", "n"))):
    assert tuple(from_partitions(indexed, "y", positive=1, **options).table(0, 0).x.columns) == columns

@ray.remote
class Reader:
    def read(self, packed):
        return pickle.loads(packed).table(0, 0)

reader = Reader.remote()
for k in range(3):
    there = ray.get(reader.read.remote(cloudpickle.dumps(source.alone(k))))
    assert_frame_equal(there.x, tables[k].x)
    assert there.y.tolist() == tables[k].y.tolist()

packed = pickle.dumps(source.alone(1))
ray.shutdown()
try:
    pickle.loads(packed).table(0, 0)
except hansa.InputError as error:
    print(error)
assert not ray.is_initialized()
"""


def test_blocks_of_ray_are_fetched_where_they_are_needed() -> None:
    pytest.importorskip("ray.data")
    done = subprocess.run([sys.executable, "-c", RAY], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "this process is not part of the Ray cluster that holds the data set" in done.stdout
