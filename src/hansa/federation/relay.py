"""A relay's life: to its clients it is a server, to its server it is a member that speaks for them.

It gets their tasks and opens them in a database of its own, where its clients find them; it passes their answers on, those that it can
add without changing a bit of the sum (:mod:`hansa.federation.nodes`) as one. What a client told it is durable before the client hears
so, and what the server has not confirmed is passed on again, also by a relay that was killed meanwhile: a sum that is made again has
the same bits.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import grpc

from hansa.core.errors import InputError
from hansa.core.updates import Total
from hansa.federation import calls, expectations, parcels, results, transfer
from hansa.federation.blobs import Blob, blob_of
from hansa.federation.client import CALL_BYTES
from hansa.federation.faults import reached
from hansa.federation.link import Interrupted, Link, Refused
from hansa.federation.nodes import nodes, summed
from hansa.federation.office import JOB_BYTES, Office
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.state import Task

log = logging.getLogger("hansa.federation.relay")

BEAT = 5.0
"""Seconds between two times that the server is told when each client was heard of."""

LOOK = 0.5
"""Seconds after which the database is asked for answers even if none was heard of."""

BREATH = 0.02
"""Seconds in which answers that come close together are awaited, so that they are looked at together."""


class _Line:
    """What a relay's log tells of the line to its server: that it is there, why it is not, and that it is there again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._greeted, self._last = False, ""
        self.rests = False

    def broke(self, name: str, what: str) -> None:
        with self._lock:
            if self.rests and not self._last:
                log.info("%s: %s; it had no run left, and is waited for", name, what)
            elif not self.rests and what != self._last:
                log.warning("%s: %s; trying again", name, what)
            self._last = what

    def answered(self, name: str, address: str) -> None:
        with self._lock:
            if not self._greeted or self._last:
                log.info("%s: connected to %s%s", name, address, " again" if self._greeted else "")
            self._greeted, self._last = True, ""


@dataclass(frozen=True)
class Post:
    """Everything a relay works with.

    owner:  its name in its own database. renew: called now and then, to have the certificate replaced in time.
    news:   set when the server is to be told at once which answers are kept. held: tasks of which it knows that.
    singly: tasks whose sum the server did not take, so that each goes alone.
    """

    name: str
    owner: str
    link: Link
    office: Office
    renew: Callable[[], None]
    stop: threading.Event
    news: threading.Event = field(default_factory=threading.Event)
    held: set[str] = field(default_factory=set)
    singly: set[str] = field(default_factory=set)
    line: _Line = field(default_factory=lambda: _Line())

    def ask(self, call: Callable[[Any, Any], Any]) -> Any:
        """Call the server until it answers. Raises Refused, and Interrupted once the relay is to stop."""
        reply = self.link.call(call, self.stop, lambda what: self.line.broke(self.name, what))
        self.line.answered(self.name, self.link.address)
        return reply

    def end(self) -> None:
        """Let all parts of the relay end soon."""
        self.stop.set()
        self.news.set()
        self.office.reported.ring()
        self.link.close()


def work(post: Post) -> None:
    """Relay until asked to stop. Raises Refused where the server will not have this relay."""
    problems: list[BaseException] = []

    def guarded(part: Callable[[Post], None]) -> None:
        try:
            part(post)
        except Interrupted:
            return  # asked to stop
        except BaseException as error:  # noqa: BLE001  # raised below, where the relay was started
            problems.append(error)
        finally:
            post.end()

    others = [threading.Thread(target=guarded, args=(part,), name=f"hansa-relay{part.__name__}") for part in (_tell, _pass_on_all)]
    for thread in others:
        thread.start()
    guarded(_listen)
    for thread in others:
        thread.join()
    if problems:
        raise problems[0]


def _listen(post: Post) -> None:
    """Take the tasks that the server has for the clients, and close those that it wants no longer."""
    office = post.office
    while not post.stop.is_set():
        post.renew()
        known = [task.id for task in office.state.in_hand()]
        request = pb.NextRequest(protocol=PROTOCOL, working=known)
        reply = post.ask(lambda federation, _: federation.Next(request))  # noqa: B023  # called before the loop goes on
        gone = set(known) - set(reply.wanted)
        if gone:
            office.state.passed(gone, "the server wants it no longer")
        if reply.wanted:  # also what was reported while it was asked, where an exchange is played again
            office.state.again(reply.wanted)
        if reply.tasks:
            _take(post, reply.tasks)
        if reply.idle:
            _rest(post)
        post.line.rests = reply.idle
        if gone or reply.tasks or reply.idle:
            office.bell.ring()
            office.reported.ring()


