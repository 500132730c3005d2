"""Files that are read piece by piece: row groups of Parquet, record batches of Arrow, lines of CSV.

Every kind of file answers two questions: what is in it and where it may be cut (:func:`survey`), and the rows of one of its chunks
(:func:`batches`). A chunk is ``(unit, start, stop)``: a row group or record batch and rows of it, or bytes of a CSV file. Chunks follow
from the file and the greatest number of rows alone.
"""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hansa.core.errors import InputError, did_you_mean
from hansa.data.files import csv_names, folder_given, no_utf8
from hansa.data.parts_columns import as_type, index_columns

ENDINGS = (".parquet", ".arrow", ".feather", ".csv", ".csv.gz")

BATCH = 65_536
"""Rows of a Parquet row group that are decoded at a time."""

STEP = 4 * 2**20
"""Bytes of a CSV file that are searched for line ends at a time."""

HEAD = 2**20
"""Bytes at the beginning of a CSV file that tell what its columns hold."""

MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN",
    "None", "n/a", "nan", "null",
)  # fmt: skip
"""What pandas takes for an empty cell of a CSV file, too."""

UNCLOSED = "a quote is not closed on its own line (write values that hold line breaks to Parquet)"


@dataclass(frozen=True)
class Content:
    """What is in a file.

    size:      bytes.
    types:     column -> Arrow type.
    chunks:    int64 (chunks, 4): unit, start, stop, rows.
    fragment:  of a Parquet file, with its statistics.
    index:     the columns that hold the index of a data frame.
    """

    size: int
    types: Mapping[str, Any]
    chunks: np.ndarray
    fragment: Any = field(default=None, repr=False)
    index: tuple[str, ...] = ()


def matching(pattern: str, storage: Mapping[str, Any]) -> list[str]:
    """The files of a path, a pattern or a URL in the order of their names, absolute. Raises InputError when there is none."""
    remote = "://" in pattern
    found = _remote_matches(pattern, storage) if remote else _local_matches(pattern)
    if not found:
        where = "" if remote else f" in {Path.cwd()}"
        folder = Path(pattern).expanduser().parent
        near = [path.name for path in folder.iterdir() if path.is_file()] if not remote and folder.is_dir() else []
        raise InputError(f"data.path: no file matches {pattern}{where}{did_you_mean(Path(pattern).name, near) if near else ''}")
    for path in found:
        if not path.endswith(ENDINGS):
            raise InputError(f"data.path: {path} is none of the files that can be read in parts ({', '.join(ENDINGS)})")
    return found


def _local_matches(pattern: str) -> list[str]:
    given = Path(pattern).expanduser()
    if given.is_dir():
        raise folder_given(pattern, [path.name for path in given.iterdir()], ENDINGS)
    return sorted(str(Path(match).resolve()) for match in glob.glob(str(given), recursive=True) if Path(match).is_file())


def _remote_matches(pattern: str, storage: Mapping[str, Any]) -> list[str]:
    inner, _, outer = pattern.partition("::")
    if outer and "://" in inner:
        raise InputError(
            f"data.path: {pattern} is a file inside another, and parts are read at any place of a file; unpack {outer}, and give the "
            "pattern of what was in it"
        )
    with _reading(pattern):
        system, path = _remote(pattern, storage)
        if system.isdir(path):
            raise folder_given(pattern, [str(name) for name in system.ls(path, detail=False)], ENDINGS)
        names = system.glob(path) if glob.has_magic(path) else [path] if system.isfile(path) else []
        return sorted(system.unstrip_protocol(name) for name in names if system.isfile(name))


