"""The verbs of federations: what a server, a client and an administrator type."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hansa.cli.printable import printable_lines
from hansa.core.errors import InputError, RunFailed

home_option = click.option("--home", required=True, type=click.Path(path_type=Path), help="Folder with its keys and all it keeps.")
address_option = click.option("--address", default="", metavar="HOST:PORT", help="Of the server.  [default: as the home knows it]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines.")
logs_option = click.option("--json", "as_json", is_flag=True, help="Log JSON objects on a terminal too.")
job_argument = click.argument("job", metavar="JOB.toml", type=click.Path(path_type=Path))


def pki_options(command: Any) -> Any:
    """The files of an own PKI."""
    for name, what in (("believe", "its authority's certificates"), ("certificate", "the certificate"), ("key", "the private key")):
        kind = click.Path(path_type=Path)
        command = click.option(f"--{name}", type=kind, help=f"Of an own PKI: {what}, PEM. Give all three, or none.")(command)
    return command


def admin_options(command: Any) -> Any:
    """Who administers a server, and where that is."""
    what = "Folder with its keys and all it keeps.  [required without an own PKI]"
    return click.option("--home", type=click.Path(path_type=Path), help=what)(address_option(pki_options(command)))


def serving_options(command: Any) -> Any:
    """What is said of a place that clients call: of a server, and of a relay."""
    said = {
        "--listen": ("HOST:PORT", "Where to serve; port 0 is any free one."),
        "--database": ("URL", "SQLAlchemy URL; the variable HANSA_DATABASE does as well.  [default: SQLite in the home]"),
        "--blobs": ("URL", "Folder or fsspec URL of models and updates.  [default: in the home]"),
        "--authority": ("DIR", "Folder of the authority.  [default: in the home]"),
        "--metrics": ("HOST:PORT", "Serve Prometheus metrics, /healthz and /readyz there."),
    }
    command = pki_options(command)
    for name, (metavar, text) in reversed(said.items()):
        default = "127.0.0.1:9443" if name == "--listen" else ""
        variable = "HANSA_DATABASE" if name == "--database" else None  # a command line is read by everyone on the machine
        command = click.option(name, default=default, show_default=bool(default), metavar=metavar, envvar=variable, help=text)(
            command
        )
    hosts = "A name or address by which clients reach it; repeatable."
    return click.option("--host", "hosts", multiple=True, metavar="NAME", help=hosts)(command)


def _pki(key: Path | None, certificate: Path | None, believe: Path | None) -> Any:
    if key is None and certificate is None and believe is None:
        return None
    if key is None or certificate is None or believe is None:
        raise InputError("--key, --certificate, --believe: an own PKI needs all three (or give none, and join with a token)")
    from hansa.federation.credentials import Credentials

    return Credentials.read(key, certificate, believe)


def admin_of(home: Path | None, address: str, key: Path | None, certificate: Path | None, believe: Path | None) -> Any:
    """The administrator or viewer that :func:`admin_options` name."""
    from hansa.federated.admin import Admin

    return Admin(home or "", address, _pki(key, certificate, believe))


def _say_where(address: str, home: Path, joined: bool) -> None:
    """joined: members join with tokens, and not by an own PKI."""
    click.echo(f"serving on {address}", err=True)
    if joined:
        click.echo(f"invite a client with: hansa token --name NAME --home {home}", err=True)


def _epilog(text: str) -> str:
    return f"Example: {text}"


@click.command(epilog=_epilog("hansa server job.toml --home server/ --listen 0.0.0.0:9443 --host train.example.org"))
@click.argument("job", metavar="[JOB.toml]", required=False, type=click.Path(path_type=Path))
@home_option
@serving_options
@click.option("--keep", is_flag=True, help="Go on serving when the job is done, for what administrators submit.")
@click.option("--again", is_flag=True, help="Play the job once more where its run is over.")
@click.option("--insecure", is_flag=True, help="No TLS, on a loopback address only.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@json_option
def server(
    job: Path | None, home: Path, listen: str, hosts: tuple[str, ...], database: str, blobs: str, authority: str, keep: bool, again: bool,
    insecure: bool, metrics: str, quiet: bool, key: Path | None, certificate: Path | None, believe: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Play a job with organisations that join; without a job, play what administrators submit.

    The first start makes a certificate authority, a database and a blob store in the home. A start after a crash goes on where the
    last one was, to the same bits; after the end of the run it shows that end, and plays nothing unless told with --again.
    """
    from hansa.cli import show
    from hansa.cli.logs import to_stderr
    from hansa.federated.server import Server

    to_stderr("warning" if quiet else "info")
    place = Server(
        job, home=home, listen=listen, hosts=hosts, database=database, blobs=blobs, authority=authority, insecure=insecure,
        quiet=quiet or as_json, metrics=metrics, pki=_pki(key, certificate, believe),
    )  # fmt: skip
    with place, _ended_by_signals(place.stop_playing):
        _say_where(place.address, home, certificate is None)
        if job is not None:
            try:
                show.run(place.train(again), as_json)
            except RunFailed as error:
                if not keep:
                    raise
                # It is over; what administrators submit is played all the same.
                click.echo(f"error: {printable_lines(str(error))}", err=True)
        if job is None or keep:
            place.serve_forever()


