"""A server and a client as they are seen from outside: what is scraped of them, whether they say that they are ready, their traces."""

from __future__ import annotations

import io
import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import tomli_w
from grpc_health.v1 import health_pb2 as health
from grpc_health.v1 import health_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

import hansa
from hansa.cli import watching
from hansa.cli.logs import _Json, without_secrets
from hansa.core.errors import InputError
from hansa.federated.admin import Event
from hansa.federated.client import Client
from hansa.federated.server import Server
from hansa.federation import tracing
from hansa.federation.credentials import Credentials
from hansa.federation.endpoint import Readiness
from hansa.federation.policy import Policy
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.tls import channel_credentials
from tests.federation.parties import NAMES, job, joined, mine, served, threads, until

DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Passed(SpanExporter):
    """What each process exports, in one place, which outlives them."""

    def __init__(self, to: InMemorySpanExporter) -> None:
        self._to = to

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._to.export(spans)


def got(address: str, path: str) -> tuple[int, str]:
    try:
        with DIRECTLY.open(f"http://{address}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scraped(address: str) -> Samples:
    families = text_string_to_metric_families(got(address, "/metrics")[1])
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def seen(spans: InMemorySpanExporter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What was seen of a run in which one client refuses to be judged: two rounds, watched from all sides."""
    folder, told = tmp_path_factory.mktemp("seen"), {}
    given = job(count=2, rounds=hansa.Rounds(count=2, block=1, quorum=0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_TRACES_EXPORTER", "memory")
        patch.setattr(tracing, "exporter", lambda: Passed(spans))
        place = Server(served(given), home=folder / "server", listen="127.0.0.1:0", quiet=True, metrics="127.0.0.1:0")
        with place as server:
            homes = joined(server, given, folder)
            (homes[0] / "mine.toml").write_text(tomli_w.dumps(mine(given, NAMES[0])))
            told["before"] = scraped(server.metrics_address)
            with threads(homes[1:], {NAMES[1]: Policy(evaluation=False)}):
                watched = Client(data=homes[0] / "mine.toml", home=homes[0], metrics="127.0.0.1:0")
                with threads_of(watched):
                    told["run"] = server.train()
                    told["client"] = scraped(watched.metrics_address)
                    told["client ready"] = got(watched.metrics_address, "/readyz")
            told["server"] = scraped(server.metrics_address)
            told["audit"] = server.office.audit.head()[0]
    yield told


class threads_of:
    """One client in a thread, until the block is left."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._thread = threading.Thread(target=client.run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._client.stop.set()
        self._client.hang_up()
        self._thread.join(20)


def test_a_servers_figures_are_those_of_its_run(seen: dict[str, Any]) -> None:
    figures, rounds = seen["server"], len(seen["run"].history)
    assert value(figures, "hansa_rounds_total") == rounds == value(figures, "hansa_round_seconds_count") == 2
    assert value(figures, "hansa_runs_ended_total", status="finished") == value(figures, "hansa_runs", status="finished") == 1
    assert value(figures, "hansa_refusals_total", rule="evaluation") >= 2
    assert value(figures, "hansa_reports_total", outcome="refusal") == value(figures, "hansa_refusals_total", rule="evaluation")
    reports = sum(value(figures, "hansa_reports_total", outcome=kind) for kind in ("result", "failure", "refusal"))
    assert reports == value(figures, "hansa_rpc_handled_total", method="Report", code="OK")
    assert value(figures, "hansa_upload_size_bytes_count") == value(figures, "hansa_reports_total", outcome="result")
    assert value(figures, "hansa_received_bytes_total", method="Report") > value(figures, "hansa_upload_size_bytes_sum")
    assert value(figures, "hansa_audit_entries_total") == seen["audit"] > value(seen["before"], "hansa_audit_entries_total")
    assert value(seen["before"], "hansa_clients") == len(NAMES) and value(figures, "hansa_clients_heard") == len(NAMES)
    assert value(figures, "hansa_tasks_open") == 0 and value(figures, "hansa_database_up") == 1


def test_a_clients_figures_are_those_of_its_work(seen: dict[str, Any]) -> None:
    figures = seen["client"]
    assert value(figures, "hansa_client_tasks_total", outcome="result") >= 2 + 1  # two rounds, and what comes before
    assert value(figures, "hansa_client_task_seconds_count", kind="train") == 2
    steps = [value(figures, "hansa_client_step_seconds_count", step=step) for step in ("compute", "upload", "report")]
    assert min(steps) > 0 and value(figures, "hansa_client_reconnects_total") == 0
    assert seen["client ready"][0] == 200


def test_no_label_holds_what_somebody_else_wrote(seen: dict[str, Any]) -> None:
    labels = {text for name, pairs in [*seen["server"], *seen["client"]] for _, text in pairs}
    assert not labels & {*NAMES, seen["run"].directory.name}


def test_a_round_is_one_trace_from_the_server_to_the_client(seen: dict[str, Any], spans: InMemorySpanExporter) -> None:
    found = spans.get_finished_spans()
    rounds = [span for span in found if span.name == "hansa.round"]
    assert sorted(span.attributes["hansa.round"] for span in rounds) == [1, 2]
    for root in rounds:
        mine = [span for span in found if span.context.trace_id == root.context.trace_id]
        by_id = {span.context.span_id: span for span in mine}

        def path(span: Any, by_id: dict[int, Any] = by_id) -> list[str]:
            return [span.name] if span.parent is None else [*path(by_id[span.parent.span_id]), span.name]

        paths = [path(span) for span in mine]
        asked = ["hansa.round", "hansa.exchange", "hansa.task"]
        trained = [s for s in mine if s.name == "hansa.task" and s.attributes["hansa.kind"] == "train"]
        assert {span.attributes["hansa.client"] for span in trained} == set(NAMES)
        for step in ("fetch", "compute", "upload", "report"):
            assert paths.count([*asked, "hansa.work", f"hansa.{step}"]) >= len(NAMES) - 1
        assert [*asked, "hansa.work", "hansa.report", "hansa.rpc Report"] in paths


def test_without_a_wish_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert tracing.Tracing.of_environment("hansa-server") is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
    with pytest.raises(InputError, match="carrier-pigeon"):
        tracing.Tracing.of_environment("hansa-server")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing.Tracing.of_environment("hansa-server") is None


def test_a_server_joins_no_trace_that_it_did_not_begin(spans: InMemorySpanExporter) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    rounds = tracing.RoundSpans(tracing.Tracing(TracerProvider()))
    assert rounds.parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") is None
    assert rounds.parent("of no form at all") is None


def ended(check: Any) -> grpc.StatusCode:
    try:
        check(health.HealthCheckRequest())
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_readiness_follows_the_database_and_health_is_for_members(tmp_path: Path) -> None:
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", quiet=True, metrics="127.0.0.1:0") as server:
        address = server.metrics_address
        assert got(address, "/healthz") == (200, "ok\n") and got(address, "/elsewhere")[0] == 404
        until(lambda: got(address, "/readyz")[0] == 200)
        credentials = Credentials.load(tmp_path / "server" / "admin")
        with grpc.secure_channel(server.address, channel_credentials(credentials)) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health.HealthCheckRequest()).status == health.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError) as unknown:
                check(health.HealthCheckRequest(service="hansa.Wishes"))
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            database = tmp_path / "server" / "state.sqlite"
            database.rename(tmp_path / "taken away")
            status, body = got(address, "/readyz")
            assert (status, list(json.loads(body)["problems"])) == (503, ["database"])
            assert check(health.HealthCheckRequest()).status == health.HealthCheckResponse.NOT_SERVING
            assert got(address, "/healthz")[0] == 200  # a restart would not help
            (tmp_path / "taken away").rename(database)
            assert got(address, "/readyz")[0] == 200
            server.revoke("admin")
            until(lambda: ended(check) is grpc.StatusCode.PERMISSION_DENIED)


