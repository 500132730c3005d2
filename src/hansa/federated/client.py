"""A client: rows of its own, an address, and its say."""

from __future__ import annotations

import logging
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, overload

import tomli_w
from threadpoolctl import threadpool_limits

from hansa import job as jobs
from hansa.core.blocks import Client as Recipe
from hansa.core.errors import InputError, did_you_mean
from hansa.core.files import replace_file
from hansa.core.store import DiskStore
from hansa.core.worker import Worker
from hansa.data import recipes
from hansa.data.facts import refuse_names
from hansa.data.partition import IID, Column
from hansa.data.sources import Holders
from hansa.data.split import Split
from hansa.federated.consent import read_policy, say_policy
from hansa.federated.foreign import check_code, check_run
from hansa.federated.home import Home
from hansa.federated.opened import agreed_of, ask_of
from hansa.federated.watched import WatchedClient
from hansa.federation.audit import Audit
from hansa.federation.client import Desk, Seat, work
from hansa.federation.credentials import Credentials, read_token, request
from hansa.federation.identity import Identity
from hansa.federation.link import Link, Strange
from hansa.federation.policy import Policy
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.served import Served
from hansa.options import build

log = logging.getLogger("hansa.federation.client")

ADDRESS, PENDING = "server.toml", "joining.pem"

_MEANT = {
    "relay": "hansa relay",
    "admin": "hansa submit, runs, watch and stop",
    "viewer": "hansa runs and watch",
    "server": "hansa server",
}
"""What the home of a member of another role is for."""

SHOWN = 20
"""Names of columns that a client's log begins with, at most."""


@dataclass(frozen=True)
class Mine:
    """A client's own rows.

    data:      any source of Hansa, as in a job.
    partition: as in a job, where the source holds several clients' rows.
    client:    which of the source's clients this is; its own name where that is empty, or the only one.
    """

    data: Any
    partition: Any
    client: str = ""

    @classmethod
    def of(cls, given: Any) -> Mine:
        """From the path of a TOML file, a table, or a source. InputError for what is none."""
        if isinstance(given, cls):
            return given
        if isinstance(given, (str, Path)):
            try:
                given = tomllib.loads(Path(given).read_text("utf-8"))
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise InputError(
                    f"--data {given}: cannot be read ({error}); it is a TOML file with a table [data], as in a job"
                ) from None
        if not isinstance(given, Mapping):
            return cls(given, Column())
        for key in given:
            if key not in ("data", "partition", "client"):
                raise InputError(f"--data: unknown key {key!r}{did_you_mean(key, ('data', 'partition', 'client'))}")
        if "data" not in given:
            raise InputError(
                "--data: the table [data] is missing (write, for example, data.name = 'file' and data.path = 'mine.csv')"
            )
        partition = build("partition", given["partition"]) if "partition" in given else Column()
        return cls(build("data", given["data"]), partition, str(given.get("client", "")))

    def recipe(self, name: str, split: Split, seed: int) -> Recipe:
        """The rows of the client ``name``, split as a job wants it. Data that name no clients are all of them its own."""
        whole = isinstance(self.partition, Column) and not isinstance(self.data, Holders) and self.data.read().client is None
        found = recipes.clients(self.data, IID(clients=1) if whole else self.partition, split, seed)
        ids = [found.holders.ids[k] for k in range(len(found))]
        wanted = self.client or (name if name in ids or len(ids) > 1 else ids[0])
        if wanted not in ids:
            raise InputError(
                f"client {name}: the data has no rows of {wanted!r}{did_you_mean(wanted, ids[:20])}; write client = ..."
            )
        recipe = found[ids.index(wanted)]
        arguments = {**recipe.arguments, "id": name} if "id" in recipe.arguments else recipe.arguments
        return Recipe(name, recipe.loader, arguments, recipe.rows)


@dataclass(frozen=True)
class _Only(Sequence[Recipe]):
    """A population of which this process knows one client."""

    position: int
    recipe: Recipe
    population: int

    def __len__(self) -> int:
        return self.population

    @overload
    def __getitem__(self, position: int) -> Recipe: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Recipe]: ...
    def __getitem__(self, position: int | slice) -> Recipe | Sequence[Recipe]:
        if position != self.position:
            raise InputError(f"position {position} is another client's; this one is at {self.position}")
        return self.recipe