@click.command(epilog=_epilog("hansa token --name hospital-a --home server/"))
@click.option("--name", required=True, help="Of the member; clients' names are the ids of their rows' holders.")
@click.option("--role", default="client", show_default=True, type=click.Choice(["client", "relay", "admin", "viewer", "server"]))
@click.option("--hours", default=24.0, show_default=True, help="How long it is good for.")
@admin_options
@json_option
def token(name: str, role: Any, hours: float, as_json: bool, **who: Any) -> None:
    """Make a join token, which lets one member in, once."""
    from hansa.cli import show

    with admin_of(**who) as admin:
        text = admin.token(name, role, hours)
        where = admin.address
    if as_json:
        show.as_object({"token": text, "address": where})
        return
    click.echo(text)
    click.echo(f"\nthere, within {hours:g} hours: hansa join {where} TOKEN --home DIR", err=True)


@click.command(epilog=_epilog("hansa join train.example.org:9443 hansa-AbC... --home client/"))
@click.argument("address", metavar="ADDRESS")
@click.argument("token", metavar="TOKEN")
@home_option
@json_option
def join(address: str, token: str, home: Path, as_json: bool) -> None:
    """Become a member of a federation: make a key here, and have a certificate issued for it.

    TOKEN may be - to read it from standard input, where a command line is read by others.
    """
    from hansa.cli import show
    from hansa.federated.client import Client

    if token == "-":
        token = sys.stdin.readline().strip()
    who = Client.join(address, token, home, lambda why: click.echo(why, err=True))
    until = f"{who.expires:%Y-%m-%d}"
    show.line({"joined as": who.name, "role": who.role, "until": until}, as_json)


@click.command(epilog=_epilog("hansa check job.toml --data mine.toml --policy policy.toml"))
@job_argument
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="TOML file with a table [data], as for `hansa client`."
)
@click.option("--policy", type=click.Path(path_type=Path), help="What jobs may ask.  [default: policy.toml in the home]")
@click.option("--home", type=click.Path(path_type=Path), help="Of the client, where it has joined.")
@click.option("--name", default="", help="Of the client, where it has not, and the data hold the rows of several.")
@json_option
def check(job: Path, data: Path, policy: Path | None, home: Path | None, name: str, as_json: bool) -> None:
    """Tell what a job would ask of a client's rows, and what its policy says to that; asks nobody.

    Ends with 3 where the policy refuses.
    """
    from hansa.cli import checking
    from hansa.federated.client import Mine
    from hansa.federated.consent import read_policy
    from hansa.federated.foreseen import foresee
    from hansa.federation.credentials import Credentials

    name = name or ("client" if home is None else Credentials.load(home).identity.name)
    rules, source = read_policy(policy, home or Path())
    told = foresee(job, Mine.of(data), rules, name)
    checking.outlook(told, rules, source, as_json)
    if told.refused:
        raise RunFailed(f"the policy {source} refuses this job")


