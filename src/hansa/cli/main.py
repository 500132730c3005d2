"""`hansa`: one verb per thing that a user wants. Exit codes: 0 done, 2 bad input, 3 failed run, 130 interrupted.

Verbs import what they need when they run, so that `hansa --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from errno import EPIPE
from pathlib import Path
from typing import Any

import click

from hansa import __version__
from hansa.cli.federation import address_option, admin_of, pki_options, verbs
from hansa.cli.printable import printable_lines
from hansa.core.errors import HansaError, InputError

BAD_INPUT, FAILED, INTERRUPTED = 2, 3, 130

job_argument = click.argument("job", metavar="JOB.toml", type=click.Path(path_type=Path))
run_argument = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")
set_option = click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a value of the job, as algorithm.mu=0.1; repeatable."
)
runs_option = click.option(
    "--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="Folder that holds the run folders."
)


class Group(click.Group):
    """Turns errors into one line and an exit code; a scheduler's SIGTERM ends a run as Ctrl-C does."""

    def invoke(self, ctx: click.Context) -> Any:
        _heed_schedulers()
        try:
            with warnings.catch_warnings():
                # Arithmetic that overflows ends a run as Diverged, which says more than NumPy's warnings about it.
                warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"hansa\.")
                return super().invoke(ctx)
        except InputError as error:
            click.echo(f"hansa: {printable_lines(str(error))}", err=True)
            ctx.exit(BAD_INPUT)
        except HansaError as error:
            click.echo(printable_lines("; ".join([f"hansa: {error}", *getattr(error, "__notes__", ())])), err=True)
            ctx.exit(FAILED)
        except OSError as error:
            if error.errno == EPIPE:
                raise  # the reader of a pipe has left, as `head` does: click ends quietly
            click.echo(f"hansa: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", err=True)
            ctx.exit(FAILED)
        except KeyboardInterrupt as stop:
            click.echo("; ".join(["hansa: interrupted", *getattr(stop, "__notes__", ())]), err=True)
            ctx.exit(INTERRUPTED)


def _heed_schedulers() -> None:
    """Have SIGTERM interrupt as Ctrl-C does, unless somebody has decided otherwise."""
    own = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if (
        own and "TORCHELASTIC_RUN_ID" not in os.environ
    ):  # a rank that waits for others in native code would not hear of it in Python
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def example(text: str) -> str:
    return f"Example: {text}"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hansa")
def main() -> None:
    """Train one model from data that stays where it is.

    Start with `hansa demo`; then `hansa new > job.toml` and `hansa run job.toml`.
    """


@main.command(epilog=example("hansa run job.toml --set algorithm.local.epochs=5"))
@job_argument
@set_option
@runs_option
@json_option
@quiet_option
def run(job: Path, overrides: tuple[str, ...], runs: Path, as_json: bool, quiet: bool) -> None:
    """Do a job and keep everything about it in a new run folder."""
    from hansa.cli import show
    from hansa.job import load
    from hansa.runs import run as start

    show.run(start(load(job, overrides), directory=runs, quiet=quiet or as_json), as_json)


@main.command(epilog=example("hansa resume runs/2026-01-02-030405-hospitals"))
@run_argument
@json_option
@quiet_option
def resume(folder: Path, as_json: bool, quiet: bool) -> None:
    """Go on with a run, a search or models per client that were interrupted, failed or killed, to the same last bit."""
    from hansa.cli import show

    if (folder / "each.toml").is_file():
        from hansa.cli import each

        each.resumed(folder, as_json, quiet or as_json)
        return
    if (folder / "search.toml").is_file():
        from hansa.cli.search import resumed

        resumed(folder, as_json, quiet or as_json)
        return
    from hansa.runs import resume as go_on

    show.run(go_on(folder, quiet=quiet or as_json), as_json)


