"""A server process's claim to a run: kept while it plays it, lost when another one takes over."""

from __future__ import annotations

import contextlib
import threading
import time

from sqlalchemy.exc import OperationalError

from hansa.core.errors import HansaError
from hansa.federation.engine import LEASE, Stopped
from hansa.federation.state import LeaseLost, State


class Claim:
    """Keeps the lease of a run from a thread of its own, and hears whether the run shall stop."""

    def __init__(self, state: State, run: str, owner: str) -> None:
        self._state, self._run, self._owner = state, run, owner
        self._done = threading.Event()
        self._problem: HansaError | None = None
        self._thread = threading.Thread(target=self._renew, name="hansa-lease", daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(OperationalError):  # it ends by itself then, after its time
            self._state.release(self._run, self._owner)

    def check(self) -> None:
        """Raises LeaseLost, or Stopped."""
        if self._problem is not None:
            raise self._problem

    def _renew(self) -> None:
        failing_since: float | None = None
        while not self._done.wait(1.0):
            try:
                if self._state.renew(self._run, self._owner, LEASE):
                    self._problem = Stopped(f"run {self._run}: stopped by an administrator")
                    return
                failing_since = None
            except LeaseLost as lost:
                self._problem = lost
                return
            except Exception as error:  # noqa: BLE001  # a database that is away for a moment; the lease says for how long
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > LEASE:
                    self._problem = LeaseLost(f"run {self._run}: the database cannot be reached ({error})")
                    return
