"""Whoever is not who it says, or does what it may not, is refused, and the audit log says so."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hansa.core.errors import HansaError, InputError
from hansa.federated.client import PENDING, Client
from hansa.federated.server import Server
from hansa.federation import handshakes, transfer
from hansa.federation.authority import Authority
from hansa.federation.credentials import Credentials, read_token, request
from hansa.federation.link import Link
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.tls import channel_credentials
from tests.federation.parties import job, joined, served, threads, until
from tests.federation.standing import DENIED, NAMES, SHORT, Standing, code_of, next_of, standing


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(tmp_path_factory.mktemp("standing")) as place:
        yield place


def outsiders(place: Standing, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Any]]:
    own = Authority.open(place.folder / "server" / "authority")
    other = Authority.create(folder / "other", "Elsewhere")

    def foreign() -> Any:
        theirs = other.member(NAMES[0], "client")
        return grpc.ssl_channel_credentials(own.certificate, theirs.key, theirs.certificate)

    def expired() -> Any:
        with monkeypatch.context() as past:
            past.setattr("hansa.federation.certificates.now", lambda: datetime.now(UTC) - timedelta(days=2))
            return channel_credentials(own.member(NAMES[0], "client", days=1))

    def expired_token() -> Any:
        with monkeypatch.context() as past:
            past.setattr("hansa.federation.certificates.now", lambda: datetime.now(UTC) - timedelta(days=2))
            return channel_credentials(read_token(own.invite("late", hours=1)[0]))

    return {
        "no certificate": lambda: grpc.ssl_channel_credentials(own.certificate),
        "foreign authority": foreign,
        "expired": expired,
        "expired token": expired_token,
    }


@pytest.mark.parametrize("case", ["no certificate", "foreign authority", "expired", "expired token"])
def test_who_has_no_certificate_that_counts(case: str, place: Standing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "PATIENCE", 0.2)
    log = place.folder / "server" / "audit.jsonl"
    before = log.read_text().count("ended before a call")
    stub = place.stub(outsiders(place, tmp_path, monkeypatch)[case]())
    assert code_of(lambda: next_of(stub)) is grpc.StatusCode.UNAVAILABLE
    until(lambda: log.read_text().count("ended before a call") > before, 20)


def test_a_certificate_that_the_server_never_gave(place: Standing) -> None:
    """Who has stolen the authority's key alone is not in the database."""
    forged = Authority.open(place.folder / "server" / "authority").member(NAMES[0], "client")
    assert code_of(lambda: next_of(place.stub(forged))) is DENIED
    assert place.logged("refused", NAMES[0], why="unknown here")


