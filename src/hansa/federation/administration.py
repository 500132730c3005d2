"""What administrators call."""

from __future__ import annotations

import asyncio
import time
import tomllib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from hansa.core.errors import InputError
from hansa.federation.desk import Desk
from hansa.federation.doors import REVOKED, Doors
from hansa.federation.office import JOB_BYTES, Office, invite, revoke, submit
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.protocol import hansa_pb2_grpc as rpc
from hansa.federation.state import RunRow
from hansa.federation.waiting import awaited

MOST_EVENTS = 2**31 - 1
"""The largest number of an event."""


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
        return pb.RunsReply(runs=await asyncio.to_thread(self._run_messages))

    def _run_messages(self) -> list[Any]:
        state, now = self._office.state, time.time()
        rows, heard = state.runs(), self._office.presence.last(state.clients())
        return [_run_message(row, awaited(row, rows, heard, now) if row.status == "waiting" else row.message) for row in rows]

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


def _run_message(row: RunRow, message: str) -> Any:
    rounds = int(tomllib.loads(row.job).get("rounds", {}).get("count", 0))
    return pb.Run(
        id=row.id, name=row.name, status=row.status, submitted_by=row.submitted_by, submitted=row.submitted, round=row.round,
        rounds=rounds, message=message, clients=list(row.clients or ()),
    )  # fmt: skip
