"""Data that is already in memory: arrays, data frames, Arrow tables, PyTorch data sets. For Python only, not for a job's file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from hansa.core.blocks import Table
from hansa.core.errors import InputError
from hansa.data.sources import Rows, Task
from hansa.data.tables import (
    choose_features,
    client_ids,
    column_names,
    kind_of,
    labels_of,
    plain_frame,
    refuse_gaps,
    refuse_stray_meaning,
)


@dataclass(frozen=True, eq=False)
class Memory:
    """Rows that the caller holds.

    x:       an array (rows, ...) of numbers, a pandas data frame, or a pyarrow table. A data frame none of whose columns has a text for
             a name is the array of its values, as it is for scikit-learn.
    y:       labels (rows,), or None for learners that need none.
    client:  whose each row is (rows,), or None.
    task:    "classification" or "regression"; told from the labels when None (see :class:`hansa.data.File`).
    test:    a central test set with the same columns: a :class:`~hansa.core.blocks.Table` or a pair ``(x, y)``.

    Nothing is copied where the arrays already are as they should be; do not change them during a run.
    """

    name: Literal["memory"] = field(default="memory", kw_only=True)
    x: Any = field(kw_only=True, repr=False)
    y: Any = field(default=None, repr=False)
    client: Any = field(default=None, repr=False)
    task: Task | None = None
    test: Any = field(default=None, repr=False)

    def read(self) -> Rows:
        """All rows. Raises InputError when the arrays do not fit together."""
        return self._rows

    @cached_property
    def _rows(self) -> Rows:
        x = _features(self.x, "x")
        y: np.ndarray | None = None
        task: Task = "unlabelled"
        if self.y is not None:
            y, task = labels_of(self.y, self.task, None, "y")
        client = None if self.client is None else client_ids(self.client, "client")
        for name, given in (("y", self.y), ("clients", self.client)):
            _refuse_another_order(self.x, given, name)
        for name, values in (("y", y), ("client", client)):
            if values is not None and len(values) != len(x):
                raise InputError(f"data: {name} has {len(values):,} entries and x has {len(x):,} rows; give one for each row")
        return Rows(x, y, client, None if self.test is None else _central(self.test, x, task), task)

    def take(self, rows: np.ndarray) -> Memory:
        """A source of the given rows alone, in that order, without clients and central test set."""
        own = self._rows
        table = Table(own.x, own.y).take(rows)
        return Memory(x=table.x, y=table.y, task=own.task)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}


def _refuse_another_order(x: Any, values: Any, name: str) -> None:
    # Rows are matched by their place, as scikit-learn does it; an index that says something else may be meant or an accident.
    here: Any = getattr(x, "index", None)
    there: Any = getattr(values, "index", None)
    if not (hasattr(here, "equals") and hasattr(there, "equals")) or here.equals(there):
        return
    if len(here) == len(there) and here.is_unique and there.is_unique and bool(there.isin(here).all()):
        raise InputError(
            f"data: {name} has the index of x in another order, and rows are matched by their place; write {name}.loc[x.index] to match "
            f"them by their index, or {name}.to_numpy() where they stand in one order already"
        )


def _pandas(table: Any, where: str) -> Any:
    """A table as a pandas data frame."""
    frame = table.to_pandas() if hasattr(table, "to_pandas") else table
    if not (hasattr(frame, "iloc") and getattr(frame, "ndim", 0) == 2):
        names = getattr(getattr(frame, "dtype", None), "names", None)
        instead = "; write pandas.DataFrame(array)" if names else "; collect it first" if hasattr(frame, "collect") else ""
        kind = "a structured array" if names else f"of type {type(table).__name__}"
        raise InputError(
            f"data: {where} is {kind}, and no data frame and no Arrow table{instead or ' (give one, or arrays to hansa.from_arrays)'}"
        )
    return frame


def _features(x: Any, where: str) -> Any:
    if hasattr(x, "to_pandas"):
        x = x.to_pandas()
    if hasattr(x, "iloc") and getattr(x, "ndim", 0) == 2:
        x = _frame(x, where)
    elif hasattr(x, "tocsr"):
        raise InputError(
            f"data: {where} is a sparse matrix ({type(x).__name__}), and features are taken as arrays or data frames; write "
            f"{where}.toarray(), or give categories as columns of text, which a preparation encodes sparsely"
        )
    else:
        x = np.asarray(x)
        if x.dtype.names:
            raise InputError(f"data: {where} is a structured array; give its columns as a data frame: pandas.DataFrame({where})")
        if x.dtype.kind not in "biuf":
            raise InputError(
                f"data: {where} is an array of type {x.dtype}, which holds no numbers; give columns of text as a data frame"
            )
        if x.ndim < 2:
            raise InputError(f"data: {where} has shape {x.shape}; give (rows, features), for one feature {where}.reshape(-1, 1)")
    if not len(x):
        raise InputError(f"data: {where} has no rows")
    return x


def _frame(x: Any, where: str) -> Any:
    plain = plain_frame(x)
    if not len(x.columns) or any(isinstance(name, str) for name in x.columns):
        return plain
    odd = next((name for name in plain.columns if plain[name].dtype.kind != "f"), None)
    if odd is not None:
        raise InputError(
            f"data: column {odd} of {where} holds no numbers, and columns that have no texts for names are one array of numbers; "
            "name them: frame.columns = frame.columns.astype(str)"
        )
    return np.ascontiguousarray(plain.to_numpy())


def _central(test: Any, x: Any, task: Task) -> Table:
    given_x, given_y = (test.x, test.y) if isinstance(test, Table) else test
    features = _features(given_x, "the x of test")
    if task == "unlabelled" and given_y is None:
        return Table(features)
    if given_y is None:
        raise InputError("data: test has no labels; nothing can be measured on it, so give (x, y) or leave it out")
    if task == "unlabelled":
        raise InputError("data: test has labels and the rows have none; leave them out, or give y")
    y, _ = labels_of(given_y, task, None, "the y of test")
    if len(y) != len(features):
        raise InputError(f"data: test has {len(features):,} rows and {len(y):,} labels; give one label for each row")
    here, there = _layout(x), _layout(features)
    if here != there:
        raise InputError(f"data: test has {there}, and x has {here}; give both the same")
    return Table(features, y)


def _layout(x: Any) -> str:
    if hasattr(x, "columns"):
        return "columns " + ", ".join(f"{name} ({kind_of(x[name]) or 'empty'})" for name in x.columns)
    return f"examples of shape {x.shape[1:]} and type {x.dtype}"


def from_arrays(x: Any, y: Any = None, clients: Any = None, *, test: Any = None, task: Task | None = None) -> Memory:
    """Arrays, or a data frame with its labels: ``x`` (rows, ...), ``y`` (rows,) or None, ``clients`` (rows,) naming each row's client."""
    return Memory(x=x, y=y, client=clients, task=task, test=test)


