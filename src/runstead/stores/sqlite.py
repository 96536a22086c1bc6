"""SQLite: one file, one writer, several readers.

All writes go through one thread, which puts what is queued into one transaction: the cost of making it durable is
shared by all who wait, and nobody is answered before it. Work that fails is undone alone. Readers have their own
threads and connections and never wait for the writer (WAL); what looks up a few rows takes one connection more, in the
thread of the event loop. Several processes may use one file.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from runstead.model.errors import BackendFailure, Conflict, NotFound, RunsteadError, Unavailable
from runstead.stores import schema
from runstead.stores.database import Database, Statements, Transaction, Work
from runstead.stores.workers import CLOSED, Task, Workers

T = TypeVar("T")

_OLDEST = (3, 35, 0)  # the first with RETURNING
_WAIT_SECONDS = 10.0  # for another process that writes
_READERS = 3
_BATCH = 256  # bounds how long the first of a batch waits for the last
_STATEMENTS = 512  # kept prepared per connection
_CACHE_KIBIBYTES = 32_768
# Tasks after which the write-ahead log is copied into the database; SQLite would do it before answering.
_CHECKPOINT_TASKS = 500
_CHECKPOINT_PAGES = 32_768  # SQLite does it all the same when the log is this long


class SqliteDatabase(Database):
    """A database in one file."""

    def __init__(self, path: Path) -> None:
        """Open the file, creating it or bringing it up to date. Blocks; `open` does not."""
        if sqlite3.sqlite_version_info < _OLDEST:
            raise BackendFailure(f"SQLite {'.'.join(map(str, _OLDEST))} or later is needed: {sqlite3.sqlite_version}")
        statements = Statements(dialect())
        try:
            _prepare(path)
            self._writer = Workers("runstead-db-writer", lambda: _Writer(connect(path), statements), 1, _BATCH)
            self._readers = Workers("runstead-db-reader", lambda: _Reader(connect(path), statements), _READERS, 1)
            self._looking = _Looking(connect(path), statements)
        except sqlite3.Error as error:
            raise translated(error, str(path)) from error

    @classmethod
    async def open(cls, path: Path) -> "SqliteDatabase":
        """Open the file without holding up the event loop."""
        return await asyncio.to_thread(cls, path)

    async def write(self, work: Work[T]) -> T:
        """Run `work` in the writer's next transaction."""
        return await self._writer.submit(work, writes=True)

    async def read(self, work: Work[T], *, consistent: bool = False) -> T:
        """Run `work` in one of the readers."""
        return await self._readers.submit(work, writes=False, consistent=consistent)

    async def look(self, work: Work[T]) -> T:
        """Run `work` at once, or in one of the readers where it would have to wait."""
        try:
            return self._looking.perform(work)
        except sqlite3.Error as error:
            if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                return await self.read(work)
            raise translated(error) from error

    async def close(self) -> None:
        """Finish what was begun and close the file."""
        self._looking.close()
        await asyncio.to_thread(self._readers.close)
        await asyncio.to_thread(self._writer.close)


class _Writer:
    """Performs each batch of tasks in one transaction."""

    def __init__(self, connection: sqlite3.Connection, statements: Statements) -> None:
        self._connection = connection
        self._transaction = Transaction(connection, statements)
        self._since_checkpoint = 0

    def perform(self, tasks: list[Task]) -> None:
        if not self._settled(self._together, tasks) and not self._settled(self._one_by_one, tasks):
            # One of them made SQLite give up the transaction, with a full disk for example: each for itself.
            for task in tasks:
                self._settled(self._together, [task])
        self._since_checkpoint += len(tasks)

    def rest(self) -> None:
        if self._since_checkpoint >= _CHECKPOINT_TASKS:
            self._since_checkpoint = 0
            # Nobody depends on it: what fails now is tried again later.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        self._connection.close()

    def _settled(self, perform: Callable[[list[Task]], bool], tasks: list[Task]) -> bool:
        """Perform the tasks and say whether each now has its answer; if not, nothing was changed."""
        for task in tasks:
            task.result = task.error = None
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if perform(tasks):
                self._connection.execute("COMMIT")
                return True
            self._roll_back()
            return len(tasks) == 1
        except BaseException as error:
            self._roll_back()
            for task in tasks:
                task.error = translated(error)
            return True

    def _together(self, tasks: list[Task]) -> bool:
        """Run all tasks; False as soon as one fails."""
        for task in tasks:
            try:
                task.result = task.work(self._transaction)
            except BaseException as error:
                task.error = translated(error)
                return False
        return True

    def _one_by_one(self, tasks: list[Task]) -> bool:
        """Run all tasks, undoing alone what fails. Rare, so savepoints are paid for only here."""
        for task in tasks:
            self._connection.execute("SAVEPOINT task")
            try:
                task.result = task.work(self._transaction)
            except BaseException as error:
                task.error = translated(error)
                if not self._connection.in_transaction:
                    return False
                self._connection.execute("ROLLBACK TO task")
            self._connection.execute("RELEASE task")
        return True

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")


