"""Ten thousand malformed messages: each is refused in words, nothing crashes, no state changes, and memory stays bounded.

What is read at the border of an organisation is read here by its decoder alone, and then over the wire by a server whose run is in
the middle of its training: one client works, and what comes from the other one is malformed.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tomli_w
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from hansa.core.blocks import Block
from hansa.core.errors import InputError
from hansa.core.worker import attempt
from hansa.federated.client import Client
from hansa.federation import audit, calls, expectations, parcels, results, tokens, transfer
from hansa.federation.authority import Authority
from hansa.federation.blobs import Blob, blob_of
from hansa.federation.credentials import read_token, request
from hansa.federation.identity import identity_of
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.schema import metadata
from hansa.federation.told import check_facts
from tests.federation.parties import job, mine, threads, until
from tests.federation.standing import NAMES, Standing, code_of, standing

COUNTS = {
    "protobuf": 1500, "parcel bytes": 1500, "call trees": 800, "result trees": 1200, "facts": 800, "tokens": 600, "certificates": 400,
    "requests": 200, "unary bytes": 1200, "stream bytes": 300, "next": 200, "protocols": 200, "reports": 300, "results": 300,
    "contents": 200, "uploads": 300, "downloads": 200, "joins": 100, "jobs": 150,
}  # fmt: skip
"""Messages of each kind."""

MEMORY = 400 << 20
"""Bytes by which the peak of the process may grow over all of them; each of some announces much more than that."""

REQUEST = request("someone")[1]
GRPC = grpc.StatusCode
SECONDS = 20.0


def fuzzed(kind: str) -> Any:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
    return settings(max_examples=COUNTS[kind], database=None, suppress_health_check=health)


def test_there_are_ten_thousand() -> None:
    assert sum(COUNTS.values()) >= 10_000


@pytest.fixture(scope="module", autouse=True)
def bounded() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


MESSAGES = (
    pb.JoinRequest(protocol=PROTOCOL, request=b"-----BEGIN CERTIFICATE REQUEST-----"),
    pb.NextRequest(protocol=PROTOCOL, working=["a" * 32, "b" * 32]),
    pb.ReportRequest(protocol=PROTOCOL, task="c" * 32, result=pb.Blob(digest="d" * 64, size=100)),
    pb.ReportRequest(
        protocol=PROTOCOL, task="c" * 32, failure=pb.Failure(kind="Broken", message="so", traceback="there", bad_input=True)
    ),
    pb.ReportRequest(content=b"g" * 100),
    pb.PutBlobRequest(blob=pb.Blob(digest="e" * 64, size=1 << 40)),
    pb.GetBlobRequest(digest="f" * 64, offset=1 << 50),
    pb.SubmitRequest(protocol=PROTOCOL, job="name = 'x'"),
    pb.WatchRequest(protocol=PROTOCOL, run="r", after=1 << 63),
)


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes changed, cut off, put in or doubled."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0 if place < len(data):
                data[place] = draw(st.integers(0, 255))
            case 1:
                del data[place : place + draw(st.integers(1, 64))]
            case 2:
                data[place:place] = draw(st.binary(min_size=1, max_size=32))
            case 3:
                data[place:place] = data[place : place + 64]
            case _:
                del data[place:]
    return bytes(data)


def malformed(contents: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    return st.one_of(st.binary(max_size=300), *(mutated(content) for content in contents))


WIRE = malformed(tuple(message.SerializeToString() for message in MESSAGES))

# Trees


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.just([]), st.just({}),
    st.just([[[[]]]]), st.just({"\x00": "\ud7ff"}), st.just("x" * 5000),
    st.sampled_from(["(", "i4,,", "f4,$", "O", "float128", "U5", "<f8", "M8[ns]", "nan"]),
)  # fmt: skip
ODD_ARRAYS = st.sampled_from(
    [np.float64(np.nan), np.float64(-1.0), np.float64(np.inf), np.zeros(()), np.zeros((0, 3)), np.full(3, np.nan), np.ones((2, 2)),
     np.arange(5), np.zeros(7, bool), np.ones((1, 1), np.float16), np.full((1,), -np.inf, np.float32), np.array([-1.0])]
)  # fmt: skip


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all that a tree holds."""
    found = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in found:
        yield (*at, key)
        yield from places(value, (*at, key))