def _take(post: Post, tasks: Sequence[Any]) -> None:
    """Open the server's tasks here, with the job and the call that they name."""
    state, rows = post.office.state, list[Task]()
    with tempfile.TemporaryDirectory(dir=post.office.blobs.scratch) as folder:
        for task in tasks:
            try:
                _fetch(post, task, Path(folder))
            except InputError as error:
                _report(post, task.id, failure=pb.Failure(kind="InputError", message=f"relay {post.name}: {error}", bad_input=True))
                continue
            except Refused as error:
                if error.code not in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND):
                    raise
                log.info("%s: task %s is gone: %s", post.name, task.id, error)
                continue
            rows.append(
                Task(
                    task.id, task.run, task.call.digest, task.call.size, task.client, task.position, task.population, "open",
                    time.time(), None, 0, None, task.block, task.blocks,
                )
            )  # fmt: skip
    state.again([row.id for row in rows])
    for run, some in groupby(sorted(rows, key=lambda row: row.run), key=lambda row: row.run):
        state.open_tasks(run, post.owner, list(some))
        _forget(post, run)
    reached("relay.tasks_opened")


def _fetch(post: Post, task: Any, folder: Path) -> None:
    """Have a task's run in the database and its call among the blobs. Raises InputError and Refused as a download does."""
    state, blobs = post.office.state, post.office.blobs
    run = next((row for row in state.runs() if row.id == task.run), None)
    if run is None:
        path = post.ask(lambda federation, _: transfer.download(federation, task.job, folder, JOB_BYTES))
        state.relayed(task.run, path.read_text("utf-8"), post.owner)
        log.info("%s: passes on the tasks of run %s", post.name, task.run, extra={"run": task.run})
    elif run.status != "running":
        state.relayed(task.run, run.job, post.owner)
    if not blobs.has(task.call.digest):
        blobs.put(post.ask(lambda federation, _: transfer.download(federation, task.call, folder, CALL_BYTES)))


def _rest(post: Post) -> None:
    """The server has no run any more."""
    state = post.office.state
    busy = {task.run for task in state.in_hand()}
    for run in state.runs():
        if run.status == "running" and run.id not in busy:
            state.finish(run.id, post.owner, "finished", "the server's run is over")
            log.info("%s: the server's run %s is over", post.name, run.id, extra={"run": run.id})
            _forget(post, run.id)


def _forget(post: Post, run: str) -> None:
    for digest in post.office.state.forget_passed(run):
        post.office.blobs.remove(digest)


def _tell(post: Post) -> None:
    """Name the clients to the server, with the time since each was heard of, and the tasks whose answers are kept for a sum.

    It does so every few seconds, and at once when there is a new client, or an answer that the server does not know of.
    """
    refused, named, last = dict[str, str](), set[str](), 0.0
    while not post.stop.is_set():
        post.news.clear()
        now, heard = time.time(), post.office.presence.last(post.office.state.clients())
        silent = {name: now - moment for name, moment in heard.items() if moment}
        held = {task.id for task in post.office.state.in_hand() if task.status == "reported" or task.held}
        new = silent.keys() - named or held - post.held
        if new or (silent and time.monotonic() - last > BEAT):
            behind = [pb.Behind(name=name, silent=seconds) for name, seconds in silent.items()]
            request = pb.NextRequest(protocol=PROTOCOL, behind=behind, held=sorted(held - post.held))
            try:
                reply = post.link.once(lambda federation, _: federation.Next(request))  # noqa: B023  # called before the loop goes on
                post.line.answered(post.name, post.link.address)
                if silent.keys() - named:
                    log.info("%s: speaks for %s", post.name, ", ".join(sorted(silent.keys() - named)))
                named, last = set(silent), time.monotonic()
                post.held.clear()
                post.held.update(held)
                refused = _said(post, {one.name: one.why for one in reply.strange}, refused)
            except (grpc.RpcError, Refused, Interrupted) as error:
                # Who listens finds out too, and says it aloud.
                log.debug("%s: the server did not hear of the clients: %s", post.name, error)
        post.news.wait(LOOK)


def _said(post: Post, refused: dict[str, str], before: dict[str, str]) -> dict[str, str]:
    for name, why in refused.items():
        if before.get(name) != why:
            log.error("%s: the server takes nothing of client %s: %s", post.name, name, why)
            post.office.audit.write(post.name, "not relayed", member=name, why=why)
    return refused


def _pass_on_all(post: Post) -> None:
    """Pass on what has been answered, as soon as nothing is missing that it could be added to."""
    while not post.stop.is_set():
        rows = post.office.state.in_hand()
        for _, exchange in groupby(rows, key=lambda row: (row.run, row.call)):
            _pass_on(post, list(exchange))
        post.office.reported.wait(LOOK)
        post.stop.wait(BREATH)


def _pass_on(post: Post, rows: Sequence[Task]) -> None:
    """One exchange."""
    live = []
    for row in rows:
        if row.status == "reported" and row.result is None and "in" not in (row.outcome or {}):
            _report(post, row.id, **_outcome(row))
        else:
            live.append(row)
    if not any(row.status == "reported" for row in live):
        return
    for lost in broken(live):
        live.remove(lost)
        why = "its result is in a sum with that of a client whose result is not wanted any more"
        _report(post, lost.id, failure=pb.Failure(kind="TimedOut", message=why))
    kept = set[str]()
    for part in parts(live, _collective(post, rows[0].call) == "sum", post.singly):
        if all(row.status == "reported" for row in part):
            _send(post, part)
        else:
            kept |= {row.id for row in part if row.status == "reported" or row.held}
    if kept - post.held:
        post.news.set()


