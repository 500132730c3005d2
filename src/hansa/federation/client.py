"""A client's life: ask for the next task, look whether its own policy allows it, do it, report it, again.

It holds the rows and gives away what its policy lets go. What it acknowledged is at the server; what it had not yet reported when it was
killed it does again, to the same bits.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from hansa.core.blocks import Block
from hansa.core.errors import InputError
from hansa.core.updates import Failure
from hansa.core.worker import WorkCall, Worker, attempt
from hansa.federation import calls, parcels, results, transfer
from hansa.federation.agreed import Agreed, strange
from hansa.federation.audit import Audit
from hansa.federation.faults import reached
from hansa.federation.link import Interrupted, Link, Refused
from hansa.federation.policy import Ask, Policy
from hansa.federation.policy import Refused as Refusal
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.seen import UNSEEN, Unseen
from hansa.federation.served import Served

log = logging.getLogger("hansa.federation.client")

JOB_BYTES = 1 << 20
CALL_BYTES = 8 << 30
"""Of the largest model that a server may send."""

BEAT = 10.0
"""Seconds between the signs of life of a client that works."""

NO_TASK = "0" * 32
"""What a client asks about that only wants to know whether the server answers."""

SEATS = 4
"""Runs whose rows and learner are kept at the same time."""


@dataclass(frozen=True)
class Seat:
    """This client's place in one run.

    ask:    what is known of the job for the policy, before any task.
    agreed: what the job's text leads to.
    """

    worker: Worker
    ask: Ask
    agreed: Agreed


Open = Callable[[str, str, int, int], Seat]
"""(job text, run, position, population) -> the client's seat in the run. Raises InputError for a job that cannot be done here."""


@dataclass(frozen=True)
class Desk:
    """Everything a client works with. open: see :data:`Open`. refresh: called before every question for tasks."""

    name: str
    link: Link
    policy: Policy
    audit: Audit
    scratch: Path
    open: Open
    served: Served
    stop: threading.Event = field(default_factory=threading.Event)
    seen: Unseen = UNSEEN
    refresh: Callable[[], None] = lambda: None


def work(desk: Desk, forever: bool = True) -> int:
    """Do tasks until asked to stop; with ``forever`` False also until the server has no run left. Returns how many were reported.

    Raises Refused where the server will not have this client.
    """
    seats: OrderedDict[str, Seat] = OrderedDict()
    begun: set[str] = set()
    done, last_said, greeted, rests = 0, "", False, False

    def said(what: str) -> None:
        nonlocal last_said
        if rests and not last_said:
            log.info("%s: %s; it had no run left, and is waited for", desk.name, what, extra={"client": desk.name})
        elif not rests and what != last_said:
            log.warning("%s: %s; trying again", desk.name, what, extra={"client": desk.name})
        last_said = what

    while not desk.stop.is_set():
        try:
            desk.refresh()
            # What names a task is answered at once, and the question for tasks is not.
            asked = pb.NextRequest(protocol=PROTOCOL, working=[] if greeted else [NO_TASK])
            reply = desk.link.call(lambda federation, _: federation.Next(asked), desk.stop, said)  # noqa: B023  # called before the loop goes on
            if not greeted or last_said:
                log.info(
                    "%s: connected to %s%s", desk.name, desk.link.address, " again" if greeted else "", extra={"client": desk.name}
                )
                last_said, greeted = "", True
            for task in reply.tasks:
                reached("client.task_received")
                done += _do(desk, seats, task, said)
                if task.run in seats and task.run not in begun:
                    begun.add(task.run)
                    log.info("%s: takes part in run %s", desk.name, task.run, extra=_fields(desk, task))
            if reply.idle and begun:
                log.info(
                    "%s: the server has no run left; over: %s", desk.name, ", ".join(sorted(begun)), extra={"client": desk.name}
                )
                begun.clear()
            rests = reply.idle
        except Interrupted:
            break
        if reply.idle and not forever and done:
            break
    return done


