"""The layout that all clients' raw features are brought to before anything is counted: columns, their order and their dtypes.

A column may be whole numbers at one client, have gaps at the next and be empty at a third. Pooled, it would have one dtype; the
layout is that dtype, agreed without pooling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hansa.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

EMPTY = "empty"
TEXT = ("str", "object")


@dataclass(frozen=True)
class Layout:
    """Names and dtypes of the raw columns; ``names`` is empty where the features are one array.

    dtypes: a NumPy number ("float64", "int64", ...), "bool", "str", "object", or "empty" for a column without any value.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of_kinds(cls, kinds: Mapping[str, Literal["number", "category"]]) -> Layout:
        """The layout of a data frame whose columns are float64 numbers or categories as text."""
        return cls(tuple(kinds), tuple("float64" if kind == "number" else "object" for kind in kinds.values()))

    @classmethod
    def of(cls, x: Any) -> Layout:
        """The layout of one table's features: a data frame, or an array (rows, columns) of numbers.

        Raises InputError for a column that is neither numbers, truth values nor text, and for an array of another shape.
        """
        if hasattr(x, "iloc"):
            strange = [name for name in x.columns if not isinstance(name, str)]
            if strange:
                raise InputError(
                    f"column {strange[0]!r} has a name that is not text; rename it, e.g. x.columns = x.columns.astype(str)"
                )
            return cls(tuple(x.columns), tuple(_dtype_name(name, x[name]) for name in x.columns))
        if getattr(x, "ndim", 0) != 2 or x.dtype.kind not in "fiub":
            shape, dtype = getattr(x, "shape", "no shape"), getattr(x, "dtype", type(x).__name__)
            raise InputError(
                f"features of shape {shape} and type {dtype} cannot be prepared; give a data frame, or an array (rows, columns) of numbers"
            )
        return cls((), (_number_name(x.dtype),) * x.shape[1])

    @classmethod
    def joined(cls, layouts: Iterable[Layout]) -> Layout:
        """The layout that pooled rows would have; a column that has no value at one client follows the others.

        Raises InputError when the clients' columns differ.
        """
        listed = list(layouts)
        first = listed[0]
        for other in listed[1:]:
            if set(other.names) != set(first.names) or len(other.dtypes) != len(first.dtypes):
                odd = sorted(set(other.names) ^ set(first.names)) or [f"{len(first.dtypes)} and {len(other.dtypes)} columns"]
                raise InputError(f"the clients' columns differ: {', '.join(odd)}; all clients must hold the same columns")
        keys: Sequence[Any] = first.names or range(len(first.dtypes))
        tables = [dict(zip(one.names or keys, one.dtypes, strict=True)) for one in listed]
        return replace(first, dtypes=tuple(_common([table[name] for table in tables]) for name in keys))

    def cast(self, x: Any) -> Any:
        """A client's raw features in this layout. Missing text becomes NaN; columns that the layout lacks are left out.

        Raises InputError for a missing column, values of another kind, and infinite values.
        """
        if self.names:
            import pandas as pd

            if not isinstance(x, pd.DataFrame):
                raise InputError(
                    f"features of type {type(x).__name__} given, a data frame with columns {list(self.names)} is needed"
                )
            lost = [name for name in self.names if name not in x.columns]
            if lost:
                raise InputError(f"the table has no column {lost[0]!r}{did_you_mean(lost[0], map(str, x.columns))}")
            columns = zip(self.names, self.dtypes, strict=True)
            return pd.DataFrame({name: _cast_column(name, x[name], dtype) for name, dtype in columns}, copy=False)
        if getattr(x, "ndim", 0) != 2 or x.shape[1] != len(self.dtypes):
            raise InputError(f"features of shape {getattr(x, 'shape', ())} given, an array (rows, {len(self.dtypes)}) is needed")
        array = np.asarray(x, dtype=_numpy_name(self.dtypes[0]))
        if array.dtype.kind == "f" and np.isinf(array).any():
            raise InputError(f"column {int(np.isinf(array).any(axis=0).argmax())} has infinite values; remove or replace them")
        return array

    def plain(self) -> dict[str, list[str]]:
        return {"names": list(self.names), "dtypes": list(self.dtypes)}

    @classmethod
    def from_plain(cls, value: Mapping[str, Sequence[str]]) -> Layout:
        return cls(tuple(value["names"]), tuple(value["dtypes"]))


