"""Tables that Dask, Ray or Spark hold, as they are: a partition is a part, and a client of the job.

No rows come to the process that plays the rounds. A worker makes the partition that it needs: of a Dask data frame it runs the
partition's own graph, of a Ray data set it fetches the block from the object store. A Spark executor cannot ask Spark for another part
of a data frame, so one is written to Parquet first, by Spark, and read from there.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from hansa.core.blocks import Table
from hansa.core.errors import InputError, missing_extra
from hansa.data.parts import Parts
from hansa.data.parts_columns import (
    WORDS,
    as_type,
    common_type,
    features_frame,
    index_columns,
    is_whole,
    kind_of_type,
    without_index,
)
from hansa.data.parts_labels import Labels, Meaning, meaning_of
from hansa.data.sources import Ids, Task
from hansa.data.tables import MOST_CLASSES, choose_features, listed_names


class Piece(Protocol):
    """A partition as a recipe."""

    def load(self) -> Any:
        """A pandas data frame or an Arrow table."""
        ...


@dataclass(frozen=True, eq=False)
class DaskPiece:
    """A partition of a Dask data frame: the tasks that make it."""

    graph: Mapping[Any, Any] = field(repr=False)
    key: Any

    def load(self) -> Any:
        from dask.local import get_sync

        return get_sync(self.graph, self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            import cloudpickle
        except ImportError as error:
            raise missing_extra("cloudpickle", "dask") from error
        return _dask_piece, (cloudpickle.dumps((dict(self.graph), self.key)),)


def _dask_piece(packed: bytes) -> DaskPiece:
    return DaskPiece(*pickle.loads(packed))  # noqa: S301  # from this job's own driver


@dataclass(frozen=True, eq=False)
class RayPiece:
    """A block of a Ray data set: its reference, packed by Ray, which keeps the block while its cluster lives."""

    packed: bytes = field(repr=False)

    @classmethod
    def of(cls, reference: Any) -> RayPiece:
        import ray.cloudpickle

        return cls(ray.cloudpickle.dumps(reference))

    def load(self) -> Any:
        try:
            import ray
            import ray.cloudpickle
        except ImportError as error:
            raise missing_extra("ray", "ray") from error
        if not ray.is_initialized():
            raise InputError(
                "data: this process is not part of the Ray cluster that holds the data set; "
                'write engine.name = "ray" or "inline", or write the data set to Parquet and give it by path'
            )
        return ray.get(ray.cloudpickle.loads(self.packed))


@dataclass(frozen=True)
class Told:
    """What is known of a partition without seeing its rows.

    rows:    how many it has.
    types:   column -> Arrow type.
    labels:  an Arrow column with every label that occurs, or as few of them as tell what the labels mean.
    """

    rows: int
    types: Mapping[str, Any]
    labels: Any


@dataclass(frozen=True, eq=False)
class Layout:
    """What all partitions have in common, and their sizes; the options of the labels resolved."""

    ids: Ids
    rows: np.ndarray
    features: tuple[str, ...]
    types: Mapping[str, Any]
    meaning: Meaning


@dataclass(frozen=True, eq=False)
class Partitions:
    """A Dask data frame or a Ray data set whose partitions are the clients; made by :func:`from_partitions`.

    The options are those of :class:`~hansa.data.parts.Parts`. Partitions without rows are left out. Before the first round every
    partition is made once where its engine runs it, to count its rows and to see its types and labels.
    """

    name: Literal["partitions"] = field(default="partitions", kw_only=True)
    frame: Any = field(kw_only=True, repr=False)
    label: str = field(kw_only=True)
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    positive: str | int | float | bool | None = None
    above: float | None = None
    labels: Labels | None = None

    @cached_property
    def _opened(self) -> tuple[Layout, tuple[Piece, ...]]:
        features = tuple(choose_features(_names(self), self.label, None, self.features, self.drop, "the table"))
        columns = [*features, self.label]
        pieces, told = (_dask_pieces if is_dask(self.frame) else _ray_pieces)(self, columns)
        kept = [k for k, one in enumerate(told) if one.rows]
        if not kept:
            raise InputError("data: the table has no rows")
        types = _types([told[k] for k in kept], features, self.label)
        meaning = meaning_of(self, types[self.label], [as_type(told[k].labels, types[self.label]) for k in kept])
        width = max(3, len(str(len(kept) - 1)))
        ids = Ids(len(kept), np.array([f"part-{k:0{width}d}" for k in range(len(kept))], dtype=str))
        rows = np.array([told[k].rows for k in kept], dtype=np.int64)
        return Layout(ids, rows, features, types, meaning), tuple(pieces[k] for k in kept)

    @property
    def task(self) -> Task:
        return self._opened[0].meaning.task

    @property
    def classes(self) -> tuple[Any, ...] | None:
        return self._opened[0].meaning.classes

    @property
    def ids(self) -> Ids:
        return self._opened[0].ids

    def sizes(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Rows of the partitions at the given positions, int64."""
        return self._opened[0].rows[positions]

    def table(self, position: int, seed: int) -> Table:
        """The rows of one partition, in its order."""
        layout, pieces = self._opened
        names = [*layout.features, self.label]
        found = _typed(_arrow(pieces[position].load(), names), layout.types)
        if len(found) != layout.rows[position]:
            raise InputError(
                f"data: {layout.ids[position]} has {len(found):,} rows and had {layout.rows[position]:,} before the first round; "
                "a partition must be the same whenever it is made"
            )
        return Table(features_frame(found, layout.features), layout.meaning.read(found[self.label], layout.ids[position]))

    def alone(self, position: int) -> Partitions:
        """One partition as a source of its own, small enough to send."""
        layout, pieces = self._opened
        one = replace(self, frame=None)
        own = replace(layout, ids=Ids(1, np.array([layout.ids[position]])), rows=layout.rows[position : position + 1])
        one.__dict__["_opened"] = own, (pieces[position],)
        return one

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "frame": None, "_opened": self._opened}


