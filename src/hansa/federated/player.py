"""A server's life beside its handlers: it claims the runs that wait, and plays them."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from hansa import job as jobs
from hansa import runs
from hansa.core.blocks import Client as Recipe
from hansa.core.blocks import Splits
from hansa.core.contracts import Engine
from hansa.core.errors import HansaError, RunFailed
from hansa.federated.claim import Claim
from hansa.federated.ended import DescribedEngine, kept_run
from hansa.federated.folder import ServedFolder
from hansa.federated.playable import options_of
from hansa.federated.watched import WatchedServer
from hansa.federation.engine import LEASE, FederationEngine, Playing, Stopped
from hansa.federation.faults import reached
from hansa.federation.office import Office
from hansa.federation.options import Federation
from hansa.federation.state import LeaseLost, RunRow
from hansa.options import describe
from hansa.runs import Run

log = logging.getLogger("hansa.federation.server")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of a system that takes nothing more: what was kept is as it was, and the rest can be done later."""

LATER = "which goes on after the last saved round"

LOOK = 0.3
"""Seconds between two looks for clients that join, and for runs that are submitted."""


@dataclass(frozen=True)
class _Hosted:
    """The engine of a job that this server plays."""

    engine: FederationEngine = field(repr=False)
    options: Federation
    name: str = "federation"

    def build(self) -> Engine:
        return self.engine

    def plain(self) -> Any:
        return describe(self.options)


