"""How files are cut into parts: a function of the options and the files, and of nobody who reads them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from hansa.core.errors import InputError, did_you_mean
from hansa.data.files import FROM_FILE
from hansa.data.parts_columns import WORDS, Kind, common_type, expression, is_whole, kind_of_type, without_index
from hansa.data.parts_files import Content, batches, matching, statistics_allow, survey
from hansa.data.parts_labels import Meaning, meaning_of
from hansa.data.sources import Ids
from hansa.data.tables import choose_features

if TYPE_CHECKING:
    from hansa.data.parts import Parts

READERS = 8
"""Files whose metadata is read at the same time."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What every process must know to read any part, and no more: it travels with the recipes, so that nobody surveys files twice.

    paths:    of the files.
    sizes:    of the files, in bytes, as they were.
    chunks:   int64 (chunks, 5): file, unit, start, stop, rows that pass the filters.
    ends:     where each part's chunks end, int64 (parts,).
    types:    column -> Arrow type as which it is read, of the columns that are needed.
    meaning:  of the labels; None without labels.
    names:    of the parts, in ascending order; None where they are numbered.
    """

    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    chunks: np.ndarray = field(repr=False)
    ends: np.ndarray = field(repr=False)
    features: tuple[str, ...]
    types: Mapping[str, Any]
    meaning: Meaning | None
    names: tuple[str, ...] | None = None

    @cached_property
    def ids(self) -> Ids:
        names = self.names
        if names is None:
            width = max(3, len(str(len(self.ends) - 1)))
            names = tuple(f"part-{k:0{width}d}" for k in range(len(self.ends)))
        return Ids(len(names), np.array(names, dtype=str))

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of each part that pass the filters, int64 (parts,)."""
        return np.diff(np.cumsum(self.chunks[:, 4])[self.ends - 1], prepend=0)

    def part(self, position: int) -> np.ndarray:
        """The chunks of a part."""
        return self.chunks[self.ends[position - 1] if position else 0 : self.ends[position]]

    def alone(self, position: int) -> Plan:
        """What must be known to read one part."""
        own = self.part(position).copy()
        files, own[:, 0] = np.unique(own[:, 0], return_inverse=True)
        paths, sizes = zip(*((self.paths[k], self.sizes[k]) for k in files), strict=True)
        return replace(self, paths=paths, sizes=sizes, chunks=own, ends=np.array([len(own)]), names=(self.ids[position],))

    def __reduce__(self) -> tuple[Any, ...]:
        # Every shard of the recipes carries it. Column by column it packs well.
        packed = zlib.compress(np.ascontiguousarray(self.chunks.T).tobytes()), zlib.compress(self.ends.tobytes())
        return _unpacked, (packed, self.paths, self.sizes, self.features, dict(self.types), self.meaning, self.names)


def _unpacked(packed: tuple[bytes, bytes], paths: Any, sizes: Any, features: Any, types: Any, meaning: Any, names: Any) -> Plan:
    chunks, ends = (np.frombuffer(zlib.decompress(some), dtype=np.int64) for some in packed)
    return Plan(paths, sizes, np.ascontiguousarray(chunks.reshape(5, -1).T), ends, features, types, meaning, names)


def plan_of(source: Parts) -> Plan:
    """Survey the files and cut them. Raises InputError for whatever cannot work."""
    paths = matching(source.path, source.storage)
    names = _stems(paths) if source.client == FROM_FILE else None
    if names is not None:
        order = np.argsort(names, kind="stable").tolist()
        paths, names = [paths[k] for k in order], [names[k] for k in order]
    with ThreadPoolExecutor(READERS) as pool:
        contents = list(pool.map(lambda path: survey(path, source.storage, source.rows), paths))
    features, types = _columns(source, paths, contents)
    wanted = expression(source.filters, types)
    sizes = tuple(content.size for content in contents)
    possible = [content.chunks[statistics_allow(content, wanted, types)] for content in contents]
    chunks = np.concatenate(
        [np.column_stack([np.full(len(own), number, dtype=np.int64), own]) for number, own in enumerate(possible)]
    )
    if not sum(len(content.chunks) for content in contents):
        raise InputError(f"data.path: {source.path} holds no rows")
    reader = Reader(tuple(paths), sizes, source.storage, types, source.filters)
    if source.filters:
        chunks[:, 4] = [table.num_rows for table in reader.tables(chunks, ())]
        chunks = chunks[chunks[:, 4] > 0]
        if not len(chunks):
            raise InputError(
                f"data.filters: no row of {source.path} passes {[list(one) for one in source.filters]}; loosen a filter"
            )
    meaning = None
    if source.label is not None:
        label = (table[source.label] for table in reader.tables(chunks, (source.label,)))
        meaning = meaning_of(source, types[source.label], label)
    ends = _ends(chunks, source.rows if names is None else None)
    present = None if names is None else tuple(names[int(chunks[end - 1, 0])] for end in ends)
    return Plan(tuple(paths), sizes, chunks, ends, features, types, meaning, present)