@main.command(epilog=example("hansa search job.toml --grid algorithm.local.learning_rate=0.01,0.1 --folds 5"))
@job_argument
@click.option(
    "--grid", metavar="KEY=V,V", multiple=True, required=True, help="Values to try for an option, as --set names it; repeatable."
)
@click.option(
    "--folds",
    default=5,
    show_default=True,
    type=click.IntRange(0),
    help="Folds of each client's training rows; 0: validation rows.",
)
@click.option(
    "--random", default=0, type=click.IntRange(0), help="Try so many combinations, drawn with the job's seed.  [default: all]"
)
@click.option("--by", default="", metavar="METRIC", help="What to judge by.  [default: evaluation.watch of the job]")
@click.option("--refit", is_flag=True, help="Run the best job in the end, on all training rows.")
@set_option
@runs_option
@json_option
@quiet_option
def search(
    job: Path, grid: tuple[str, ...], folds: int, random: int, by: str, refit: bool, overrides: tuple[str, ...], runs: Path,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Fit a job with many settings at once and tell which is best."""
    from hansa.cli.search import parsed, show
    from hansa.job import load
    from hansa.searches import search as start

    quiet = quiet or as_json
    loaded, space = load(job, overrides), parsed(grid)
    show(start(loaded, space, folds=folds, random=random, by=by, refit=refit, directory=runs, quiet=quiet), as_json)


@main.command(epilog=example("hansa each sales.toml --by shop"))
@job_argument
@click.option(
    "--by", default="", metavar="COLUMN", help="The column of the table that names the clients.  [default: the job's own]"
)
@set_option
@runs_option
@json_option
@quiet_option
def each(job: Path, by: str, overrides: tuple[str, ...], runs: Path, as_json: bool, quiet: bool) -> None:
    """Fit a job once for each client, with that client alone: a model per key of a table."""
    from hansa.cli.each import started

    started(job, overrides, by, runs, as_json, quiet or as_json)


@main.command(epilog=example("hansa compare job.toml --repeats 10"))
@job_argument
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Different splits to average over.")
@set_option
@runs_option
@json_option
@quiet_option
def compare(job: Path, repeats: int, overrides: tuple[str, ...], runs: Path, as_json: bool, quiet: bool) -> None:
    """Run a job, and set it beside each client alone and all rows pooled."""
    from hansa.cli import show
    from hansa.job import load

    show.compared(load(job, overrides), repeats, runs, as_json, quiet or as_json)


@main.command(epilog=example("hansa demo"))
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Different splits to average over.")
@runs_option
@json_option
@quiet_option
def demo(repeats: int, runs: Path, as_json: bool, quiet: bool) -> None:
    """Four hospitals learn together: real data, every way to learn, one table, one report."""
    from hansa.cli import show
    from hansa.cli.starter import starter_job

    show.compared(
        starter_job(),
        repeats,
        runs,
        as_json,
        quiet or as_json,
        title="Who has heart disease? Four hospitals, 920 patients (UCI, 1988)",
    )


@main.command(epilog=example("hansa report runs/2026-01-02-030405-hospitals"))
@run_argument
@json_option
def report(folder: Path, as_json: bool) -> None:
    """Write a run's report.html anew; it opens offline."""
    from hansa.cli import show
    from hansa.tracking.folder import RunFolder
    from hansa.tracking.report import write_report

    show.line({"report": str(write_report(RunFolder.open(folder)))}, as_json)


@main.command(epilog=example("hansa runs --runs experiments"))
@runs_option
@click.option("--home", type=click.Path(path_type=Path), help="List the runs of the server of this home's federation instead.")
@address_option
@pki_options
@json_option
def runs(
    runs: Path, home: Path | None, address: str, key: Path | None, certificate: Path | None, believe: Path | None, as_json: bool
) -> None:
    """List the runs in a folder, newest first; or those of a federation's server."""
    from hansa.cli import show

    if not any((home, address, key, certificate, believe)):
        show.runs(runs, as_json)
        return
    with admin_of(home, address, key, certificate, believe) as admin:
        found = [
            {
                "run": r.id,
                "name": r.name,
                "status": r.status,
                "round": str(r.round),
                "clients": ", ".join(r.clients),
                "said": r.message,
            }
            for r in reversed(admin.runs())
        ]
    show.rows(found, as_json)


@main.command(epilog=example("hansa data job.toml --picture clients.svg"))
@job_argument
@click.option("--picture", type=click.Path(path_type=Path), help="Draw rows and labels per client into this SVG file.")
@set_option
@json_option
def data(job: Path, picture: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show a job's clients: rows, labels and features of each."""
    from hansa.cli import show
    from hansa.job import load

    show.data(load(job, overrides), picture, as_json)


@main.command(epilog=example("hansa new > job.toml"))
@json_option
def new(as_json: bool) -> None:
    """Print a commented starter job."""
    from hansa.cli import show
    from hansa.cli.starter import starter_text

    show.text("job", starter_text(), as_json)


@main.command(epilog=example("hansa schema > job.schema.json"))
@json_option
def schema(as_json: bool) -> None:
    """Print the JSON Schema of a job, for editors and checks."""
    from hansa.cli import show
    from hansa.job import Job
    from hansa.options import json_schema

    show.as_object(json_schema(Job), indent=None if as_json else 2)


for verb in verbs:
    main.add_command(verb)

if __name__ == "__main__":
    sys.exit(main())