def is_dask(frame: Any) -> bool:
    return type(frame).__module__.partition(".")[0] in ("dask", "dask_expr") and hasattr(frame, "to_delayed")


def is_ray(frame: Any) -> bool:
    return type(frame).__module__.startswith("ray.data") and hasattr(frame, "to_arrow_refs")


def is_spark(frame: Any) -> bool:
    return type(frame).__module__.startswith("pyspark.sql") and hasattr(frame, "write")


def is_partitioned(table: Any) -> bool:
    """Whether a table is one that :func:`from_partitions` takes."""
    return is_dask(table) or is_ray(table) or is_spark(table)


Collection: TypeAlias = Partitions | Parts


def from_partitions(
    table: Any,
    label: str,
    *,
    features: Iterable[str] = (),
    drop: Iterable[str] = (),
    positive: Any = None,
    above: float | None = None,
    labels: Labels | None = None,
    scratch: str = "",
) -> Collection:
    """A Dask data frame, a Ray data set or a Spark data frame, whose partitions become the clients; options as of :class:`Parts`.

    scratch: for Spark, a new folder or URL that Spark and all workers see; the columns that are needed are written there as Parquet,
             and stay there.

    Raises InputError for anything else, and for a persisted Dask data frame.
    """
    options: dict[str, Any] = {"label": label, "positive": positive, "above": above, "labels": labels}
    if is_dask(table) or is_ray(table):
        return Partitions(frame=table, features=listed_names("features", features), drop=listed_names("drop", drop), **options)
    if not is_spark(table):
        raise InputError(
            f"data: {type(table).__name__} is no table of Dask, Ray or Spark; use hansa.from_table for tables in memory"
        )
    if not scratch:
        raise InputError(
            "data: an executor of Spark cannot read a data frame of its driver; give from_partitions a new folder that all workers see "
            '(scratch = "/shared/flights"), to which Spark writes it as Parquet'
        )
    chosen = choose_features(list(table.columns), label, None, features, drop, "the table")
    quoted = ["`" + name.replace("`", "``") + "`" for name in [*chosen, label]]
    table.select(*quoted).write.mode("errorifexists").parquet(scratch)
    return Parts(path=f"{scratch.rstrip('/')}/*.parquet", features=tuple(chosen), **options)


