"""Named steps at which a process may be told to die, so that a test can show what a crash exactly there does.

``HANSA_FAULT=server.tasks_opened:3`` kills the process (SIGKILL) when it reaches that step for the third time. Without the variable a
step costs a look-up in a dictionary that is empty.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

STEPS = (
    "server.call_stored", "server.tasks_opened", "server.report_validated", "server.report_committed", "server.exchange_over",
    "server.state_saved", "server.state_stored", "server.round_committed", "server.blob_partial", "server.blob_complete",
    "server.run_finished", "server.joined",
    "relay.tasks_opened", "relay.summed", "relay.uploaded", "relay.reported", "relay.passed",
    "client.task_received", "client.call_fetched", "client.computed", "client.partly_uploaded", "client.uploaded", "client.reported",
)  # fmt: skip

_fatal: dict[str, int] = {}
_hits: Counter[str] = Counter()


def arm(given: str) -> None:
    """Die at ``step:count`` from now on; at no step where it is empty. Raises ValueError for a step that there is not."""
    _fatal.clear()
    _hits.clear()
    if given:
        step, _, count = given.partition(":")
        if step not in STEPS:
            raise ValueError(f"HANSA_FAULT={given}: there is no such step; the steps are {', '.join(STEPS)}")
        _fatal[step] = int(count or 1)


def reached(step: str) -> None:
    """Die here if this is the step, and the time."""
    if step in _fatal:
        _hits[step] += 1
        if _hits[step] >= _fatal[step]:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get("HANSA_FAULT", ""))
