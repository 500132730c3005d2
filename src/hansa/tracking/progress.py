"""One live line for long runs: round, time left, the watched metric with its best, and the peak of memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from hansa.tracking.labels import in_bytes, lower_is_better, number

_WATCHED = ("validation/", "test/", "central/", "train/")


class Progress:
    """Shows a run's rounds on a terminal; on anything else, and where ``quiet``, it prints nothing at all.

    watch:   the metric to show, such as "test/auc"; None takes the first of the record's validation, test, central and
             training metrics, a loss only where there is nothing else.
    stream:  where to show; standard error by default, so that output stays free for results.
    """

    def __init__(self, watch: str | None = None, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._watch = watch
        self._stream = stream if stream is not None else sys.stderr
        self._shown = not quiet and self._stream.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._best = math.nan

    def start(self, rounds: int, start_round: int = 0) -> None:
        """Before the first round to be played; ``start_round`` rounds of a resumed run are already done."""
        if not self._shown:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("round", style="bold"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            TextColumn("{task.fields[metric]}", markup=False),
            TextColumn("{task.fields[memory]}", style="dim", markup=False),
            console=Console(file=self._stream, highlight=False),
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        # The time left is estimated from the rounds that this process has played, not from those that it took over.
        self._task = self._bar.add_task("run", total=rounds, completed=start_round, metric="", memory="")
        self._bar.start()

    def update(self, record: Mapping[str, Any]) -> None:
        """After a round, with its record as in ``metrics.jsonl``."""
        if self._bar is None:
            return
        self._bar.update(
            self._task, completed=record["round"], metric=self._metric(record), memory=f"peak {in_bytes(peak_memory())}"
        )

    def note(self, text: str) -> None:
        """One line above the live line: a failure that the quorum allowed, an early stop."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Take the line away; also when the run failed. Doing it twice is once."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _metric(self, record: Mapping[str, Any]) -> str:
        self._watch = self._watch or watched(record)
        value = record.get(self._watch, math.nan) if self._watch else math.nan
        if not self._watch:
            return ""
        if not math.isnan(value):
            self._best = min(self._best, value) if lower_is_better(self._watch) else max(self._best, value)
            if math.isnan(self._best):
                self._best = value
        return f"{self._watch} {number(value)} (best {number(self._best)})"


def watched(record: Mapping[str, Any]) -> str | None:
    """The metric of a record that says most about the run so far."""
    for prefix in _WATCHED:
        names = [name for name in record if name.startswith(prefix)]
        if names:
            return next((name for name in names if not lower_is_better(name)), names[0])
    return None


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():
        # getrusage tells the larger of this and what the process that started this one needed, when it was started.
        high = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if high is not None:
            return int(high.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