@click.command(epilog=_epilog("hansa client --home client/ --data mine.toml"))
@home_option
@click.option("--data", required=True, type=click.Path(path_type=Path), help="TOML file with a table [data], as in a job.")
@click.option("--policy", type=click.Path(path_type=Path), help="What jobs may ask.  [default: policy.toml in the home]")
@click.option("--until-idle", is_flag=True, help="End when the server has no run left.")
@click.option("--name", default="", help="For a server with --insecure only: who this is.")
@click.option("--metrics", default="", metavar="HOST:PORT", help="Serve Prometheus metrics, /healthz and /readyz there.")
@pki_options
@address_option
@logs_option
@click.option("--quiet", is_flag=True, help="Log warnings only.")
def client(
    home: Path, data: Path, policy: Path | None, until_idle: bool, name: str, metrics: str, key: Path | None, certificate: Path | None,
    believe: Path | None, address: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Take part with rows that stay here: do what the server asks, as far as the policy allows, until stopped."""
    from hansa.cli.logs import to_stderr
    from hansa.federated.client import Client

    to_stderr("warning" if quiet else "info", as_json)
    pki = _pki(key, certificate, believe)
    mine = Client(address, data=data, home=home, policy=policy, name=name, metrics=metrics, pki=pki)

    def end() -> None:
        mine.stop.set()
        mine.hang_up()

    with _ended_by_signals(end):
        mine.run(forever=not until_idle)


@click.command(epilog=_epilog("hansa relay --home north/ --listen 0.0.0.0:9443 --host north.example.org"))
@home_option
@serving_options
@address_option
@logs_option
@click.option("--quiet", is_flag=True, help="Log warnings only.")
def relay(
    home: Path, listen: str, hosts: tuple[str, ...], database: str, blobs: str, authority: str, metrics: str, key: Path | None,
    certificate: Path | None, believe: Path | None, address: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Stand between a server and the clients of a region: add what they answer, to the same bits, and pass it on.

    The home has joined the server with a token of the role relay; clients join the relay as they would a server. Its database is its
    own, never its server's.
    """
    from hansa.cli.logs import to_stderr
    from hansa.federated.relay import Relay

    to_stderr("warning" if quiet else "info", as_json)
    pki = _pki(key, certificate, believe)
    place = Relay(
        address,
        home=home,
        listen=listen,
        hosts=hosts,
        database=database,
        blobs=blobs,
        authority=authority,
        metrics=metrics,
        pki=pki,
    )

    def end() -> None:
        place.stop.set()
        place.hang_up()

    with place, _ended_by_signals(end):
        _say_where(place.address, home, pki is None)
        place.run()


@click.command(epilog=_epilog("hansa submit job.toml --home admin/"))
@job_argument
@admin_options
@json_option
def submit(job: Path, as_json: bool, **who: Any) -> None:
    """Have a server play a job."""
    from hansa.cli import show

    with admin_of(**who) as admin:
        show.line({"run": admin.submit(job)}, as_json)


@click.command(epilog=_epilog("hansa watch 2026-01-02-030405-1a2b3c4d --home admin/"))
@click.argument("run", metavar="RUN", required=False, default="")
@admin_options
@json_option
def watch(run: str, as_json: bool, **who: Any) -> None:
    """Show what happens in a server's run, to its end; without RUN the newest one."""
    import json

    from hansa.cli import watching

    with admin_of(**who) as admin:
        run = run or _newest(admin)
        events = admin.watch(run, _say_once())
        if as_json:
            for event in events:
                click.echo(json.dumps({"time": event.time, "kind": event.kind, **event.content}))
        elif sys.stdout.isatty():
            watching.live(run, events, admin.members)
        else:
            for event in events:
                click.echo(watching.line(event))


def _say_once() -> Callable[[str], None]:
    """Says on standard error what is not what was said before."""
    last = ""

    def say(what: str) -> None:
        nonlocal last
        if what != last:
            click.echo(f"{what}; trying again", err=True)
        last = what

    return say


def _newest(admin: Any) -> str:
    found = admin.runs()
    if not found:
        raise InputError("the server has no run yet (write: hansa submit JOB.toml --home DIR)")
    return str(found[-1].id)


@click.command(epilog=_epilog("hansa stop 2026-01-02-030405-1a2b3c4d --home admin/"))
@click.argument("run", metavar="RUN")
@admin_options
@json_option
def stop(run: str, as_json: bool, **who: Any) -> None:
    """End a server's run; its last committed round is kept."""
    from hansa.cli import show

    with admin_of(**who) as admin:
        admin.stop(run)
    show.line({"will stop": run}, as_json)


@click.command(epilog=_epilog("hansa members --home server/"))
@admin_options
@json_option
def members(as_json: bool, **who: Any) -> None:
    """List who has joined, and when each was last heard of."""
    from hansa.cli import show

    with admin_of(**who) as admin:
        found = admin.members()
    rows = [
        {"name": m.name, "role": m.role, "via": m.via, "seen": _ago(m.seen), "until": _day(m.expires), "revoked": _day(m.revoked)}
        for m in found
    ]
    show.rows(rows, as_json)


def _ago(moment: float) -> str:
    return "never" if not moment else f"{max(0, time.time() - moment):.0f} s ago"


def _day(moment: float) -> str:
    return "" if not moment else time.strftime("%Y-%m-%d", time.gmtime(moment))


@click.command(epilog=_epilog("hansa revoke --name hospital-a --home server/"))
@click.option("--name", required=True, help="Of the member.")
@admin_options
@json_option
def revoke(name: str, as_json: bool, **who: Any) -> None:
    """Shut a member out, at once; on open connections too."""
    from hansa.cli import show

    with admin_of(**who) as admin:
        admin.revoke(name)
    show.line({"shut out": name}, as_json)


@click.command("simulate-federation", epilog=_epilog("hansa simulate-federation job.toml"))
@job_argument
@click.option("--home", type=click.Path(path_type=Path), help="Keep everything there.  [default: a folder that is removed]")
@click.option(
    "--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="Folder that holds the run folders."
)
@click.option(
    "--compare", is_flag=True, help="Also run the job here with blocks of one client, and tell whether the bits are the same."
)
@json_option
@click.option("--quiet", is_flag=True, help="Show no progress.")
def simulate_federation(job: Path, home: Path | None, runs: Path, compare: bool, as_json: bool, quiet: bool) -> None:
    """Start a server and a process for every client on this machine, with real certificates, and play a job with them."""
    from hansa.cli import show
    from hansa.federated.simulate import simulate

    done = simulate(job, home=home, runs=runs, compare=compare, quiet=quiet or as_json)
    show.run(done.run, as_json)
    if compare:
        click.echo(f"same bits as the simulation: {'yes' if done.same else 'NO'}", err=as_json)
        if not done.same:
            raise RunFailed("the federation's params are not those of the simulation")


verbs = (server, token, join, check, client, relay, submit, watch, stop, members, revoke, simulate_federation)


class _ended_by_signals:
    """SIGTERM and SIGINT call ``end`` once; a second one ends the process."""

    def __init__(self, end: Any) -> None:
        self._end = end
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        self._end()
        if number == signal.SIGINT:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(server())
