"""PostgreSQL: one database for several servers.

Each of a few threads owns one connection, made when it is first needed and again when it was lost. Writes are real
transactions that run beside each other; one that meets a conflict is rolled back and run again. Nothing is
answered before its commit is on disk.
"""

import asyncio
import random
import time
from typing import Any, TypeVar, cast

import psycopg
from psycopg import errors
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from runstead.model.errors import BackendFailure, Conflict, Invalid, NotFound, RunsteadError, Unavailable
from runstead.stores import schema
from runstead.stores.database import Connection, Database, Statements, Transaction, Work
from runstead.stores.workers import Task, Workers

T = TypeVar("T")

_TRIES = 8
_FIRST_REST_SECONDS = 0.002
_CONNECT_SECONDS = 10
_LOCK_KEY = 7_093_211_478_113  # any number, the same for all servers: who holds it may change the schema

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_LOCK = f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"
_SETTINGS = (
    "SET synchronous_commit = on",  # even where the cluster says otherwise: an answer promises durability
    "SET jit = off",  # our statements are short; compiling one takes longer than running it
    "SET lock_timeout = '10s'",
    "SET statement_timeout = '60s'",
    "SET idle_in_transaction_session_timeout = '60s'",
    # Where it is built in (14 and later): long texts cost a fifth of the time that the default takes.
    "SELECT set_config(name, 'lz4', false) FROM pg_settings "
    "WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)",
)

_ENCODING = "SELECT current_setting('server_encoding')"
_HAS_VERSION = f"SELECT to_regclass('{schema.VERSION_TABLE}') IS NOT NULL"
_VERSION = f"SELECT version_num FROM {schema.VERSION_TABLE}"  # noqa: S608

_Postgres = psycopg.Connection[tuple[Any, ...]]