class Client:
    """A holder of rows that takes part in a federation: it dials out to the server, and computes what its policy allows.

    address:  host:port of the server, several with commas between them; as it joined where it is left out.
    data:     the rows: a source as in a job, a table, or the path of a TOML file with a table ``[data]``.
    home:     folder with the certificate (see :meth:`join`), the state that stays with the client, ``policy.toml`` and the audit log.
    policy:   what jobs may ask; ``policy.toml`` in its home where it is left out, and everything where there is none.
    name:     needed only for a server that runs with ``--insecure`` on this machine, to which it is told as it is.
    metrics:  host:port on which Prometheus metrics, /healthz and /readyz are served while it runs; nowhere by default.
    pki:      an own PKI's credentials of this client, for a server that has some too; nobody joins then, and the PKI renews.
    """

    def __init__(
        self, address: str = "", *, data: Any, home: str | Path, policy: Policy | str | Path | None = None, name: str = "",
        metrics: str = "", pki: Credentials | None = None,
    ) -> None:  # fmt: skip
        self.home, self.mine = Home(home, made=bool(name or pki)), Mine.of(data)
        self.credentials = pki or (None if name else Credentials.load(self.home.path))
        self._renews = pki is None
        self.name = name or _member(self.credentials).name
        if self.credentials is not None and (role := self.credentials.identity.role) != "client":
            if pki is not None:
                raise InputError(f"--certificate: has the role {role!r}; a client needs one whose organisational unit is 'client'")
            raise InputError(
                f"--home {home}: has joined as a {role}, which is for {_MEANT[role]}; a client needs a token of its own, and a home "
                "of its own (hansa token --name NAME)"
            )
        self.addresses = addresses_of(address) if address else known_addresses(self.home.path)
        self.policy, self._policy_of = read_policy(policy, self.home.path)
        self.stop = threading.Event()
        self._link: Link | None = None
        self._metrics = metrics
        self._watched: WatchedClient | None = None

    @staticmethod
    def join(address: str, token: str, home: str | Path, said: Callable[[str], None] = lambda _: None) -> Identity:
        """Spend a join token: make a key, which never leaves ``home``, and have a certificate issued for it.

        said: called with every try that failed and will be made again, in words.

        May be called again with the same token after a lost connection. InputError for a token that is damaged, expired, or of
        another federation than the server; RunFailed where no server answers; a HansaError where the server refuses it.
        """
        bootstrap, place = read_token(token), Home(home)
        pending, who = place.path / PENDING, bootstrap.identity
        if not pending.exists():
            key, csr = request(who.name)
            replace_file(pending, [key, csr])
        key, csr = _parts(pending.read_bytes())
        link = Link(addresses_of(address), bootstrap)
        try:
            reply = link.soon(lambda federation, _: federation.Join(pb.JoinRequest(protocol=PROTOCOL, request=csr)), said)
        except Strange as error:
            raise InputError(
                f"join token: {error}; write the address of the server that gave it, or ask this one for a token"
            ) from None
        finally:
            link.close()
        credentials = Credentials(key, reply.certificate, reply.authority)
        credentials.save(place.path)
        replace_file(place.path / ADDRESS, [tomli_w.dumps({"address": address}).encode()])
        pending.unlink()
        return credentials.identity

    def run(self, forever: bool = True) -> int:
        """Do what the server asks, until :attr:`stop` is set; returns how many tasks were reported.

        forever: False ends as well when the server has no run left.

        It reconnects by itself. Raises a HansaError where the server will not have it.
        """
        self.home.hold()
        try:
            self._look()
            say_policy(self.name, self._policy_of, self.home.path)
            with Audit.open(self.home.path / "audit.jsonl") as audit:
                self._watched = watched = WatchedClient(self._metrics).start()
                self._link = link = Link(self.addresses, self.credentials, self.name, through=watched.through)
                desk = Desk(
                    self.name, link, self.policy, audit, self.home.clear("scratch"), self._open, Served(self.home.folder("state")),
                    self.stop, watched.seen, self._refresh,
                )  # fmt: skip
                audit.write(self.name, "started", addresses=list(self.addresses))
                # Sums in BLAS depend on how many threads make them: with one, the bits are those of every engine.
                with threadpool_limits(1):
                    return work(desk, forever)
        finally:
            self.hang_up()
            if self._watched is not None:
                self._watched.stop()
            self.home.release()

    @property
    def metrics_address(self) -> str:
        """host:port of /metrics, /healthz and /readyz. InputError where they are not served."""
        if self._watched is None:
            raise InputError("client: it is not running (call run())")
        return self._watched.address

    def hang_up(self) -> None:
        """Close the connection; with :attr:`stop` set, :meth:`run` ends at once instead of after the present wait."""
        if self._link is not None:
            self._link.close()

    def _refresh(self) -> None:
        """Renew the certificate when it is time to."""
        if self._renews and self.credentials is not None and self._link is not None:
            self.credentials = renewed(self._link, self.credentials, self.home.path, self.stop)

    def _look(self) -> None:
        """Read the data, and log who takes part with what. Raises InputError for data that cannot be used."""
        rows = self.mine.recipe(self.name, Split(test=0.0), 0).rows
        if isinstance(self.mine.data, Holders):  # they may be more than the memory holds
            what = "which are read at the first task"
        else:
            found = self.mine.data.read().x
            names = [str(name) for name in getattr(found, "columns", ())]
            more = ", ..." if len(names) > SHOWN else ""
            what = f"columns {', '.join(names[:SHOWN])}{more}" if names else f"each of shape {tuple(found.shape[1:])}"
        where = ",".join(self.addresses)
        log.info("%s: takes part with %s rows, %s; server %s", self.name, f"{rows:,}", what, where, extra={"client": self.name})

    def _open(self, text: str, run: str, position: int, population: int) -> Seat:
        check_run(run)
        job = jobs.from_text(text, where=f"the job of run {run}")
        check_code(job, self.policy)
        recipe = self.mine.recipe(self.name, job.split, job.seed)
        store = DiskStore(self.home.folder("state") / f"{run}.sqlite", durable=True)
        worker = Worker(job.learner, _Only(position, recipe, population), store)
        splits = recipe.load()
        refuse_names(splits, self.name)
        return Seat(worker, ask_of(job, run, self.mine.data, splits), agreed_of(job, splits))


