"""Tables that are larger than memory: files that are read part by part, each part a client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import Table
from hansa.core.errors import InputError
from hansa.data.parts_columns import features_frame, plain_filters
from hansa.data.parts_labels import Labels
from hansa.data.parts_plan import Plan, Reader, plan_of
from hansa.data.sources import Ids, Task


@dataclass(frozen=True)
class Parts:
    """Files with the same columns, cut into parts that are the clients of the job; nobody ever holds more of them than a part.

    path:      a file, a pattern such as ``data/*.parquet`` (``**`` for any depth), or an fsspec URL (``s3://bucket/table/*.parquet``):
               ``.parquet``, ``.arrow``, ``.feather``, ``.csv``, ``.csv.gz``. From Python it may be a path object.
    label:     the column to predict; without it the rows have no labels, for learners that need none.
    client:    ``"@file"`` makes every file a part, named like the file, whatever ``rows`` says.
    features:  the columns to predict from; all others when empty.
    drop:      columns to leave out.
    positive:  the label that becomes 1, with all others 0.
    above:     labels greater than this become 1, all others 0.
    labels:    what they are, "classes" or "numbers"; without it, text, true and false, and whole numbers with at most 20 distinct
               values are classes.
    filters:   only rows that pass all of them: ``[["year", ">=", 2001], ["origin", "in", ["OAK", "SFO"]], ["delay", "is not null"]]``,
               dates as ISO text. Missing values pass no comparison.
    rows:      a part has at most so many: row groups, record batches or lines that follow each other are merged up to this, larger
               ones split.
    storage:   options of the fsspec file system, such as ``{anon = true}``. They are kept with the run: leave keys to the environment.

    The index of a data frame that was written to a file is no feature unless ``features`` names it.

    How the table is cut depends on these options and the files alone. Numbers become float64, text becomes categories, by the types
    that the files declare (of CSV, by the first MiB of each). Raises InputError when the files are surveyed, for whatever cannot work.
    """

    name: Literal["parts"] = field(default="parts", kw_only=True)
    path: str
    label: str | None = None
    client: Literal["@file"] | None = None
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    positive: str | int | float | bool | None = None
    above: float | None = None
    labels: Labels | None = None
    filters: tuple[tuple[Any, ...], ...] = ()
    rows: Annotated[int, Ge(1)] = 100_000
    storage: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.path))
        object.__setattr__(self, "filters", plain_filters(self.filters))
        if self.positive is not None and self.above is not None:
            raise InputError("data.above: data.positive says already which label is 1; give only one of them")
        option = "positive" if self.positive is not None else "above" if self.above is not None else None
        stray = option or ("labels" if self.labels is not None else None)
        if self.label is None and stray is not None:
            raise InputError(f"data.{stray}: says what labels mean, and data.label names none; name their column, or leave it out")
        if option is not None and self.labels == "numbers":
            raise InputError(f"data.{option}: makes classes of the labels; take it out, or data.labels")

    @cached_property
    def plan(self) -> Plan:
        """How the files are cut: surveyed once, and sent along wherever this object goes."""
        return plan_of(self)

    @property
    def task(self) -> Task:
        return "unlabelled" if self.plan.meaning is None else self.plan.meaning.task

    @property
    def classes(self) -> tuple[Any, ...] | None:
        return None if self.plan.meaning is None else self.plan.meaning.classes

    @property
    def ids(self) -> Ids:
        return self.plan.ids

    def sizes(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Rows of the parts at the given positions that pass the filters, int64."""
        return self.plan.rows[positions]

    def table(self, position: int, seed: int) -> Table:
        """The rows of one part, in the order of the files. Raises InputError when the files have changed since they were cut."""
        import pyarrow as pa

        plan = self.plan
        reader = Reader(plan.paths, plan.sizes, self.storage, plan.types, self.filters)
        own = plan.part(position)
        label = () if self.label is None else (self.label,)
        found = pa.concat_tables(reader.tables(own, (*plan.features, *label)))
        if len(found) != plan.rows[position]:
            raise InputError(
                f"data.path: {plan.ids[position]} of {self.path} has {len(found):,} rows and had {plan.rows[position]:,} when it was cut; "
                "make the job again"
            )
        y = None if plan.meaning is None else plan.meaning.read(found[self.label], plan.ids[position])
        return Table(features_frame(found, plan.features), y)

    def alone(self, position: int) -> Parts:
        """One part as a source of its own, small enough to send."""
        one = replace(self)
        one.__dict__["plan"] = self.plan.alone(position)
        return one
