"""What engines ask of the machine that they run on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.spawn import get_preparation_data
from pathlib import Path

from hansa.core.errors import InputError


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_unimportable(engine: str) -> None:
    """InputError where this program is no file, which processes that are started from it would look for."""
    path = get_preparation_data("").get("init_main_from_path")
    if path is not None and not Path(path).exists():
        raise InputError(
            f"engine {engine}: its processes import this program again, and {path!r} is no file; save what was read from standard input "
            "as one, or write engine.name = 'inline'"
        )


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Variables that what is started or imported inside finds set; afterwards they are as they were."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
