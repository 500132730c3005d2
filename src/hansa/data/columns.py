"""From what clients told of their columns to what a preparation must know: kinds, gaps, dtypes and the values of categories."""

from __future__ import annotations

from typing import Any

from hansa.data.describe import Description
from hansa.data.preparing.layout import Layout


def kinds(description: Description) -> dict[Any, Any]:
    """Column name, or position in an array -> "number" or "category"."""
    if not description.features:
        return dict.fromkeys(range(description.shape[0]), "number")
    first = next(iter(description.facts.values()))["columns"]
    return {name: first[name]["kind"] for name in description.features}


def missing(description: Description) -> dict[Any, bool]:
    """The same columns -> whether any client has missing values there."""
    if not description.features:
        gaps = any(own["columns"]["x"]["missing"] for own in description.facts.values())
        return dict.fromkeys(range(description.shape[0]), gaps)
    return {name: any(own["columns"][name]["missing"] for own in description.facts.values()) for name in description.features}


def layout(description: Description) -> Layout:
    """The dtypes that all clients' raw columns are brought to."""
    if not description.features:
        return Layout((), (description.dtype,) * description.shape[0])
    empty = {name for name in description.features if not _values(description, name) and _is_empty(description, name)}
    known = kinds(description)
    dtypes = ("empty" if name in empty else "float64" if known[name] == "number" else "object" for name in description.features)
    return Layout(description.features, tuple(dtypes))


def candidates(description: Description) -> dict[Any, list[Any]]:
    """Columns whose values are known one by one -> every value that any client has there, in ascending order.

    These are all categories, and the numbers that are codes at every client.
    """
    known = {name: [own["columns"][name] for own in description.facts.values()] for name in description.features}
    values = {name: [column.get("values", column.get("few")) for column in columns] for name, columns in known.items()}
    return {name: sorted({v for some in each for v in some}) for name, each in values.items() if None not in each}


def _values(description: Description, name: str) -> list[Any]:
    return [value for own in description.facts.values() for value in own["columns"][name].get("values", ())]


def _is_empty(description: Description, name: str) -> bool:
    columns = [own["columns"][name] for own in description.facts.values()]
    return all(column.get("min") is None and not column.get("distinct") for column in columns)