def renewed(link: Link, old: Credentials, home: Path, stop: threading.Event) -> Credentials:
    """The member's credentials: new ones, kept in its home and used by the link, where a third of the old ones' time or less is left."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(old.certificate)
    ends, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if (ends - datetime.now(UTC)) > (ends - begins) / 3:
        return old
    key, csr = request(old.identity.name)
    reply = link.call(lambda federation, _: federation.Join(pb.JoinRequest(protocol=PROTOCOL, request=csr)), stop)
    new = Credentials(key, reply.certificate, reply.authority)
    new.save(home)
    link.renew(new)
    return new


def addresses_of(text: str) -> tuple[str, ...]:
    """host:port, several with commas between them."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for one in found:
        host, colon, port = one.rpartition(":")
        if not (colon and host and port.isdigit()):
            raise InputError(f"address {one!r}: write it as host:port, for example server.example:9443")
    return found


def known_addresses(home: Path) -> tuple[str, ...]:
    """Where the member of a home reaches its server. InputError where it has not joined."""
    path = home / ADDRESS
    if not path.exists():
        raise InputError(
            f"--home {home}: has not joined a federation (write: hansa join ADDRESS TOKEN --home {home}; if it is a server's, that one has "
            "not begun to serve yet)"
        )
    try:
        address = tomllib.loads(path.read_text("utf-8"))["address"]
        if not isinstance(address, str) or not (found := addresses_of(address)):
            raise InputError(f"address = {address!r} is no host:port")
        return found
    except (OSError, ValueError, KeyError) as error:  # what TOML and UTF-8 are not is a ValueError, and so is an InputError
        raise InputError(f"{path}: does not say where the server is ({error}); write address = 'HOST:PORT' there") from None


def _member(credentials: Credentials | None) -> Identity:
    assert credentials is not None
    return credentials.identity


def _parts(content: bytes) -> tuple[bytes, bytes]:
    """A key and a certificate request, one behind the other."""
    place = content.index(b"-----BEGIN CERTIFICATE REQUEST")
    return content[:place], content[place:]
