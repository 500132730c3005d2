"""One live line for long work, on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")

Tell = Callable[[int, int, str], None]
"""(done, of, in words)."""


def live(work: Callable[[Tell], R], quiet: bool, title: str, told: Tell | None = None) -> R:
    """Do work that tells how far it is: its share, the time left and its words stand in one line while it goes on.

    On anything but a terminal, and where ``quiet``, nothing is shown; nor where ``told`` is there to be told instead.
    """
    if told is not None:
        return work(told)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return work(lambda done, of, what: None)
    with Progress(
        TextColumn(title, style="bold"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}", style="dim", markup=False),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)
        return work(lambda done, of, what: bar.update(task, completed=done, total=of, description=what))
