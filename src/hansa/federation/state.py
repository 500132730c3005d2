"""What a server knows, in SQL: members, tokens, runs, their tasks and what came of them. Server processes keep no other state.

Every method is one transaction. Whatever a caller was told has been committed, and committed means durable: SQLite runs in WAL mode with
full synchronisation. Writes of a run name its owner, and fail for a server process whose lease another one has taken over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, insert, select

from hansa.federation.membership import Membership
from hansa.federation.reporting import Reported, Verdict
from hansa.federation.runs import LeaseLost, RunRow
from hansa.federation.schema import events
from hansa.federation.tasks import Task, Tasks


class State(Membership, Tasks):
    """See the module. Safe to use from many threads."""

    def tell(self, run: str, kind: str, content: Mapping[str, Any]) -> None:
        with self._write() as connection:
            connection.execute(insert(events).values(run=run, time=time.time(), kind=kind, content=json.dumps(content)))

    def events(self, run: str, after: int, most: int = 1000) -> list[Row[Any]]:
        """Events of a run after a number, in order."""
        query = select(events).where(events.c.run == run, events.c.number > after).order_by(events.c.number).limit(most)
        with self._read() as connection:
            return list(connection.execute(query))


__all__ = ["LeaseLost", "Reported", "RunRow", "State", "Task", "Verdict"]
