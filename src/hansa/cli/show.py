"""What the verbs print: tables for people, one JSON object for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hansa.cli import tables

if TYPE_CHECKING:
    from hansa.comparison import Comparison
    from hansa.job import Job
    from hansa.runs import Run

MOST_CLIENTS = 8
"""Up to so many clients have a column of their own in a comparison."""

MOST_FEATURES = 12
"""Up to so many clients are shown side by side, feature by feature."""


def plain(value: Any) -> Any:
    """JSON has no NaN: a number that does not exist is null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_object(value: dict[str, Any], indent: int | None = None) -> None:
    """One JSON object."""
    click.echo(json.dumps(plain(value), indent=indent))


def line(value: dict[str, Any], as_json: bool) -> None:
    """One object: as JSON, or its values a line each."""
    if as_json:
        as_object(value)
    else:
        click.echo("\n".join(str(item) for item in value.values()))


def text(name: str, content: str, as_json: bool) -> None:
    """A text as it is, or as the one entry of an object."""
    if as_json:
        as_object({name: content})
    else:
        click.echo(content, nl=False)


def summary(done: Run) -> dict[str, Any]:
    """What `run`, `resume` and `compare` tell machines about a run."""
    told = {
        "run": str(done.directory), "rounds": len(done.history), "metrics": done.metrics, "by_client": done.by_client,
        "ended": done.ended, "seconds": done.seconds, "report": str(done.directory / "report.html"),
    }  # fmt: skip
    name, rows = _times(done)
    return told | ({"virtual_time": {"metric": name, "reached": rows}} if rows else {})


def _times(done: Run) -> tuple[str, list[dict[str, Any]]]:
    """The watched metric of a run with a clock, and when it came near to its best; of others nothing."""
    from dataclasses import asdict

    from hansa.tracking.sections import times_to, watched

    name = watched(done.history, asdict(done.job.evaluation))
    if name is None or "clock/elapsed" not in done.history[-1]:
        return "", []
    return name, times_to(done.history, name)


def run(done: Run, as_json: bool) -> None:
    """The end of a run: its metrics, and where everything about it is kept."""
    if as_json:
        as_object(summary(done))
        return
    click.echo(f"{done.ended} in {done.seconds:.1f} s")
    for name, value in done.metrics.items():
        click.echo(f"  {name:<22} {tables.number(value)}")
    _times_table(done)
    click.echo(f"run     {done.directory}\nreport  {done.directory / 'report.html'}")


def _times_table(done: Run) -> None:
    from hansa.tracking.labels import duration, in_bytes

    name, rows = _times(done)
    if not rows:
        return
    table = tables.table()
    for column in ("of its best", name, "round", "virtual time", "to clients", "from clients"):
        table.add_column(column, justify="right")
    for row in rows:
        moved = (in_bytes(row[way]) for way in ("bytes_down", "bytes_up"))
        table.add_row(f"{row['share']:.0%}", tables.number(row["value"]), str(row["round"]), duration(row["seconds"]), *moved)
    tables.show(table)


def compared(job: Job, repeats: int, runs: Path, as_json: bool, quiet: bool, title: str = "") -> None:
    """Run the job, compare it with other ways to learn, put the comparison into the run's report."""
    from hansa.comparison import compare

    comparison = compare(job, repeats=repeats, directory=runs, quiet=quiet)
    done = comparison.run
    assert done is not None
    if as_json:
        as_object({**summary(done), "comparison": comparison.plain()})
        return
    comparison_table(comparison, title or f"{job.name or 'job'}: ways to learn")
    click.echo(f"\n{tables.folded(comparison.sentence)}\n\nrun     {done.directory}\nreport  {done.directory / 'report.html'}")


def comparison_table(comparison: Comparison, title: str) -> None:
    """One table; a group of rows per metric, so that the figures to be compared stand below each other."""
    table = tables.table()
    shown = (*comparison.clients, "overall") if len(comparison.clients) <= MOST_CLIENTS else ("overall",)
    for column in ("", *shown):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=column == "")
    for place, metric in enumerate(comparison.metrics):
        table.add_row(tables.metric_name(metric), style="bold")
        for row in comparison.rows:
            cells = (tables.with_error(*row.values[metric][client]) for client in shown)
            table.add_row(f"  {row.name}", *cells, end_section=place + 1 < len(comparison.metrics))
    click.echo(title)
    tables.show(table)
    splits = "one random split" if comparison.repeats == 1 else f"{comparison.repeats} random splits"
    spread = "" if comparison.repeats == 1 else "; mean ± standard error"
    click.echo(tables.folded(f"On the held-out rows of each client, over {splits}{spread}.{_hidden(comparison)}"))


