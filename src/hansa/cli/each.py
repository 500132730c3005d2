"""The verb `each`: its table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hansa.cli import tables
from hansa.cli.search import MOST_ROWS

if TYPE_CHECKING:
    from hansa.each import Models


def started(job: Path, overrides: tuple[str, ...], by: str, runs: Path, as_json: bool, quiet: bool) -> None:
    """Fit a job for each of its clients and show the end."""
    from hansa.each import fit_each
    from hansa.job import load

    show(fit_each(load(job, overrides), by=by, directory=runs, quiet=quiet), as_json)


def resumed(folder: Path, as_json: bool, quiet: bool) -> None:
    """Go on with the fits of each client and show their end."""
    from hansa.each import resume_each

    show(resume_each(folder, quiet=quiet), as_json)


def show(done: Models, as_json: bool) -> None:
    """The table in the order of the clients, those that failed first, and where everything is kept."""
    from hansa.cli.show import as_object

    if as_json:
        as_object(done.plain())
        return
    failed = [own for own in done.table if own.status == "failed"]
    shown = [*failed, *(own for own in done.table if own.status != "failed")][:MOST_ROWS]
    judged = "; metrics of each client's own test rows" if any(own.metrics for own in done.table) else ""
    click.echo(f"{len(done.models)} models for {len(done.table)} clients{judged}")
    names = list(dict.fromkeys(name for own in done.table for name in own.metrics))
    table = tables.table()
    for column in ("client", "rows", "rounds", *map(tables.metric_name, names)):
        table.add_column(column, justify="left" if column == "client" else "right", no_wrap=column == "client")
    for own in shown:
        values = (tables.number(own.metrics[name]) if name in own.metrics else "-" for name in names)
        table.add_row(own.client, str(own.rows), "failed" if own.status == "failed" else str(own.rounds), *values)
    tables.show(table)
    if len(done.table) > MOST_ROWS:
        click.echo(f"({len(done.table) - MOST_ROWS} more in table.csv)")
    if failed:
        click.echo(f"{len(failed)} failed; the first, {failed[0].client}: {failed[0].ended}")
    click.echo(f"\neach    {done.directory}\ntable   {done.directory / 'table.csv'}")