def test_a_check_that_hangs_is_started_once_and_counts_as_failed() -> None:
    over, begun = threading.Event(), []

    def hangs() -> None:
        begun.append(1)
        over.wait()

    readiness = Readiness({"hangs": hangs, "works": lambda: None}, patience=0.05)
    assert readiness.problems() == readiness.problems() == {"hangs": "does not answer"}
    assert len(begun) == 1
    over.set()
    until(lambda: not readiness.problems())


def test_an_address_that_cannot_be_used_leaves_nothing_behind(tmp_path: Path) -> None:
    first = Server(home=tmp_path / "one", listen="127.0.0.1:0", quiet=True, metrics="127.0.0.1:0")
    with first, pytest.raises(InputError, match="cannot be used"):
        Server(home=tmp_path / "two", listen="127.0.0.1:0", quiet=True, metrics=first.metrics_address).start()
    Server(home=tmp_path / "two", listen="127.0.0.1:0", quiet=True).start().stop()
    with pytest.raises(InputError, match="write it as host:port"):
        Server(home=tmp_path / "three", listen="127.0.0.1:0", quiet=True, metrics="9444").start()


def event(kind: str, **content: Any) -> Event:
    return Event(1, 100.0, kind, content)


def test_a_run_is_watched_live_and_no_text_of_a_client_reaches_the_terminal_as_it_is() -> None:
    told = [
        event("began", clients=["a", "b"]),
        event("round", round=3, **{"train/loss": 0.5, "time/wait": 1.0}),
        event("refused", client="b", rule="metrics", message="no\x1b[2J\n"),
    ]
    picture = watching.Picture("2026")
    for one in told:
        picture = watching.after(picture, one)
    assert (picture.round, picture.metrics, picture.refusals) == (3, {"train/loss": 0.5}, {"b": 1})
    members = [pb.Member(name="a", seen=98.0, asked=97.0), pb.Member(name="b", seen=90.0)]
    console = Console(file=io.StringIO(), width=100)
    console.print(watching.table(picture, members, 100.0))
    shown = console.file.getvalue()
    assert "round 3" in shown and "works, for 3 s" in shown and "waits" in shown and "train/loss 0.500" in shown
    assert "\x1b" not in shown and "\x1b" not in watching.line(told[-1])
    assert watching.after(picture, event("failed", message="too few")).stage == "failed"


def test_a_log_entry_has_fields_and_no_secrets(tmp_path: Path) -> None:
    record = logging.LogRecord("hansa.federation", logging.INFO, "", 0, "round %d", (3,), None)
    record.__dict__ |= {"run": "2026", "client": "hospital-a"}
    assert json.loads(_Json().format(record)) | {"time": ""} == {
        "time": "", "level": "info", "from": "hansa.federation", "message": "round 3", "run": "2026", "client": "hospital-a",
    }  # fmt: skip
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        token = server.token("ann")
    key = Credentials.load(tmp_path / "server" / "admin").key.decode()
    assert without_secrets(f"it was {token}, and {key}.") == "it was (withheld), and (withheld)\n."