def _do(desk: Desk, seats: OrderedDict[str, Seat], task: Any, said: Callable[[str], None]) -> int:
    with tempfile.TemporaryDirectory(dir=desk.scratch) as folder, _Beating(desk, task.id) as beating, desk.seen.task(task):
        outcome = _outcome(desk, seats, task, Path(folder), said)
        if beating.unwanted:
            log.info("%s: task %s is no longer wanted", desk.name, task.id, extra=_fields(desk, task))
            return 0
        path = outcome if isinstance(outcome, Path) else None
        if isinstance(outcome, Path):
            outcome = _uploaded(desk, outcome, said)
        report = pb.ReportRequest(protocol=PROTOCOL, task=task.id, **outcome)
        with desk.seen.step("report"):
            try:
                reply = desk.link.call(lambda federation, _: transfer.report(federation, report, path), desk.stop, said)
            except Refused as error:
                if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                failure = pb.Failure(kind="ResultRefused", message=f"the server refused the result: {error}")
                report = pb.ReportRequest(protocol=PROTOCOL, task=task.id, failure=failure)
                reply = desk.link.call(lambda federation, _: federation.Report(report), desk.stop, said)
        reached("client.reported")
        desk.seen.reported(report.WhichOneof("outcome"), reply.used)
        desk.audit.write(desk.name, "reported", run=task.run, task=task.id, outcome=report.WhichOneof("outcome"), used=reply.used)
        return 1


def _uploaded(desk: Desk, path: Path, said: Callable[[str], None]) -> dict[str, Any]:
    blob = pb.Blob(digest=path.name, size=path.stat().st_size)
    try:
        with desk.seen.step("upload"):
            if desk.link.call(lambda federation, _: transfer.ahead(federation, path, blob.digest), desk.stop, said):
                reached("client.uploaded")
    except Refused as error:
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return {"failure": pb.Failure(kind="ResultRefused", message=f"the server refused the result: {error}")}
        if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
            raise
        # The round has closed meanwhile: the report says so too, and the server's answer is the one that counts.
    return {"result": blob}


def _outcome(
    desk: Desk, seats: OrderedDict[str, Seat], task: Any, folder: Path, said: Callable[[str], None]
) -> Path | dict[str, Any]:
    """A file with the result, named by its digest, or the fields of a report without one."""
    try:
        seat = seats.get(task.run)
        if seat is None:
            seat = desk.open(
                _fetched(desk, task.job, folder, JOB_BYTES, said).read_text("utf-8"), task.run, task.position, task.population
            )
            seats[task.run] = seat
        seats.move_to_end(task.run)
        while len(seats) > SEATS:
            seats.popitem(last=False)
        call = calls.decode_call(parcels.read(_fetched(desk, task.call, folder, CALL_BYTES, said)))
    except InputError as error:
        log.error("%s: run %s cannot be taken part in: %s", desk.name, task.run, error, extra=_fields(desk, task))
        desk.audit.write(desk.name, "failed", run=task.run, task=task.id, kind="InputError", why=str(error))
        return {"failure": pb.Failure(kind="InputError", message=str(error), bad_input=True)}
    except Refused as error:
        if error.code not in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND):
            raise
        return {"failure": pb.Failure(kind="TaskGone", message=str(error))}
    reached("client.call_fetched")
    ask = _asked(desk, seat, task, call)
    desk.seen.kind(ask.kind, ask.round)
    if desk.served.begin(task.run, task.job.digest, "jobs") != 1:
        del seats[task.run]  # it may be that of the other text
        another = "has another text than the run began with, and a run is of one job"
        return _refused(desk, task, desk.policy.refused("job", ask.job, another))
    refusal = _refusal(desk, seat, ask, call)
    if refusal is not None:
        return _refused(desk, task, refusal)
    desk.audit.write(desk.name, "works", run=task.run, task=task.id, kind=ask.kind, round=ask.round)
    with desk.seen.step("compute"):
        result = attempt(call, seat.worker, Block(0, (task.position,)))
    reached("client.computed")
    if isinstance(result, Failure):
        log.error(
            "%s: task %s failed: %s: %s", desk.name, task.id, result.kind, result.message, extra=_fields(desk, task, ask.round)
        )
        said_of = pb.Failure(kind=result.kind, message=result.message, traceback=result.traceback, bad_input=result.bad_input)
        return {"failure": said_of}
    part = "train" if isinstance(call, WorkCall) else call.split
    refusal = desk.policy.refuse(replace(ask, metrics=tuple(f"{part}/{name}" for name in result.metrics)))
    if refusal is not None:
        return _refused(desk, task, refusal)
    path = folder / "result"
    return path.rename(folder / parcels.write(path, results.encode_result(result)))