@dataclass(frozen=True)
class Reader:
    """Reads chunks of the files, the filters applied."""

    paths: Sequence[str]
    sizes: Sequence[int]
    storage: Mapping[str, Any]
    types: Mapping[str, Any]
    filters: Sequence[tuple[Any, ...]]

    def tables(self, chunks: np.ndarray, columns: Sequence[str]) -> Iterator[Any]:
        """The rows of each chunk (file, unit, start, stop, ...) that pass the filters, as Arrow tables of the given columns.

        A file is opened once for a run of its chunks, and only the given columns and those of the filters are read.
        """
        wanted = expression(self.filters, self.types)
        read = dict.fromkeys([*columns, *(one[0] for one in self.filters)])
        types = {name: self.types[name] for name in read}
        for number, own in groupby(chunks, key=lambda chunk: int(chunk[0])):
            places = np.array([chunk[1:4] for chunk in own])
            for table in batches(self.paths[number], self.storage, self.sizes[number], places, types):
                # Without a column a table has no rows: that of the filter stays for the count.
                passed = table if wanted is None else table.filter(wanted)
                yield passed.select(list(columns)) if columns else passed


def _stems(paths: Sequence[str]) -> list[str]:
    stems = [path.rsplit("/", 1)[-1].split(".")[0] for path in paths]
    for k, stem in enumerate(stems):
        if stem in stems[:k]:
            raise InputError(
                f'data.client: "{FROM_FILE}" names both {paths[stems.index(stem)]} and {paths[k]} {stem!r}; rename one'
            )
    return stems


def _ends(chunks: np.ndarray, rows: int | None) -> np.ndarray:
    """Where the parts end: runs of chunks with at most ``rows`` rows together; without it, runs of one file each."""
    if rows is None:
        return np.append(np.flatnonzero(np.diff(chunks[:, 0])) + 1, len(chunks))
    ends, count = [], 0
    for k, own in enumerate(chunks[:, 4].tolist()):
        if count and count + own > rows:
            ends.append(k)
            count = 0
        count += own
    return np.array([*ends, len(chunks)], dtype=np.int64)


def _columns(source: Parts, paths: Sequence[str], contents: Sequence[Content]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The features, and how every column that is needed is read."""
    first = contents[0].types
    named = (source.label, *source.features, *source.drop)
    visible = [without_index(content.types, content.index, named) for content in contents]
    features = tuple(choose_features(visible[0], source.label, None, source.features, source.drop, paths[0]))
    filtered = [one[0] for one in source.filters]
    for name in filtered:
        if name not in first:
            raise InputError(f"data.filters: {paths[0]} has no column {name!r}{did_you_mean(name, first)}")
    needed = list(dict.fromkeys([*features, *([] if source.label is None else [source.label]), *filtered]))
    for path, content, columns in zip(paths[1:], contents[1:], visible[1:], strict=True):
        different = set() if source.features else set(visible[0]) ^ set(columns)
        odd = sorted(different | set(needed) - set(content.types))
        if odd:
            has, lacks = (path, paths[0]) if odd[0] in columns and odd[0] not in visible[0] else (paths[0], path)
            raise InputError(f"data.path: {has} has a column {odd[0]!r} and {lacks} has not; give all files the same columns")
    types, untyped = {}, any(path.endswith((".csv", ".csv.gz")) for path in paths)
    for name in needed:
        kind = _one_kind(name, paths, contents)
        if name in features and kind in ("time", "other"):
            such = " (the hour, the weekday)" if kind == "time" else ""
            raise InputError(
                f"data.path: column {name!r} of {paths[0]} holds {WORDS[kind]} ({first[name]}), and models need numbers or categories; "
                f"name it in data.drop, and store what matters of it{such} as columns of numbers or text"
            )
        own = common_type(content.types[name] for content in contents)
        # A later line of a CSV file may have a fraction where the first ones have none.
        loose = name in features or (untyped and name != source.label)
        types[name] = _float64() if loose and is_whole(own) else own
    return features, types


def _float64() -> Any:
    import pyarrow as pa

    return pa.float64()


def _one_kind(name: str, paths: Sequence[str], contents: Sequence[Content]) -> Kind:
    kinds = [kind_of_type(content.types[name]) for content in contents]
    known = [kind for kind in kinds if kind != "empty"]
    if len(set(known)) > 1:
        a, b = kinds.index(known[0]), next(k for k, kind in enumerate(kinds) if kind not in ("empty", known[0]))
        raise InputError(
            f"data.path: column {name!r} holds {WORDS[kinds[a]]} in {paths[a]} and {WORDS[kinds[b]]} in {paths[b]}; "
            "write it the same way in all files, or name it in data.drop"
        )
    return known[0] if known else "empty"