def parts(rows: Sequence[Task], adds: bool, singly: Iterable[str] = ()) -> Iterator[list[Task]]:
    """The tasks of one exchange as they are passed on: each node of the sum, and all else one by one.

    singly: tasks that are not added to others, though those that came as a sum stay one.
    """
    apart = set(singly)
    by_block = {row.block: row for row in rows}
    if not adds:
        yield from ([row] for row in rows)
        return
    for node in nodes(by_block, rows[0].blocks if rows else 0):
        part = [by_block[block] for block in node]
        if apart.isdisjoint(row.id for row in part):
            yield part
        else:
            yield from _sums(part)


def _root(row: Task) -> str:
    """The task that has the result in which this one's is."""
    return str((row.outcome or {}).get("in", row.id))


def _sums(rows: Sequence[Task]) -> list[list[Task]]:
    """Tasks, ascending by block, by the result that they are in: a sum that another relay sent is of consecutive blocks."""
    return [list(group) for _, group in groupby(rows, key=_root)]


def broken(rows: Sequence[Task]) -> list[Task]:
    """Tasks whose result is in a sum with that of a task that is not among them any more, so that it cannot be used."""
    lost = []
    for group in _sums(sorted(rows, key=lambda row: row.block)):
        whole = int((group[0].outcome or {}).get("clients", 1)) if group[0].result is not None else 1
        if group[0].status == "reported" and (group[0].result is None or len(group) != whole):
            lost += group
    return lost


def _collective(post: Post, call: str) -> str:
    return expectations.expected(calls.decode_call(parcels.read(post.office.blobs.local(call)))).collective


def _outcome(row: Task) -> dict[str, Any]:
    """A failure or a refusal, as the client told it."""
    told = row.outcome or {}
    if "rule" in told:
        return {"refusal": pb.Refusal(rule=told["rule"], message=told["message"])}
    names = ("kind", "message", "traceback", "bad_input")
    return {"failure": pb.Failure(**{name: told[name] for name in names})}


def _send(post: Post, part: Sequence[Task]) -> None:
    """Upload and report the result of a node, or of one task."""
    came, blobs = _sums(part), post.office.blobs
    with tempfile.TemporaryDirectory(dir=blobs.scratch) as folder:
        if len(came) == 1:
            first = part[0]
            assert first.result is not None
            path, blob = blobs.local(first.result), Blob(first.result, first.bytes)
        else:
            path = Path(folder) / "sum"
            try:
                blob = _summed(post, part, path)
            except (ValueError, KeyError) as error:  # they are not alike; the server shall see each of them
                log.warning("%s: results of %d tasks cannot be added: %s", post.name, len(part), error)
                post.singly.update(row.id for row in part)
                return
            reached("relay.summed")
        try:
            post.ask(lambda federation, _: transfer.ahead(federation, path, blob.digest))
            reached("relay.uploaded")
        except Refused as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            log.info("%s: nothing is to be uploaded: %s", post.name, error)  # the rounds have closed; the report says so too
        _report(post, *(row.id for row in part), result=pb.Blob(digest=blob.digest, size=blob.size), path=path, parts=len(came))


def _summed(post: Post, part: Sequence[Task], path: Path) -> Blob:
    """Write the sum of a node. Large results are read slice by slice, so that memory holds one of them."""
    whole = summed([None if row.result is None else total_in(post.office.blobs.local(row.result)) for row in part])
    parcels.write(path, results.encode_result(whole))
    return blob_of(path)


def total_in(path: Path) -> Total:
    """A result that was checked when it came."""
    tree = parcels.read(path)
    return Total(
        tree["values"], tree["weight"], tree["clients"], {name: (pair[0], pair[1]) for name, pair in tree["metrics"].items()}
    )


def _report(post: Post, *ids: str, path: Path | None = None, parts: int = 1, **outcome: Any) -> None:
    """Report tasks to the server, and note what it has. path: of the result. parts: results that were added."""
    state, audit = post.office.state, post.office.audit
    request = pb.ReportRequest(protocol=PROTOCOL, task=ids[0], also=ids[1:], **outcome)
    try:
        reply = post.ask(lambda federation, _: transfer.report(federation, request, path))
    except Refused as error:
        audit.write(post.name, "report refused", task=ids[0], tasks=len(ids), why=str(error)[:500])
        log.error("%s: the server refused what %d clients told: %s", post.name, len(ids), error)
        if error.code is grpc.StatusCode.PERMISSION_DENIED:
            state.passed(ids, str(error))
        elif error.code is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        elif parts > 1:
            post.singly.update(ids)
        elif "failure" in outcome:
            raise
        else:
            for id in ids:
                said = pb.Failure(kind="ResultRefused", message=f"the server refused the result: {error}")
                _report(post, id, failure=said)
        return
    reached("relay.reported")
    wanted = set(reply.wanted)
    if not reply.used and wanted >= set(ids):
        post.singly.update(ids)
    state.passed(set(ids) - wanted if not reply.used else ids)
    reached("relay.passed")
    audit.write(post.name, "passed on", task=ids[0], tasks=len(ids), outcome=request.WhichOneof("outcome"), used=reply.used)
