"""What clients and relays call: is what they say well-formed, and then the database.

A handler keeps nothing: whatever it acknowledges has been committed, and any server process of the federation can answer any call.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from hansa.core.errors import InputError
from hansa.federation import calls, expectations, parcels, results, transfer, wire
from hansa.federation.desk import Desk
from hansa.federation.doors import REVOKED, Doors
from hansa.federation.faults import reached
from hansa.federation.identity import Identity, identity_of, is_name
from hansa.federation.nodes import is_node
from hansa.federation.office import Office
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.protocol import hansa_pb2_grpc as rpc
from hansa.federation.state import Reported, Task
from hansa.federation.turns import Turns

LONGEST_WAIT = 25.0
"""Seconds that a client waits in one `Next`: below the minute after which proxies and firewalls cut a silent connection."""

MOST_WORKING = 1000
"""Tasks that a client may name in one `Next`."""

MOST_BEHIND = 5000
"""Clients that a relay may speak for, and tasks that it may have in hand."""

TEXT = {"kind": 200, "message": 10_000, "traceback": 50_000, "rule": 100}
"""Most characters of what a client may say of a failure."""

_TASK = re.compile("[0-9a-f]{32}")


class FederationService(rpc.FederationServicer):
    """What clients call."""

    def __init__(self, office: Office, desk: Desk, doors: Doors) -> None:
        self._office, self._desk, self._doors = office, desk, doors
        self._expected: dict[str, Any] = {}
        self._shelf = transfer.Shelf(office.blobs)
        self._up, self._down = Turns(), Turns()
        self._strange: set[tuple[str, str]] = set()

    async def Join(self, request: Any, context: Any) -> Any:
        who = await self._doors.known(context, "joining", "client", "relay", "admin", "viewer", "server")
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
            if self._office.closing.is_set() or (self._desk.idle and left < LONGEST_WAIT - 1):
                break
            await self._desk.wait(who.name, min(left, LONGEST_WAIT))
            if not self._doors.knows(who):
                await self._doors.refuse(context, who.name, who.role, REVOKED)
        self._office.presence.heard(who.name)
        tasks = [self._task(task) for task in self._desk.open.get(who.name, [])]
        return pb.NextReply(tasks=tasks, idle=self._desk.idle and not tasks)

    async def _next_of_relay(self, request: Any, who: Identity, context: Any) -> Any:
        known = set(request.working)
        if {task.id for task in self._desk.open.get(who.name, [])} == known and not self._office.closing.is_set():
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

    async def Report(self, requests: AsyncIterator[Any], context: Any) -> Any:
        who = await self._doors.let_in(context, "client", "relay")
        try:
            return await self._report(aiter(requests), who, context)
        except transfer.Rejected as error:
            await self._doors.end(context, who, error)

    async def _report(self, messages: AsyncIterator[Any], who: Identity, context: Any) -> Any:
        request = await self._doors.message(messages, who)
        if not isinstance(request, pb.ReportRequest) or request.content:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "a report begins with its task, and content is a message of its own"
            )
        await self._doors.same_protocol(context, request.protocol)
        if who.role == "relay":
            told = await self._checked_of_relay(request, messages, who, context)
        elif request.also:
            await self._doors.refuse(context, who.name, who.role, "a client speaks for itself alone")
        else:
            told = await self._checked(request, messages, who, context, who.name)
        reached("server.report_validated")
        verdict = await self._desk.report(told)
        if not verdict.used:
            why = "the round had closed, or this was reported before" if verdict.known else "it is not a task of this client"
            await asyncio.to_thread(self._office.audit.write, who.name, "report not used", task=request.task, why=why)
            if not verdict.known and await asyncio.to_thread(self._office.state.task, request.task) is not None:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "it is not a task of this client")
        return pb.ReportReply(used=verdict.used, wanted=verdict.open)

    async def _checked_of_relay(self, request: Any, messages: AsyncIterator[Any], who: Identity, context: Any) -> Reported:
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
            return replace(await self._checked(request, messages, who, context, client), via=who.name)
        blob, late = request.result, len(rows) < len(ids) or any(task.status != "open" for task in rows.values())
        if len(rows) == len(ids):
            first, exchanges = rows[request.task], {(task.run, task.call) for task in rows.values()}
            whole = len(exchanges) == 1 and is_node([task.block for task in rows.values()], first.blocks)
            if not whole or request.WhichOneof("outcome") != "result" or first.block != min(task.block for task in rows.values()):
                why = "the tasks of a sum, the first one first, are all that is below one node of the tree of one exchange"
                await self._no_result(context, who, first, why)
            if not late:
                await self._validated(context, messages, who, first, blob, len(ids))
        outcome = {"clients": len(ids)}
        return Reported(request.task, client, blob.digest, blob.size, outcome, late, who.name, tuple(request.also))

    async def _no_result(self, context: Any, who: Identity, task: Task, why: str) -> None:
        await asyncio.to_thread(self._office.audit.write, who.name, "result refused", role=who.role, task=task.id, why=why[:500])
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)

    async def _validated(
        self, context: Any, messages: AsyncIterator[Any], who: Identity, task: Task, blob: Any, clients: int = 1
    ) -> None:  # fmt: skip
        """Have a result that is as the call declares, durably: what comes behind its report, or what was uploaded before."""
        async with self._up.turn(who.name):
            content = await self._doors.message(messages, who)
            self._doors.watched(who)(0)  # it may have been revoked while it waited
            if not (content is None or isinstance(content, wire.Piece)):
                why = "behind a report comes the content of its result, and nothing else"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)
            try:
                await asyncio.to_thread(self._validate, task, blob, content and content.data, clients)
            except InputError as error:
                await self._no_result(context, who, task, str(error))

    async def _checked(self, request: Any, messages: AsyncIterator[Any], who: Identity, context: Any, client: str) -> Reported:
        kind = request.WhichOneof("outcome")
        if not _TASK.fullmatch(request.task):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a task is named by 32 hexadecimal digits")
        if kind == "result":
            # Another server process may have opened it a moment ago, and nothing is used unchecked.
            task = next((one for one in self._desk.open.get(client, []) if one.id == request.task), None)
            task = task or await asyncio.to_thread(self._office.state.task, request.task)
            late = task is None or task.client != client or task.status != "open"
            if task is not None and not late:
                await self._validated(context, messages, who, task, request.result)
            return Reported(request.task, client, request.result.digest, request.result.size, late=late)
        if kind is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a report names a result, a failure or a refusal")
        said = getattr(request, kind)
        outcome = {name: _cut(getattr(said, name), TEXT[name]) for name in TEXT if name in said.DESCRIPTOR.fields_by_name}
        if kind == "failure":
            outcome["bad_input"] = said.bad_input
        return Reported(request.task, client, outcome=outcome)

    def _validate(self, task: Task, blob: Any, content: memoryview | None, clients: int) -> None:
        """InputError for a result that is not what the task's call declares; what came with the report is stored where it is."""
        blobs = self._office.blobs
        if content is not None:
            transfer.check_content(blob, content, self._office.limits.upload)
        elif not blobs.has(blob.digest) or blobs.size(blob.digest) != blob.size:
            raise InputError("the result has not been uploaded")
        expected = self._expected.get(task.call)
        if expected is None:
            if len(self._expected) > 64:
                self._expected.clear()
            expected = expectations.expected(calls.decode_call(parcels.read(blobs.local(task.call))), task.client)
            if not expected.nested:
                self._expected[task.call] = expected
        if clients > 1 and expected.collective != "sum":
            raise InputError("result: it is a sum, and the call wants to see what each client gives ('gather')")
        tree = parcels.read(blobs.local(blob.digest)) if content is None else parcels.view(content)
        results.decode_result(tree, expected, clients)
        if content is not None:
            blobs.keep(blob.digest, content)
            reached("server.blob_complete")

    async def PutBlob(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        who = await self._doors.let_in(context, "client", "relay")
        if not self._desk.open.get(who.name):
            await self._desk.look()
            if not self._desk.open.get(who.name):
                await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION, "no task of this client is open, so nothing can be uploaded"
                )
        office, messages = self._office, self._doors.messages(requests, who)
        on_bytes = self._doors.watched(who)
        replies = transfer.receive(messages, office.blobs, who.name, office.limits.upload, on_bytes)
        try:
            async with self._up.turn(who.name):
                on_bytes(0)  # it may have been revoked while it waited
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
            yield wire.chunk(text[request.offset :])
            return
        if not any(task.call == request.digest for task in mine):
            await self._doors.refuse(context, who.name, who.role, "it asked for a blob that no open task of it names")
        on_bytes = self._doors.watched(who)
        chunks = transfer.send(self._shelf, request.digest, request.offset, on_bytes)
        try:
            async with self._down.turn(who.name):
                on_bytes(0)  # it may have been revoked while it waited
                async for chunk in chunks:
                    yield chunk
        except transfer.Rejected as error:
            await self._doors.end(context, who, error)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " ..."
