"""Data in files of one's own: CSV or Parquet, one file or many."""

from __future__ import annotations

import glob
import os
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hansa.core.errors import InputError, did_you_mean
from hansa.data.parts_columns import index_columns, without_index
from hansa.data.sources import Rows, Task, remembered
from hansa.data.tables import choose_features, client_ids, kind_of, labels_of, plain_frame, refuse_gaps, refuse_stray_meaning

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".csv", ".csv.gz", ".parquet")
FROM_FILE = "@file"

SEPARATORS = (";", "\t", "|")
"""What stands between the columns of files that are called CSV and are not."""


@dataclass(frozen=True)
class File:
    """Rows of one or more files with the same columns, put one behind the other in the order of their names.

    path:      a file, or a pattern such as ``data/*.csv`` (``**`` for any depth); relative to the working directory. From Python it may
               be a path object.
    label:     the column to predict; without it the rows have no labels, for learners that need none.
    client:    the column that names each row's client; ``"@file"`` makes every file a client, named like the file.
    features:  the columns to predict from; all others when empty.
    drop:      columns to leave out.
    positive:  the label that becomes 1, with all others 0.
    task:      "classification" or "regression"; without it, labels that are text, true or false, or whole numbers with at most 20
               distinct values are classes.

    Columns of numbers become float64, all others text; the index of a data frame that was written to Parquet is no feature unless
    ``features`` names it. Raises InputError when read, for whatever cannot work.
    """

    name: Literal["file"] = field(default="file", kw_only=True)
    path: str
    label: str | None = None
    client: str | None = None
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    positive: str | int | float | bool | None = None
    task: Task | None = None

    def __post_init__(self) -> None:
        if isinstance(self.path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.path))

    def read(self) -> Rows:
        """All rows; read again when a file has changed."""
        paths = matching(self.path)
        states = tuple((str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
        return remembered((repr(self), states), lambda: _read(self, paths))


def matching(pattern: str) -> list[Path]:
    """The files of a path or pattern in the order of their names. Raises InputError when there is none."""
    if "://" in pattern:
        raise InputError(
            f'data.path: {pattern} is a URL, and data.name = "file" reads files of this machine; write data.name = "parts" '
            "(hansa.Parts), which reads URLs"
        )
    paths = [Path(match) for match in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
    if any(path.is_dir() for path in paths) and len(paths) == 1:
        raise folder_given(pattern, [path.name for path in paths[0].iterdir()], ENDINGS)
    files = [path for path in paths if path.is_file()]
    if not files:
        folder = Path(pattern).expanduser().parent
        near = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        raise InputError(
            f"data.path: no file matches {pattern} in {Path.cwd()}{did_you_mean(Path(pattern).name, near) if near else ''}"
        )
    for path in files:
        if not path.name.endswith(ENDINGS):
            raise InputError(f"data.path: {path} is none of the files that can be read ({', '.join(ENDINGS)})")
    return files


def folder_given(pattern: str, names: Sequence[str], endings: Sequence[str]) -> InputError:
    """What is said of a folder in the place of files: the pattern of those in it that can be read."""
    found = [ending for ending in endings if any(name.endswith(ending) for name in names)] or endings
    return InputError(f"data.path: {pattern} is a folder; write {pattern.rstrip('/')}/*{found[0]} for the files in it")


def _read(source: File, paths: Sequence[Path]) -> Rows:
    import pandas as pd

    named = {source.label, source.client, *source.features, *source.drop}
    names = _header(paths[0], named)
    for path in paths[1:]:
        different = sorted(set(names) ^ set(_header(path, named)))
        if different:
            has, lacks = (paths[0], path) if different[0] in names else (path, paths[0])
            raise InputError(f"data.path: {has} has a column {different[0]!r} and {lacks} has not; give all files the same columns")
    column = None if source.client == FROM_FILE else source.client
    features = choose_features(names, source.label, column, source.features, source.drop, str(paths[0]))
    label = [] if source.label is None else [source.label]
    wanted = list(dict.fromkeys([*features, *label, *([] if column is None else [column])]))
    read = [(path, _frame(path, wanted)) for path in paths]
    filled = [(path, frame) for path, frame in read if len(frame)]  # a file without rows says nothing about types
    if not filled:
        raise InputError(f"data.path: {source.path} holds no rows")
    paths = [path for path, _ in filled]
    frames = _alike([frame for _, frame in filled], paths, [*features, *label])
    y, task = _labels(source, frames)
    return Rows(
        x=plain_frame(pd.concat([frame[features] for frame in frames], ignore_index=True)),
        y=y,
        client=_clients(source, paths, frames, column),
        test=None,
        task=task,
    )


def _labels(source: File, frames: Sequence[pd.DataFrame]) -> tuple[np.ndarray | None, Task]:
    import pandas as pd

    if source.label is None:
        refuse_stray_meaning(source.positive, source.task)
        return None, "unlabelled"
    where = f"label column {source.label!r}"
    labels = pd.concat([frame[source.label] for frame in frames], ignore_index=True)
    refuse_gaps(labels, where, "every row needs a label")
    return labels_of(labels, source.task, source.positive, where)


def _clients(source: File, paths: Sequence[Path], frames: Sequence[pd.DataFrame], column: str | None) -> np.ndarray | None:
    if column is not None:
        ids = [client_ids(frame[column], f"client column {column!r} of {path}") for frame, path in zip(frames, paths, strict=True)]
        return np.concatenate(ids)
    if source.client is None:
        return None
    stems = [path.name.split(".")[0] for path in paths]
    for k, stem in enumerate(stems):
        if stem in stems[:k]:
            raise InputError(
                f'data.client: "{FROM_FILE}" names both {paths[stems.index(stem)]} and {paths[k]} {stem!r}; '
                "rename one, or name a column in data.client"
            )
    return np.repeat(np.array(stems, dtype=str), [len(frame) for frame in frames])


def _header(path: Path, named: Collection[str | None]) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with _reading(path):
            schema = pq.read_schema(path)
            return without_index(schema.names, index_columns(schema), named)
    import pandas as pd

    with _reading(path):
        line = pd.read_csv(path, nrows=1, header=None, dtype=str, keep_default_na=False, index_col=False)
    return csv_names(str(path), line.iloc[0].tolist())


def csv_names(path: str, given: Sequence[str]) -> list[str]:
    """The names of a CSV file's columns, from its first line; one without a name gets that which pandas gives it.

    Raises InputError for two columns of one name, and for columns that no comma separates.
    """
    if len(given) == 1 and (odd := next((mark for mark in SEPARATORS if mark in given[0]), None)):
        raise InputError(
            f"data.path: {path} has {odd!r} between its columns, and CSV is read with commas; save it again with pandas.read_csv("
            f"{path!r}, sep={odd!r}).to_csv({path!r}, index=False), and with decimal=',' in read_csv where its numbers are written so"
        )
    names = [name or f"Unnamed: {place}" for place, name in enumerate(given)]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise InputError(f"data.path: {path} has several columns {twice!r}; give every column its own name")
    return names


def _frame(path: Path, columns: list[str]) -> pd.DataFrame:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with _reading(path):
            return pq.read_table(path, columns=columns).to_pandas(ignore_metadata=True)
    import pandas as pd

    # low_memory would guess a column's type chunk by chunk; index_col would take a row's surplus field for a name, and usecols
    # would drop it without a word.
    with _reading(path):
        return pd.read_csv(path, low_memory=False, index_col=False)[columns]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    # Whatever a reader raises, and its warning about rows that are longer than the header, becomes one sentence.
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield
    except UnicodeDecodeError as error:
        raise no_utf8(str(path)) from error
    except pd.errors.EmptyDataError as error:
        raise InputError(f"data.path: {path} is empty; a table has a line of column names") from error
    except (ValueError, OSError, EOFError, zlib.error, pd.errors.ParserWarning) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"data.path: {path} cannot be read as a table: {reason}") from error


def no_utf8(path: str) -> InputError:
    """What is said of a text file in another encoding."""
    return InputError(
        f"data.path: {path} is not in UTF-8, and nothing in it tells in which encoding it is; save it again as UTF-8, where it is Latin-1 "
        f'with pandas.read_csv({path!r}, encoding="latin-1").to_csv({path!r}, index=False)'
    )


def _no_number(column: pd.Series) -> str:
    import pandas as pd

    texts = column.dropna()
    odd = texts[pd.to_numeric(texts, errors="coerce").isna()]
    return str((odd if len(odd) else texts).iloc[0])


def _alike(frames: list[pd.DataFrame], paths: Sequence[Path], columns: Sequence[str]) -> list[pd.DataFrame]:
    # A column of numbers here and of text there would become text everywhere, and 3 and 3.0 two categories.
    for column in columns:
        kinds = [kind_of(frame[column]) for frame in frames]
        known = [kind for kind in kinds if kind is not None]
        if len(set(known)) > 1:
            number, text = kinds.index("number"), kinds.index("category")
            example = _no_number(frames[text][column])
            raise InputError(
                f"data.path: column {column!r} holds numbers in {paths[number]} and text in {paths[text]} (such as {example!r}); "
                "write it the same way in all files, or name it in data.drop"
            )
        for frame, kind in zip(frames, kinds, strict=True):
            if kind is None and known:  # an empty column takes the type that it has in the other files
                frame[column] = frame[column].astype(np.float64 if known[0] == "number" else object)
    return frames
