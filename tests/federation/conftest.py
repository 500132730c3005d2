"""What several test modules of a federation share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.federation.databases import running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes a new database of a PostgreSQL on this machine, and returns its URL."""
    with running_postgres() as new:
        yield new
