"""What the handlers of a server process know between two looks at the database, and how reports are committed together."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import defaultdict
from typing import Any

from hansa.federation.database import reason
from hansa.federation.faults import reached
from hansa.federation.office import Office
from hansa.federation.state import Reported, RunRow, Task

LOOK = 1.0
"""Seconds after which the database is asked for tasks, members and revocations that other server processes have written."""

NO_CALL = "it ended before a call: it showed no certificate that is valid and of this federation's authority, or spoke no TLS"

log = logging.getLogger("hansa.federation.desk")


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
        said = ""
        while True:
            self._changed.clear()
            try:
                await self.look()
                said = ""
                try:
                    await asyncio.wait_for(self._changed.wait(), LOOK)
                except TimeoutError:
                    await asyncio.to_thread(self._office.presence.flush)
                if turned_away := self._office.handshakes.failed():
                    await asyncio.to_thread(self._office.audit.write, "unknown", "refused", connections=turned_away, why=NO_CALL)
            except Exception as error:  # noqa: BLE001  # a database that is away for a moment must not end this
                if (why := reason(error)) != said:
                    log.warning("the database cannot be asked (%s); trying again", why)
                said = why
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
            if (
                self.idle
                or lost
                or self._office.closing.is_set()
                or [t.id for t in new.get(client, [])] != [t.id for t in before.get(client, [])]
            ):
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
