"""The verb `search`: what it reads, its table."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hansa.cli import tables
from hansa.core.errors import InputError

if TYPE_CHECKING:
    from hansa.searches import Search

MOST_ROWS = 30
"""Up to so many settings are shown on a terminal, the best ones; the files hold all."""


def parsed(grid: tuple[str, ...]) -> dict[str, list[Any]]:
    """``KEY=VALUE,VALUE`` as lists by key. Values are TOML's, and a bare word is a text. InputError for what is none."""
    space: dict[str, list[Any]] = {}
    for assignment in grid:
        path, sign, given = assignment.partition("=")
        if not sign or not path.strip() or not given.strip():
            raise InputError(f"--grid {assignment}: write it as key=value,value, for example rounds.count=10,20")
        if path.strip() in space:
            raise InputError(f"--grid {assignment}: {path.strip()} is given twice; write all its values in one --grid")
        space[path.strip()] = _values(given)
    return space


def _values(given: str) -> list[Any]:
    try:
        return list(tomllib.loads(f"values = [{given}]")["values"])
    except tomllib.TOMLDecodeError:
        return [_value(word.strip()) for word in given.split(",")]


def _value(word: str) -> Any:
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word


def show(done: Search, as_json: bool) -> None:
    """The table, best settings first, and where everything about the search is kept."""
    from hansa.cli.show import as_object
    from hansa.core import metrics as metric

    if as_json:
        as_object(done.plain())
        return
    sign = -1.0 if done.by in metric.HIGHER_IS_BETTER else 1.0
    finished = sorted((one for one in done.table if not one.failure), key=lambda one: sign * one.mean)
    failed = [one for one in done.table if one.failure]
    judged = f"{done.folds} folds of every client's training rows" if done.folds else "the validation rows"
    click.echo(f"{len(done.table)} settings, judged on {judged}" + ("; mean ± standard error" if done.folds else ""))
    table = tables.table()
    paths = list(done.chosen.settings)
    for column in (*paths, tables.metric_name(done.by), "rounds"):
        table.add_column(column, justify="right", no_wrap=column in paths)
    for one in finished[:MOST_ROWS]:
        table.add_row(*(str(one.settings[path]) for path in paths), tables.with_error(one.mean, one.error), _rounds(one.rounds))
    for one in failed[: MOST_ROWS - len(finished[:MOST_ROWS])]:
        table.add_row(*(str(one.settings[path]) for path in paths), "failed", "")
    tables.show(table)
    if len(done.table) > MOST_ROWS:
        click.echo(f"({len(done.table) - MOST_ROWS} more in table.csv)")
    if failed:
        click.echo(f"{len(failed)} failed; the first: {failed[0].failure}")
    best = " ".join(f"--set {path}={_written(value)}" for path, value in done.chosen.settings.items())
    click.echo(f"\nbest    {best}\nsearch  {done.directory}\ntable   {done.directory / 'table.csv'}")
    if done.run is not None:
        for name, value in done.run.metrics.items():
            click.echo(f"  {name:<22} {tables.number(value)}")
        click.echo(f"run     {done.run.directory}\nreport  {done.run.directory / 'report.html'}")


def _rounds(rounds: tuple[int, ...]) -> str:
    return str(rounds[0]) if len(set(rounds)) == 1 else f"{min(rounds)} to {max(rounds)}"


def _written(value: Any) -> str:
    """A value as `--set` reads it, quoted for a shell where it must be."""
    import shlex

    import tomli_w

    return shlex.quote(value if isinstance(value, str) else tomli_w.dumps({"v": value}).partition("=")[2].strip())


def resumed(folder: Path, as_json: bool, quiet: bool) -> None:
    """Go on with a search and show its end."""
    from hansa.searches import resume_search

    show(resume_search(folder, quiet=quiet), as_json)
