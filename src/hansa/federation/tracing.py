"""Traces of OpenTelemetry, where the usual OTEL_* variables ask for them and its package is there; else nothing is imported.

A round is one trace: under its span the exchanges, under each the tasks, and under each of these what the client did for it. The server
that answers `Next` sends the context of a task beside it, in the trailing metadata of the call; the client sends that of its step with
each call it makes. A server takes part in traces that it has begun itself and in no others, whatever a client sends.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hansa.core.errors import InputError
from hansa.federation.seen import Unwatched

log = logging.getLogger("hansa.federation")

TASK_KEY = "hansa-traceparent"
"""Of the trailing metadata of `Next`: a task's id, a semicolon, and its W3C traceparent."""

MOST = 16
"""Tasks whose context is sent with one reply: metadata is bounded."""

KEPT = 10_000
"""Rounds whose traces a server still takes part in, and tasks whose context a client remembers."""

_ASKING = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def asked_for() -> bool:
    """Whether the environment asks for traces."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(os.environ.get(name) for name in _ASKING)


class Tracing:
    """A tracer with an exporter of its own. The process's global provider stays as it is."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._words = provider, TraceContextTextMapPropagator()
        self.tracer = provider.get_tracer("hansa.federation")

    @classmethod
    def of_environment(cls, service: str) -> Tracing | None:
        """As the OTEL_* variables say; None where they ask for none, or the package is missing, which is logged.

        service: the name where OTEL_SERVICE_NAME gives none. InputError for an exporter that is not installed.
        """
        if not asked_for():
            return None
        try:
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            log.warning("OTEL_* variables ask for traces and OpenTelemetry is not installed; write: pip install 'hansa[otel]'")
            return None
        named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({} if named else {SERVICE_NAME: service})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter()))
        return cls(provider)

    def start(self, name: str, parent: Any = None, **attributes: Any) -> Any:
        """A span below another one, or the first of a trace."""
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        context = Context() if parent is None else set_span_in_context(parent, Context())
        return self.tracer.start_span(name, context, attributes={f"hansa.{key}": value for key, value in attributes.items()})

    def remote(self, traceparent: str) -> Any:
        """The span that somebody else's words name; None for words that name none."""
        from opentelemetry.context import Context
        from opentelemetry.trace import get_current_span

        span = get_current_span(self._words.extract({"traceparent": traceparent}, Context()))
        return span if span.get_span_context().is_valid else None

    def words(self, span: Any) -> str:
        """A span's context as a W3C traceparent; empty for one that is not recorded."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        if span.get_span_context().trace_flags.sampled:
            self._words.inject(carrier, set_span_in_context(span))
        return carrier.get("traceparent", "")

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def exporter() -> Any:
    """The exporter that OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL name, by default OTLP over gRPC."""
    from importlib.metadata import entry_points

    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise InputError(
            f"OTEL_TRACES_EXPORTER: there is no exporter {name!r} here; install its package, or unset the OTEL_* variables"
        )
    return found[0].load()()


class RoundSpans(Unwatched):
    """The spans of the runs that one server process plays, one after another. Safe to ask from other threads than the one that plays."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._lock = threading.Lock()
        self._round: Any = None
        self._preparing = False
        self._exchange: Any = None
        self._tasks: dict[str, Any] = {}
        self._traces: OrderedDict[int, None] = OrderedDict()

    def asked(self, run: str, kind: str, tasks: Mapping[str, str]) -> None:
        with self._lock:
            before = kind in ("describe", "prepare")
            if self._round is not None and self._preparing and not before:
                self._round.end()
                self._round = None
            if self._round is None:
                self._preparing = before
                name = "preparation" if before else "evaluation" if kind == "evaluate" else "round"
                self._round = self._tracing.start(f"hansa.{name}", run=run)
                self._traces[self._round.get_span_context().trace_id] = None
                while len(self._traces) > KEPT:
                    self._traces.popitem(last=False)
            self._exchange = self._tracing.start("hansa.exchange", self._round, run=run, kind=kind, tasks=len(tasks))
            for id, client in tasks.items():
                self._tasks[id] = self._tracing.start("hansa.task", self._exchange, run=run, task=id, client=client, kind=kind)

    def answered(self, task: str, problem: str = "") -> None:
        with self._lock:
            span = self._tasks.pop(task, None)
        if span is not None:
            _end(span, problem)

    def over(self) -> None:
        with self._lock:
            left, self._tasks = list(self._tasks.values()), {}
            exchange, self._exchange = self._exchange, None
        for span in left:
            _end(span, "unanswered")
        if exchange is not None:
            exchange.end()

    def committed(self, round: int) -> None:
        with self._lock:
            span, self._round = self._round, None
        if span is not None:
            span.set_attribute("hansa.round", round)
            span.end()

    def ended(self) -> None:
        self.over()
        with self._lock:
            span, self._round = self._round, None
        if span is not None:
            span.end()

    def beside(self, tasks: Any) -> list[tuple[str, str]]:
        """The metadata that goes with a reply that names these tasks."""
        with self._lock:
            spans = [(task.id, self._tasks[task.id]) for task in tasks[:MOST] if task.id in self._tasks]
        return [(TASK_KEY, f"{id};{words}") for id, span in spans if (words := self._tracing.words(span))]

    def parent(self, traceparent: str) -> Any:
        """The remote parent that a call names, if it is of a trace that began here."""
        remote = self._tracing.remote(traceparent)
        with self._lock:
            return remote if remote is not None and remote.get_span_context().trace_id in self._traces else None

    @contextmanager
    def call(self, method: str, traceparent: str) -> Iterator[None]:
        """Around the answer to a call that may be part of a trace."""
        parent = self.parent(traceparent) if traceparent else None
        if parent is None:
            yield
            return
        span = self._tracing.start(f"hansa.rpc {method}", parent)
        try:
            yield
        finally:
            span.end()


class TaskSpans:
    """The spans of what a client does for one task after another, each thread its own."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._lock = threading.Lock()
        self._parents: OrderedDict[str, str] = OrderedDict()
        self._here = threading.local()

    def told(self, metadata: Any) -> None:
        """The trailing metadata of a reply."""
        with self._lock:
            for key, value in metadata or ():
                task, separator, words = str(value).partition(";")
                if key == TASK_KEY and separator:
                    self._parents[task] = words
            while len(self._parents) > KEPT:
                self._parents.popitem(last=False)

    def words(self) -> str:
        """The traceparent of the present step of this thread, empty for none."""
        span = getattr(self._here, "step", None) or getattr(self._here, "task", None)
        return self._tracing.words(span) if span is not None else ""

    @contextmanager
    def task(self, id: str, run: str) -> Iterator[None]:
        with self._lock:
            words = self._parents.pop(id, "")
        parent = self._tracing.remote(words) if words else None
        self._here.task = span = self._tracing.start("hansa.work", parent, run=run, task=id)
        try:
            yield
        finally:
            self._here.task = None
            span.end()

    def say(self, **attributes: Any) -> None:
        span = getattr(self._here, "task", None)
        if span is not None:
            span.set_attributes({f"hansa.{key}": value for key, value in attributes.items() if value is not None})

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._here.step = span = self._tracing.start(f"hansa.{name}", getattr(self._here, "task", None))
        try:
            yield
        finally:
            self._here.step = None
            span.end()


def _end(span: Any, problem: str) -> None:
    if problem:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR, problem))
    span.end()