@st.composite
def mistaken(draw: st.DrawFn, tree: Any) -> Any:
    """A tree in which something is replaced, missing, doubled, renamed, or in another order."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        paths = list(places(tree))
        if not paths:
            break
        *way, last = draw(st.sampled_from(paths))
        inside = tree
        for key in way:
            inside = inside[key]
        match draw(st.integers(0, 5)):
            case 0:
                inside[last] = copy.deepcopy(draw(ODD))
            case 1:
                inside[last] = draw(ODD_ARRAYS)
            case 2:
                del inside[last]
            case 3 if isinstance(inside, dict):
                inside[draw(st.text(max_size=10))] = inside.pop(last)
            case 4 if isinstance(inside, dict):
                inside |= {last: inside.pop(last)}
            case _:
                inside[last] = [inside[last], copy.deepcopy(inside[last])]
    return tree


def refuses(read: Callable[[], Any]) -> bool:
    """Whether it is refused; anything that is neither accepted nor refused in words fails the test."""
    try:
        read()
    except InputError as error:
        assert len(str(error)) < 5000
        return True
    return False


# A run in the middle of its training


@dataclass
class Training:
    """place: a server. administration: its services for an administrator. task: of the first client, to train. call: as a tree. tree: a
    right answer to it. expected: by its server. facts: that the client has told of its data."""

    place: Standing
    administration: Any
    task: Any
    call: Any
    tree: Any
    expected: expectations.Expected
    folder: Path
    facts: Any

    @property
    def stub(self) -> Any:
        return self.place.stubs[NAMES[0]]

    def tables(self) -> dict[str, list[str]]:
        """All that the database holds, but for when members were heard of and until when the run is leased."""
        times = ("seen", "leased")
        found = {}
        with self.place.server.office.state._engine.connect() as connection:
            for table in metadata.sorted_tables:
                rows = connection.execute(select(*(column for column in table.c if column.name not in times)))
                found[table.name] = sorted(map(repr, rows))
        return found

    def upload(self, path: Path) -> Any:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        transfer.upload(self.stub, path, digest)
        return pb.Blob(digest=digest, size=len(content))


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    folder = tmp_path_factory.mktemp("fuzz")
    with standing(folder) as place:
        for name in NAMES:
            (folder / name / "mine.toml").write_text(tomli_w.dumps(mine(job(), name)))
        with threads([folder / NAMES[1]]):
            administration = place.stub(place.member("boss", "admin"), administration=True)
            yield _in_training(place, folder, administration)
    assert audit.verify(folder / "server" / "audit.jsonl")


def _in_training(place: Standing, folder: Path, administration: Any) -> Training:
    """Answer for the first client until it is asked to train."""
    client = Client(data=folder / NAMES[0] / "mine.toml", home=folder / NAMES[0])
    stub, blobs, facts = place.stubs[NAMES[0]], place.server.office.blobs, None
    for number in itertools.count():
        (task,) = until(lambda: place.tasks(NAMES[0]))
        call = calls.decode_call(parcels.read(blobs.local(task.call.digest)))
        seat = client._open(place.server.office.state.run(task.run).job, task.run, task.position, task.population)
        tree = results.encode_result(attempt(call, seat.worker, Block(0, (task.position,))))
        if calls.kind_of(call) == "describe":
            facts = tree["values"]["facts"][0]
        if calls.kind_of(call) == "train":
            call_tree, state = parcels.read(blobs.local(task.call.digest)), place.server.office.state
            until(lambda: [one.client for one in state.all_open()] == [NAMES[0]])  # noqa: B023  # the other one has answered
            return Training(place, administration, task, call_tree, tree, expectations.expected(call), folder, facts)
        path = folder / f"answer-{number}"
        parcels.write(path, tree)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        transfer.upload(stub, path, digest)
        report = pb.ReportRequest(protocol=PROTOCOL, task=task.id, result=pb.Blob(digest=digest, size=path.stat().st_size))
        assert stub.Report(report).used
    raise AssertionError


@pytest.fixture(autouse=True)
def unchanged(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test changes the state of the server that it talks to, and the server is there at its end."""
    if "training" not in request.fixturenames:
        yield
        return
    training: Training = request.getfixturevalue("training")
    before = training.tables()
    yield
    assert training.tables() == before
    assert [task.id for task in training.place.tasks(NAMES[0])] == [training.task.id]


# Decoders


@fuzzed("protobuf")
@given(data=WIRE, kind=st.sampled_from([type(message) for message in MESSAGES]))
def test_protobuf(data: bytes, kind: Any) -> None:
    with suppress(DecodeError):
        kind.FromString(data)


