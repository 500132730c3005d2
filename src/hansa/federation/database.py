"""The database of a server: opened, brought to the present layout, and written in transactions that are durable once they have ended."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import ArgumentError, OperationalError

from hansa.core.errors import InputError


def reason(error: Exception) -> str:
    """Why a database cannot be used, in one line of its own words, without the text of the statement."""
    return (str(getattr(error, "orig", error)).strip() or type(error).__name__).splitlines()[0]


class Database:
    """See the module. Safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # SQLite has one writer at a time; waiting here costs less than its busy polling.
        self._writing = threading.Lock() if engine.dialect.name == "sqlite" else None

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a database by its SQLAlchemy URL, made or brought to the present layout where needed.

        Raises InputError where there is none that can be used.
        """
        try:
            engine = create_engine(url, **_options(url))
            if engine.dialect.name == "sqlite":
                event.listen(engine, "connect", _prepare_sqlite)
                _make_private(engine)
            _migrate(engine)
        except (OperationalError, ArgumentError, ImportError) as error:
            if not isinstance(error, OperationalError):
                hint = "give an SQLAlchemy URL, such as postgresql+psycopg://user@host/hansa"
            elif isinstance(error.orig, sqlite3.OperationalError):
                hint = "its disk may be full or read-only: make room there"
            else:
                hint = "see that it runs, and that host, user, password and name are right"
            raise InputError(f"database {_without_password(url)}: cannot be used ({reason(error)}); {hint}") from None
        return cls(engine)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if self._writing is None:
            with self._engine.begin() as connection:
                yield connection
            return
        with self._writing, self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            yield connection

    def ready(self) -> None:
        """Raises where the database does not answer, or is a file that cannot be written."""
        if self._writing is None:
            with self._read() as connection:
                connection.execute(text("SELECT 1"))
            return
        with self._write() as connection:
            connection.exec_driver_sql("PRAGMA user_version = 0")  # which nobody reads; it is written as everything else is


def _options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60, "check_same_thread": False}}
    return {"pool_pre_ping": True, "pool_size": 8, "max_overflow": 8}


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by hand: BEGIN IMMEDIATE
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _make_private(engine: Engine) -> None:
    path = engine.url.database
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        Path(path).touch(mode=0o600)  # before SQLite does, whose files beside it take its mode


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_lock(4815162342)"))  # two servers may start at the same time
            connection.commit()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_unlock(4815162342)"))
            connection.commit()


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "that was given"