def _dtype_name(name: str, column: Any) -> str:
    import pandas as pd

    if isinstance(column, pd.DataFrame):
        raise InputError(f"column {name!r} stands twice in the table; rename one of them")
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = np.asarray(column)
        column = pd.Series(values, dtype=values.dtype)
    if len(column) == 0 or bool(column.isna().all()):
        return EMPTY
    if pd.api.types.is_bool_dtype(column.dtype):
        return "object" if column.isna().any() else "bool"
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        # scikit-learn reads pandas' nullable numbers as floats.
        dtype = column.dtype if isinstance(column.dtype, np.dtype) else np.dtype(column.dtype.numpy_dtype)
        nullable = column.dtype is not dtype
        return "float64" if nullable and dtype.kind in "iu" else _number_name(dtype)
    if pd.api.types.is_string_dtype(column.dtype) or column.dtype == object:
        return "str" if column.dtype.name == "str" else "object"
    raise InputError(f"column {name!r} has type {column.dtype}, which cannot be prepared; turn it into numbers or text first")


def _number_name(dtype: np.dtype[Any]) -> str:
    # scikit-learn computes in single or double precision; half and extended go to the nearest of the two.
    return {"float16": "float32", "longdouble": "float64", "float128": "float64"}.get(dtype.name, dtype.name)


def _common(dtypes: Sequence[str]) -> str:
    kinds = {dtype for dtype in dtypes if dtype != EMPTY}
    if not kinds:
        return EMPTY
    if len(kinds) == 1 and EMPTY not in dtypes:
        return kinds.pop()
    if kinds & set(TEXT):
        return "str" if kinds == {"str"} else "object"
    if "bool" in kinds:
        return "object"
    widest = np.result_type(*(np.dtype(kind) for kind in kinds))
    return "float64" if EMPTY in dtypes and widest.kind in "iu" else widest.name


def _numpy_name(dtype: str) -> str:
    return "float64" if dtype == EMPTY else dtype


def _cast_column(name: str, column: pd.Series, dtype: str) -> Any:
    if dtype in TEXT:
        return _text(column, dtype)
    wanted = np.dtype(_numpy_name(dtype))
    values = numbers = column.to_numpy() if column.dtype == wanted else None
    if numbers is None:
        try:
            values = column.to_numpy(dtype=np.float64 if wanted.kind == "f" else None, na_value=np.nan)
            with np.errstate(invalid="ignore"):
                numbers = values.astype(wanted)
        except (ValueError, TypeError) as error:
            raise InputError(f"column {name!r} was described as {dtype} and cannot be read so: {error}") from error
    if wanted.kind != "f" and not bool((numbers == values).all()):
        raise InputError(f"column {name!r} was described as {dtype} and holds other values; describe it as float64")
    if wanted.kind == "f" and np.isinf(numbers).any():
        raise InputError(f"column {name!r} has infinite values; remove or replace them")
    return numbers


def _text(column: pd.Series, dtype: str) -> Any:
    if dtype == "str" and column.dtype.name == "str":
        return column.array
    import pandas as pd

    values = column.to_numpy(dtype=object)
    gaps = column.isna().to_numpy()
    if gaps.any():
        values = values.copy()
        values[gaps] = np.nan
    return pd.Series(values, dtype=text_dtype() if dtype == "str" else object)


def text_dtype() -> Any:
    """The dtype that this version of pandas gives to text: "str" since 3.0, "object" before."""
    import pandas as pd

    return pd.Series(["a"]).dtype