@fuzzed("parcel bytes")
@given(data=st.data())
def test_parcel_bytes(training: Training, data: st.DataObject) -> None:
    path = training.folder / "parcel"
    path.unlink(missing_ok=True)
    parcels.write(path, training.tree)
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    head = data.draw(mutated(content[:length]) | st.binary(max_size=200))
    path.write_bytes(head + (content[length:] if data.draw(st.booleans()) else b""))
    refuses(lambda: results.decode_result(parcels.read(path), training.expected))


@fuzzed("call trees")
@given(data=st.data())
def test_call_trees(training: Training, data: st.DataObject) -> None:
    tree = data.draw(mistaken(training.call))
    refuses(lambda: calls.decode_call(tree))


@fuzzed("result trees")
@given(data=st.data())
def test_result_trees(training: Training, data: st.DataObject) -> None:
    tree = data.draw(mistaken(training.tree))
    refuses(
        lambda: results.decode_result(
            tree, data.draw(st.sampled_from([training.expected, expectations.Expected("gather", facts=True)]))
        )
    )


@fuzzed("facts")
@given(data=st.data())
def test_facts(training: Training, data: st.DataObject) -> None:
    tree = data.draw(mistaken(training.facts))
    refuses(lambda: check_facts(tree))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"), "Fuzz")


@pytest.fixture(scope="module")
def token(authority: Authority) -> str:
    return authority.invite("someone")[0]


@fuzzed("tokens")
@given(data=st.data())
def test_tokens(token: str, data: st.DataObject) -> None:
    broken = data.draw(st.text(max_size=200) | mutated(token.encode()).map(lambda b: b.decode("latin-1")))
    assume("".join(broken.split()) != token)
    assert refuses(lambda: read_token(broken))
    assert refuses(lambda: tokens.unpack(broken))


@fuzzed("certificates")
@given(data=st.data())
def test_certificates(authority: Authority, data: st.DataObject) -> None:
    refuses(lambda: identity_of(data.draw(st.binary(max_size=300) | mutated(authority.certificate))))


@fuzzed("requests")
@given(data=st.data())
def test_requests(authority: Authority, data: st.DataObject) -> None:
    broken = data.draw(st.binary(max_size=300) | mutated(REQUEST))
    refuses(lambda: authority.issue(broken, "someone", "client"))


# Calls


def ended(call: Callable[[], Any]) -> grpc.StatusCode:
    """How a call ends: in no way that shows that the server did not expect it."""
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]  # grpc's stubs leave it out: every error of a call is a Call too
        assert code not in (GRPC.UNKNOWN, GRPC.DEADLINE_EXCEEDED, GRPC.CANCELLED), f"{code}: {error}"
        return code
    return GRPC.OK


METHODS = {
    "Federation/Join": pb.JoinRequest, "Federation/Next": pb.NextRequest, "Federation/Report": pb.ReportRequest,
    "Administration/Submit": pb.SubmitRequest, "Administration/Stop": pb.StopRequest, "Administration/Invite": pb.InviteRequest,
    "Administration/Members": pb.MembersRequest, "Administration/Nothing": None,
}  # fmt: skip


@fuzzed("unary bytes")
@given(data=WIRE, method=st.sampled_from(list(METHODS)))
def test_bytes_to_calls(training: Training, data: bytes, method: str) -> None:
    channel = training.place.channels[NAMES[0]]
    call = channel.unary_unary(f"/hansa.federation.v1.{method}")
    if not _parses(METHODS[method], data):
        refused = GRPC.UNIMPLEMENTED if METHODS[method] is None else GRPC.INVALID_ARGUMENT
        assert code_of(lambda: call(data, timeout=SECONDS)) is refused
    else:
        ended(lambda: call(data, timeout=SECONDS))


def _parses(kind: Any, data: bytes) -> bool:
    try:
        return kind is not None and kind.FromString(data) is not None
    except DecodeError:
        return False


