"""What a store needs of a database: run a function in a transaction, away from the event loop.

Statements are SQLAlchemy Core expressions, compiled once per database and then given to the driver as text: the
layer that Core puts around a driver costs four times what the driver itself does, and the server shares one
process with its database work. What a statement binds must therefore be in the driver's own types (text, int,
bytes, bool, None); `rows` converts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol, TypeVar

from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement

from runstead.model.errors import Invalid

T = TypeVar("T")
Row = tuple[Any, ...]
Parameters = Mapping[str, Any]
_NONE: Parameters = {}


class Cursor(Protocol):
    """What is used of a driver's cursor."""

    @property
    def rowcount(self) -> int:
        """How many rows the statement touched."""
        ...

    def fetchall(self) -> list[Row]:
        """Return the remaining rows."""
        ...

    def executemany(self, sql: str, parameters: Sequence[Any], /) -> Any:
        """Run a statement once per element."""
        ...


class Connection(Protocol):
    """What is used of a driver's connection."""

    def execute(self, sql: str, parameters: Any = ..., /) -> Cursor:
        """Run one statement."""
        ...

    def cursor(self) -> Cursor:
        """Return a new cursor."""
        ...


@dataclass(frozen=True, slots=True)
class Compiled:
    """A statement as its driver takes it."""

    sql: str
    bind: Callable[[Parameters], Any]


class Statements:
    """The statements compiled so far for one database. Used by all its threads: a race compiles one twice."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._compiled: dict[ClauseElement, Compiled] = {}
        self.takes_lists = dialect.name == "postgresql"

    def __getitem__(self, statement: ClauseElement) -> Compiled:
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = self._compile(statement)
        return compiled

    def _compile(self, statement: ClauseElement) -> Compiled:
        compiler = statement.compile(dialect=self._dialect)
        if not isinstance(compiler, SQLCompiler):
            raise TypeError(f"not a statement that can be run: {statement}")
        fixed = {
            compiler.bind_names[bound]: bound.effective_value
            for bound in compiler.binds.values()
            if not bound.required and bound in compiler.bind_names
        }
        return Compiled(str(compiler), _binder(compiler.positiontup, fixed))


def _binder(positions: Sequence[str] | None, fixed: Parameters) -> Callable[[Parameters], Any]:
    """Return what turns named values into the driver's form: a tuple by position, or a mapping."""
    if positions is None:
        return (lambda parameters: {**fixed, **parameters}) if fixed else (lambda parameters: parameters)
    if not positions:
        return lambda _: ()
    if len(positions) == 1:
        name = positions[0]
        return lambda parameters: ({**fixed, **parameters}[name],)
    pick = itemgetter(*positions)
    if fixed:
        return lambda parameters: pick({**fixed, **parameters})
    return pick


class Transaction:
    """Runs statements on one connection; handed to the functions given to a `Database`."""

    __slots__ = ("_connection", "_statements")

    def __init__(self, connection: Connection, statements: Statements) -> None:
        self._connection = connection
        self._statements = statements

    @property
    def takes_lists(self) -> bool:
        """Whether a list may be bound as an array: many rows in one statement, where each statement is a journey."""
        return self._statements.takes_lists

    def rows(self, statement: ClauseElement, parameters: Parameters = _NONE) -> list[Row]:
        """Run a statement and return all its rows."""
        compiled = self._statements[statement]
        return self._connection.execute(compiled.sql, compiled.bind(parameters)).fetchall()

    def row(self, statement: ClauseElement, parameters: Parameters = _NONE) -> Row | None:
        """Run a statement and return its first row, if any."""
        rows = self.rows(statement, parameters)
        return rows[0] if rows else None

    def run(self, statement: ClauseElement, parameters: Parameters = _NONE) -> int:
        """Run a statement that returns no rows; return how many it touched."""
        compiled = self._statements[statement]
        return self._connection.execute(compiled.sql, compiled.bind(parameters)).rowcount

    def run_many(self, statement: ClauseElement, parameters: Sequence[Parameters]) -> None:
        """Run a statement that returns no rows once per element; nothing for an empty sequence."""
        if not parameters:
            return
        compiled = self._statements[statement]
        if len(parameters) == 1:
            self._connection.execute(compiled.sql, compiled.bind(parameters[0]))
        else:
            self._connection.cursor().executemany(compiled.sql, [compiled.bind(each) for each in parameters])


Work = Callable[[Transaction], T]


class Database(ABC):
    """One database, its threads and connections.

    The functions given to it may run in another thread, do nothing but database work, and change nothing outside: one
    that is caught in a conflict with another transaction is run again from its start. What they raise is raised
    to the caller; the driver's errors arrive as those of `runstead.model.errors`. A caller that is cancelled
    stops waiting; its work is done whole or not at all.
    """

    @abstractmethod
    async def write(self, work: Work[T]) -> T:
        """Run `work` as one transaction and return its result once that is durable."""

    @abstractmethod
    async def read(self, work: Work[T], *, consistent: bool = False) -> T:
        """Run `work`, which only reads, and return its result.

        It sees every write that was answered before. Each statement sees one state of the database; with
        `consistent`, all of them see the same.
        """

    async def look(self, work: Work[T]) -> T:
        """Run `work`, which finds a few rows by their keys and nothing else, as `read` does.

        It may hold up the event loop for as long as that takes: less than another thread needs to begin.
        """
        return await self.read(work)

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun, then give back threads and connections. What is asked afterwards is Unavailable."""


def reject_unstorable(values: Parameters) -> None:
    """Raise Invalid, naming the field, for text that not every database can keep: with a NUL, or not Unicode."""
    for field, value in values.items():
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise Invalid(f"is not valid Unicode text: {value!r}", field) from error
        if isinstance(value, str) and "\0" in value:
            raise Invalid(f"has a NUL character: {value!r}", field)
