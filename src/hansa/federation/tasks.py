"""What the database knows of tasks: what clients are asked for, what came of it, and which blobs that still needs."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from hansa.federation.reporting import Reported, Verdict, take
from hansa.federation.runs import Runs
from hansa.federation.schema import runs, tasks


@dataclass(frozen=True)
class Task:
    """A row of ``tasks``, with the columns in the order of the table; see :mod:`hansa.federation.schema`."""

    id: str
    run: str
    call: str
    size: int
    client: str
    position: int
    population: int
    status: str
    opened: float
    result: str | None
    bytes: int
    outcome: Mapping[str, Any] | None
    block: int = 0
    blocks: int = 0
    held: bool = False


_OUTCOME = tasks.columns.keys().index("outcome")


class Tasks(Runs):
    """See the module."""

    def open_tasks(self, run: str, owner: str, wanted: Sequence[Task]) -> None:
        """Ask clients for something; tasks that are there already stay as they are. Raises LeaseLost."""
        with self._write() as connection:
            self._owned(connection, run, owner)
            there = set()
            for start in range(0, len(wanted), 500):
                ids = [task.id for task in wanted[start : start + 500]]
                there |= {row.id for row in connection.execute(select(tasks.c.id).where(tasks.c.id.in_(ids)))}
            rows = [
                {
                    "id": t.id, "run": t.run, "call": t.call, "size": t.size, "client": t.client, "position": t.position,
                    "population": t.population, "status": "open", "opened": t.opened, "bytes": 0, "block": t.block,
                    "blocks": t.blocks, "held": False,
                }
                for t in wanted if t.id not in there
            ]  # fmt: skip
            if rows:
                connection.execute(insert(tasks), rows)

    def close_tasks(self, run: str, owner: str, ids: Sequence[str], why: str) -> None:
        """Want tasks no longer; what was reported stays. Raises LeaseLost."""
        with self._write() as connection:
            self._owned(connection, run, owner)
            for start in range(0, len(ids), 500):
                some = tasks.c.id.in_(ids[start : start + 500]) & (tasks.c.status == "open")
                connection.execute(update(tasks).where(some).values(status="closed", outcome=json.dumps({"why": why})))

    def forget_tasks(self, run: str, call: str) -> None:
        """Drop the tasks of an exchange whose round has been committed."""
        with self._write() as connection:
            connection.execute(delete(tasks).where(tasks.c.run == run, tasks.c.call == call))

    def task(self, id: str) -> Task | None:
        with self._read() as connection:
            row = connection.execute(select(tasks).where(tasks.c.id == id)).first()
            return None if row is None else _task(row)

    def tasks_of(self, run: str, call: str) -> list[Task]:
        """All tasks of one exchange, by position."""
        query = select(tasks).where(tasks.c.run == run, tasks.c.call == call).order_by(tasks.c.position)
        with self._read() as connection:
            return [_task(row) for row in connection.execute(query)]

    def answered(self, run: str, call: str, ids: Collection[str] | None = None) -> list[Task]:
        """The tasks of one exchange that are not open any more, all or those of the given ids, by position."""
        if ids is not None and not ids:
            return []
        mine = (tasks.c.run == run) & (tasks.c.call == call) & (tasks.c.status != "open")
        some = None if ids is None or len(ids) > 500 else tasks.c.id.in_(list(ids))
        with self._read() as connection:
            found = connection.execute(select(tasks).where(mine if some is None else mine & some).order_by(tasks.c.position))
            return [_task(row) for row in found]

    def count_answered(self, run: str, call: str) -> int:
        """How many tasks of one exchange are not open any more."""
        mine = (tasks.c.run == run) & (tasks.c.call == call) & (tasks.c.status != "open")
        with self._read() as connection:
            return int(connection.execute(select(func.count()).select_from(tasks).where(mine)).scalar_one())

    def tasks(self, ids: Collection[str]) -> list[Task]:
        """Those of these tasks that there are."""
        with self._read() as connection:
            return [_task(row) for row in connection.execute(select(tasks).where(tasks.c.id.in_(list(ids))))]

    def hold(self, ids: Collection[str], held: bool = True) -> None:
        """Note of open tasks whether a relay keeps their answers."""
        with self._write() as connection:
            some = tasks.c.id.in_(list(ids)) & (tasks.c.status == "open")
            connection.execute(update(tasks).where(some).values(held=held))

    def held(self, run: str, call: str) -> set[str]:
        """The open tasks of one exchange that were answered, and whose answers a relay keeps."""
        mine = (tasks.c.run == run) & (tasks.c.call == call) & (tasks.c.status == "open") & tasks.c.held
        with self._read() as connection:
            return {row.id for row in connection.execute(select(tasks.c.id).where(mine))}

    def all_open(self) -> list[Task]:
        """Every task that is open, oldest first."""
        query = select(tasks).where(tasks.c.status == "open").order_by(tasks.c.opened, tasks.c.id)
        with self._read() as connection:
            return [_task(row) for row in connection.execute(query)]

    def report(self, told: Sequence[Reported]) -> list[Verdict]:
        """Take what clients say came of their tasks, all in one transaction; the first word on a task counts."""
        with self._write() as connection:
            return take(connection, told, lock=self._writing is None)

    # What only a relay does: its runs and tasks are those of its server

    def relayed(self, id: str, job: str, owner: str) -> None:
        """A run that the relay's server plays; open here until :meth:`finish`."""
        with self._write() as connection:
            if connection.execute(select(runs.c.id).where(runs.c.id == id)).first() is not None:
                connection.execute(update(runs).where(runs.c.id == id).values(status="running", message=""))
                return
            now = time.time()
            connection.execute(
                insert(runs).values(
                    id=id, name=id, job=job, status="running", message="", submitted_by="server", submitted=now, stop=False, round=0,
                    owner=owner, leased=now,
                )
            )  # fmt: skip

    def in_hand(self) -> list[Task]:
        """The tasks that clients still do, or whose answers the server does not have yet."""
        query = select(tasks).where(tasks.c.status.in_(("open", "reported"))).order_by(tasks.c.run, tasks.c.call, tasks.c.block)
        with self._read() as connection:
            return [_task(row) for row in connection.execute(query)]

    def again(self, ids: Collection[str]) -> None:
        """The server asks for tasks once more that were thought to be done with."""
        with self._write() as connection:
            some = tasks.c.id.in_(list(ids))
            connection.execute(
                update(tasks).where(some & (tasks.c.status == "closed")).values(status="open", outcome=None, held=False)
            )
            connection.execute(update(tasks).where(some & (tasks.c.status == "passed")).values(status="reported"))

    def passed(self, ids: Collection[str], why: str = "") -> None:
        """The server has the answers of tasks, or wants none of them any more."""
        with self._write() as connection:
            some = tasks.c.id.in_(list(ids))
            closed = {"status": "closed", "outcome": json.dumps({"why": why or "the round closed"})}
            connection.execute(update(tasks).where(some & (tasks.c.status == "open")).values(**closed))
            connection.execute(update(tasks).where(some & (tasks.c.status == "reported")).values(status="passed"))

    def forget_passed(self, run: str) -> set[str]:
        """Drop the exchanges of a run of which nothing is in hand any more; returns the blobs that no task names now."""
        with self._write() as connection:
            rows = connection.execute(select(tasks).where(tasks.c.run == run)).all()
            busy = {row.call for row in rows if row.status in ("open", "reported")}
            over = {row.call for row in rows} - busy
            blobs = over | {row.result for row in rows if row.call in over and row.result}
            connection.execute(delete(tasks).where(tasks.c.run == run, tasks.c.call.in_(list(over))))
            for name in (tasks.c.call, tasks.c.result):
                blobs -= {row[0] for row in connection.execute(select(name).where(name.in_(list(blobs))))}
            return blobs

    def unused(self, digests: Collection[str]) -> set[str]:
        """Those that no task and no run names: equal content is one blob, and another run may have the same."""
        wanted = list(digests)
        kept: set[str | None] = set()
        with self._read() as connection:
            for start in range(0, len(wanted), 500):
                some = wanted[start : start + 500]
                for column in (tasks.c.call, tasks.c.result, runs.c.state):
                    kept |= set(connection.execute(select(column).where(column.in_(some)).distinct()).scalars())
        return set(wanted) - kept

    def blobs_in_use(self) -> set[str]:
        """Digests that open runs still need."""
        live = select(runs.c.id).where(runs.c.status.in_(("waiting", "running")))
        with self._read() as connection:
            kept = {row.state for row in connection.execute(select(runs.c.state)) if row.state}
            for row in connection.execute(select(tasks.c.call, tasks.c.result).where(tasks.c.run.in_(live))):
                kept |= {row.call, row.result}
        return kept - {None}


def _task(row: Sequence[Any]) -> Task:
    # A task has the columns of the table in their order, and a server looks at thousands of them every second.
    task = Task(*row)
    return task if task.outcome is None else replace(task, outcome=json.loads(row[_OUTCOME]))
