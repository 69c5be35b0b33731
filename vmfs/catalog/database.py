"""An open database with our schema in it, whatever state it was found in.

SQLite keeps its rollback journal (no WAL): reads and writes here take milliseconds and a busy timeout spans
them, and it leaves one file that works on every file system, network ones included.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from vmfs.catalog.models import RepositoryModel
from vmfs.catalog.schema import is_current, make_schema
from vmfs.errors import UsageError

log = logging.getLogger(__name__)

BUSY_SECONDS = 10.0
CONNECT_SECONDS = 10
_WRITING = "vmfs_writing"
_SCHEMA_LOCK = 0x766D6673
"""The advisory lock under which tables and repositories are entered in PostgreSQL: "vmfs" in ASCII."""
_REMAKE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
FAILURES = (SQLAlchemyError, TypeError, ValueError, LookupError, OverflowError)
"""What a database may raise, and what making sense of damaged rows may."""


def sqlite_url(path: Path) -> URL:
    """The URL of a catalog file; right for any path, where pasting one into a string is not."""
    return URL.create("sqlite", database=os.fspath(path))


def parse_url(url: str | URL) -> URL:
    """Raises UsageError for what is no URL of a database that we know."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The text is not shown: it may hold a password.
        raise UsageError("the catalog's URL makes no sense; use sqlite:///PATH or postgresql://…") from None
    backend = parsed.get_backend_name()
    if backend in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        return parsed.set(drivername="sqlite")
    raise UsageError(f"catalog in {backend} is not supported; use sqlite:///PATH or postgresql://…")


class Database:
    """A connected engine whose tables are of this schema, and the key of one repository in it."""

    def __init__(self, engine: Engine, repository_id: bytes) -> None:
        """Makes what is missing. Raises sqlalchemy's DBAPIError."""
        self.engine = engine
        # The reads of one answer must see one state; writers must see what was committed while they
        # waited for the lock. SQLite gives both by itself.
        self._reader = (
            engine.execution_options(isolation_level="REPEATABLE READ")
            if engine.dialect.name == "postgresql"
            else engine
        )
        self._writer = engine.execution_options(**{_WRITING: True})
        self.repository = self._prepare(repository_id)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is alone in writing this repository's rows."""
        with self._writer.begin() as connection:
            connection.execute(
                select(RepositoryModel.key).where(RepositoryModel.key == self.repository).with_for_update()
            )
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    def _prepare(self, repository_id: bytes) -> int:
        with self.reading() as connection:
            key = _find(connection, repository_id)
        if key is not None:
            return key
        with self._writer.begin() as connection:
            # One process at a time from here on; SQLite sees to it by itself.
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
            if not is_current(connection):
                make_schema(connection)
            key = _find(connection, repository_id)
            if key is None:
                connection.execute(insert(RepositoryModel).values(id=repository_id))
                key = _find(connection, repository_id)
        assert key is not None  # noqa: S101 - inserted just above
        return key


def _find(connection: Connection, repository_id: bytes) -> int | None:
    if not is_current(connection):
        return None
    return connection.scalar(select(RepositoryModel.key).where(RepositoryModel.id == repository_id))


def open_database(url: URL, repository_id: bytes, busy_seconds: float = BUSY_SECONDS) -> Database:
    """The database at `url`; failing that an empty one in memory, since a catalog that cannot be kept must
    not keep anybody from a backup. Raises UsageError when a PostgreSQL driver is missing."""
    shown = url.render_as_string(hide_password=True)
    try:
        return _connect(url, repository_id, busy_seconds)
    except FAILURES as error:
        if url.get_backend_name() == "postgresql":
            log.warning("catalog %s cannot be used, points are read one by one: %s", shown, one_line(error))
            return in_memory(repository_id)
        if not is_damage(error):
            log.debug("catalog %s cannot be used, it is kept in memory: %s", shown, one_line(error))
            return in_memory(repository_id)
        log.debug("catalog %s is damaged and is made anew: %s", shown, one_line(error))
    return reopen_database(url, repository_id, busy_seconds, damaged=True)


def reopen_database(
    url: URL, repository_id: bytes, busy_seconds: float = BUSY_SECONDS, *, damaged: bool
) -> Database:
    """An empty database after the one at `url` failed: a new file where the old one is damaged and can be
    replaced, else one in memory."""
    if damaged and url.database:
        try:
            _set_aside(Path(url.database))
            return _connect(url, repository_id, busy_seconds)
        except (*FAILURES, OSError) as error:
            log.debug("catalog cannot be made anew, it is kept in memory: %s", one_line(error))
    return in_memory(repository_id)


def in_memory(repository_id: bytes) -> Database:
    """An empty catalog that lasts as long as the process."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    return Database(_with_sqlite_rules(engine), repository_id)


def is_damage(error: Exception) -> bool:
    """Whether it means that an SQLite file is damaged, or is no database: SQLite says so, or a row has a
    value that we never put there."""
    if not isinstance(error, DBAPIError):
        return True
    if not isinstance(error.orig, sqlite3.Error):
        return False
    code = getattr(error.orig, "sqlite_errorcode", None)
    # Text that is no UTF-8 is noticed by Python, which gives no code.
    return isinstance(error.orig, sqlite3.OperationalError) if code is None else code & 0xFF in _REMAKE


def one_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())


def _connect(url: URL, repository_id: bytes, busy_seconds: float) -> Database:
    if url.get_backend_name() == "postgresql":
        try:
            engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_SECONDS})
        except (ImportError, NoSuchModuleError):
            raise UsageError("PostgreSQL needs psycopg; run: pip install 'vmfs[postgresql]'") from None
    else:
        if url.database and url.database != ":memory:":
            _make_private(Path(url.database))
        engine = _with_sqlite_rules(create_engine(url, connect_args={"timeout": busy_seconds}))
    try:
        return Database(engine, repository_id)
    except BaseException:
        engine.dispose()
        raise


def _with_sqlite_rules(engine: Engine) -> Engine:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        # Python's own transaction control would begin one only before an INSERT, and never around DDL.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A writer takes its lock at once: two readers that both want to become writers could only fail.
        writing = connection.get_execution_options().get(_WRITING, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _make_private(path: Path) -> None:
    """VM names are in it, so others may not read it, whatever the umask."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        log.debug("catalog file cannot be made: %s", error)


def _set_aside(path: Path) -> None:
    """Renamed, not deleted: a mistyped URL may have named a file that is not ours."""
    for suffix in ("-journal", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.replace(f"{path}.damaged")
