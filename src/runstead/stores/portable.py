"""Expressions that each database spells in its own way."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Column, ColumnElement, Integer, LargeBinary, Table, Text, bindparam, func
from sqlalchemy import cast as cast_to
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class _OneOf(FunctionElement[Any]):
    """Whether a column has one of the texts in a JSON array."""

    name = "one_of"
    type = Integer()  # as a Boolean it would become `... = 1` for SQLite, which then uses no index
    inherit_cache = True


class _Position(FunctionElement[int]):
    """Where a text is in another, counted from 1; 0 if it is not."""

    name = "position"
    type = Integer()
    inherit_cache = True


@compiles(_OneOf, "sqlite")
def _sqlite_one_of(element: _OneOf, compiler: SQLCompiler, **options: Any) -> str:  # pyright: ignore[reportUnusedFunction]
    wanted, listed = (compiler.process(one, **options) for one in element.clauses)
    return f"{wanted} IN (SELECT value FROM json_each({listed}))"  # noqa: S608


@compiles(_OneOf, "postgresql")
def _postgresql_one_of(element: _OneOf, compiler: SQLCompiler, **options: Any) -> str:  # pyright: ignore[reportUnusedFunction]
    # As an array, not as rows: its planner might join rows with a whole table.
    wanted, listed = (compiler.process(one, **options) for one in element.clauses)
    return f"{wanted} = ANY (ARRAY(SELECT json_array_elements_text(CAST({listed} AS json))))"


@compiles(_Position, "sqlite")
def _sqlite_position(element: _Position, compiler: SQLCompiler, **options: Any) -> str:  # pyright: ignore[reportUnusedFunction]
    return f"instr({compiler.process(element.clauses, **options)})"


@compiles(_Position, "postgresql")
def _postgresql_position(element: _Position, compiler: SQLCompiler, **options: Any) -> str:  # pyright: ignore[reportUnusedFunction]
    return f"strpos({compiler.process(element.clauses, **options)})"


def one_of(wanted: ColumnElement[str], parameter: str) -> ColumnElement[bool]:
    """Return whether a column has one of the texts that `text_list` listed: one statement for any number of them."""
    return _OneOf(wanted, bindparam(parameter, type_=Text))


def text_list(values: Iterable[str]) -> str:
    """Return the value of a parameter for `one_of`."""
    return json.dumps(list(values))


class _Items(FunctionElement[Any]):
    """One row for each text in a JSON array."""

    name = "items"
    inherit_cache = True


@compiles(_Items, "postgresql")
def _postgresql_items(element: _Items, compiler: SQLCompiler, **options: Any) -> str:  # pyright: ignore[reportUnusedFunction]
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS json))"


def array(column: Column[Any], parameter: str) -> ColumnElement[Any]:
    """Return an array of a column's type; its values were listed by `value_list`. Not for texts, not for SQLite."""
    return cast_to(bindparam(parameter, type_=Text), ARRAY(column.type))


def items(column: Column[Any], parameter: str) -> ColumnElement[Any]:
    """Return one row for each value that `value_list` listed. Not for SQLite."""
    if isinstance(column.type, Text):
        return _Items(bindparam(parameter, type_=Text))
    return func.unnest(array(column, parameter))


def value_list(column: Column[Any], values: Sequence[Any]) -> str:
    """Return the value of a parameter for `items` or `array`. The driver takes lists too, at ten times the cost."""
    if isinstance(column.type, Text):
        return json.dumps(values)
    if isinstance(column.type, LargeBinary):
        return "{" + ",".join(["\\\\x" + value.hex() for value in cast("Sequence[bytes]", values)]) + "}"
    return "{" + ",".join(map(str, values)) + "}"


def list_of_rows(table: Table, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the parameters, by the names of a table's columns, that list the values of rows."""
    return {column.name: value_list(column, [row[column.name] for row in rows]) for column in table.c}


def position(where: ColumnElement[str], what: ColumnElement[str]) -> ColumnElement[int]:
    """Return at which character of a text another one begins, counted from 1; 0 if it is not there."""
    return _Position(where, what)