def from_table(
    table: Any,
    label: Any = None,
    client: Any = None,
    *,
    features: Iterable[Any] = (),
    drop: Iterable[Any] = (),
    positive: Any = None,
    task: Task | None = None,
    test: Any = None,
) -> Memory:
    """A data frame or an Arrow table whose columns hold features, label and client; options as of :class:`hansa.data.File`.

    label: the column to predict; without it the rows have no labels, for learners that need none.
    test:  a central test set with the same columns.

    Columns are named as in the table, by text or by number. Raises InputError for options that do not fit the table.
    """
    from hansa.data.parts_frames import is_partitioned

    if is_partitioned(table):
        raise InputError(
            f"data: a {type(table).__module__.partition('.')[0]} table would have to be collected here; "
            f"write hansa.from_partitions(table, {label!r}), which makes every partition a client"
        )
    frame = _pandas(table, "the table")
    label, client = (None if name is None else str(name) for name in (label, client))
    chosen = choose_features(column_names(frame), label, client, features, drop, "the table")
    y, found = _labels(frame, label, positive, task)
    central = None
    if test is not None:
        held = _pandas(test, "the test table")
        choose_features(column_names(held), label, None, chosen, (), "the test table")
        known = None if positive is not None or label is None else found
        central = (_columns(held, chosen), _labels(held, label, positive, known)[0])
    ids = None if client is None else _column(frame, client)
    return Memory(x=_columns(frame, chosen), y=y, client=ids, task=None if label is None else found, test=central)


def _columns(frame: Any, names: Sequence[str]) -> Any:
    # By place: the names of a data frame need not be texts.
    places = {name: place for place, name in enumerate(column_names(frame))}
    return frame.iloc[:, [places[name] for name in names]]


def _column(frame: Any, name: str) -> Any:
    return frame.iloc[:, column_names(frame).index(name)]


def _labels(frame: Any, label: str | None, positive: Any, task: Task | None) -> tuple[np.ndarray | None, Task]:
    if label is None:
        refuse_stray_meaning(positive, task)
        return None, "unlabelled"
    where, column = f"label column {label!r}", _column(frame, label)
    refuse_gaps(column, where, "every row needs a label")
    return labels_of(column, task, positive, where)


def from_torch(dataset: Any, clients: Any = None, *, test: Any = None, task: Task | None = None) -> Memory:
    """A PyTorch data set of pairs (x, y): anything with a length whose items are such pairs, read once into arrays.

    test: a data set of the same kind. Raises InputError for a data set without a length or whose items are not pairs.
    """
    x, y = _torch_arrays(dataset)
    return Memory(x=x, y=y, client=clients, task=task, test=None if test is None else _torch_arrays(test))


def _torch_arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    tensors: Any = getattr(dataset, "tensors", ())
    if len(tensors) == 2:  # a TensorDataset holds the whole already
        return np.asarray(tensors[0]), np.asarray(tensors[1])
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise InputError(f"data: {type(dataset).__name__} has no length or no items by number; give a map-style data set")
    items = [dataset[k] for k in range(len(dataset))]
    wrong = next((k for k, item in enumerate(items) if not isinstance(item, tuple | list) or len(item) != 2), None)
    if wrong is not None:
        raise InputError(f"data: item {wrong} of {type(dataset).__name__} is no pair (x, y)")
    if not items:
        raise InputError(f"data: {type(dataset).__name__} has no items")
    xs, ys = [np.asarray(x) for x, _ in items], [np.asarray(y) for _, y in items]
    shapes = {x.shape for x in xs}
    if len(shapes) > 1:
        raise InputError(
            f"data: items of {type(dataset).__name__} have shapes {sorted(shapes)[0]} and {sorted(shapes)[-1]}; make them one"
        )
    return np.stack(xs), np.stack(ys)