class PostgresDatabase(Database):
    """A database on a PostgreSQL server."""

    def __init__(self, url: str, connections: int) -> None:
        """Connect, creating the tables or bringing them up to date. Blocks; `open` does not."""
        statements = Statements(dialect())
        try:
            _prepare(url)
        except psycopg.Error as error:
            raise translated(error) from error
        self._workers = Workers("runstead-db", lambda: _Session(url, statements), connections, 1)

    @classmethod
    async def open(cls, url: str, connections: int) -> "PostgresDatabase":
        """Connect without holding up the event loop."""
        return await asyncio.to_thread(cls, url, connections)

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction of its own."""
        return await self._workers.submit(work, writes=True)

    async def read(self, work: Work[T], *, consistent: bool = False) -> T:
        """Run `work`, each statement by itself or all in one snapshot."""
        return await self._workers.submit(work, writes=False, consistent=consistent)

    async def close(self) -> None:
        """Finish what was begun and close the connections."""
        await asyncio.to_thread(self._workers.close)


class _Session:
    """Performs tasks on one connection."""

    def __init__(self, url: str, statements: Statements) -> None:
        self._url = url
        self._statements = statements
        self._connection: _Postgres | None = None
        self._committing = False

    def perform(self, tasks: list[Task]) -> None:
        for task in tasks:
            try:
                task.result = self._with_retries(task)
            except BaseException as error:
                task.error = translated(error)

    def rest(self) -> None:
        pass

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _with_retries(self, task: Task) -> Any:
        reconnected = False
        for rest in _rests():
            connection = self._connected()
            try:
                return self._once(connection, task)
            except BaseException as error:
                lost = connection.broken or connection.closed
                if lost:
                    self._connection = None
                else:
                    self._roll_back(connection)
                if lost and self._committing:
                    raise Unavailable(
                        "the connection to the database was lost while a change was being made durable; look "
                        f"whether it was made before trying again: {error}"
                    ) from error
                if lost and not reconnected:
                    reconnected = True  # it may have been dead for long; a fresh one tells
                elif isinstance(error, errors.SerializationFailure | errors.DeadlockDetected) and rest is not None:
                    time.sleep(rest)
                else:
                    raise
        raise AssertionError("the last try returns or raises")

    def _once(self, connection: _Postgres, task: Task) -> Any:
        self._committing = False
        transaction = Transaction(cast(Connection, connection), self._statements)
        if not task.writes and not task.consistent:
            return task.work(transaction)
        connection.execute(_BEGIN if task.writes else _BEGIN_SNAPSHOT)
        result = task.work(transaction)
        self._committing = task.writes
        status = connection.execute("COMMIT").statusmessage
        self._committing = False
        if status != "COMMIT":
            raise BackendFailure(f"the database did not commit: {status}")
        return result

    def _connected(self) -> _Postgres:
        if self._connection is None:
            self._connection = connect(self._url)
        return self._connection

    def _roll_back(self, connection: _Postgres) -> None:
        try:
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                connection.execute("ROLLBACK")
        except psycopg.Error:
            self._connection = None
            connection.close()


def _rests() -> list[float | None]:
    """Return how long to rest after each try; None after the last."""
    return [_FIRST_REST_SECONDS * 2**n * random.uniform(0.5, 1.5) for n in range(_TRIES - 1)] + [None]  # noqa: S311


def dialect() -> PGDialect_psycopg:
    """Return SQLAlchemy's description of PostgreSQL's SQL."""
    return PGDialect_psycopg()


def connect(url: str) -> _Postgres:
    """Return a new connection with our settings; each statement is a transaction unless one was begun."""
    connection = psycopg.connect(
        url,
        autocommit=True,
        client_encoding="utf8",
        connect_timeout=_CONNECT_SECONDS,
        application_name="runstead",
        keepalives_idle=30,
        keepalives_interval=10,
        keepalives_count=3,
    )
    for setting in _SETTINGS:
        connection.execute(setting.encode())
    return connection


def _prepare(url: str) -> None:
    """Make the database a present one. Two servers may do this at once."""
    with connect(url) as connection:
        name = connection.info.dbname
        encoding = _value(connection, _ENCODING)
        if encoding != "UTF8":
            raise Invalid(f"the database must have the encoding UTF8, not {encoding}: {name}", "database")
        revision = _revision(connection)
        if revision is None:
            with connection.transaction():
                connection.execute(_LOCK.encode())
                revision = _revision(connection)  # again: another server may have been faster
                if revision is None:
                    for statement in schema.creation(dialect()):
                        connection.execute(statement.encode())
                    revision = schema.HEAD
    if schema.needs_upgrade(revision, name):
        schema.upgrade(lambda: psycopg.connect(url), "postgresql+psycopg", _LOCK)


def _revision(connection: _Postgres) -> str | None:
    """Return the schema's revision, or None for an empty database."""
    return _value(connection, _VERSION) if _value(connection, _HAS_VERSION) else None


def _value(connection: _Postgres, query: str) -> Any:
    row: tuple[Any, ...] | None = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def translated(error: BaseException) -> BaseException:
    """Return an error of the driver as one of ours, caused by it; any other error as it is."""
    if isinstance(error, UnicodeEncodeError):
        ours: RunsteadError = Invalid(f"text is not valid Unicode: {error.object!r}")
    elif isinstance(error, psycopg.Error):
        ours = _ours(error)
    else:
        return error
    ours.__cause__ = error
    return ours


def _ours(error: psycopg.Error) -> RunsteadError:
    match error:
        case errors.UniqueViolation():
            return Conflict(f"this exists already: {error}")
        case errors.ForeignKeyViolation():
            return NotFound(f"this belongs to something that does not exist: {error}")
        case errors.DiskFull():
            return Unavailable(f"the disk of the database is full; free some space and try again: {error}", 30)
        case psycopg.OperationalError() | errors.ReadOnlySqlTransaction():
            # Lost or refused connections, a restart, too many clients, lock and statement timeouts, conflicts.
            return Unavailable(f"the database cannot be used right now: {error}")
        case psycopg.DataError() if "NUL" in str(error):
            return Invalid("text has a NUL character")
        case _:
            return BackendFailure(f"the database failed: {error}")
