"""Expressions that each database spells in its own way."""

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, Text, bindparam, column, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from runstead.stores.tables import STRING


class _Elements(FunctionElement[Any]):
    """The elements of a JSON array as rows with one column `value`."""

    name = "elements"
    inherit_cache = True


class _Position(FunctionElement[int]):
    """Where a text is in another, counted from 1; 0 if it is not."""

    name = "position"
    type = Integer()
    inherit_cache = True


@compiles(_Elements, "sqlite")
def _sqlite_elements(element: _Elements, compiler: SQLCompiler, **options: Any) -> str:  # pyright: ignore[reportUnusedFunction]
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_Elements, "postgresql")
def _postgresql_elements(element: _Elements, compiler: SQLCompiler, **options: Any) -> str:  # pyright: ignore[reportUnusedFunction]
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS json))"


@compiles(_Position, "sqlite")
def _sqlite_position(element: _Position, compiler: SQLCompiler, **options: Any) -> str:  # pyright: ignore[reportUnusedFunction]
    return f"instr({compiler.process(element.clauses, **options)})"


@compiles(_Position, "postgresql")
def _postgresql_position(element: _Position, compiler: SQLCompiler, **options: Any) -> str:  # pyright: ignore[reportUnusedFunction]
    return f"strpos({compiler.process(element.clauses, **options)})"


def texts(parameter: str) -> Select[tuple[str]]:
    """Return a query of the texts in the list that `text_list` made: one statement for any number of them."""
    rows = _Elements(bindparam(parameter, type_=Text)).table_valued(column("value", STRING))
    return select(rows.c.value)


def text_list(values: Iterable[str]) -> str:
    """Return the value of a parameter for `texts`."""
    return json.dumps(list(values))


def position(where: ColumnElement[str], what: ColumnElement[str]) -> ColumnElement[int]:
    """Return at which character of a text another one begins, counted from 1; 0 if it is not there."""
    return _Position(where, what)
