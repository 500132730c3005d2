"""The server's side of the wire: who calls, may they, is what they say well-formed, and then the database.

A handler keeps nothing: whatever it acknowledges has been committed, and any server process of the federation can answer any call.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import grpc

from hansa.core.errors import InputError
from hansa.federation import calls, parcels, transfer
from hansa.federation.audit import Audit
from hansa.federation.blobs import Blobs
from hansa.federation.faults import reached
from hansa.federation.handshakes import Handshakes
from hansa.federation.identity import Authority, Identity, identity_of, is_name
from hansa.federation.nodes import is_node
from hansa.federation.presence import Bell, Presence
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.protocol import hansa_pb2_grpc as rpc
from hansa.federation.state import Reported, RunRow, State, Task

PROTOCOL = 1
"""The version of the protocol that this package speaks."""

LONGEST_WAIT = 25.0
"""Seconds that a client waits in one `Next`: below the minute after which proxies and firewalls cut a silent connection."""

LOOK = 1.0
"""Seconds after which the database is asked for tasks, members and revocations that other server processes have written."""

MOST_WORKING = 1000
"""Tasks that a client may name in one `Next`."""

MOST_BEHIND = 5000
"""Clients that a relay may speak for, and tasks that it may have in hand."""

TEXT = {"kind": 200, "message": 10_000, "traceback": 50_000, "rule": 100}
"""Most characters of what a client may say of a failure."""

JOB_BYTES = 1 << 20

MOST_EVENTS = 2**31 - 1
"""The largest number of an event."""

NO_CALL = "it ended before a call: it showed no certificate that is valid and of this federation's authority, or spoke no TLS"

REVOKED = "its certificate was revoked, or has expired"

_TASK = re.compile("[0-9a-f]{32}")

log = logging.getLogger("hansa.federation.service")


@dataclass(frozen=True)
class Limits:
    """upload: bytes of one result. days: that a certificate is valid."""

    upload: int = 8 << 30
    days: float = 90.0


@dataclass
class Office:
    """What the handlers of one server process share.

    bell:      rung when there may be something new for members. reported: when tasks were answered, with their ids.
    submitted: called with a job's text, its name or InputError: what a job must be to be taken.
    insecure:  no TLS: callers are who they say they are.
    own_pki:   whoever has a certificate of the authority that TLS believes is a member.
    """

    state: State
    blobs: Blobs
    authority: Authority
    audit: Audit
    presence: Presence
    bell: Bell
    reported: Bell
    submitted: Callable[[str], str]
    limits: Limits = field(default_factory=Limits)
    insecure: bool = False
    own_pki: bool = False
    handshakes: Handshakes = field(default_factory=Handshakes)


class Desk:
    """What the handlers know between two looks at the database: valid certificates, and the open tasks of every caller.

    open: by who calls for them: a client, or the relay that speaks for it. via: client -> relay.
    """

    def __init__(self, office: Office) -> None:
        self._office = office
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._reports: list[tuple[Reported, asyncio.Future[Any]]] = []
        self._reported = asyncio.Event()
        self._answered: set[str] = set()
        self._looking = asyncio.Lock()
        self.serials: dict[str, str] = {}
        self.revoked: set[str] = set()
        self.open: dict[str, list[Task]] = {}
        self.via: dict[str, str] = {}
        self.jobs: dict[str, tuple[str, int]] = {}
        self.idle = True
        office.bell.on_ring(self._wake)

    def _wake(self) -> None:
        """From any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def keep(self) -> None:
        """Look at the database again and again; ends when it is cancelled."""
        while True:
            self._changed.clear()
            try:
                await self.look()
                try:
                    await asyncio.wait_for(self._changed.wait(), LOOK)
                except TimeoutError:
                    await asyncio.to_thread(self._office.presence.flush)
                if turned_away := self._office.handshakes.failed():
                    await asyncio.to_thread(self._office.audit.write, "unknown", "refused", connections=turned_away, why=NO_CALL)
            except Exception as error:  # noqa: BLE001  # a database that is away for a moment must not end this
                log.warning("the database cannot be asked (%s); trying again", error)
                await asyncio.sleep(LOOK)

    async def look(self) -> None:
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        # What is answered while the database is being read may still be open in what was read.
        known = set(self._answered)
        serials, self.via, tasks, runs = await asyncio.to_thread(self._read)
        lost = self.serials.keys() - serials[0].keys()
        self.serials, self.revoked = serials
        self.idle = not any(run.status in ("waiting", "running") for run in runs)
        new: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            if task.id not in self._answered:
                new[self.via.get(task.client, task.client)].append(task)
        self._answered -= known
        before, self.open = self.open, new
        for client, events in self._waiting.items():
            if self.idle or lost or [t.id for t in new.get(client, [])] != [t.id for t in before.get(client, [])]:
                for event in events:
                    event.set()

    def _read(self) -> tuple[tuple[dict[str, str], set[str]], dict[str, str], list[Task], list[RunRow]]:
        state = self._office.state
        tasks, runs = state.all_open(), state.runs()
        for run in {task.run for task in tasks} - self.jobs.keys():
            job = next(row.job for row in runs if row.id == run).encode()
            self.jobs[run] = hashlib.sha256(job).hexdigest(), len(job)
        return state.serials(), state.via(), tasks, runs

    async def wait(self, client: str, seconds: float) -> None:
        """Until something changed for this client, or for a while."""
        event = asyncio.Event()
        self._waiting[client].add(event)
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self._waiting[client].discard(event)

    async def report(self, told: Reported) -> Any:
        """Commit a report, together with all others that have come since the last commit."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._reports.append((told, future))
        self._reported.set()
        return await future

    async def commit_reports(self) -> None:
        """Commits reports as they come; ends when it is cancelled."""
        while True:
            await self._reported.wait()
            self._reported.clear()
            some, self._reports = self._reports, []
            try:
                verdicts = await asyncio.to_thread(self._office.state.report, [told for told, _ in some])
            except Exception as error:  # noqa: BLE001  # it is each caller's error
                for _, future in some:
                    if not future.done():
                        future.set_exception(error)
                continue
            reached("server.report_committed")
            for (told, future), verdict in zip(some, verdicts, strict=True):
                caller, over = told.via or told.client, {told.task, *told.also} - set(verdict.open)
                self.open[caller] = [task for task in self.open.get(caller, []) if task.id not in over]
                if verdict.known:
                    self._answered |= over
                if not future.done():
                    future.set_result(verdict)
            self._office.reported.ring(*(task for told, _ in some for task in (told.task, *told.also)))


class Doors:
    """Lets in who may come in."""

    def __init__(self, office: Office, desk: Desk) -> None:
        self._office, self._desk = office, desk

    async def let_in(self, context: Any, *roles: str) -> Identity:
        """The caller, who has one of the roles; else the call ends here, and the audit log says so."""
        self._office.handshakes.arrived(context.peer())
        try:
            who = _who_says(context) if self._office.insecure else identity_of(context.auth_context()["x509_pem_cert"][0])
        except InputError as error:
            await self.refuse(context, "", "unknown", str(error))
        if who.role not in roles:
            await self.refuse(context, who.name, who.role, f"a {who.role} may not call this")
        if who.role != "joining" and not self.knows(who):
            if self._office.insecure or (self._office.own_pki and who.serial not in self._desk.revoked):
                expires = who.expires.timestamp()
                await asyncio.to_thread(self._office.state.admit, who.name, who.role, who.serial, expires)
            await self._desk.look()  # another server process may have let it join a moment ago
            if not self.knows(who):
                await self.refuse(context, who.name, who.role, "its certificate was revoked, has expired, or is unknown here")
        self._office.presence.heard(who.name)
        return who

    def knows(self, who: Identity) -> bool:
        return self._desk.serials.get(who.serial) == who.name

    async def refuse(self, context: Any, name: str, role: str, why: str) -> Any:
        await asyncio.to_thread(self._office.audit.write, name or "unknown", "refused", role=role, why=why)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)

    async def same_protocol(self, context: Any, protocol: int) -> None:
        if protocol != PROTOCOL:
            said = (
                f"you speak version {protocol} of the protocol and this server speaks {PROTOCOL}; install the same version of hansa"
            )
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, said)

    def watched(self, who: Identity) -> Callable[[int], None]:
        """Called with every chunk that a member sends or takes: it is a sign of life, and the end where it was revoked meanwhile."""

        def on_bytes(size: int) -> None:
            if not self.knows(who):
                raise transfer.Rejected(grpc.StatusCode.PERMISSION_DENIED, REVOKED)
            self._office.presence.heard(who.name)

        return on_bytes

    async def messages(self, requests: AsyncIterator[Any], who: Identity) -> AsyncIterator[Any]:
        """What a member sends, until it is revoked; also where it sends nothing. Raises Rejected then."""
        each = aiter(requests)
        while True:
            coming = asyncio.ensure_future(anext(each, None))
            while not (await asyncio.wait({coming}, timeout=LOOK))[0]:
                if not self.knows(who):
                    coming.cancel()
                    raise transfer.Rejected(grpc.StatusCode.PERMISSION_DENIED, REVOKED)
            if (message := coming.result()) is None:
                return
            yield message

    async def end(self, context: Any, who: Identity, why: transfer.Rejected) -> None:
        """End a transfer."""
        if why.code is grpc.StatusCode.PERMISSION_DENIED:
            await self.refuse(context, who.name, who.role, why.message)
        await context.abort(why.code, why.message)


class FederationService(rpc.FederationServicer):
    """What clients call."""

    def __init__(self, office: Office, desk: Desk, doors: Doors) -> None:
        self._office, self._desk, self._doors = office, desk, doors
        self._expected: dict[str, Any] = {}
        self._strange: set[tuple[str, str]] = set()

    async def Join(self, request: Any, context: Any) -> Any:
        who = await self._doors.let_in(context, "joining", "client", "relay", "admin", "viewer", "server")
        await self._doors.same_protocol(context, request.protocol)
        renewing = who.role != "joining"
        role = who.grants or who.role
        office = self._office
        try:
            certificate = await asyncio.to_thread(office.authority.issue, request.request, who.name, role, office.limits.days)
        except InputError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        given = identity_of(certificate)
        if renewing:
            expires = given.expires.timestamp()
            if not await asyncio.to_thread(office.state.replace, who.serial, who.name, role, given.serial, expires):
                await self._doors.refuse(context, who.name, who.role, REVOKED)
        else:
            key = hashlib.sha256(request.request).hexdigest()
            spent = await asyncio.to_thread(office.state.join, who.token, key, given.serial, given.expires.timestamp())
            if spent is None:
                await self._doors.refuse(context, who.name, who.role, "the join token was used before, has expired, or is unknown")
        await asyncio.to_thread(office.audit.write, who.name, "renewed" if renewing else "joined", role=role, serial=given.serial)
        reached("server.joined")
        office.bell.ring()
        return pb.JoinReply(certificate=certificate, authority=office.authority.certificate)

    async def Next(self, request: Any, context: Any) -> Any:
        who = await self._doors.let_in(context, "client", "relay")
        await self._doors.same_protocol(context, request.protocol)
        most = MOST_BEHIND if who.role == "relay" else MOST_WORKING
        if max(len(request.working), len(request.held), len(request.behind)) > most:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"at most {most} tasks or clients can be named at once")
        if who.role == "relay":
            return await (self._told if request.behind or request.held else self._next_of_relay)(request, who, context)
        if request.behind or request.held:
            await self._doors.refuse(context, who.name, who.role, "a client speaks for itself alone")
        if request.working:
            mine = {task.id for task in self._desk.open.get(who.name, [])}
            return pb.NextReply(wanted=[id for id in request.working if id in mine])
        until = time.monotonic() + LONGEST_WAIT
        while not self._desk.open.get(who.name) and (left := until - time.monotonic()) > 0:
            if self._desk.idle and left < LONGEST_WAIT - 1:
                break
            await self._desk.wait(who.name, min(left, LONGEST_WAIT))
            if not self._doors.knows(who):
                await self._doors.refuse(context, who.name, who.role, REVOKED)
        self._office.presence.heard(who.name)
        tasks = [self._task(task) for task in self._desk.open.get(who.name, [])]
        return pb.NextReply(tasks=tasks, idle=self._desk.idle and not tasks)

    async def _next_of_relay(self, request: Any, who: Identity, context: Any) -> Any:
        known = set(request.working)
        if {task.id for task in self._desk.open.get(who.name, [])} == known:
            # Until any change: an exchange that is played again has tasks of the same names, which the relay believes to be over.
            await self._desk.wait(who.name, LONGEST_WAIT)
            if not self._doors.knows(who):
                await self._doors.refuse(context, who.name, who.role, REVOKED)
        self._office.presence.heard(who.name)
        mine = {task.id: task for task in self._desk.open.get(who.name, [])}
        new = [task for task in mine.values() if task.id not in known][:MOST_BEHIND]
        if lost := [task.id for task in new if task.held]:  # the relay has lost what it had
            await asyncio.to_thread(self._office.state.hold, lost, False)
        idle = self._desk.idle and not mine
        return pb.NextReply(tasks=[self._task(task) for task in new], wanted=[id for id in known if id in mine], idle=idle)

    async def _told(self, request: Any, who: Identity, context: Any) -> Any:
        """Note for whom a relay speaks, when each was heard of, and which answers it keeps."""
        office, now = self._office, time.time()
        silent = {one.name: min(max(0.0, one.silent), 1e9) for one in request.behind}
        strange = {name: "it is no name of a member" for name in silent if not is_name(name)}
        new = [name for name in silent if self._desk.via.get(name) != who.name and name not in strange]
        if new:
            strange |= await asyncio.to_thread(office.state.behind, who.name, new)
            await self._desk.look()
        for name, why in strange.items():  # said once, and not at every beat
            if (who.name, name[:64]) in self._strange:
                continue
            if len(self._strange) > 10 * MOST_BEHIND:
                self._strange.clear()
            self._strange.add((who.name, name[:64]))
            said = f"it may not speak for {name[:64]}: {why}"
            await asyncio.to_thread(office.audit.write, who.name, "refused", role=who.role, why=said)
        for name in silent.keys() - strange.keys():
            office.presence.heard(name, now - silent[name])
        held = set(request.held) & {task.id for task in self._desk.open.get(who.name, [])}
        if held:
            await asyncio.to_thread(office.state.hold, held)
            office.reported.ring()
        return pb.NextReply(strange=[pb.Strange(name=name[:64], why=why) for name, why in strange.items()])

    def _task(self, task: Task) -> Any:
        job, size = self._desk.jobs[task.run]
        return pb.Task(
            id=task.id, run=task.run, job=pb.Blob(digest=job, size=size), call=pb.Blob(digest=task.call, size=task.size),
            position=task.position, population=task.population, client=task.client, block=task.block, blocks=task.blocks,
        )  # fmt: skip

    async def Report(self, request: Any, context: Any) -> Any:
        who = await self._doors.let_in(context, "client", "relay")
        await self._doors.same_protocol(context, request.protocol)
        if who.role == "relay":
            told = await self._checked_of_relay(request, who, context)
        elif request.also:
            await self._doors.refuse(context, who.name, who.role, "a client speaks for itself alone")
        else:
            told = await self._checked(request, who, context, who.name)
        reached("server.report_validated")
        verdict = await self._desk.report(told)
        if not verdict.used:
            why = "the round had closed, or this was reported before" if verdict.known else "it is not a task of this client"
            await asyncio.to_thread(self._office.audit.write, who.name, "report not used", task=request.task, why=why)
            if not verdict.known and await asyncio.to_thread(self._office.state.task, request.task) is not None:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "it is not a task of this client")
        return pb.ReportReply(used=verdict.used, wanted=verdict.open)

    async def _checked_of_relay(self, request: Any, who: Identity, context: Any) -> Reported:
        """What a relay says of one client behind it; or of several, whose tasks must then be one node of the sum of one exchange."""
        ids = (request.task, *request.also)
        if len(ids) > MOST_BEHIND or len(set(ids)) < len(ids) or not all(_TASK.fullmatch(id) for id in ids):
            why = f"a sum is of at most {MOST_BEHIND} tasks, each of them once, named by 32 hexadecimal digits"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)
        rows = {task.id: task for task in await asyncio.to_thread(self._office.state.tasks, ids)}
        if any(self._desk.via.get(task.client) != who.name for task in rows.values()):
            await self._desk.look()  # another server process may have noted it a moment ago
            if any(self._desk.via.get(task.client) != who.name for task in rows.values()):
                await self._doors.refuse(context, who.name, who.role, "it reported a task of a client that is not behind it")
        client = rows[request.task].client if request.task in rows else ""
        if not request.also:
            return replace(await self._checked(request, who, context, client), via=who.name)
        blob, late = request.result, len(rows) < len(ids) or any(task.status != "open" for task in rows.values())
        if len(rows) == len(ids):
            first, exchanges = rows[request.task], {(task.run, task.call) for task in rows.values()}
            whole = len(exchanges) == 1 and is_node([task.block for task in rows.values()], first.blocks)
            if not whole or request.WhichOneof("outcome") != "result" or first.block != min(task.block for task in rows.values()):
                why = "the tasks of a sum, the first one first, are all that is below one node of the tree of one exchange"
                await self._no_result(context, who, first, why)
            if not late:
                await self._validated(context, who, first, blob, len(ids))
        outcome = {"clients": len(ids)}
        return Reported(request.task, client, blob.digest, blob.size, outcome, late, who.name, tuple(request.also))

    async def _no_result(self, context: Any, who: Identity, task: Task, why: str) -> None:
        await asyncio.to_thread(self._office.audit.write, who.name, "result refused", role=who.role, task=task.id, why=why[:500])
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)

    async def _validated(self, context: Any, who: Identity, task: Task, blob: Any, clients: int = 1) -> None:
        try:
            await asyncio.to_thread(self._validate, task, blob.digest, blob.size, clients)
        except InputError as error:
            await self._no_result(context, who, task, str(error))

    async def _checked(self, request: Any, who: Identity, context: Any, client: str) -> Reported:
        kind = request.WhichOneof("outcome")
        if not _TASK.fullmatch(request.task):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a task is named by 32 hexadecimal digits")
        if kind == "result":
            # Another server process may have opened it a moment ago, and nothing is used unchecked.
            task = next((one for one in self._desk.open.get(client, []) if one.id == request.task), None)
            task = task or await asyncio.to_thread(self._office.state.task, request.task)
            late = task is None or task.client != client or task.status != "open"
            if task is not None and not late:
                await self._validated(context, who, task, request.result)
            return Reported(request.task, client, request.result.digest, request.result.size, late=late)
        if kind is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a report names a result, a failure or a refusal")
        said = getattr(request, kind)
        outcome = {name: _cut(getattr(said, name), TEXT[name]) for name in TEXT if name in said.DESCRIPTOR.fields_by_name}
        if kind == "failure":
            outcome["bad_input"] = said.bad_input
        return Reported(request.task, client, outcome=outcome)

    def _validate(self, task: Task, digest: str, size: int, clients: int) -> None:
        """InputError for a result that is not what the task's call declares."""
        blobs = self._office.blobs
        if not blobs.has(digest) or blobs.size(digest) != size:
            raise InputError("the result has not been uploaded")
        expected = self._expected.get(task.call)
        if expected is None:
            if len(self._expected) > 64:
                self._expected.clear()
            expected = calls.expected(calls.decode_call(parcels.read(blobs.local(task.call))), task.client)
            if not expected.nested:
                self._expected[task.call] = expected
        if clients > 1 and expected.collective != "sum":
            raise InputError("result: it is a sum, and the call wants to see what each client gives ('gather')")
        calls.decode_result(parcels.read(blobs.local(digest)), expected, clients)

    async def PutBlob(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        who = await self._doors.let_in(context, "client", "relay")
        if not self._desk.open.get(who.name):
            await self._desk.look()
            if not self._desk.open.get(who.name):
                await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION, "no task of this client is open, so nothing can be uploaded"
                )
        office, messages = self._office, self._doors.messages(requests, who)
        replies = transfer.receive(messages, office.blobs, who.name, office.limits.upload, self._doors.watched(who))
        try:
            async for reply in replies:
                yield reply
        except transfer.Rejected as error:
            await self._doors.end(context, who, error)

    async def GetBlob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        who = await self._doors.let_in(context, "client", "relay")
        if not any(request.digest in (task.call, self._desk.jobs[task.run][0]) for task in self._desk.open.get(who.name, [])):
            await self._desk.look()  # another server process may have opened the task a moment ago
        mine = self._desk.open.get(who.name, [])
        job = next((t.run for t in mine if self._desk.jobs[t.run][0] == request.digest), None)
        if job is not None:
            text = (await asyncio.to_thread(self._office.state.run, job)).job.encode()
            yield pb.Chunk(data=text[request.offset :])
            return
        if not any(task.call == request.digest for task in mine):
            await self._doors.refuse(context, who.name, who.role, "it asked for a blob that no open task of it names")
        try:
            async for chunk in transfer.send(self._office.blobs, request.digest, request.offset, self._doors.watched(who)):
                yield chunk
        except transfer.Rejected as error:
            await self._doors.end(context, who, error)


