"""A server: it lets organisations join, plays jobs with their clients, and keeps what it acknowledged."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w
from sqlalchemy.exc import OperationalError

from hansa import job as jobs
from hansa.core.errors import InputError, RunFailed
from hansa.core.files import replace_file
from hansa.core.params import Params
from hansa.federated.client import ADDRESS
from hansa.federated.home import Home
from hansa.federated.playable import name_of, options_of, playable
from hansa.federated.player import LOOK, NO_ROOM, Player, no_room
from hansa.federated.watched import WatchedServer, loop_serves, try_store
from hansa.federation.audit import Audit
from hansa.federation.authority import Authority
from hansa.federation.blobs import Blobs, open_blobs
from hansa.federation.credentials import Credentials
from hansa.federation.identity import Role
from hansa.federation.office import Limits, Office, invite, revoke, submit
from hansa.federation.options import Federation
from hansa.federation.presence import Bell, Presence
from hansa.federation.serving import serve
from hansa.federation.state import State
from hansa.federation.tls import server_credentials
from hansa.job import Job
from hansa.runs import Run

log = logging.getLogger("hansa.federation.server")

LEFT = 3 * 3600.0
"""Seconds since anybody touched a blob or an upload that nothing names, when it is removed."""

GRACE = 1.0
"""Seconds for which a server that stops answers the calls that have begun; who waits for tasks has its answer at once."""

RENEWED = timedelta(days=30)
"""What is left of the server's own certificate when it is replaced."""


