"""What an administrator does from its own machine: submit and stop jobs, watch runs, invite and revoke members."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from hansa import job as jobs
from hansa.core.errors import InputError, RunFailed
from hansa.federated.client import addresses_of, known_addresses
from hansa.federated.home import Home
from hansa.federation.credentials import BUNDLE, Credentials
from hansa.federation.identity import Role
from hansa.federation.link import GONE, Link, Refused, cause
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.job import Job


@dataclass(frozen=True)
class Event:
    """Something that happened in a run. time: Unix seconds. kind: waiting, began, round, refused, failed, finished, stopped."""

    number: int
    time: float
    kind: str
    content: dict[str, Any]


class Admin:
    """A connection with the certificate of an administrator, or of a viewer, which may only look.

    home:    of a member that joined with such a token, or the folder of a server on this machine; not needed with ``pki``.
    address: host:port of the server, several with commas between them; as the home knows it where it is left out.
    pki:     an own PKI's credentials of the administrator or viewer, for a server that has some too.
    """

    def __init__(self, home: str | Path = "", address: str = "", pki: Credentials | None = None) -> None:
        if pki is None:
            folder = _credentials_of(home)
            addresses = addresses_of(address) if address else known_addresses(folder)
            pki = Credentials.load(folder)
        elif not (addresses := addresses_of(address)):
            raise InputError("--address: none was given, and with an own PKI no home knows the server; write --address HOST:PORT")
        self.address = ",".join(addresses)
        self._link = Link(addresses, pki)

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._link.close()

    def submit(self, job: Job | str | Path) -> str:
        """Have the server play a job; returns the run's id. InputError for a job that cannot be played."""
        text = jobs.to_text(job if isinstance(job, Job) else jobs.load(job))
        reply: Any = self._ask("Submit", pb.SubmitRequest(protocol=PROTOCOL, job=text))
        return str(reply.run)

    def runs(self) -> list[Any]:
        """All runs of the server, oldest first; see ``Run`` in the protocol."""
        return list(self._ask("Runs", pb.RunsRequest(protocol=PROTOCOL)).runs)

    def watch(self, run: str, said: Callable[[str], None] = lambda _: None) -> Iterator[Event]:
        """What happens in a run, from its beginning to its end; goes on after a lost connection, however long it takes.

        said: called with why the server cannot be reached, in words, as often as it is tried. RunFailed where it cannot be reached
        when this begins; InputError where there is no such run.
        """
        last = 0
        self._ask("Runs", pb.RunsRequest(protocol=PROTOCOL))
        while True:
            request = pb.WatchRequest(protocol=PROTOCOL, run=run, after=last)
            try:
                for event in self._link.once(lambda _, administration: administration.Watch(request)):  # noqa: B023  # called before the loop goes on
                    last = event.number
                    yield Event(event.number, event.time, event.kind, json.loads(event.content))
                return
            except grpc.RpcError as error:
                if error.code() not in GONE:
                    raise InputError(str(error.details())) from None
                said(f"the server cannot be reached ({cause(error)})")
                self._link.call(lambda _, administration: administration.Runs(pb.RunsRequest(protocol=PROTOCOL)), said=said)

    def stop(self, run: str) -> None:
        """End a run after its present round. InputError where there is none of that id."""
        self._ask("Stop", pb.StopRequest(protocol=PROTOCOL, run=run))

    def members(self) -> list[Any]:
        """Everybody who has joined; see ``Member`` in the protocol."""
        return list(self._ask("Members", pb.MembersRequest(protocol=PROTOCOL)).members)

    def token(self, name: str, role: Role = "client", hours: float = 24) -> str:
        """A join token for a member of that name, good once."""
        return str(self._ask("Invite", pb.InviteRequest(protocol=PROTOCOL, name=name, role=role, hours=hours)).token)

    def revoke(self, name: str) -> None:
        """Shut a member out, at once."""
        self._ask("Revoke", pb.RevokeRequest(protocol=PROTOCOL, name=name))

    def _ask(self, method: str, request: Any) -> Any:
        try:
            return self._link.once(lambda _, administration: getattr(administration, method)(request))
        except Refused as error:
            raise InputError(str(error)) from None
        except grpc.RpcError as error:
            raise RunFailed(f"the server at {self.address} cannot be reached ({cause(error)}); is it running?") from None


def _credentials_of(home: str | Path) -> Path:
    """The folder of a home in which an administrator's credentials are. InputError where no home was given."""
    if not str(home):
        raise InputError(
            "--home: none was given; name the folder of a member that joined, or give --key, --certificate and --believe of an own PKI"
        )
    place = Home(home, made=False)
    own = place.path / "admin"
    if own.is_dir() and not (own / BUNDLE).exists():
        raise InputError(
            f"--home {home}: is a server's, and holds no administrator's credentials, as with an own PKI; give an administrator's "
            "--key, --certificate and --believe, and --address HOST:PORT"
        )
    return own if own.is_dir() else place.path