def _hidden(comparison: Comparison) -> str:
    if len(comparison.clients) <= MOST_CLIENTS:
        return ""
    return f" The report shows each of the {len(comparison.clients):,} clients."


def rows(found: list[dict[str, str]], as_json: bool) -> None:
    """Entries with the same keys as a table, or as JSON."""
    if as_json:
        as_object({"rows": found})
        return
    from rich.text import Text

    from hansa.cli.printable import printable

    table = tables.table()
    for column in found[0] if found else ():
        table.add_column(column)
    for row in found:
        table.add_row(*(Text(printable(str(value))) for value in row.values()))
    tables.show(table)


def runs(root: Path, as_json: bool) -> None:
    """The runs in a folder, newest first."""
    from dataclasses import asdict

    from hansa.tracking.folder import list_runs

    found = list_runs(root)
    if as_json:
        as_object({"runs": [asdict(one) | {"path": str(one.path), "metrics": dict(one.metrics)} for one in found]})
        return
    if not found:
        click.echo(f"no runs in {root} (hansa run JOB.toml makes one)")
        return
    table = tables.table()
    for column in ("run", "status", "rounds", "seconds", "last metrics"):
        table.add_column(column, justify="right" if column in ("rounds", "seconds") else "left", no_wrap=column == "run")
    for one in found:
        table.add_row(str(one.path), one.status, str(one.rounds), f"{one.seconds:.1f}", _brief(one.metrics))
    tables.show(table)


def _brief(metrics: Any) -> str:
    """The metrics that say most about a run: those of data held out, or else of training."""
    numbers = {
        name: value for name, value in metrics.items() if "/" in name and not name.startswith("time/") and isinstance(value, float)
    }
    held = {name: value for name, value in numbers.items() if not name.startswith("train/")} or numbers
    return "  ".join(f"{name} {tables.number(value)}" for name, value in list(held.items())[-3:])


def data(job: Job, picture: Path | None, as_json: bool) -> None:
    """Each client's rows, labels and features, as the clients themselves describe them."""
    from hansa import opening

    setting = opening.open_setting(job, opening.clients_of(job))
    setting.engine.stop()
    described = setting.description.plain()
    if picture is not None:
        from hansa.cli.picture import write_picture

        write_picture(described, picture)
    if as_json:
        as_object({**described, "facts": setting.description.facts})
        return
    _clients_table(described)
    _features_table(setting.description.facts)
    if picture is not None:
        click.echo(f"\npicture  {picture}")


def _clients_table(described: dict[str, Any]) -> None:
    from hansa.tracking import labels

    classes = [str(label) for label in described["classes"] or ()]
    clients = described["clients"]
    splits = [split for split in ("train", "validation", "test") if any(one["rows"].get(split) for one in clients.values())]
    target = any("target" in one for one in clients.values())
    whose = labels.sampled(described)
    rows = f"Rows of each of {whose}" if whose else "Rows of each client"
    click.echo(f"{rows}, and its training rows by label" if classes else rows)
    table = tables.table()
    for column in ("client", *splits, *(f"label {label}" for label in classes), *(("mean target",) if target else ())):
        table.add_column(column, justify="left" if column == "client" else "right")
    for client, one in clients.items():
        counts = (str((one.get("labels") or {}).get(label, 0)) for label in classes)
        mean = (tables.number(one["target"]["mean"]),) if target else ()
        table.add_row(client, *(str(one["rows"].get(split, 0)) for split in splits), *counts, *mean)
    tables.show(table)


def _features_table(facts: Mapping[str, Mapping[str, Any]]) -> None:
    columns = {name: None for one in facts.values() if one["layout"] == "table" for name in one["columns"]}
    if not columns or len(facts) > MOST_FEATURES:
        return
    click.echo("\nFeatures: mean of numbers, most frequent of texts (share missing)")
    table = tables.table()
    for column in ("feature", *facts):
        table.add_column(column, justify="left" if column == "feature" else "right")
    for name in columns:
        table.add_row(name, *(_feature(one["columns"].get(name, {}), sum(one["rows"].values())) for one in facts.values()))
    tables.show(table)


def _feature(column: dict[str, Any], rows: int) -> str:
    share = column.get("missing", 0) / rows
    missing = f" ({share:.0%})" if share >= 0.01 else " (<1%)" if share else ""
    if column.get("values"):
        return f"{max(column['values'], key=column['values'].__getitem__)}{missing}"
    return (f"{column['mean']:.4g}" if column.get("mean") is not None else "-") + missing
