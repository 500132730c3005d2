"""What the verbs print: tables for people, one JSON object for machines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hansa.comparison import Comparison
    from hansa.job import Job
    from hansa.runs import Run


def plain(value: Any) -> Any:
    """JSON has no NaN: a number that does not exist is null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line(value: dict[str, Any], as_json: bool) -> None:
    """One object: as JSON, or its values a line each."""
    click.echo(
        json.dumps(plain(value), indent=None if not as_json else 2) if as_json else "\n".join(str(item) for item in value.values())
    )


def text(name: str, content: str, as_json: bool) -> None:
    click.echo(json.dumps({name: content}) if as_json else content, nl=as_json)


def summary(done: Run) -> dict[str, Any]:
    """What `run`, `resume` and `compare` tell machines about a run."""
    return {
        "run": str(done.directory), "rounds": len(done.history), "metrics": done.metrics, "by_client": done.by_client,
        "ended": done.ended, "seconds": done.seconds, "report": str(done.directory / "report.html"),
    }  # fmt: skip


def run(done: Run, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(plain(summary(done))))
        return
    click.echo(f"{done.ended} in {done.seconds:.1f} s")
    for name, value in done.metrics.items():
        click.echo(f"  {name:<22} {value:.4f}")
    click.echo(f"run folder  {done.directory}\nreport      {done.directory / 'report.html'}")


def compared(job: Job, repeats: int, runs: Path, as_json: bool, quiet: bool, title: str = "") -> None:
    """Run the job, compare it with other ways to learn, put the comparison into the run's report."""
    from hansa.comparison import compare
    from hansa.runs import run as start
    from hansa.tracking.folder import RunFolder
    from hansa.tracking.report import write_report

    done = start(job, directory=runs, quiet=True)
    comparison = _with_progress(lambda tell: compare(job, repeats=repeats, progress=tell), quiet)
    folder = RunFolder.open(done.directory)
    folder.write_json("comparison.json", comparison.plain())
    write_report(folder)
    if as_json:
        click.echo(json.dumps(plain({**summary(done), "comparison": comparison.plain()})))
        return
    _comparison_table(comparison, title or f"{job.name or 'job'}: ways to learn")
    click.echo(f"\n{comparison.sentence}\n\nreport  {done.directory / 'report.html'}")


def _with_progress(work: Any, quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return work(lambda done, of, what: None)
    with Progress(TextColumn("{task.description:<28}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        return work(lambda done, of, what: bar.update(task, completed=done, total=of, description=what))


def _comparison_table(comparison: Comparison, title: str) -> None:
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        caption=_caption(comparison),
        caption_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    shown = (*comparison.clients, "overall") if len(comparison.clients) <= 8 else ("overall",)
    for column in ("way to learn", "", *shown):
        table.add_column(column, justify="left" if column in ("way to learn", "") else "right")
    for row in comparison.rows:
        cells = ["\n".join(_cell(*row.values[metric][client]) for metric in comparison.metrics) for client in shown]
        table.add_row(row.name, "\n".join(_metric_name(metric) for metric in comparison.metrics), *cells)
    _print(table)


def _caption(comparison: Comparison) -> str:
    return f"held-out rows of each client; mean ± standard error over {comparison.repeats} random splits"


def _metric_name(metric: str) -> str:
    return {"auc": "AUC", "mse": "MSE"}.get(metric, metric)


def _cell(mean: float, error: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" + ("" if math.isnan(error) else f" ±{error:.3f}")


def _print(renderable: Any) -> None:
    from rich.console import Console

    console = Console()
    # A pipe or a file has no width of its own: take what the table needs.
    Console(width=None if console.is_terminal else 240).print(renderable)


def runs(root: Path, as_json: bool) -> None:
    from hansa.tracking.folder import list_runs

    found = list_runs(root)
    if as_json:
        click.echo(json.dumps(plain([one.plain() for one in found])))
        return
    if not found:
        click.echo(f"no runs in {root} (hansa run JOB.toml makes one)")
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "status", "rounds", "seconds", "metrics"):
        table.add_column(column, justify="right" if column in ("rounds", "seconds") else "left")
    for one in found:
        table.add_row(
            str(one.path), one.status, str(one.rounds), f"{one.seconds:.1f}" if one.seconds is not None else "", _brief(one.metrics)
        )
    _print(table)


def _brief(metrics: dict[str, Any]) -> str:
    shown = {name: value for name, value in metrics.items() if "/" in name and isinstance(value, float)}
    return "  ".join(f"{name} {value:.4f}" for name, value in list(shown.items())[-4:])


def data(job: Job, picture: Path | None, as_json: bool) -> None:
    """Each client's rows, labels and features, as the clients themselves describe them."""
    from hansa import training

    setting = training.open_setting(job, training.clients_of(job))
    described = setting.description.plain()
    if picture is not None:
        from hansa.tracking.figures import data_distribution

        picture.write_text(data_distribution(described), "utf-8")
    if as_json:
        click.echo(json.dumps(plain({**described, "facts": setting.description.facts})))
        return
    from rich.table import Table

    classes = [str(label) for label in described["classes"] or ()]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("client", "train", "validation", "test", *(f"label {label}" for label in classes)):
        table.add_column(column, justify="left" if column == "client" else "right")
    for client, facts in described["clients"].items():
        rows, labels = facts["rows"], facts.get("labels") or {}
        table.add_row(
            client,
            *(str(rows.get(split, 0)) for split in ("train", "validation", "test")),
            *(str(labels.get(label, 0)) for label in classes),
        )
    _print(table)
    _features_table(setting.description.facts)


def _features_table(facts: dict[str, Any]) -> None:
    from rich.table import Table

    columns = {name: None for one in facts.values() for name in one.get("columns", {})}
    if not columns or len(facts) > 12:
        return
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title="\nfeatures: mean of numbers, most frequent category; share missing",
        title_justify="left",
    )
    for column in ("feature", *facts):
        table.add_column(column)
    for name in columns:
        table.add_row(name, *(_feature(one["columns"].get(name, {}), sum(one["rows"].values())) for one in facts.values()))
    _print(table)


def _feature(column: dict[str, Any], rows: int) -> str:
    missing = f" ({column['missing'] / rows:.0%} missing)" if column.get("missing") else ""
    if column.get("values"):
        return f"{max(column['values'], key=column['values'].__getitem__)}{missing}"
    return (f"{column['mean']:.4g}" if column.get("mean") is not None else "-") + missing