@fuzzed("stream bytes")
@given(parts=st.lists(WIRE, max_size=4), method=st.sampled_from(["PutBlob", "Report", "GetBlob"]))
def test_bytes_to_streams(training: Training, parts: list[bytes], method: str) -> None:
    channel = training.place.channels[NAMES[0]]
    name = f"/hansa.federation.v1.Federation/{method}"
    if method == "PutBlob":
        call = lambda: list(channel.stream_stream(name)(iter(parts), timeout=SECONDS))  # noqa: E731  # one line, beside the one that it is like
        parse = all(_parses(pb.PutBlobRequest, part) for part in parts)
    elif method == "Report":
        call = lambda: channel.stream_unary(name)(iter(parts), timeout=SECONDS)  # noqa: E731  # as above
        parse = _parses(pb.ReportRequest, parts[0]) if parts else True  # none of them names a task, so that no other is read
    else:
        data = b"".join(parts)
        call = lambda: list(channel.unary_stream(name)(data, timeout=SECONDS))  # noqa: E731  # as above
        parse = _parses(pb.GetBlobRequest, data)
    code = ended(call)
    assert parse or code is GRPC.INVALID_ARGUMENT


@fuzzed("next")
@given(working=st.lists(st.text(max_size=40) | st.just("0" * 32), min_size=1, max_size=1500))
def test_next(training: Training, working: list[str]) -> None:
    reply = ended(lambda: training.stub.Next(pb.NextRequest(protocol=PROTOCOL, working=working), timeout=SECONDS))
    assert reply is (GRPC.OK if len(working) <= 1000 else GRPC.INVALID_ARGUMENT)


@fuzzed("protocols")
@given(protocol=st.integers(0, 2**32 - 1).filter(lambda number: number != PROTOCOL), kind=st.integers(0, 2))
def test_other_versions_of_the_protocol(training: Training, protocol: int, kind: int) -> None:
    stub = training.stub
    failure = pb.Failure(kind="Broken", message="so there")
    call = (
        lambda: stub.Next(pb.NextRequest(protocol=protocol), timeout=SECONDS),
        lambda: stub.Report(pb.ReportRequest(protocol=protocol, task=training.task.id, failure=failure), timeout=SECONDS),
        lambda: stub.Join(pb.JoinRequest(protocol=protocol, request=REQUEST), timeout=SECONDS),
    )[kind]
    assert code_of(call) is GRPC.FAILED_PRECONDITION


TASKS = st.one_of(
    st.text(max_size=40), st.text("0123456789abcdef", min_size=32, max_size=32), st.just("\x00" * 32), st.just("x" * 9999)
)
DIGESTS = st.one_of(
    st.text(max_size=80),
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.sampled_from(["../../state.sqlite", "A" * 64, ""]),
)
SIZES = st.integers(0, 2**64 - 1)


@fuzzed("reports")
@given(task=TASKS, digest=DIGESTS, size=SIZES, kind=st.integers(0, 4), text=st.text(max_size=200))
def test_reports(training: Training, task: str, digest: str, size: int, kind: int, text: str) -> None:
    """Of tasks that there are not; and of its own with a result that it has not uploaded, or with nothing."""
    blob = pb.Blob(digest=digest, size=size)
    said = (
        {"task": task, "result": blob},
        {"task": task, "failure": pb.Failure(kind=text, message=text * 500, traceback=text, bad_input=True)},
        {"task": task, "refusal": pb.Refusal(rule=text, message=text)},
        {"task": training.task.id, "result": blob},
        {"task": training.task.id},
    )[kind]

    def report() -> None:
        assert not training.stub.Report(pb.ReportRequest(protocol=PROTOCOL, **said), timeout=SECONDS).used

    assert ended(report) in (GRPC.OK, GRPC.INVALID_ARGUMENT)


_NUMBER = itertools.count()


@fuzzed("results")
@given(data=st.data())
def test_results(training: Training, data: st.DataObject) -> None:
    """Sent in order, and not what was asked for: other shapes, not finite, of negative weight, or no parcels."""
    path = training.folder / f"result-{next(_NUMBER)}"
    try:
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(st.binary(max_size=500)))
        else:
            try:
                parcels.write(path, data.draw(mistaken(training.tree)))
            except InputError:
                assume(False)
            content = path.read_bytes()
            if data.draw(st.booleans()):
                path.write_bytes(data.draw(mutated(content[:400])) + content[400:])
        assume(refuses(lambda: results.decode_result(parcels.read(path), training.expected)))
        content = path.read_bytes()
        ahead = not content or data.draw(st.booleans())
        blob = training.upload(path) if ahead else pb.Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content))
        there = training.place.server.office.blobs.has(blob.digest)  # another example may have uploaded the same
        report = pb.ReportRequest(protocol=PROTOCOL, task=training.task.id, result=blob)
        assert code_of(lambda: training.stub.Report(report, b"" if ahead else content, timeout=SECONDS)) is GRPC.INVALID_ARGUMENT
        assert training.place.server.office.blobs.has(blob.digest) == there
    finally:
        path.unlink(missing_ok=True)


