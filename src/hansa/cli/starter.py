"""The starter job: what `hansa new` prints, and what `hansa demo` runs."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hansa.job import Job


def starter_text() -> str:
    """The commented job as TOML."""
    return (files("hansa") / "starter.toml").read_text("utf-8")


def starter_job() -> Job:
    """The same as an object."""
    from hansa.job import from_text

    return from_text(starter_text())