def _who_says(context: Any) -> Identity:
    """Who a caller of a server without TLS says it is."""
    said = dict(context.invocation_metadata())
    name, role = str(said.get("hansa-name", "")), str(said.get("hansa-role", ""))
    if not name or role not in ("client", "relay", "admin", "viewer"):
        raise InputError("the caller did not say who it is (metadata hansa-name and hansa-role)")
    return Identity(name[:64], role, f"insecure-{name[:48]}", datetime(9999, 1, 1, tzinfo=UTC))  # type: ignore[arg-type]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " ..."


class AdministrationService(rpc.AdministrationServicer):
    """What administrators call; viewers may look."""

    def __init__(self, office: Office, desk: Desk, doors: Doors) -> None:
        self._office, self._desk, self._doors = office, desk, doors

    async def Submit(self, request: Any, context: Any) -> Any:
        who = await self._doors.let_in(context, "admin")
        await self._doors.same_protocol(context, request.protocol)
        if len(request.job.encode()) > JOB_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a job has at most {JOB_BYTES:,} bytes")
        try:
            run = await asyncio.to_thread(submit, self._office, request.job, who.name)
        except InputError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.SubmitReply(run=run)

    async def Runs(self, request: Any, context: Any) -> Any:
        await self._doors.let_in(context, "admin", "viewer")
        await self._doors.same_protocol(context, request.protocol)
        rows = await asyncio.to_thread(self._office.state.runs)
        return pb.RunsReply(runs=[_run_message(row) for row in rows])

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        who = await self._doors.let_in(context, "admin", "viewer")
        await self._doors.same_protocol(context, request.protocol)
        after, state = min(request.after, MOST_EVENTS), self._office.state
        try:
            await asyncio.to_thread(state.run, request.run)
        except InputError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        while True:
            over = (await asyncio.to_thread(state.run, request.run)).status not in ("waiting", "running")
            rows = await asyncio.to_thread(state.events, request.run, after)
            for row in rows:
                after = row.number
                yield pb.Event(number=row.number, time=row.time, kind=row.kind, content=row.content)
            if over and not rows:
                return
            if not self._doors.knows(who):
                await self._doors.refuse(context, who.name, who.role, REVOKED)
            if not rows:
                await asyncio.sleep(0.2)

    async def Stop(self, request: Any, context: Any) -> Any:
        who = await self._doors.let_in(context, "admin")
        await self._doors.same_protocol(context, request.protocol)
        try:
            await asyncio.to_thread(self._office.state.ask_to_stop, request.run)
        except InputError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        await asyncio.to_thread(self._office.audit.write, who.name, "stop", run=request.run)
        self._office.bell.ring()
        return pb.StopReply()

    async def Invite(self, request: Any, context: Any) -> Any:
        who = await self._doors.let_in(context, "admin")
        await self._doors.same_protocol(context, request.protocol)
        try:
            token = await asyncio.to_thread(invite, self._office, request.name, request.role, request.hours, who.name)
        except InputError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.InviteReply(token=token)

    async def Revoke(self, request: Any, context: Any) -> Any:
        who = await self._doors.let_in(context, "admin")
        await self._doors.same_protocol(context, request.protocol)
        try:
            await asyncio.to_thread(revoke, self._office, request.name, who.name)
        except InputError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        return pb.RevokeReply()

    async def Members(self, request: Any, context: Any) -> Any:
        await self._doors.let_in(context, "admin", "viewer")
        await self._doors.same_protocol(context, request.protocol)
        rows = await asyncio.to_thread(self._office.state.members)
        times = ("joined", "expires", "revoked", "seen")
        asked = {name: min(task.opened for task in tasks) for name, tasks in self._desk.open.items() if tasks}
        members = [
            pb.Member(
                name=r.name, role=r.role, via=r.via or "", asked=asked.get(r.name, 0.0), **{name: getattr(r, name) or 0.0 for name in times}
            )
            for r in rows
        ]  # fmt: skip
        return pb.MembersReply(members=members)