def _remote(url: str, storage: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    try:
        import fsspec.core
    except ImportError as error:
        raise InputError(f"data.path: {url} is read through fsspec, which is not installed; write: pip install fsspec") from error
    try:
        system, path = fsspec.core.url_to_fs(url, **storage)
    except (ImportError, ValueError, TypeError) as error:
        raise InputError(f"data.path: {url} cannot be opened: {_first_line(error)}") from error
    return system, path


def opened(path: str, storage: Mapping[str, Any]) -> Any:
    """The file as an Arrow file that can be read at any place."""
    import pyarrow as pa

    if "://" not in path:
        return pa.OSFile(path)
    system, inner = _remote(path, storage)
    return pa.PythonFile(system.open(inner, mode="rb"), mode="r")


def survey(path: str, storage: Mapping[str, Any], rows: int) -> Content:
    """What is in a file, and where it is cut into chunks of at most ``rows`` rows (an archive ``.csv.gz`` is one chunk).

    Of Parquet the footer is read, of Arrow the footer and the narrowest column, of CSV the bytes once, for the ends of its lines.
    """
    with _reading(path):
        if path.endswith(".parquet"):
            return _survey_parquet(path, storage, rows)
        with opened(path, storage) as file:
            return _survey_csv(path, file, rows) if path.endswith((".csv", ".csv.gz")) else _survey_arrow(file, rows)


def batches(path: str, storage: Mapping[str, Any], size: int, chunks: np.ndarray, types: Mapping[str, Any]) -> Iterator[Any]:
    """The rows of each of a file's chunks as an Arrow table of the columns ``types``, in their order, before any filter.

    size:    bytes that the file had when it was cut.
    chunks:  int64 (chunks, 3): unit, start, stop.
    """
    with _reading(path), opened(path, storage) as file:
        if file.size() != size:
            raise InputError(
                f"data.path: {path} has {file.size():,} bytes and had {size:,} when it was cut into parts; make the job again"
            )
        read = _read_parquet if path.endswith(".parquet") else _read_csv if path.endswith((".csv", ".csv.gz")) else _read_arrow
        yield from read(path, file, chunks.tolist(), types)


def statistics_allow(content: Content, wanted: Any, types: Mapping[str, Any]) -> np.ndarray:
    """Which chunks may hold rows that pass a filter of columns of such types, bool (chunks,), by the statistics of their row groups."""
    if content.fragment is None or wanted is None:
        return np.ones(len(content.chunks), dtype=bool)
    import pyarrow as pa

    # The types of the whole table: a file that has no value in a column may call it by no type at all.
    groups = {group.id for group in content.fragment.subset(wanted, pa.schema(list(types.items()))).row_groups}
    return np.array([unit in groups for unit in content.chunks[:, 0].tolist()], dtype=bool)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    # Whatever a reader raises becomes one sentence.
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise no_utf8(path) from error
    except (ValueError, OSError, EOFError, NotImplementedError, KeyError, csv.Error) as error:
        if "invalid UTF8" in str(error):
            raise no_utf8(path) from error
        raise InputError(f"data.path: {path} cannot be read as a table: {_first_line(error)}") from error
    except Exception as error:
        # The packages of remote file systems raise errors of their own, such as for keys that are not there.
        if "://" not in path:
            raise
        raise InputError(f"data.path: {path} cannot be opened: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _pieces(unit: int, length: int, rows: int) -> list[tuple[int, int, int, int]]:
    # Equal pieces, none above the bound.
    count = -(-length // rows)
    bounds = [length * k // count for k in range(count + 1)] if count else []
    return [(unit, start, stop, stop - start) for start, stop in pairwise(bounds)]


def _array(chunks: Sequence[tuple[int, ...]]) -> np.ndarray:
    return np.array(chunks, dtype=np.int64).reshape(-1, 4)


def _changed(path: str) -> InputError:
    return InputError(f"data.path: {path} is not what it was when it was cut into parts; make the job again")


def _survey_parquet(path: str, storage: Mapping[str, Any], rows: int) -> Content:
    import pyarrow.dataset as ds
    from pyarrow import fs

    system, inner = (fs.LocalFileSystem(), path) if "://" not in path else _arrow_system(path, storage)
    size = system.get_file_info(inner).size
    fragment = ds.ParquetFileFormat().make_fragment(inner, filesystem=system)
    metadata, schema = fragment.metadata, fragment.physical_schema
    lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    chunks = [piece for group, length in enumerate(lengths) for piece in _pieces(group, length, rows)]
    return Content(size, _types(path, schema), _array(chunks), fragment, index_columns(schema))


def _arrow_system(url: str, storage: Mapping[str, Any]) -> tuple[Any, str]:
    from pyarrow import fs

    system, inner = _remote(url, storage)
    return fs.PyFileSystem(fs.FSSpecHandler(system)), inner


def _read_parquet(path: str, file: Any, chunks: list[list[int]], types: Mapping[str, Any]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    for group, run in groupby(chunks, key=lambda chunk: chunk[0]):
        places = [(start, stop) for _, start, stop in run]
        if group >= table.num_row_groups or places[-1][1] > table.metadata.row_group(group).num_rows:
            raise _changed(path)
        stream = table.iter_batches(batch_size=BATCH, row_groups=[group], columns=list(types))
        for some in _cut(stream, places):
            yield _typed(pa.Table.from_batches(some), types)


def _cut(stream: Iterator[Any], places: Sequence[tuple[int, int]]) -> Iterator[list[Any]]:
    """The rows (start, stop) of a stream of record batches, for ascending places, from one pass that ends with the last of them."""
    batch, at = next(stream), 0
    for start, stop in places:
        found = []
        while True:
            end = at + batch.num_rows
            if start < end and at < stop:
                found.append(batch.slice(max(start - at, 0), min(stop, end) - max(start, at)))
            if stop <= end:
                break
            batch, at = next(stream), end
        yield found


def _survey_arrow(file: Any, rows: int) -> Content:
    from pyarrow import ipc

    schema = ipc.open_file(file).schema
    widths = [getattr(kind, "byte_width", 0) or 64 if _fixed(kind) else 64 for kind in schema.types]
    narrowest = int(np.argmin(widths)) if widths else 0
    counted = ipc.open_file(file, options=ipc.IpcReadOptions(included_fields=[narrowest] if widths else None))
    lengths = [counted.get_batch(k).num_rows for k in range(counted.num_record_batches)]
    chunks = [piece for batch, length in enumerate(lengths) for piece in _pieces(batch, length, rows)]
    return Content(file.size(), _types("", schema), _array(chunks), index=index_columns(schema))


def _fixed(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_primitive(kind)) and not types.is_boolean(kind)


def _read_arrow(path: str, file: Any, chunks: list[list[int]], types: Mapping[str, Any]) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import ipc

    names = ipc.open_file(file).schema.names
    reader = ipc.open_file(file, options=ipc.IpcReadOptions(included_fields=[names.index(name) for name in types]))
    for batch, start, stop in chunks:
        if batch >= reader.num_record_batches:
            raise _changed(path)
        whole = reader.get_batch(batch)
        if stop > whole.num_rows:
            raise _changed(path)
        yield _typed(pa.Table.from_batches([whole.slice(start, stop - start)]), types)


def _typed(table: Any, types: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    return pa.table({name: as_type(table[name], kind) for name, kind in types.items()})


def _types(path: str, schema: Any) -> dict[str, Any]:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise InputError(f"data.path: {path} has several columns {twice[0]!r}; give every column its own name")
    return dict(zip(schema.names, schema.types, strict=True))


def _survey_csv(path: str, file: Any, rows: int) -> Content:
    import pyarrow as pa

    size = file.size()
    packed = path.endswith(".gz")
    stream = pa.CompressedInputStream(file, "gzip") if packed else file
    head = stream.read(HEAD)
    if not head.strip():
        raise InputError(f"data.path: {path} is empty; a table has a line of column names")
    line_end = head.find(b"\n") + 1 or len(head)
    names = csv_names(path, _header(head[:line_end]))
    body = head[line_end:]
    first = body if len(head) < HEAD else body[: body.rfind(b"\n") + 1]
    found = _parsed(first, names, names, None).schema if first.strip() else pa.schema([(name, pa.null()) for name in names])
    if any(pa.types.is_binary(kind) for kind in found.types):  # as which Arrow takes texts that it cannot decode
        raise no_utf8(path)
    cuts, end = _cut_lines(stream, body, line_end, rows)
    chunks = [(0, start, stop, count) for start, stop, count in cuts]
    if packed and chunks:
        chunks = [(0, line_end, end, sum(count for *_, count in chunks))]
    return Content(size, _types(path, found), _array(chunks))


def _header(line: bytes) -> list[str]:
    return next(csv.reader(io.StringIO(line.decode("utf-8-sig"))))


def _cut_lines(stream: Any, ahead: bytes, offset: int, rows: int) -> tuple[list[tuple[int, int, int]], int]:
    """(first byte, byte behind the last, rows) of runs of at most ``rows`` lines from ``offset`` on, and the end of the file.

    A row is a line, and empty lines are none, as for Arrow's reader.
    """
    cuts: list[tuple[int, int, int]] = []
    begin = line = at = offset
    count, last, open_quotes = 0, 10, 0
    block = ahead
    while block or (block := stream.read(STEP)):
        data = np.frombuffer(block, dtype=np.uint8)
        ends, quotes = np.flatnonzero(data == 10), np.flatnonzero(data == 34)
        if ((np.searchsorted(quotes, ends) + open_quotes) % 2).any():
            raise ValueError(UNCLOSED)
        open_quotes = (open_quotes + len(quotes)) % 2
        if len(ends):
            before = np.where(ends > 0, data[ends - 1], last)
            lengths = np.diff(ends + at, prepend=line - 1) - 1
            full = ends[~((lengths == 0) | ((lengths == 1) & (before == 13)))] + at + 1
            while count + len(full) >= rows:
                taken = rows - count
                cuts.append((begin, int(full[taken - 1]), rows))
                begin, count, full = int(full[taken - 1]), 0, full[taken:]
            count += len(full)
            line = int(ends[-1]) + at + 1
        at, last = at + len(data), int(data[-1])
        block = b""
    if open_quotes:
        raise ValueError(UNCLOSED)
    if at > line and not (at == line + 1 and last == 13):
        count += 1  # the last line need not end
    if count:
        cuts.append((begin, at, count))
    return cuts, at


def _parsed(text: Any, names: Sequence[str], columns: Sequence[str], types: Mapping[str, Any] | None) -> Any:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    return arrow_csv.read_csv(
        pa.BufferReader(text),
        read_options=arrow_csv.ReadOptions(
            column_names=list(names), block_size=max(HEAD, len(text) + 1) if types is None else HEAD
        ),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=list(columns), column_types=dict(types or {}), null_values=list(MISSING), strings_can_be_null=True
        ),
    )


def _read_csv(path: str, file: Any, chunks: list[list[int]], types: Mapping[str, Any]) -> Iterator[Any]:
    import pyarrow as pa

    packed = path.endswith(".gz")
    stream = pa.CompressedInputStream(file, "gzip") if packed else file
    head = stream.read(HEAD)
    names = csv_names(path, _header(head[: head.find(b"\n") + 1 or len(head)]))
    for _, start, stop in chunks:
        if packed:
            text: Any = b"".join([head, *iter(lambda: stream.read(STEP), b"")])[start:stop]
        else:
            stream.seek(start)
            text = stream.read_buffer(stop - start)
        yield _parsed(text, names, list(types), types)