class _Reader:
    """Performs tasks that only read."""

    def __init__(self, connection: sqlite3.Connection, statements: Statements) -> None:
        connection.execute("PRAGMA query_only = ON")
        self._connection = connection
        self._transaction = Transaction(connection, statements)

    def perform(self, tasks: list[Task]) -> None:
        for task in tasks:
            try:
                if task.consistent:
                    self._connection.execute("BEGIN")
                task.result = task.work(self._transaction)
            except BaseException as error:
                task.error = translated(error)
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def rest(self) -> None:
        pass

    def close(self) -> None:
        self._connection.close()


class _Looking:
    """Looks up rows for the event loop, and waits for nobody."""

    def __init__(self, connection: sqlite3.Connection, statements: Statements) -> None:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA busy_timeout = 0")
        self._connection = connection
        self._transaction = Transaction(connection, statements)
        self._closed = False

    def perform(self, work: Work[T]) -> T:
        if self._closed:
            raise Unavailable(CLOSED)
        return work(self._transaction)

    def close(self) -> None:
        self._closed = True
        self._connection.close()


def dialect() -> SQLiteDialect_pysqlite:
    """Return SQLAlchemy's description of SQLite's SQL."""
    return SQLiteDialect_pysqlite(paramstyle="qmark")


def connect(path: Path) -> sqlite3.Connection:
    """Return a new connection with the settings that make an answered write durable."""
    connection = sqlite3.connect(
        path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=_STATEMENTS
    )
    for setting in (
        "foreign_keys = ON",
        "synchronous = FULL",
        "fullfsync = ON",  # macOS: fsync alone does not reach the disk there
        f"cache_size = -{_CACHE_KIBIBYTES}",
        "temp_store = MEMORY",
        f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
        "journal_size_limit = 67108864",
    ):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _prepare(path: Path) -> None:
    """Make the file a present database in WAL mode. Two processes may do this at once."""
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        # It holds digests of tokens and sealed secrets: for its owner only. A missing folder is reported below.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with contextlib.closing(connect(path)) as connection:
        _use_wal(connection, path)
        revision = _revision(connection)
        if revision is None:
            connection.execute("BEGIN IMMEDIATE")
            revision = _revision(connection)  # again: another process may have been faster
            if revision is None:
                for statement in schema.creation(dialect()):
                    connection.execute(statement)
                revision = schema.HEAD
            connection.execute("COMMIT")
    if schema.needs_upgrade(revision, str(path)):
        schema.upgrade(lambda: _connect_to_migrate(path), "sqlite", "BEGIN IMMEDIATE")


def _connect_to_migrate(path: Path) -> sqlite3.Connection:
    """Return a connection that follows no foreign keys: to copy a table and drop the old one deletes nothing else."""
    connection = connect(path)
    connection.execute("PRAGMA foreign_keys = OFF")
    return connection


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    """Switch to WAL. SQLite does not wait for others while it does, so this tries again."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise BackendFailure(f"this file system cannot hold a SQLite database in WAL mode; use a local disk: {path}")


def _revision(connection: sqlite3.Connection) -> str | None:
    """Return the schema's revision, or None for an empty database."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    if connection.execute(query, (schema.VERSION_TABLE,)).fetchone() is None:
        return None
    row = connection.execute(f"SELECT version_num FROM {schema.VERSION_TABLE}").fetchone()  # noqa: S608
    return None if row is None else row[0]


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code."""
    code: Any = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else -1


def translated(error: BaseException, path: str | None = None) -> BaseException:
    """Return SQLite's error as one of ours, caused by it; any other error as it is."""
    if not isinstance(error, sqlite3.Error):
        return error
    ours = _ours(error)
    if path is not None:
        ours = type(ours)(f"{ours.message}: {path}")
    ours.__cause__ = error
    return ours


def _ours(error: sqlite3.Error) -> RunsteadError:
    match _code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"the database is in use by another process; try again: {error}")
        case sqlite3.SQLITE_FULL:
            return Unavailable(f"the disk of the database is full; free some space and try again: {error}", 30)
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY:
            return Unavailable(f"the file of the database cannot be used: {error}", 30)
        case sqlite3.SQLITE_CONSTRAINT:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
                return NotFound(f"this belongs to something that does not exist: {error}")
            return Conflict(f"this exists already: {error}")
        case _:
            return BackendFailure(f"the database failed: {error}")