def _arrow(table: Any, names: Sequence[str]) -> Any:
    """The named columns of a pandas data frame or an Arrow table, as an Arrow table."""
    import pyarrow as pa

    if isinstance(table, pa.Table):
        return table.select(list(names))
    table = table.set_axis([str(name) for name in table.columns], axis=1)[list(names)]
    try:
        return pa.Table.from_pandas(table, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"data: a partition has a column of mixed types ({str(error).splitlines()[0]}); give every column one type"
        ) from error


def _typed(table: Any, types: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    return pa.table({name: as_type(table[name], kind) for name, kind in types.items()})


def tell(table: Any, names: Sequence[str], label: str, narrow: str) -> Told:
    """What a partition tells of itself, where it lies.

    narrow: what is asked of the labels: their "ends" will do to compare them with a bound; "all" that occur; as many as tell classes
            from numbers ("some"); or "none" of them.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    arrow = _arrow(table, names)
    column = arrow[label]
    if narrow == "none" or (narrow == "some" and kind_of_type(column.type) == "number" and not is_whole(column.type)):
        values = column.slice(0, 0)
    elif narrow == "ends" and kind_of_type(column.type) == "number":
        ends = pc.min_max(column)
        values = pa.chunked_array([pa.array([ends["min"].as_py(), ends["max"].as_py()], column.type)])
    else:
        values = pa.chunked_array([pc.unique(column)])
        if narrow == "some" and kind_of_type(column.type) == "number":
            values = values.slice(0, MOST_CLASSES + 2)  # one of them may be missing
    return Told(len(arrow), dict(zip(arrow.schema.names, arrow.schema.types, strict=True)), values)


def _names(source: Partitions) -> list[str]:
    if is_dask(source.frame):
        return [str(name) for name in source.frame.columns]
    schema = source.frame.schema()
    index = index_columns(schema.base_schema) if hasattr(schema.base_schema, "pandas_metadata") else ()
    return without_index(schema.names, index, (source.label, *source.features, *source.drop))


def _narrow(source: Partitions) -> str:
    if source.above is not None:
        return "ends"
    if source.labels == "numbers":
        return "none"
    return "some" if source.labels is None and source.positive is None else "all"


def _dask_pieces(source: Partitions, columns: Sequence[str]) -> tuple[list[DaskPiece], list[Told]]:
    import dask
    from dask.optimization import cull

    names = {str(name): name for name in source.frame.columns}
    frame = source.frame[[names[name] for name in columns]].optimize()
    graph, keys = dict(frame.__dask_graph__()), frame.__dask_keys__()
    if any(type(task).__module__.startswith("distributed") for task in graph.values()):
        raise InputError(
            "data: the Dask data frame is persisted, and its partitions can be had from its own client only; "
            "give the data frame as it was before persist()"
        )
    ask = dask.delayed(tell, pure=True)
    told = dask.compute(*[ask(one, columns, source.label, _narrow(source)) for one in frame.to_delayed(optimize_graph=False)])
    return [DaskPiece(cull(graph, [key])[0], key) for key in keys], list(told)


def _ray_pieces(source: Partitions, columns: Sequence[str]) -> tuple[list[RayPiece], list[Told]]:
    import ray

    references = source.frame.select_columns(list(columns)).to_arrow_refs()
    ask = ray.remote(tell)
    told = ray.get([ask.remote(reference, columns, source.label, _narrow(source)) for reference in references])
    return [RayPiece.of(reference) for reference in references], told


def _types(told: Sequence[Told], features: Sequence[str], label: str) -> dict[str, Any]:
    import pyarrow as pa

    types = {}
    for name in [*features, label]:
        kinds = sorted({kind_of_type(one.types[name]) for one in told} - {"empty"})
        if len(kinds) > 1:
            raise InputError(
                f"data: column {name!r} holds {WORDS[kinds[0]]} in some partitions and {WORDS[kinds[1]]} in others; "
                "give it one type, or name it in drop"
            )
        if name in features and kinds and kinds[0] in ("time", "other"):
            raise InputError(
                f"data: column {name!r} holds {WORDS[kinds[0]]}, and models need numbers or categories; name it in drop, and store "
                "what matters of it (the hour, the weekday) as columns of numbers or text"
            )
        own = common_type(one.types[name] for one in told)
        types[name] = pa.float64() if name in features and is_whole(own) else own
    return types