def test_a_revoked_member_is_cut_off_in_a_long_wait(place: Standing) -> None:
    mine = place.member("waits")
    stub = place.stub(mine)
    waiting = stub.Next.future(pb.NextRequest(protocol=PROTOCOL), timeout=SHORT)
    until(lambda: place.server.office.presence.last(["waits"])["waits"])
    place.server.revoke("waits")
    assert code_of(waiting.result) is DENIED
    assert place.logged("refused", "waits", why="revoked")
    assert code_of(lambda: next_of(stub)) is DENIED
    renewal = pb.JoinRequest(protocol=PROTOCOL, request=request("waits")[1])
    assert code_of(lambda: stub.Join(renewal, timeout=SHORT)) is DENIED


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "sending"])
def test_a_revoked_member_is_cut_off_in_an_upload(silent: bool, tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(64 << 10)
    blob = pb.Blob(digest=hashlib.sha256(content * 4096).hexdigest(), size=len(content) * 4096)
    over = threading.Event()
    with standing(tmp_path) as place:
        until(lambda: place.tasks(NAMES[0]))

        def parts() -> Iterator[Any]:
            yield pb.PutBlobRequest(blob=blob)
            yield pb.PutBlobRequest(data=content)
            while not silent and not over.is_set():
                time.sleep(0.02)
                yield pb.PutBlobRequest(data=content)
            over.wait(60)

        replies = place.stubs[NAMES[0]].PutBlob(parts(), timeout=SHORT)
        assert next(replies).offset == 0
        place.server.revoke(NAMES[0])
        try:
            assert code_of(lambda: next(replies)) is DENIED
        finally:
            over.set()
        assert place.logged("refused", NAMES[0], why="revoked")
        assert not place.server.office.blobs.has(blob.digest)


def test_a_revoked_member_is_cut_off_in_a_report(tmp_path: Path) -> None:
    """It has named a result that goes with its report, and sends nothing more."""
    over, named = threading.Event(), threading.Event()
    with standing(tmp_path) as place:
        task = until(lambda: place.tasks(NAMES[0]))[0]
        blob = pb.Blob(digest=hashlib.sha256(b"none").hexdigest(), size=4)

        def messages() -> Iterator[bytes]:
            yield pb.ReportRequest(protocol=PROTOCOL, task=task.id, result=blob).SerializeToString()
            named.set()
            over.wait(60)

        call = place.channels[NAMES[0]].stream_unary("/hansa.federation.v1.Federation/Report").future(messages(), timeout=SHORT)
        assert named.wait(SHORT)
        place.server.revoke(NAMES[0])
        try:
            assert code_of(call.result) is DENIED
        finally:
            over.set()
        assert place.logged("refused", NAMES[0], why="revoked")


def test_a_revoked_member_cannot_come_back_by_the_token_it_had(tmp_path: Path) -> None:
    """It kept its key and its request; the same request has the same answer only as long as the member is one."""
    with standing(tmp_path) as place:
        token = place.server.token("thief")
        home = tmp_path / "thief"
        key, wanted = request("thief")
        home.mkdir()
        (home / PENDING).write_bytes(key + wanted)
        Client.join(place.server.address, token, home)
        (home / PENDING).write_bytes(key + wanted)
        Client.join(place.server.address, token, home)  # a lost reply
        place.server.revoke("thief")
        (home / PENDING).write_bytes(key + wanted)
        with pytest.raises(HansaError, match="used before, has expired"):
            Client.join(place.server.address, token, home)
        assert place.logged("refused", "thief", why="used before, has expired")
        assert "thief" not in place.server.office.state.clients()


def test_a_token_is_good_once(place: Standing, tmp_path: Path) -> None:
    token = place.server.token("once")
    Client.join(place.server.address, token, tmp_path / "first")
    with pytest.raises(HansaError, match="used before"):
        Client.join(place.server.address, token, tmp_path / "second")
    assert place.logged("refused", "once", why="used before")


def test_a_token_that_the_server_has_expired(place: Standing, tmp_path: Path) -> None:
    authority, state = place.server.office.authority, place.server.office.state
    token, invited = authority.invite("tardy", "client", 1)
    state.invite(invited.token, "tardy", "client", time.time() - 1)
    with pytest.raises(HansaError, match="has expired"):
        Client.join(place.server.address, token, tmp_path / "tardy")
    assert place.logged("refused", "tardy", why="has expired")


def test_a_token_that_the_server_never_gave(place: Standing, tmp_path: Path) -> None:
    token, _ = place.server.office.authority.invite("self-invited", "admin", 1)
    with pytest.raises(HansaError, match="is unknown"):
        Client.join(place.server.address, token, tmp_path / "self-invited")
    assert place.logged("refused", "self-invited", why="is unknown")


def test_with_a_token_alone_nobody_does_anything_but_join(place: Standing) -> None:
    stub = place.stub(read_token(place.server.token("eager")))
    assert code_of(lambda: next_of(stub)) is DENIED
    assert place.logged("refused", "eager", role="joining", why="may not do this")


def test_another_clients_task(place: Standing) -> None:
    task = until(lambda: place.tasks(NAMES[0]))[0]
    other = place.stubs[NAMES[1]]
    failure = pb.ReportRequest(protocol=PROTOCOL, task=task.id, failure=pb.Failure(kind="Broken", message="so there"))
    assert code_of(lambda: other.Report(failure, timeout=SHORT)) is DENIED
    result = pb.ReportRequest(protocol=PROTOCOL, task=task.id, result=pb.Blob(digest=task.call.digest, size=task.call.size))
    assert code_of(lambda: other.Report(result, timeout=SHORT)) is DENIED
    content = b"so there"
    blob = pb.Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content))
    result = pb.ReportRequest(protocol=PROTOCOL, task=task.id, result=blob)
    assert code_of(lambda: other.Report(result, content, timeout=SHORT)) is DENIED
    assert not place.server.office.blobs.has(blob.digest)
    assert place.logged("report not used", NAMES[1], task=task.id, why="not a task of this client")
    assert [one.id for one in place.tasks(NAMES[0])] == [task.id]


