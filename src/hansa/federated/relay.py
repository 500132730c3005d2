"""A relay: a region or a group of hospitals between its clients and the server, which sees sums of them where it can."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from hansa.core.errors import InputError
from hansa.federated.client import addresses_of, known_addresses, renewed
from hansa.federated.home import Home
from hansa.federated.server import Server
from hansa.federation.credentials import Credentials
from hansa.federation.identity import Role
from hansa.federation.link import Link
from hansa.federation.office import Limits
from hansa.federation.relay import Post, work
from hansa.federation.state import State


class Relay:
    """It joins a server with a token of the role "relay", and its clients join it as they would a server.

    Jobs run as they do without it, to the same bits. What its clients answer it adds where the job's order of the sum allows that, and
    passes on as one; everything else, and what a job wants to see of each client, it passes on as it is. A relay may have relays
    among its members.

    address:  host:port of the server, several with commas between them; as it joined (:meth:`hansa.Client.join`) where it is left out.
    home:     folder with its certificate of the server's federation, and all that a server has: an authority for its own members, the
              database, the blobs, the audit log.
    listen:   host:port to serve its clients on; port 0 takes a free one.
    hosts, database, blobs, authority, metrics: of what it serves, as of a :class:`hansa.Server`. The database and the blobs are its
              own, never its server's or another relay's: it removes what its own database does not name.
    pki:      an own PKI's credentials of this relay, which it shows to its server and to its clients: a certificate with the role
              "relay" and the names by which clients reach it. Server and clients have some too; nobody joins then.
    name:     needed only for a server that runs with ``--insecure`` on this machine, to which it is told as it is.
    insecure: to its clients no TLS: on a loopback address only, to try things out.

    Raises InputError where the home has not joined a server, or not as a relay.
    """

    def __init__(
        self, address: str = "", *, home: str | Path, listen: str = "127.0.0.1:9443", hosts: Sequence[str] = (), database: str = "",
        blobs: str | Path = "", authority: str | Path = "", pki: Credentials | None = None, name: str = "", insecure: bool = False,
        limits: Limits | None = None, metrics: str = "",
    ) -> None:  # fmt: skip
        Home(home, made=bool(name or pki))
        self._server = Server(
            home=home, listen=listen, hosts=hosts, database=database, blobs=blobs, authority=authority, pki=pki, insecure=insecure,
            quiet=True, limits=limits, metrics=metrics,
        )  # fmt: skip
        self.home = self._server.home
        self._credentials = pki or (None if name else Credentials.load(self.home.path))
        self._renews = pki is None
        self.name = name
        if self._credentials is not None:
            who = self._credentials.identity
            if who.role != "relay" and pki is not None:
                raise InputError(f"--certificate: is that of a {who.role}; a relay needs one whose organisational unit is 'relay'")
            if who.role != "relay":
                raise InputError(
                    f"--home {home}: has joined its server as a {who.role}; a relay needs a token of its own (hansa token --role relay)"
                )
            self.name = who.name
        self.addresses = addresses_of(address) if address else known_addresses(self.home.path)
        self.stop = threading.Event()
        self._post: Post | None = None
        self._serving = False

    def start(self) -> Relay:
        """Answer the clients from now on. InputError where the address cannot be used, or another process has the home."""
        self._server.check = self._refuse_database_of_another
        self._server.start()
        self._serving = True
        self._server.office.submitted = _plays_nothing
        return self

    def _refuse_database_of_another(self, state: State) -> None:
        others = {row.owner for row in state.runs()} - {None, self.home.own_name()}
        if others:
            raise InputError(
                f"the relay's database holds runs of another process ({min(map(str, others))}); give it a database of its own, with the "
                "home that it has had before (--database, --home)"
            )
        if any(member.name == self.name and member.role == "relay" for member in state.members()):
            raise InputError(
                f"the relay's database has the relay itself among its members ({self.name}), so it is its server's; give it a database of "
                "its own (--database)"
            )

    def close(self) -> None:
        """Answer no longer. What was acknowledged is kept, and goes on with the next start."""
        if self._serving:
            self._serving = False
            self._server.stop()

    def __enter__(self) -> Relay:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def address(self) -> str:
        """host:port of this machine by which clients reach it from here."""
        return self._server.address

    @property
    def server(self) -> Server:
        """What its clients see of it."""
        return self._server

    def token(self, name: str, role: Role = "client", hours: float = 24) -> str:
        """A join token for a client, or for a relay behind this one; good once."""
        return self._server.token(name, role, hours)

    def revoke(self, name: str) -> None:
        """Shut a member out, at once, on open connections too."""
        self._server.revoke(name)

    def run(self) -> None:
        """Relay until :attr:`stop` is set. It reconnects by itself. Raises a HansaError where the server will not have it."""
        if not self._serving:
            with self:
                return self.run()
        link = Link(self.addresses, self._credentials, self.name, "relay")
        self._post = Post(self.name, self.home.own_name(), link, self._server.office, lambda: self._renew(link), self.stop)
        try:
            self._server.office.audit.write(self.name, "relays", addresses=list(self.addresses))
            work(self._post)
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection; with :attr:`stop` set, :meth:`run` ends at once instead of after the present wait."""
        if self._post is not None:
            self._post.link.close()

    def _renew(self, link: Link) -> None:
        if self._renews and self._credentials is not None:
            self._credentials = renewed(link, self._credentials, self.home.path, self.stop)


def _plays_nothing(text: str) -> str:
    raise InputError("a relay plays no jobs; submit them to its server")
