"""The database shared by all processes of a server: SQLite in WAL mode or PostgreSQL, through the same code."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.orm import Session

from tunesmith.errors import InputError
from tunesmith.serving.store.events import Events
from tunesmith.serving.store.faults import is_full, is_unavailable, reason_of
from tunesmith.serving.store.files import Files
from tunesmith.serving.store.jobs import Jobs
from tunesmith.serving.store.keys import Keys
from tunesmith.serving.store.migrate import migrate
from tunesmith.serving.store.models import Checkpoints, Models, Permissions
from tunesmith.serving.store.replays import Replays
from tunesmith.serving.store.uploads import Uploads

BUSY_S = 30.0
"""SQLite's busy timeout: how long a writer waits for another."""


class Store:
    """Opens the database and migrates its tables. Safe to share between threads and processes.

    Each method of `files`, `jobs` and so on runs in one transaction; with `session=` it joins the caller's:

        with store.begin() as session:
            store.jobs.transition(job, ("running",), "paused", session=session)
            store.events.append(job, "paused", "...", session=session)
    """

    def __init__(self, url: str):
        self.url = url
        self.engine = _engine(url)
        try:
            with self.engine.begin() as connection:
                migrate(connection)
        except DatabaseError as error:
            raise _unusable(self.engine, error) from None
        self._readers = self.engine.execution_options(tunesmith_reads=True)
        self.files = Files(self)
        self.uploads = Uploads(self)
        self.jobs = Jobs(self)
        self.events = Events(self)
        self.checkpoints = Checkpoints(self)
        self.permissions = Permissions(self)
        self.models = Models(self)
        self.replays = Replays(self)
        self.keys = Keys(self)

    @contextlib.contextmanager
    def begin(self, session: Session | None = None) -> Iterator[Session]:
        """A write transaction, rolled back on an exception. With a session, joins its transaction."""
        if session is not None:
            yield session
            session.flush()
            return
        with Session(self.engine, expire_on_commit=False) as own, own.begin():
            yield own

    @contextlib.contextmanager
    def read(self, session: Session | None = None) -> Iterator[Session]:
        """A read-only transaction; does not wait for writers."""
        if session is not None:
            yield session
            return
        with Session(self._readers, expire_on_commit=False) as own, own.begin():
            yield own

    def close(self) -> None:
        self.engine.dispose()


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError(
            "database_url is not a SQLAlchemy URL", remedy="example: postgresql+psycopg://host/name"
        ) from None
    try:
        if parsed.get_backend_name() != "sqlite":
            return create_engine(parsed, pool_pre_ping=True, pool_size=8, max_overflow=24)
    except (NoSuchModuleError, ImportError) as error:
        shown = parsed.render_as_string(hide_password=True)
        raise InputError(
            f"the database cannot be opened: {error}", where=shown, remedy="pip install 'tunesmith[postgresql]'"
        ) from None
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            os.close(os.open(parsed.database, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise InputError(
                f"the database cannot be opened: {error.strerror}",
                where=parsed.database,
                remedy="run the server as its owner, or choose another --home",
            ) from None
    # No limit: writers waiting for each other would otherwise hold every connection and block key lookups.
    arguments = {"timeout": BUSY_S, "check_same_thread": False}
    engine = create_engine(parsed, connect_args=arguments, pool_size=8, max_overflow=-1)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    """Set up a new connection. The driver's implicit transactions lock only after reading: they are disabled, and
    `_begin_sqlite` begins transactions explicitly."""
    connection.isolation_level = None
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:  # concurrent opening of a new database: the busy timeout does not apply here
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous=FULL")  # a job whose id was returned survives a power failure
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get("tunesmith_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _unusable(engine: Engine, error: DatabaseError) -> InputError:
    reason, where = reason_of(error), engine.url.render_as_string(hide_password=True)
    if engine.dialect.name != "sqlite":
        remedy = "check database_url, and that the database server is running"
        return InputError(f"cannot connect to the database: {reason}", where=where, remedy=remedy)
    if is_full(error):
        remedy = "free space on this disk"
    elif is_unavailable(error):
        remedy = "check the file's mode, and stop the program that has locked it"
    else:
        remedy = "restore it from a backup, or move it and its -wal file away: the server then starts with an empty one"
    return InputError(f"the database cannot be used: {reason}", where=where, remedy=remedy)
