"""How what a job is made of is sent to the workers of a cluster, which are one owner's."""

from __future__ import annotations

from typing import Any

from hansa.core.errors import missing_extra


def cloudpickle() -> Any:
    """The package: what a notebook or a script defines is sent by value, since other machines cannot import it. InputError where it is
    not installed."""
    try:
        import cloudpickle
    except ImportError as error:
        raise missing_extra("cloudpickle", "dask") from error
    return cloudpickle