def submit(office: Office, job: str, by: str, once: bool = False) -> str:
    """Take a job; returns the new run's id. InputError for a job that cannot be played here.

    once: the same job that is not over yet is gone on with, and no other run begun.
    """
    name = office.submitted(job)
    run = f"{time.strftime('%Y-%m-%d-%H%M%S', time.gmtime())}-{hashlib.sha256(f'{time.time_ns()}{job}'.encode()).hexdigest()[:8]}"
    if once and (found := office.state.submit_once(run, name, job, by)) != run:
        return found
    if not once:
        office.state.submit(run, name, job, by)
    office.audit.write(by, "submitted", run=run, job=name)
    office.bell.ring()
    return run


def invite(office: Office, name: str, role: Any, hours: float, by: str) -> str:
    """A join token, good once. InputError for a name, a role or a time that cannot be."""
    token, who = office.authority.invite(name, role, hours)
    office.state.invite(who.token, name, role, who.expires.timestamp())
    office.audit.write(by, "invited", member=name, grants=role)
    return token


def revoke(office: Office, name: str, by: str) -> None:
    """Shut a member out, at once, on open connections too. InputError where there is no such member."""
    office.state.revoke(name)
    office.audit.write(by, "revoked", member=name)
    office.bell.ring()


def _run_message(row: RunRow) -> Any:
    rounds = 0
    return pb.Run(
        id=row.id, name=row.name, status=row.status, submitted_by=row.submitted_by, submitted=row.submitted, round=row.round,
        rounds=rounds, message=row.message, clients=list(row.clients or ()),
    )  # fmt: skip


