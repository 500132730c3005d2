"""What the database knows of runs: who plays them, how far they are, and what came of their rounds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, insert, or_, select, text, update

from hansa.core.errors import InputError, RunFailed
from hansa.federation.database import Database
from hansa.federation.schema import records, runs, tasks

RunStatus = Literal["waiting", "running", "finished", "failed", "stopped"]


class LeaseLost(RunFailed):
    """Another server process plays this run now."""


@dataclass(frozen=True)
class RunRow:
    """A row of ``runs``; see :mod:`hansa.federation.schema`."""

    id: str
    name: str
    job: str
    status: str
    message: str
    submitted_by: str
    submitted: float
    stop: bool
    clients: tuple[str, ...] | None
    round: int
    state: str | None
    owner: str | None
    leased: float


class Runs(Database):
    """See the module."""

    def submit(self, id: str, name: str, job: str, by: str) -> None:
        """A new run; the same again where it is there already."""
        with self._write() as connection:
            if connection.execute(select(runs.c.id).where(runs.c.id == id)).first() is None:
                connection.execute(
                    insert(runs).values(
                        id=id, name=name, job=job, status="waiting", message="", submitted_by=by, submitted=time.time(), stop=False,
                        round=0, leased=0.0,
                    )
                )  # fmt: skip

    def submit_once(self, id: str, name: str, job: str, by: str, ended: bool = False) -> str:
        """As :meth:`submit`, but the newest run of the same job that is not over yet, where there is one; returns the run's id.

        ended: where all are over, the newest one counts as well, unless it failed.
        """
        with self._write() as connection:
            if self._writing is None:
                connection.execute(text("LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE"))  # two servers may start at the same time
            same = select(runs.c.id, runs.c.status).where(runs.c.job == job).order_by(runs.c.submitted.desc()).limit(1)
            found = connection.execute(same.where(runs.c.status.in_(("waiting", "running")))).first()
            if found is None and ended:
                found = connection.execute(same).first()
            if found is not None and found.status != "failed":
                return str(found.id)
            row = {"id": id, "name": name, "job": job, "status": "waiting", "message": "", "submitted_by": by, "round": 0}
            connection.execute(insert(runs).values(**row, submitted=time.time(), stop=False, leased=0.0))
            return id

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        with self._read() as connection:
            return [_run(row) for row in connection.execute(select(runs).order_by(runs.c.submitted, runs.c.id))]

    def run(self, id: str) -> RunRow:
        """InputError where there is no such run."""
        row = None
        if "\0" not in id:  # which PostgreSQL knows in no text
            with self._read() as connection:
                row = connection.execute(select(runs).where(runs.c.id == id)).first()
        if row is None:
            raise InputError(f"run {id[:64]!r}: there is no such run here (`hansa runs` lists them)")
        return _run(row)

    def ask_to_stop(self, id: str) -> None:
        """InputError where there is no such run, and where it is over."""
        row = self.run(id)
        if row.status not in ("waiting", "running"):
            raise InputError(f"run {id}: is over already ({row.status}), so there is nothing to stop (`hansa runs` lists the runs)")
        with self._write() as connection:
            connection.execute(update(runs).where(runs.c.id == id).values(stop=True))

    def claim(self, owner: str, seconds: float) -> RunRow | None:
        """The oldest run that is not over and that nobody plays, now leased to ``owner``; its own again, after a restart."""
        now = time.time()
        free = or_(runs.c.leased < now, runs.c.owner == owner)
        query = (
            select(runs.c.id).where(runs.c.status.in_(("waiting", "running")), free).order_by(runs.c.submitted, runs.c.id).limit(1)
        )
        with self._write() as connection:
            found = connection.execute(query if self._writing else query.with_for_update(skip_locked=True)).first()
            if found is None:
                return None
            mine = update(runs).where(runs.c.id == found.id).values(owner=owner, leased=now + seconds)
            connection.execute(mine)
            return _run(connection.execute(select(runs).where(runs.c.id == found.id)).one())

    def renew(self, id: str, owner: str, seconds: float) -> bool:
        """Keep a lease; returns whether the run has been asked to stop. Raises LeaseLost."""
        with self._write() as connection:
            row = self._owned(connection, id, owner)
            connection.execute(update(runs).where(runs.c.id == id).values(leased=time.time() + seconds))
            return bool(row.stop)

    def adopt(self, id: str, owner: str) -> None:
        """Become the owner of a run that is over, to look at its end once more."""
        over = runs.c.status.notin_(("waiting", "running")) & (runs.c.leased < time.time())
        with self._write() as connection:
            connection.execute(update(runs).where((runs.c.id == id) & over).values(owner=owner))

    def release(self, id: str, owner: str) -> None:
        """Let another process go on with a run at once."""
        with self._write() as connection:
            connection.execute(update(runs).where(runs.c.id == id, runs.c.owner == owner).values(leased=0.0))

    def _owned(self, connection: Connection, id: str, owner: str) -> Row[Any]:
        query = select(runs).where(runs.c.id == id)
        row = connection.execute(query if self._writing else query.with_for_update()).one()
        if row.owner != owner:
            raise LeaseLost(f"run {id}: the server process {row.owner} has taken it over")
        return row

    def settle(self, id: str, owner: str, clients: Sequence[str]) -> tuple[str, ...]:
        """Fix who takes part in a run, once; returns the names, which stay what they were if they had been settled before."""
        with self._write() as connection:
            row = self._owned(connection, id, owner)
            names = list(clients) if row.clients is None else json.loads(row.clients)
            connection.execute(update(runs).where(runs.c.id == id).values(clients=json.dumps(names), status="running"))
            return tuple(names)

    def commit(self, id: str, owner: str, round: int, state: str, record: Mapping[str, Any] | None) -> None:
        """One round, with its record: the state after it becomes the run's. Raises LeaseLost."""
        with self._write() as connection:
            self._owned(connection, id, owner)
            connection.execute(update(runs).where(runs.c.id == id).values(round=round, state=state))
            connection.execute(delete(records).where(records.c.run == id, records.c.round >= max(round, 1)))
            if record is not None:
                connection.execute(insert(records).values(run=id, round=round, record=json.dumps(record)))

    def finish(self, id: str, owner: str, status: RunStatus, message: str) -> None:
        """How a run ended; its open tasks are closed. Raises LeaseLost."""
        with self._write() as connection:
            self._owned(connection, id, owner)
            connection.execute(update(runs).where(runs.c.id == id).values(status=status, message=message, leased=0.0))
            still = (tasks.c.run == id) & (tasks.c.status == "open")
            connection.execute(update(tasks).where(still).values(status="closed", outcome=json.dumps({"why": f"the run {status}"})))

    def records(self, id: str) -> list[dict[str, Any]]:
        """A run's records in the order of its rounds."""
        with self._read() as connection:
            found = connection.execute(select(records.c.record).where(records.c.run == id).order_by(records.c.round))
            return [json.loads(row.record) for row in found]


def _run(row: Row[Any]) -> RunRow:
    clients = None if row.clients is None else tuple(json.loads(row.clients))
    return RunRow(**{**row._mapping, "clients": clients})
