"""Where clients' data comes from: sources, partitions, each client's split, and what can be said of the data before training.

Names are imported when they are first used, so that ``import hansa.data`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hansa.data.builtin import BuiltIn
    from hansa.data.describe import Describe, Description, check
    from hansa.data.facts import facts_of
    from hansa.data.files import File
    from hansa.data.memory import Memory, from_arrays, from_table, from_torch
    from hansa.data.partition import IID, Column, Dirichlet, Partition, Shards
    from hansa.data.parts import Parts
    from hansa.data.parts_frames import Partitions, from_partitions
    from hansa.data.recipes import Population, central, clients, pooled
    from hansa.data.sources import Holders, Rows, Source, Task
    from hansa.data.split import Split
    from hansa.data.synthetic import Fixed, Lognormal, Synthetic

_MODULES = {
    "builtin": ("BuiltIn",),
    "describe": ("Describe", "Description", "check"),
    "facts": ("facts_of",),
    "files": ("File",),
    "memory": ("Memory", "from_arrays", "from_table", "from_torch"),
    "parts": ("Parts",),
    "parts_frames": ("Partitions", "from_partitions"),
    "partition": ("IID", "Column", "Dirichlet", "Partition", "Shards"),
    "recipes": ("Population", "central", "clients", "pooled"),
    "sources": ("Holders", "Rows", "Source", "Task"),
    "split": ("Split",),
    "synthetic": ("Fixed", "Lognormal", "Synthetic"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "IID", "BuiltIn", "Column", "Describe", "Description", "Dirichlet", "File", "Fixed", "Holders", "Lognormal", "Memory", "Partition",
    "Partitions", "Parts", "Population", "Rows", "Shards", "Source", "Split", "Synthetic", "Task", "central", "check", "clients",
    "facts_of", "from_arrays", "from_partitions", "from_table", "from_torch", "pooled",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hansa.data' has no attribute {name!r}")
    value = getattr(import_module(f"hansa.data.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