class Player:
    """Plays the runs of one server process.

    folder: of the runs. owner: what the process is called in the database. over: set when it shall end.
    """

    def __init__(self, office: Office, seen: WatchedServer, folder: Path, owner: str, over: threading.Event, quiet: bool) -> None:
        self._office, self._seen, self._runs = office, seen, folder
        self._owner, self._over, self._quiet = owner, over, quiet
        self._said = ""  # of the database, last

    def claimed(self) -> RunRow | None:
        """A run to play; None where there is none, and while the database cannot be reached; see :meth:`wait_for_database`."""
        try:
            found = self._office.state.claim(self._owner, LEASE)
            self._said = ""
            return found
        except OperationalError as away:
            self.wait_for_database(away)
            return None

    def wait_for_database(self, away: OperationalError) -> None:
        """Pause. RunFailed where the disk of a SQLite file has no room: what was acknowledged is there, and nothing else can be."""
        said = f"the database cannot be used ({away.orig})"
        if getattr(away.orig, "sqlite_errorcode", 0) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
            raise RunFailed(f"{said}; make room on its disk, and start the server again, {LATER}") from None
        if said != self._said:
            log.warning("%s; trying again", said)
        self._said = said
        self._over.wait(LOOK)

    def finished(self, row: RunRow) -> Run:
        """A run that another process finished, or an earlier one of this home, as this one would have given it back."""
        job, office = jobs.from_text(row.job, where=f"run {row.id}"), self._office
        playing = Playing(
            row.id, self._owner, office.state, office.blobs, office.presence, office.bell, office.reported, options_of(job),
            self._teller(row.id), lambda: None,
        )  # fmt: skip
        hosted = replace(job, engine=_Hosted(FederationEngine(playing), options_of(job)), rounds=replace(job.rounds, block=1))
        engine = hosted.engine.build()
        kept = kept_run(row, hosted, self._runs / row.id, office.blobs, _recipes(row.clients or ()), engine)
        if kept is not None:
            return kept
        self._office.state.adopt(row.id, self._owner)
        try:
            return self._train(row, Claim(self._office.state, row.id, self._owner))
        finally:
            with contextlib.suppress(LeaseLost):  # no task of a run that is over stays open
                self._office.state.finish(row.id, self._owner, "finished", row.message)

    def play(self, row: RunRow, raising: bool) -> Run | None:
        """Play a claimed run; None where it failed, was stopped, or was taken over (raised instead, if ``raising``).

        RunFailed where the disk has no room: the run is not over then, and whoever claims it next goes on after its last saved round.
        """
        try:
            return self._play(row, raising)
        except OperationalError as away:  # whoever claims the run next goes on with it
            self.wait_for_database(away)
            return None
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise RunFailed(f"run {row.id}: {no_room(error)}, {LATER}") from None

    def _play(self, row: RunRow, raising: bool) -> Run | None:
        state, tell = self._office.state, self._teller(row.id)
        with Claim(state, row.id, self._owner) as claim:
            try:
                done = self._train(row, claim)
                claim.check()
                state.finish(row.id, self._owner, "finished", done.ended)
                reached("server.run_finished")
                tell("finished", {"message": done.ended, "metrics": done.metrics})
                return done
            except LeaseLost as lost:
                log.warning("%s", lost)
                return None
            except OperationalError:
                raise
            except Stopped as stopped:
                self._end(row.id, "stopped", str(stopped))
                if raising:
                    raise
            except HansaError as error:
                self._end(row.id, "failed", str(error))
                if raising:
                    raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise
                self._end(row.id, "failed", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
                if raising:
                    raise
        return None

    def _end(self, run: str, status: Any, message: str) -> None:
        with contextlib.suppress(LeaseLost):
            self._office.state.finish(run, self._owner, status, message)
            self._teller(run)(status, {"message": message})

    def _train(self, row: RunRow, claim: Claim) -> Run:
        office, job = self._office, jobs.from_text(row.job, where=f"run {row.id}")
        options = options_of(job)

        def check() -> None:
            claim.check()
            if self._over.is_set():
                raise LeaseLost(f"run {row.id}: this server was stopped")

        names = row.clients or self._gathered(row, options, check)
        playing = Playing(
            row.id, self._owner, office.state, office.blobs, office.presence, office.bell, office.reported, options,
            self._teller(row.id), check, self._seen.watch,
        )  # fmt: skip
        engine = DescribedEngine(playing, self._runs / row.id)
        hosted = replace(job, engine=_Hosted(engine, options), rounds=replace(job.rounds, block=1))
        folder = ServedFolder.open_for(self._runs, row, self._owner, office.state, office.blobs, engine.tidy, jobs.to_text(hosted))
        tell = self._teller(row.id)

        def observe(stage: str) -> None:
            if stage == "saved":
                record = folder.metrics()[-1]
                lost = sum(len(failure["clients"]) for failure in record["failures"])
                tell("round", {k: v for k, v in record.items() if isinstance(v, (int, float, str))} | {"lost": lost})
                playing.watch.committed(record["round"])

        try:
            return runs.play(hosted, folder, _recipes(names), time.perf_counter(), self._quiet, observe)
        finally:
            playing.watch.ended()

    def _gathered(self, row: RunRow, options: Federation, check: Callable[[], None]) -> tuple[str, ...]:
        """Wait until enough clients are there; settles who takes part."""
        office, tell, last = self._office, self._teller(row.id), None
        while True:
            check()
            heard = office.presence.last(office.state.clients())
            there = sorted(name for name, when in heard.items() if time.time() - when < options.liveness)
            if len(there) >= options.clients:
                names = office.state.settle(row.id, self._owner, there)
                tell("began", {"clients": list(names)})
                return names
            if there != last:
                tell("waiting", {"clients": there, "wanted": options.clients})
                last = there
            self._over.wait(LOOK)

    def _teller(self, run: str) -> Any:
        def tell(kind: str, content: Mapping[str, Any]) -> None:
            fields = {name: content[name] for name in ("round", "client") if name in content}
            log.info("run %s: %s %s", run, kind, json.dumps(content, default=str), extra={"run": run, **fields})
            self._seen.told(kind, content)
            self._office.state.tell(run, kind, content)

        return tell


def no_room(error: OSError) -> str:
    """What a server says when a system takes nothing more."""
    where = error.filename or "the server's home"
    return f"{where} cannot be written ({error.strerror}); make room there, and start the server again"


def _recipes(names: Sequence[str]) -> list[Recipe]:
    return [Recipe(name, _absent, {"name": name}) for name in names]


def _absent(name: str) -> Splits:
    raise RunFailed(f"client {name}: its rows are where it is, and not at the server")
