"""What reports of clients make of their tasks: all reports of a transaction are judged in memory, and written together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from hansa.federation.schema import members, tasks

MOST = 500
"""Ids that one statement names."""

_ID: Any = bindparam("task")
_ROWS = select(tasks, members.c.via).outerjoin(members, members.c.name == tasks.c.client)
_SAID = update(tasks).where(tasks.c.id == _ID)
_RESULT = _SAID.values(
    status="reported", result=bindparam("came"), bytes=bindparam("length"), outcome=bindparam("otherwise")
)  # fmt: skip
_INSIDE = _SAID.values(status="reported", outcome=bindparam("otherwise"))


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


def take(connection: Connection, told: Sequence[Reported], lock: bool) -> list[Verdict]:
    """Judge the reports one after another and write what comes of them; the first word on a task counts.

    lock: other processes write too, and the tasks are theirs no longer until this transaction has ended.
    """
    ids = sorted({id for one in told for id in (one.task, *one.also)})
    rows: dict[str, dict[str, Any]] = {}
    for start in range(0, len(ids), MOST):
        some = tasks.c.id.in_(ids[start : start + MOST])
        if lock:  # all in one order, so that server processes do not wait in a circle
            connection.execute(select(tasks.c.id).where(some).order_by(tasks.c.id).with_for_update())
        rows |= {row.id: dict(row._mapping) for row in connection.execute(_ROWS.where(some))}
    results: list[dict[str, Any]] = []
    inside: list[dict[str, Any]] = []
    verdicts = [_judged(one, rows, results, inside) for one in told]
    for statement, changes in ((_RESULT, results), (_INSIDE, inside)):
        if changes:
            connection.execute(statement, changes)
    return verdicts


def _judged(one: Reported, all: dict[str, dict[str, Any]], results: list[Any], inside: list[Any]) -> Verdict:
    rows = {id: all[id] for id in (one.task, *one.also) if id in all}
    row = rows.get(one.task)
    others = [rows[id] for id in one.also if id in rows]
    spoken_for = not one.via or {each["via"] for each in rows.values()} == {one.via}
    if row is None or row["client"] != one.client or len(others) < len(one.also) or not spoken_for:
        return Verdict(False, False)
    outcome, within = None if one.outcome is None else json.dumps(one.outcome), json.dumps({"in": one.task})
    if not one.late and {each["status"] for each in rows.values()} == {"open"}:
        row |= {"status": "reported", "result": one.result, "bytes": one.bytes, "outcome": outcome}
        results.append({"task": one.task, "came": one.result, "length": one.bytes, "otherwise": outcome})
        for each in others:
            each |= {"status": "reported", "outcome": within}
            inside.append({"task": each["id"], "otherwise": within})
        return Verdict(True, True, row["run"])
    same = row["result"] == one.result and {each["status"] for each in rows.values()} <= {"reported", "passed"}
    same = same and (one.result is not None or row["outcome"] == outcome)
    same = same and {each["outcome"] for each in others} <= {within}
    return Verdict(True, same, row["run"], tuple(id for id, each in rows.items() if each["status"] == "open"))
