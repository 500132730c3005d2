"""A PostgreSQL of this machine for tests, which ends with them."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest


def binaries() -> Path | None:
    """The folder with PostgreSQL's programs: a system's, or that of the package pgserver."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if given := shutil.which("initdb"):
        found.append(os.path.realpath(given))
    if (spec := find_spec("pgserver")) is not None and spec.origin is not None:
        found.append(str(Path(spec.origin).parent / "pginstall" / "bin" / "initdb"))
    return next((Path(path).parent for path in found if Path(path).with_name("postgres").exists()), None)


@contextmanager
def running_postgres() -> Iterator[Callable[[], str]]:
    """Gives a function that makes a new database and returns its URL. Skips where there is none."""
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    programs = binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL on this machine")
    folder = Path(tempfile.mkdtemp(prefix="hansa-postgres-"))  # a socket's path must be short
    owner: dict[str, Any] = {}
    if os.getuid() == 0:  # as whom it refuses to run
        user = next((name for name in ("postgres", "nobody") if _is_user(name)), None)
        if user is None:
            pytest.skip("PostgreSQL refuses to run as root, and there is no other user")
        owner = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "hansa", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
        check=True, capture_output=True, cwd=folder, **owner,
    )  # fmt: skip
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"],
        stdout=log, stderr=log, cwd=folder, **owner,
    )  # fmt: skip
    try:
        yield _databases(folder, server)
    finally:
        server.terminate()  # waits for nobody's connection
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.send_signal(3)  # SIGQUIT: at once, with all of its processes
            server.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _is_user(name: str) -> bool:
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


def _databases(folder: Path, server: subprocess.Popen[bytes]) -> Callable[[], str]:
    import psycopg

    numbers = count()

    def connected() -> psycopg.Connection:
        deadline = time.monotonic() + 60
        while True:
            try:
                return psycopg.connect(host=str(folder), user="hansa", dbname="postgres", autocommit=True)
            except psycopg.OperationalError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)

    def new() -> str:
        name = f"hansa{next(numbers)}"
        with connected() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://hansa@/{name}?host={folder}"

    return new