def status_text(content: str) -> dict[str, Any]:
    """An event's content."""
    value: dict[str, Any] = json.loads(content)
    return value


def serve(
    office: Office, address: str, credentials: Any, also: Sequence[Callable[[Any, Doors], None]] = (), listener: Any = None
) -> Any:
    """A started gRPC server's coroutine: ``await serve(...)`` gives (server, port, background tasks).

    also: add further services to the server, with the doors that say who may call them. listener: an interceptor of all calls.
    """
    return _serve(office, address, credentials, also, listener)


async def _serve(
    office: Office, address: str, credentials: Any, also: Sequence[Callable[[Any, Doors], None]], listener: Any
) -> tuple[Any, int, list[Any]]:
    desk = Desk(office)
    await desk.look()
    doors = Doors(office, desk)
    options = [
        ("grpc.max_receive_message_length", 4 << 20), ("grpc.max_send_message_length", 4 << 20),
        ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000), ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.ping_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000), ("grpc.max_metadata_size", 16 << 10), ("grpc.so_reuseport", 0),
    ]  # fmt: skip
    server = grpc.aio.server(options=options, interceptors=() if listener is None else (listener,))
    rpc.add_FederationServicer_to_server(FederationService(office, desk, doors), server)
    rpc.add_AdministrationServicer_to_server(AdministrationService(office, desk, doors), server)
    for add in also:
        add(server, doors)
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    if not port:
        raise InputError(f"--listen {address}: the address cannot be used; is another server running there?")
    await server.start()
    background = [asyncio.create_task(desk.keep()), asyncio.create_task(desk.commit_reports())]
    return server, port, background
