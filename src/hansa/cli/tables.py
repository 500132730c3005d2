"""How tables, numbers and sentences look on a terminal and in a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table


def table() -> Table:
    """An empty one."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, header_style="bold")


def show(renderable: Any) -> None:
    """Show a table. A pipe or a file has no width of its own: it gets what the table needs, and no blanks at line ends."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(renderable)
        return
    wide = Console(width=4000, force_terminal=False, color_system=None)
    with wide.capture() as captured:
        wide.print(renderable)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def metric_name(metric: str) -> str:
    return {"auc": "AUC", "mse": "mean squared error"}.get(metric, metric)


def number(value: float) -> str:
    """Four digits or so; a dash for what could not be measured."""
    return "-" if math.isnan(value) else f"{value:,.{_digits(value)}f}"


def with_error(mean: float, error: float) -> str:
    """A mean and its standard error, in the digits of the mean."""
    if math.isnan(mean) or math.isnan(error):
        return number(mean)
    return f"{number(mean)} ±{error:,.{_digits(mean)}f}"


def _digits(value: float) -> int:
    return 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0


def folded(sentence: str) -> str:
    """In lines that are easily read."""
    from textwrap import fill

    from rich.console import Console

    console = Console()
    return fill(sentence, min(96, console.width) if console.is_terminal else 96)