@fuzzed("contents")
@given(
    digest=DIGESTS | st.just(hashlib.sha256(b"a" * 10).hexdigest()),
    size=SIZES | st.integers(0, 40),
    parts=st.lists(st.sampled_from([b"", b"a", b"a" * 10, b"b" * 30, None]), min_size=1, max_size=4),
)
def test_contents(training: Training, digest: str, size: int, parts: list[bytes | None]) -> None:
    """Behind a report of its own task: what is not the result that it names, nothing, too much, and a second report."""
    head = pb.ReportRequest(protocol=PROTOCOL, task=training.task.id, result=pb.Blob(digest=digest, size=size)).SerializeToString()
    rest = [head if part is None else pb.ReportRequest(content=part).SerializeToString() for part in parts]
    call = training.place.channels[NAMES[0]].stream_unary("/hansa.federation.v1.Federation/Report")
    assert code_of(lambda: call(iter([head, *rest]), timeout=SECONDS)) is GRPC.INVALID_ARGUMENT
    assert not blobs_named(training, digest)


def blobs_named(training: Training, digest: str) -> bool:
    try:
        return training.place.server.office.blobs.has(digest)
    except InputError:
        return False  # nothing can be named so


@fuzzed("uploads")
@given(
    digest=DIGESTS | st.just(hashlib.sha256(b"a" * 10).hexdigest()),
    size=SIZES | st.integers(0, 40),
    parts=st.lists(st.sampled_from([b"", b"a", b"a" * 10, b"b" * 30, None]), max_size=6),
)
def test_uploads(training: Training, digest: str, size: int, parts: list[bytes | None]) -> None:
    """Wrong digests and sizes, too much and too little, empty parts, and a second beginning in the middle."""
    head = pb.PutBlobRequest(blob=pb.Blob(digest=digest, size=size))
    rest = [head if part is None else pb.PutBlobRequest(data=part) for part in parts]
    code = ended(lambda: list(training.stub.PutBlob(iter([head, *rest]), timeout=SECONDS)))
    if code is GRPC.OK:
        assert blob_of(training.place.server.office.blobs.local(digest)) == Blob(digest, size)


@fuzzed("downloads")
@given(digest=DIGESTS | st.none(), offset=SIZES)
def test_downloads(training: Training, digest: str | None, offset: int) -> None:
    """Others' blobs, and places beyond the end of its own."""
    wanted = pb.GetBlobRequest(digest=training.task.call.digest if digest is None else digest, offset=offset)
    assume(digest is not None or offset > training.task.call.size)
    code = code_of(lambda: list(training.stub.GetBlob(wanted, timeout=SECONDS)))
    assert code is (GRPC.OUT_OF_RANGE if digest is None else GRPC.PERMISSION_DENIED)


@fuzzed("joins")
@given(data=st.data())
def test_joins(training: Training, data: st.DataObject) -> None:
    broken = data.draw(st.binary(max_size=300) | mutated(REQUEST))
    authority = training.place.server.office.authority
    assume(refuses(lambda: authority.issue(broken, NAMES[0], "client")))
    call = pb.JoinRequest(protocol=PROTOCOL, request=broken)
    assert code_of(lambda: training.stub.Join(call, timeout=SECONDS)) is GRPC.INVALID_ARGUMENT


@fuzzed("jobs")
@given(text=st.text(max_size=300), cut=st.integers(0, 10_000), kind=st.integers(0, 3), after=SIZES)
def test_jobs_and_runs(training: Training, text: str, cut: int, kind: int, after: int) -> None:
    """What an administrator submits, watches and stops that cannot be."""
    stub = training.administration
    job = training.place.server.office.state.run(training.task.run).job
    call = (
        lambda: stub.Submit(pb.SubmitRequest(protocol=PROTOCOL, job=text), timeout=SECONDS),
        lambda: stub.Submit(pb.SubmitRequest(protocol=PROTOCOL, job=f"{job[:cut]}\nnobody_knows_this = 1\n{job}"), timeout=SECONDS),
        lambda: stub.Stop(pb.StopRequest(protocol=PROTOCOL, run=text), timeout=SECONDS),
        lambda: list(stub.Watch(pb.WatchRequest(protocol=PROTOCOL, run=text, after=after), timeout=SECONDS)),
    )[kind]
    assert code_of(call) in (GRPC.INVALID_ARGUMENT, GRPC.NOT_FOUND)