def test_another_clients_blob(place: Standing, tmp_path: Path) -> None:
    """One that was uploaded, one that is on its way, and the state of the run."""
    first, other = place.stubs[NAMES[0]], place.stubs[NAMES[1]]
    until(lambda: place.tasks(NAMES[0]) and place.tasks(NAMES[1]))
    secret = np.random.default_rng(2).bytes(3 << 20)
    digest = hashlib.sha256(secret).hexdigest()
    (tmp_path / "secret").write_bytes(secret)
    halfway = first.PutBlob(iter([pb.PutBlobRequest(blob=pb.Blob(digest=digest, size=len(secret))),
                                  pb.PutBlobRequest(data=secret[: 1 << 20])]))  # fmt: skip
    assert next(halfway).offset == 0
    assert code_of(lambda: next(halfway)) is grpc.StatusCode.UNAVAILABLE
    theirs = other.PutBlob(iter([pb.PutBlobRequest(blob=pb.Blob(digest=digest, size=len(secret)))]))
    assert next(theirs).offset == 0  # nothing of the other's upload is told
    theirs.cancel()
    transfer.upload(first, tmp_path / "secret", digest)
    for wanted in (digest, hashlib.sha256(b"").hexdigest(), "../../authority/authority.pem"):
        assert code_of(lambda: list(other.GetBlob(pb.GetBlobRequest(digest=wanted), timeout=SHORT))) is DENIED  # noqa: B023  # called before the loop goes on
    assert place.logged("refused", NAMES[1], why="no open task of it names")


def test_a_replayed_report(tmp_path: Path) -> None:
    """Of a round that is over: it is told that it was not used, and changes nothing."""
    given = job(2)
    with Server(served(given, clients=2), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        homes = joined(server, given, tmp_path, NAMES)
        with threads(homes):
            server.train()
        lines = (homes[0] / "audit.jsonl").read_text().splitlines()
        task = next(entry["details"]["task"] for entry in map(json.loads, lines) if entry["action"] == "reported")
        link = Link([server.address], Credentials.load(homes[0]))
        report = pb.ReportRequest(protocol=PROTOCOL, task=task, result=pb.Blob(digest="0" * 64, size=1))
        assert not link.once(lambda federation, _: federation.Report(report)).used
        blob = pb.Blob(digest=hashlib.sha256(b"late").hexdigest(), size=4)
        report = pb.ReportRequest(protocol=PROTOCOL, task=task, result=blob)
        assert not link.once(lambda federation, _: federation.Report(report, b"late")).used
        assert not server.office.blobs.has(blob.digest)
        link.close()
    log = (tmp_path / "server" / "audit.jsonl").read_text()
    assert '"report not used"' in log and task in log


@pytest.mark.parametrize("role", ["viewer", "client"])
def test_who_may_not_administer(role: str, place: Standing) -> None:
    stub = place.stub(place.member(f"a-{role}", role), administration=True)
    run = place.server.run_id
    calls = {
        "Submit": pb.SubmitRequest(protocol=PROTOCOL, job=""),
        "Stop": pb.StopRequest(protocol=PROTOCOL, run=run),
        "Invite": pb.InviteRequest(protocol=PROTOCOL, name="friend", role="admin", hours=1),
        "Revoke": pb.RevokeRequest(protocol=PROTOCOL, name=NAMES[0]),
    }
    if role == "client":
        calls |= {"Runs": pb.RunsRequest(protocol=PROTOCOL), "Members": pb.MembersRequest(protocol=PROTOCOL)}
    for name, message in calls.items():
        assert code_of(lambda: getattr(stub, name)(message, timeout=SHORT)) is DENIED  # noqa: B023  # called before the loop goes on
    assert place.logged("refused", f"a-{role}", role=role, why="may not do this")
    assert not place.server.office.state.run(run).stop
    assert NAMES[0] in place.server.office.state.clients()


def test_an_administrator_is_no_client(place: Standing) -> None:
    stub = place.stub(place.member("boss", "admin"))
    assert code_of(lambda: next_of(stub)) is DENIED
    assert place.logged("refused", "boss", role="admin")


def test_an_expired_token_is_not_even_sent(place: Standing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as past:
        past.setattr("hansa.federation.certificates.now", lambda: datetime.now(UTC) - timedelta(days=2))
        token, _ = place.server.office.authority.invite("late", "client", 1)
    with pytest.raises(InputError, match="expired on"):
        Client.join(place.server.address, token, tmp_path / "late")
