"""Who has been heard of, and when. Any byte of a client that takes part is a sign of life; to join is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from hansa.federation.state import State

Listener: TypeAlias = "Callable[[], None]"


class Presence:
    """What this server process heard, and through the database what the others did. Safe to use from many threads."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._heard: dict[str, float] = {}
        self._fresh: set[str] = set()
        self.began = time.time()

    def heard(self, name: str, moment: float | None = None) -> None:
        """moment: when, Unix seconds; now where it is left out."""
        with self._lock:
            self._heard[name] = max(self._heard.get(name, 0.0), time.time() if moment is None else moment)
            self._fresh.add(name)

    def flush(self) -> None:
        """Tell the database what is new since the last time."""
        with self._lock:
            fresh = {name: self._heard[name] for name in self._fresh}
            self._fresh.clear()
        if fresh:
            self._state.saw(fresh)

    def last(self, names: Iterable[str]) -> dict[str, float]:
        """When each was last heard of, Unix seconds; 0 for never."""
        known = self._state.seen(names)
        with self._lock:
            return {name: max(moment, self._heard.get(name, 0.0)) for name, moment in known.items()}


class Bell:
    """Rung when something has changed that others wait for. Safe to use from many threads."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rings = 0
        self._news: set[str] = set()
        self._listeners: list[Listener] = []

    def ring(self, *news: str) -> None:
        """news: what has changed, for who waits."""
        with self._condition:
            self._rings += 1
            self._news.update(news)
            self._condition.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def wait(self, seconds: float) -> set[str]:
        """Until it rings, or for a while, or not at all if it has rung since the last time; what has changed since then."""
        with self._condition:
            self._condition.wait_for(lambda: self._rings, seconds)
            self._rings = 0
            news, self._news = self._news, set()
            return news

    def on_ring(self, listener: Listener) -> None:
        """Call ``listener`` at every ring, in the ringing thread."""
        with self._condition:
            self._listeners.append(listener)