def _refused(desk: Desk, task: Any, refusal: Refusal) -> dict[str, Any]:
    log.warning("%s: refused (%s): %s", desk.name, refusal.rule, refusal.message, extra=_fields(desk, task))
    desk.audit.write(desk.name, "refused", run=task.run, task=task.id, rule=refusal.rule, why=refusal.message, here=refusal.private)
    return {"refusal": pb.Refusal(rule=refusal.rule, message=refusal.message)}


def _fetched(desk: Desk, blob: Any, folder: Path, limit: int, said: Callable[[str], None]) -> Path:
    with desk.seen.step("fetch"):
        return desk.link.call(lambda federation, _: transfer.download(federation, blob, folder, limit), desk.stop, said)


def _fields(desk: Desk, task: Any, round: int | None = None) -> dict[str, Any]:
    """What an entry of the log names. round: counted from 0, as policies do."""
    return {"client": desk.name, "run": task.run, "task": task.id} | ({} if round is None else {"round": round + 1})


def _asked(desk: Desk, seat: Seat, task: Any, call: calls.RemoteCall) -> Ask:
    """What a task asks, for the policy: of the call itself and of this client's rows, where they have it."""
    kind, digest = calls.kind_of(call), task.call.digest
    ask = replace(
        seat.ask, kind=kind, clients=task.population, rows=seat.agreed.rows_of(call),
        round=desk.served.begin(task.run, digest) - 1 if kind == "train" else max(call.round - 1, 0),
        evaluations=desk.served.begin(task.run, digest, "evaluations") if kind == "evaluate" else None,
    )  # fmt: skip
    if kind != "train" or not isinstance(call, WorkCall):
        return ask
    # Transforms and passes over the rows are those of the work that is asked for, whatever the job's text says.
    masked = any(getattr(transform, "name", "") == "secure_aggregation" for transform in call.transforms)
    epochs = getattr(getattr(call.algorithm, "local", None), "epochs", None)
    name = getattr(call.algorithm, "name", None)
    return replace(ask, algorithm=name, epochs=epochs, secure_aggregation=masked)


def _refusal(desk: Desk, seat: Seat, ask: Ask, call: calls.RemoteCall) -> Refusal | None:
    """Why a task is not done: it is none of its job's, or a rule of the policy forbids it."""
    wrong = strange(seat.agreed, call)
    return desk.policy.refused("job", ask.job, wrong) if wrong else desk.policy.refuse(ask)


class _Beating:
    """Tells the server now and then that the client is busy with a task, and hears whether it is still wanted."""

    def __init__(self, desk: Desk, task: str) -> None:
        self._desk, self._task = desk, task
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.unwanted = False

    def __enter__(self) -> _Beating:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            # A beat that fails says nothing: whoever reports the result will find out the same, and say it.
            with suppress(grpc.RpcError, Refused, Interrupted):
                request = pb.NextRequest(protocol=PROTOCOL, working=[self._task])
                reply = self._desk.link.once(lambda federation, _: federation.Next(request))  # noqa: B023  # called before the loop goes on
                self.unwanted = self._task not in reply.wanted
