"""What a server knows, in SQL: members, tokens, runs, their tasks and what came of them. Server processes keep no other state.

Every method is one transaction. Whatever a caller was told has been committed, and committed means durable: SQLite runs in WAL mode with
full synchronisation. Writes of a run name its owner, and fail for a server process whose lease another one has taken over.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Row, bindparam, create_engine, delete, event, func, insert, or_, select, text, update
from sqlalchemy.exc import ArgumentError, OperationalError

from hansa.core.errors import InputError, RunFailed
from hansa.federation.schema import certificates, events, members, records, runs, tasks, tokens

RunStatus = Literal["waiting", "running", "finished", "failed", "stopped"]


class LeaseLost(RunFailed):
    """Another server process plays this run now."""


@dataclass(frozen=True)
class Task:
    """A row of ``tasks``; see :mod:`hansa.federation.schema`."""

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


@dataclass(frozen=True)
class Reported:
    """What a client says came of a task: the digest and size of a stored result, or an outcome (a failure or a refusal).

    late: the task was not open when the result was to be looked at, so that nobody has; it is not used then.
    via:  the relay that says it for the client.
    also: the other tasks whose results are in the same sum; ``outcome`` says then of how many clients it is.
    """

    task: str
    client: str
    result: str | None = None
    bytes: int = 0
    outcome: Mapping[str, Any] | None = None
    late: bool = False
    via: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """known: it is a task of that client. used: the round was still open, or this is what it had been told before. run: of the task.
    open: of a sum that was not used, the tasks that are still open."""

    known: bool
    used: bool
    run: str = ""
    open: tuple[str, ...] = ()


class State:
    """See the module. Safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # SQLite has one writer at a time; waiting here costs less than its busy polling.
        self._writing = threading.Lock() if engine.dialect.name == "sqlite" else None

    @classmethod
    def open(cls, url: str) -> State:
        """Open a database by its SQLAlchemy URL, made or brought to the present layout where needed.

        Raises InputError where there is none that can be used.
        """
        try:
            engine = create_engine(url, **_options(url))
            if engine.dialect.name == "sqlite":
                event.listen(engine, "connect", _prepare_sqlite)
                _make_private(engine)
            _migrate(engine)
        except (OperationalError, ArgumentError, ImportError) as error:
            said = str(getattr(error, "orig", error)).strip().splitlines()[0]
            raise InputError(
                f"database {_without_password(url)}: cannot be used ({said}); give an SQLAlchemy URL, such as "
                "postgresql+psycopg://user@host/hansa"
            ) from None
        return cls(engine)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if self._writing is None:
            with self._engine.begin() as connection:
                yield connection
            return
        with self._writing, self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            yield connection

    def ready(self) -> None:
        """Raises where the database does not answer."""
        with self._read() as connection:
            connection.execute(text("SELECT 1"))

    # Members

    def invite(self, id: str, name: str, role: str, expires: float) -> None:
        """Keep a join token. InputError where the name belongs to a member already, unless that one was revoked."""
        with self._write() as connection:
            found = connection.execute(select(members.c.revoked, members.c.role).where(members.c.name == name)).first()
            if found is not None and found.revoked is None and found.role != role:
                raise InputError(f"token for {name!r}: there is a member of that name, a {found.role}; choose another name")
            connection.execute(insert(tokens).values(id=id, name=name, role=role, expires=expires))

    def join(self, token: str, key: str, serial: str, expires: float) -> tuple[str, str] | None:
        """Spend a token for a public key and admit its member with a certificate; the same key may do so again.

        Returns (name, role), None for a token that is unknown, expired, or spent for another key.
        """
        now = time.time()
        with self._write() as connection:
            query = select(tokens).where(tokens.c.id == token)
            row = connection.execute(query if self._writing else query.with_for_update()).first()
            if row is None or row.expires < now or (row.spent is not None and row.key != key):
                return None
            connection.execute(update(tokens).where(tokens.c.id == token).values(spent=row.spent or now, key=key))
            self._admit(connection, row.name, row.role, serial, expires, now)
            return row.name, row.role

    def admit(self, name: str, role: str, serial: str, expires: float) -> None:
        """Note a certificate that was given to a member: one made on the server's own machine, or one that replaces an older one."""
        with self._write() as connection:
            self._admit(connection, name, role, serial, expires, time.time())

    def replace(self, old: str, name: str, role: str, serial: str, expires: float) -> bool:
        """Note the certificate that replaces another one; False, and nothing is noted, where the old one was revoked meanwhile."""
        with self._write() as connection:
            mine = (certificates.c.serial == old) & (certificates.c.member == name) & certificates.c.revoked.is_(None)
            query = select(certificates.c.serial).where(mine)
            if connection.execute(query if self._writing else query.with_for_update()).first() is None:
                return False
            self._admit(connection, name, role, serial, expires, time.time())
            return True

    def _admit(self, connection: Connection, name: str, role: str, serial: str, expires: float, now: float) -> None:
        if connection.execute(select(members.c.name).where(members.c.name == name)).first() is None:
            connection.execute(insert(members).values(name=name, role=role, joined=now))
        else:
            connection.execute(update(members).where(members.c.name == name).values(role=role, revoked=None, via=None))
        if connection.execute(select(certificates.c.serial).where(certificates.c.serial == serial)).first() is None:
            connection.execute(insert(certificates).values(serial=serial, member=name, expires=expires))

    def revoke(self, name: str) -> None:
        """Take all certificates from a member, at once. InputError where there is no such member."""
        now = time.time()
        with self._write() as connection:
            changed = connection.execute(update(members).where(members.c.name == name).values(revoked=now))
            if not changed.rowcount:
                raise InputError(f"{name!r}: there is no such member (`hansa members` lists them)")
            mine = (certificates.c.member == name) & certificates.c.revoked.is_(None)
            connection.execute(update(certificates).where(mine).values(revoked=now))
            # Also one that was spent: who kept the key that it was spent for could be let in by it once more.
            connection.execute(update(tokens).where(tokens.c.name == name, tokens.c.expires > now).values(expires=now))

    def serials(self) -> tuple[dict[str, str], set[str]]:
        """serial -> member of every certificate that may be used; and the serials of those that were revoked."""
        with self._read() as connection:
            rows = connection.execute(select(certificates)).all()
        now = time.time()
        good = {row.serial: row.member for row in rows if row.revoked is None and row.expires > now}
        return good, {row.serial for row in rows if row.revoked is not None}

    def members(self) -> list[Row[Any]]:
        """Rows of ``members`` with ``expires`` of the newest certificate, by name."""
        newest = select(certificates.c.member, func.max(certificates.c.expires).label("expires")).group_by(certificates.c.member)
        last = newest.subquery()
        query = select(members, last.c.expires).outerjoin(last, last.c.member == members.c.name).order_by(members.c.name)
        with self._read() as connection:
            return list(connection.execute(query))

    def saw(self, when: Mapping[str, float]) -> None:
        """Note when members were last heard of."""
        moment: Any = bindparam("moment")
        older = or_(members.c.seen.is_(None), members.c.seen < moment)
        note = update(members).where(members.c.name == bindparam("who"), older).values(seen=moment)
        # In the order of every other server process, so that none waits in a circle.
        rows = [{"who": name, "moment": when[name]} for name in sorted(when)]
        if rows:
            with self._write() as connection:
                connection.execute(note, rows)

    def seen(self, names: Iterable[str]) -> dict[str, float]:
        """When each of these members was last heard of; 0 for never."""
        wanted = list(names)
        with self._read() as connection:
            rows = connection.execute(select(members.c.name, members.c.seen)).all()
        known = {row.name: row.seen or 0.0 for row in rows}
        return {name: known.get(name, 0.0) for name in wanted}

    def clients(self) -> list[str]:
        """Names of the clients that are not revoked, ascending."""
        relays = select(members.c.name).where(members.c.role == "relay", members.c.revoked.is_(None))
        reached = or_(members.c.via.is_(None), members.c.via.in_(relays))
        valid = (members.c.role == "client") & members.c.revoked.is_(None) & reached
        with self._read() as connection:
            return [row.name for row in connection.execute(select(members.c.name).where(valid).order_by(members.c.name))]

    def behind(self, relay: str, names: Iterable[str]) -> dict[str, str]:
        """Let a relay speak for clients of these names; returns those for whom it may not, and why.

        A relay that was revoked speaks for nobody any more, and another one may in its place.
        """
        now, strange = time.time(), dict[str, str]()
        with self._write() as connection:
            for name in names:
                found = connection.execute(select(members).where(members.c.name == name)).first()
                if found is None:
                    connection.execute(insert(members).values(name=name, role="client", joined=now, via=relay))
                elif found.via is None:
                    strange[name] = f"there is a member of that name, a {found.role}"
                elif found.revoked is not None:
                    strange[name] = "it was shut out here"
                elif found.via != relay:
                    other = connection.execute(select(members.c.revoked).where(members.c.name == found.via)).scalar_one()
                    if other is None:
                        strange[name] = f"the relay {found.via} speaks for a client of that name"
                    else:
                        connection.execute(update(members).where(members.c.name == name).values(via=relay))
        return strange

    def via(self) -> dict[str, str]:
        """Client -> the relay that speaks for it, of all that are not revoked."""
        query = select(members.c.name, members.c.via).where(members.c.via.is_not(None), members.c.revoked.is_(None))
        with self._read() as connection:
            return {row.name: row.via for row in connection.execute(query)}

    # Runs

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

    def submit_once(self, id: str, name: str, job: str, by: str) -> str:
        """As :meth:`submit`, but the run of the same job that is not over yet, where there is one; returns the run's id."""
        with self._write() as connection:
            if self._writing is None:
                connection.execute(text("LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE"))  # two servers may start at the same time
            same = (runs.c.job == job) & runs.c.status.in_(("waiting", "running"))
            found = connection.execute(select(runs.c.id).where(same).order_by(runs.c.submitted.desc()).limit(1)).first()
            if found is not None:
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
        self.run(id)
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

    # Tasks

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
            if self._writing is None:
                # All in one order, so that server processes do not wait in a circle; and the first word counts between them too.
                ids = sorted({id for one in told for id in (one.task, *one.also)})
                for start in range(0, len(ids), 500):
                    some = tasks.c.id.in_(ids[start : start + 500])
                    connection.execute(select(tasks.c.id).where(some).order_by(tasks.c.id).with_for_update())
            return [self._report(connection, one) for one in told]

    def _report(self, connection: Connection, one: Reported) -> Verdict:
        mine = tasks.c.id.in_((one.task, *one.also))
        query = select(tasks, members.c.via).outerjoin(members, members.c.name == tasks.c.client)
        rows = {row.id: row for row in connection.execute(query.where(mine))}
        row = rows.get(one.task)
        others = [rows[id] for id in one.also if id in rows]
        spoken_for = not one.via or all(each.via == one.via for each in rows.values())
        if row is None or row.client != one.client or len(others) < len(one.also) or not spoken_for:
            return Verdict(False, False)
        outcome, inside = None if one.outcome is None else json.dumps(one.outcome), json.dumps({"in": one.task})
        if not one.late and all(each.status == "open" for each in rows.values()):
            said = {"status": "reported", "result": one.result, "bytes": one.bytes, "outcome": outcome}
            connection.execute(update(tasks).where(tasks.c.id == one.task).values(**said))
            for each in others:
                connection.execute(update(tasks).where(tasks.c.id == each.id).values(status="reported", outcome=inside))
            return Verdict(True, True, row.run)
        same = row.result == one.result and all(each.status in ("reported", "passed") for each in rows.values())
        same = same and (one.result is not None or row.outcome == outcome)
        same = same and all(each.outcome == inside for each in others)
        return Verdict(True, same, row.run, tuple(each.id for each in rows.values() if each.status == "open"))

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

    # Events

    def tell(self, run: str, kind: str, content: Mapping[str, Any]) -> None:
        with self._write() as connection:
            connection.execute(insert(events).values(run=run, time=time.time(), kind=kind, content=json.dumps(content)))

    def events(self, run: str, after: int, most: int = 1000) -> list[Row[Any]]:
        """Events of a run after a number, in order."""
        query = select(events).where(events.c.run == run, events.c.number > after).order_by(events.c.number).limit(most)
        with self._read() as connection:
            return list(connection.execute(query))


def _options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60, "check_same_thread": False}}
    return {"pool_pre_ping": True, "pool_size": 8, "max_overflow": 8}


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by hand: BEGIN IMMEDIATE
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _make_private(engine: Engine) -> None:
    path = engine.url.database
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        Path(path).touch(mode=0o600)  # before SQLite does, whose files beside it take its mode


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_lock(4815162342)"))  # two servers may start at the same time
            connection.commit()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_unlock(4815162342)"))
            connection.commit()


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "that was given"


def _run(row: Row[Any]) -> RunRow:
    clients = None if row.clients is None else tuple(json.loads(row.clients))
    return RunRow(**{**row._mapping, "clients": clients})


def _task(row: Row[Any]) -> Task:
    return Task(**{**row._mapping, "outcome": None if row.outcome is None else json.loads(row.outcome)})


__all__ = ["LeaseLost", "Reported", "RunRow", "State", "Task", "Verdict"]
