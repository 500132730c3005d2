"""Reading a tree that another organisation sent: every entry is of the kind that it must be, or an InputError says which is not."""

from __future__ import annotations

from typing import Any

import numpy as np

from hansa.core.errors import InputError


def only(tree: Any, names: set[str], what: str) -> None:
    if not isinstance(tree, dict) or tree.keys() != names:
        raise InputError(f"{what}: it is not a table of {', '.join(sorted(names))}; use the same version of hansa at both ends")


def entry(tree: Any, name: str, kind: type) -> Any:
    if not isinstance(tree, dict) or type(tree.get(name)) is not kind:
        raise InputError(f"{name}: it is no {kind.__name__}; use the same version of hansa at both ends")
    return tree[name]


def whole_number(tree: Any, name: str) -> int:
    number: int = entry(tree, name, int)
    if number < 0:
        raise InputError(f"{name}: {number} is negative; use the same version of hansa at both ends")
    return number


def one_of(value: str, allowed: tuple[str, ...], what: str) -> Any:
    if value not in allowed:
        raise InputError(f"{what}: {value[:50]!r} is none of {', '.join(allowed)}; use the same version of hansa at both ends")
    return value


def arrays(tree: Any, what: str) -> dict[str, Any]:
    # A counter that was rounded is a NumPy number.
    if not isinstance(tree, dict) or not all(isinstance(value, np.ndarray | np.generic) for value in tree.values()):
        raise InputError(f"{what}: they are not named arrays; use the same version of hansa at both ends")
    return tree
