"""What Prometheus is told of a server and of a client. Every one has a registry of its own, so that several live in one process.

A label never holds what somebody else wrote: methods, outcomes and rules are those that this package knows, and members, runs and
messages are in the audit log. So nobody can make the series grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hansa.core.errors import missing_extra
from hansa.federation.audit import Audit
from hansa.federation.options import Federation
from hansa.federation.policy import RULES
from hansa.federation.presence import Presence
from hansa.federation.state import State

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise missing_extra("prometheus_client", "federation") from error

CALLS = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Bounds of the histograms of calls, seconds: `Next` waits for up to 25, an upload takes as long as the line lets it."""

WORK = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
"""Bounds of the histograms of rounds and of clients' work, seconds."""

SIZES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 5e9)
"""Bounds of the histogram of uploads, bytes."""

OUTCOMES = ("result", "failure", "refusal")


class ServerFigures:
    """The figures of one server process. Those of the database are looked up when somebody asks for them."""

    def __init__(self, state: State, presence: Presence, audit: Audit, liveness: float = Federation.liveness) -> None:
        """liveness: seconds without a byte after which a client no longer counts as heard of."""
        self.registry = CollectorRegistry()
        self._state, self._presence, self._audit, self._liveness = state, presence, audit, liveness
        call = ("method", "code")
        given: dict[str, Any] = {"registry": self.registry}
        self.calls = Counter("hansa_rpc_handled", "Calls that have ended, by gRPC status.", call, **given)
        self.seconds = Histogram("hansa_rpc_seconds", "How long calls took, waiting included.", call, buckets=CALLS, **given)
        self.open_calls = Gauge("hansa_rpc_open", "Calls that are being answered.", ("method",), **given)
        self.received = Counter(
            "hansa_received_bytes", "Bytes of messages received, without TLS and framing.", ("method",), **given
        )
        self.sent = Counter("hansa_sent_bytes", "Bytes of messages sent, without TLS and framing.", ("method",), **given)
        self.reports = Counter("hansa_reports", "Reports of clients, by what they tell.", ("outcome",), **given)
        self.unused = Counter("hansa_reports_unused", "Reports that came too late, twice, or for nobody's task.", **given)
        self.refusals = Counter("hansa_refusals", "Refusals by clients' policies, by rule.", ("rule",), **given)
        self.uploads = Histogram("hansa_upload_size_bytes", "Sizes of blobs that were uploaded.", buckets=SIZES, **given)
        self.rounds = Counter("hansa_rounds", "Rounds that this process has committed.", **given)
        self.round_seconds = Histogram("hansa_round_seconds", "How long rounds took.", buckets=WORK, **given)
        self.lost = Counter("hansa_round_clients_lost", "Clients without a result in a round that was committed.", **given)
        self.ended = Counter("hansa_runs_ended", "Runs that this process has ended.", ("status",), **given)
        for outcome in OUTCOMES:
            self.reports.labels(outcome)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def told(self, kind: str, content: Mapping[str, Any]) -> None:
        """What a run tells those who watch it."""
        if kind == "round":
            self.rounds.inc()
            self.lost.inc(float(content.get("lost", 0)))
            if isinstance(seconds := content.get("seconds"), int | float):
                self.round_seconds.observe(seconds)
        elif kind in ("finished", "failed", "stopped") and "client" not in content:
            self.ended.labels(kind).inc()

    def called(self, method: str, code: str, seconds: float) -> None:
        self.calls.labels(method, code).inc()
        self.seconds.labels(method, code).observe(seconds)

    def reported(self, request: Any, reply: Any) -> None:
        """A report that was acknowledged."""
        outcome = request.WhichOneof("outcome")
        self.reports.labels(outcome if outcome in OUTCOMES else "other").inc()
        if outcome == "refusal":
            self.refusals.labels(request.refusal.rule if request.refusal.rule in RULES else "other").inc()
        if not reply.used:
            self.unused.inc()

    def describe(self) -> Iterable[Any]:
        return []  # nothing is known of the figures below before the database is asked

    def collect(self) -> Iterable[Any]:
        """What is in the database and in the audit log at this moment. A database that does not answer is a figure too."""
        entries = CounterMetricFamily("hansa_audit_entries", "Entries of the audit log, of all its time.")
        entries.add_metric((), self._audit.head()[0])
        yield entries
        up = GaugeMetricFamily("hansa_database_up", "1 where the database answered just now.")
        try:
            found = list(self._database())
        except Exception:  # noqa: BLE001  # whatever the driver raises
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        yield from found

    def _database(self) -> Iterable[Any]:
        tasks = GaugeMetricFamily("hansa_tasks_open", "Tasks that clients have been asked and have not answered.")
        tasks.add_metric((), len(self._state.all_open()))
        yield tasks
        heard = self._presence.last(self._state.clients())
        members = GaugeMetricFamily("hansa_clients", "Clients that are not revoked.")
        members.add_metric((), len(heard))
        yield members
        lately = GaugeMetricFamily("hansa_clients_heard", "Clients heard of within the liveness of the engine.")
        lately.add_metric((), sum(time.time() - when < self._liveness for when in heard.values()))
        yield lately
        runs = GaugeMetricFamily("hansa_runs", "Runs, by status.", labels=("status",))
        rows = self._state.runs()
        for status in ("waiting", "running", "finished", "failed", "stopped"):
            runs.add_metric((status,), sum(row.status == status for row in rows))
        yield runs


class ClientFigures:
    """The figures of one client."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        given: dict[str, Any] = {"registry": self.registry}
        self.tasks = Counter("hansa_client_tasks", "Tasks that were reported, by outcome.", ("outcome",), **given)
        self.unused = Counter("hansa_client_reports_unused", "Reports that the server had no use for.", **given)
        kinds = "describe, prepare, train or evaluate"
        self.seconds = Histogram(
            "hansa_client_task_seconds",
            f"From a task's receipt to its report, by kind ({kinds}).",
            ("kind",),
            buckets=WORK,
            **given,
        )
        self.steps = Histogram(
            "hansa_client_step_seconds", "Fetching, computing, uploading and reporting, pauses and further tries included.",
            ("step",), buckets=WORK, **given,
        )  # fmt: skip
        self.reconnects = Counter("hansa_client_reconnects", "Connections to a server after the first one.", **given)
        self.answered = Gauge("hansa_client_last_answer_timestamp_seconds", "When a server last answered; 0 for never.", **given)
        self._lines, self._last = 0, 0.0
        for outcome in OUTCOMES:
            self.tasks.labels(outcome)
        ProcessCollector(registry=self.registry)

    def dialled(self) -> None:
        """A line to a server was opened."""
        self._lines += 1
        if self._lines > 1:
            self.reconnects.inc()

    def heard(self) -> None:
        """A server answered."""
        self._last = time.time()
        self.answered.set(self._last)

    def silent(self, clock: Callable[[], float] = time.time) -> float:
        """Seconds since a server last answered; infinite for never."""
        return clock() - self._last if self._last else float("inf")
