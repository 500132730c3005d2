"""The places at which a server or a client can be watched at its work. By default nobody does, and that costs a call of nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


class Unwatched:
    """Who plays rounds tells it what is asked of whom, and what came of it."""

    def asked(self, run: str, kind: str, tasks: Mapping[str, str]) -> None:
        """An exchange begins. kind: of its call. tasks: id -> client."""

    def answered(self, task: str, problem: str = "") -> None:
        """A task is over. problem: the kind of its failure, empty for a result."""

    def over(self) -> None:
        """The exchange is over."""

    def committed(self, round: int) -> None:
        """A round is durable."""

    def ended(self) -> None:
        """The run is played no longer by this process."""


class Unseen:
    """A client tells it what it does."""

    def task(self, task: Any) -> AbstractContextManager[None]:
        """Around all that is done for one task, as it came from the server."""
        return nullcontext()

    def kind(self, kind: str, round: int | None) -> None:
        """What the present task is, once that is known."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """Around one step of the present task: fetch, compute, upload or report."""
        return nullcontext()

    def reported(self, outcome: str, used: bool) -> None:
        """The present task was acknowledged by the server."""


UNWATCHED = Unwatched()
UNSEEN = Unseen()


class Watching(Unseen):
    """A client's figures, its spans, or both; None for what nobody asked for. See observe and tracing."""

    def __init__(self, figures: Any = None, spans: Any = None) -> None:
        self._figures, self._spans = figures, spans
        self._here = threading.local()

    @contextmanager
    def task(self, task: Any) -> Iterator[None]:
        began, self._here.kind = time.monotonic(), ""
        with self._spans.task(task.id, task.run) if self._spans else nullcontext():
            yield
        if self._figures and self._here.kind:
            self._figures.seconds.labels(self._here.kind).observe(time.monotonic() - began)

    def kind(self, kind: str, round: int | None) -> None:
        self._here.kind = kind
        if self._spans:
            self._spans.say(kind=kind, round=None if round is None else round + 1)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            with self._spans.step(name) if self._spans else nullcontext():
                yield
        finally:
            if self._figures:
                self._figures.steps.labels(name).observe(time.monotonic() - began)

    def reported(self, outcome: str, used: bool) -> None:
        if self._spans:
            self._spans.say(outcome=outcome, used=used)
        if self._figures:
            self._figures.tasks.labels(outcome).inc()
            if not used:
                self._figures.unused.inc()