class Server:
    """See the module. It serves from :meth:`start` to :meth:`stop`, or as a context manager.

    job:       what to train: a :class:`hansa.Job`, or the path of its TOML file; None to play what administrators submit. Its data are
               :class:`hansa.data.Elsewhere`, its engine is :class:`Federation` with its options, and a block is one client.
    home:      folder with the authority, the database, the blobs, the runs and the audit log; made on the first start.
    listen:    host:port to serve on; port 0 takes a free one.
    hosts:     names and addresses by which clients reach the server, besides that of ``listen``; they go into its certificate.
    database:  SQLAlchemy URL; SQLite in the home by default. Several servers on one PostgreSQL serve one federation.
    blobs:     folder or fsspec URL of models and updates; in the home by default. Servers that share a database share it.
    authority: folder of the authority, where it is not in the home. Servers that share a database share it.
    pki:       an own PKI's credentials of this server. Whoever has a certificate of that authority is a member then, and nobody joins.
    metrics:   host:port on which Prometheus metrics, /healthz and /readyz are served; nowhere by default.
    insecure:  no TLS, and callers are who they say they are: on a loopback address only, to try things out.
    """

    def __init__(
        self, job: Job | str | Path | None = None, *, home: str | Path, listen: str = "127.0.0.1:9443", hosts: Sequence[str] = (),
        database: str = "", blobs: str | Path = "", authority: str | Path = "", pki: Credentials | None = None, insecure: bool = False,
        quiet: bool = False, limits: Limits | None = None, metrics: str = "",
    ) -> None:  # fmt: skip
        self.home, self.quiet = Home(home), quiet
        self._listen, self._insecure, self._pki = _listen(listen, insecure), insecure, pki
        self._hosts = tuple(hosts)
        self._text = None if job is None else playable(job)
        self._given = (database, str(blobs), str(authority))
        self._limits, self._metrics = limits or Limits(), metrics
        self.port = 0
        self._office: Office | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._sweeping: threading.Thread | None = None
        self._serving: tuple[Any, list[Any]] | None = None
        self._watched: WatchedServer | None = None
        self._over = threading.Event()
        self.run_id = ""
        self.check: Callable[[State], None] = lambda state: None
        """Called with the database before anything is done with it; whatever it raises ends the start."""

    # Serving

    def start(self) -> Server:
        """Open the state, listen, and answer from now on. InputError where the address or the database cannot be used."""
        self.home.hold()
        self._over.clear()
        try:
            self._open()
        except BaseException as error:  # whatever it is, nothing may stay open
            self.stop()
            self.home.release()
            if isinstance(error, OperationalError):
                raise InputError(f"database: cannot be written ({error.orig}); make room on its disk, or mend it") from None
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise InputError(no_room(error)) from None
            raise
        return self

    def _open(self) -> None:
        _many_files()
        database, blobs, authority = self._given
        state = State.open(database or f"sqlite:///{self.home.path / 'state.sqlite'}")
        try:
            self.check(state)
        except BaseException:  # Ctrl-C too: no office holds the state yet, and so nobody else would close it
            state.close()
            raise
        ca = Authority.open_or_create(Path(authority) if authority else self.home.path / "authority", "Hansa federation")
        store = open_blobs(blobs or self.home.path / "blobs", home=self.home.path / "cache")
        self._office = Office(
            state, store, ca, Audit.open(self.home.path / "audit.jsonl"), Presence(state), Bell(), Bell(),
            lambda text: name_of(text, own=text == self._text), self._limits,
            self._insecure, self._pki is not None,
        )  # fmt: skip
        # Servers that share a store share its authority, but not with an own PKI or without TLS; nothing tells whose it is then.
        owner = "" if self._pki or self._insecure else hashlib.sha256(ca.certificate).hexdigest()
        try_store(store, blobs or str(self.home.path / "blobs"), self._owner, owner)
        host = self._listen.rpartition(":")[0]
        hosts = (*self._hosts, *([] if host in ("0.0.0.0", "[::]") else [host.strip("[]")]), socket.gethostname())
        mine = self._pki or ca.server(hosts)
        credentials = None if self._insecure else server_credentials(mine, self._at_the_door(mine, ca, hosts))
        if self._pki is None and not self._insecure:
            self._admit_here(ca, state)
        self._watched = self._watch(state, not database).start()
        ready: threading.Event = threading.Event()
        problem: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(credentials, ready, problem), name="hansa-server", daemon=True)
        self._thread.start()
        ready.wait()
        if problem:
            raise problem[0]
        self._sweeping = threading.Thread(target=self._sweep, args=(state, store), name="hansa-sweep", daemon=True)
        self._sweeping.start()
        replace_file(self.home.folder("admin") / ADDRESS, [tomli_w.dumps({"address": self.address}).encode()])
        self._office.audit.write("server", "started", address=self.address)

    def _sweep(self, state: State, blobs: Blobs) -> None:
        """Remove what crashes and broken-off uploads have left, now and then, until the server ends."""
        while True:
            try:
                blobs.sweep(state.blobs_in_use(), LEFT)
            except Exception as error:  # noqa: BLE001  # whatever an object store's driver raises, this ends with the server alone
                log.warning("the blobs cannot be swept (%s); trying again in an hour", error)
            if self._over.wait(3600):
                return

    def _at_the_door(self, mine: Credentials, ca: Authority, hosts: Sequence[str]) -> Callable[[], Credentials | None]:
        """What gRPC asks before the handshake of every new connection, for another certificate: this one's time may be nearly over."""
        handshakes, shown = self.office.handshakes, mine

        def renewed() -> Credentials | None:
            nonlocal shown
            handshakes.begun()
            if self._pki is not None or shown.identity.expires - datetime.now(UTC) > RENEWED:
                return None
            shown = ca.server(hosts)
            return shown

        return renewed

    def _watch(self, state: State, own_file: bool) -> WatchedServer:
        options = Federation() if self._text is None else options_of(jobs.from_text(self._text, where="the server's job"))
        serving = loop_serves(lambda: self._loop if self._serving else None, lambda: self.address)
        file = self.home.path / "state.sqlite" if own_file else None
        return WatchedServer(self.office, self._metrics, options.liveness, self._owner, file, serving)

    def _admit_here(self, ca: Authority, state: State) -> None:
        """Who may read this home is its administrator: credentials for the verbs on this machine."""
        folder = self.home.path / "admin"
        try:
            admin = Credentials.load(folder)
        except InputError:
            admin = ca.member("admin", "admin")
            admin.save(folder)
        who = admin.identity
        state.admit(who.name, who.role, who.serial, who.expires.timestamp())

    def _serve(self, credentials: Any, ready: threading.Event, problem: list[BaseException]) -> None:
        assert self._loop is not None and self._office is not None and self._watched is not None
        asyncio.set_event_loop(self._loop)
        try:
            server, self.port, background = self._loop.run_until_complete(
                serve(self._office, self._listen, credentials, (self._watched.add_health,), self._watched.listener)
            )
            self._serving = server, background
        except BaseException as error:  # noqa: BLE001  # raised by who waits for this
            problem.append(error)
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            ready.set()
            return
        ready.set()
        self._loop.run_forever()

    def stop(self) -> None:
        """Answer no longer. What was acknowledged is kept; a run that is under way goes on with the next start."""
        self._over.set()
        if self._loop is not None and self._serving is not None:
            if self._office is not None:
                self._office.closing.set()
                self._office.bell.ring()
            asyncio.run_coroutine_threadsafe(_close(*self._serving), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            if self._thread is not None:
                self._thread.join()
            self._loop.close()
            self._serving = self._loop = None
        self._let_go()

    def _let_go(self) -> None:
        if self._watched is not None:
            self._watched.stop()
            self._watched = None
        if self._sweeping is not None:
            self._sweeping.join()
            self._sweeping = None
        if self._office is not None:
            try:
                self._office.presence.flush()
            except OperationalError as away:
                log.warning("the database cannot be told who was heard of (%s)", away.orig)
            self._office.audit.close()
            self._office.state.close()
            self._office.blobs.close()
            self._office = None
            self.home.release()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop_playing(self) -> None:
        """Let :meth:`train` and :meth:`serve_forever` end soon; the run goes on with the next start."""
        self._over.set()

    @property
    def address(self) -> str:
        """host:port of this machine by which it is reached from here."""
        host = self._listen.rpartition(":")[0]
        return f"{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{self.port}"

    @property
    def metrics_address(self) -> str:
        """host:port of /metrics, /healthz and /readyz. InputError where they are not served."""
        return self._seen.address

    @property
    def _player(self) -> Player:
        return Player(self.office, self._seen, self.home.folder("runs"), self._owner, self._over, self.quiet)

    @property
    def _seen(self) -> WatchedServer:
        if self._watched is None:
            raise InputError("server: it is not running (call start(), or use it in a with statement)")
        return self._watched

    @property
    def office(self) -> Office:
        if self._office is None:
            raise InputError("server: it is not running (call start(), or use it in a with statement)")
        return self._office

    # Members

    def token(self, name: str, role: Role = "client", hours: float = 24) -> str:
        """A join token for a member of that name, good once."""
        return invite(self.office, name, role, hours, "admin")

    def revoke(self, name: str) -> None:
        """Shut a member out, at once, on open connections too."""
        revoke(self.office, name, "admin")

    # Runs

    def train(self, again: bool = False) -> Run:
        """Play the server's job to its end, from where an earlier process left it; returns the finished run.

        A run of the same job that is over is given back as it is, unless it failed: then another one begins.

        again: also where it is over or was stopped another one begins.

        Raises what :func:`hansa.run` raises, and RunFailed where an administrator stopped the run, and where there is no room for what
        is kept; then the run goes on with the next start.
        """
        if self._text is None:
            raise InputError("server.train: the server has no job (give it one, or call serve_forever() and submit jobs)")
        if self._office is None:
            with self:
                return self.train(again)
        self.run_id = submit(self.office, self._text, "admin", "again" if again else "once")
        player = self._player
        while not self._over.is_set():
            try:
                row = self.office.state.run(self.run_id)
            except OperationalError as away:
                player.wait_for_database(away)
                continue
            if row.status in ("failed", "stopped"):
                raise RunFailed(f"run {row.id}: {row.message}")
            if row.status == "finished":
                return player.finished(row)
            claimed = player.claimed()
            if claimed is not None:
                done = player.play(claimed, raising=claimed.id == self.run_id)
                if done is not None and claimed.id == self.run_id:
                    return done
            else:
                self._over.wait(LOOK)  # another server process plays it
        raise RunFailed(f"run {self.run_id}: the server was stopped; it goes on with the next start")

    def serve_forever(self) -> None:
        """Play whatever is submitted, one run after another, until :meth:`stop`. RunFailed where there is no room for what is kept."""
        player = self._player
        while not self._over.is_set():
            row = player.claimed()
            if row is None:
                self._over.wait(LOOK)
            else:
                player.play(row, raising=False)

    def get_parameters(self, run: str = "") -> Params:
        """The model's params after the last committed round of a run, by default of the last one that this server played."""
        from hansa.tracking.tree import load_tree

        row = self.office.state.run(run or self.run_id)
        if row.state is None:
            raise InputError(f"run {row.id}: has no model yet; its first round is not over")
        params: Params = load_tree(self.office.blobs.local(row.state))["algorithm"]["params"]
        return params

    @property
    def _owner(self) -> str:
        return self.home.own_name()


async def _close(server: Any, background: list[Any]) -> None:
    await server.stop(GRACE)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()  # threads that still use the database, which is closed next


def _many_files() -> None:
    """As many open files as the system allows: every client is a connection, and every result that waits for the sum is mapped."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listen(address: str, insecure: bool) -> str:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise InputError(f"--listen {address}: write it as host:port, for example 0.0.0.0:9443")
    if insecure and not _is_loopback(host):
        raise InputError(
            f"--insecure --listen {address}: without TLS a server listens on this machine alone; write 127.0.0.1:{port}"
        )
    return address


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
