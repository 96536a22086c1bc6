"""Which schema a database has, and how it gets the present one.

A database that is up to date costs one query, an empty one is created from `tables` in one transaction; only an
old one needs Alembic, which takes longer to import than all the rest.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from runstead.model.errors import Conflict

# By way of the module that adds the last tables, so that all of them are known.
from runstead.stores.schedule_tables import metadata
from runstead.stores.tables import NOBODY

# All revisions there ever were, oldest first.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
HEAD = REVISIONS[-1]

VERSION_TABLE = "alembic_version"


def creation(dialect: Dialect) -> list[str]:
    """Return the statements that make an empty database a present one."""
    statements = [
        str(element.compile(dialect=dialect))
        for table in metadata.sorted_tables
        for element in (CreateTable(table), *(CreateIndex(index) for index in _indexes(table)))
    ]
    statements += initial_rows()
    statements.append(
        f"CREATE TABLE {VERSION_TABLE} "
        f"(version_num VARCHAR(32) NOT NULL, CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
    )
    statements.append(f"INSERT INTO {VERSION_TABLE} (version_num) VALUES ('{HEAD}')")  # noqa: S608
    return statements


def initial_rows() -> list[str]:
    """Return the statements that store what every database has from the start."""
    return [f"INSERT INTO leases (owner, until) VALUES ('{NOBODY}', 0)"]  # noqa: S608


def _indexes(table: Any) -> list[Any]:
    return sorted(table.indexes, key=lambda index: index.name)


def needs_upgrade(revision: str, name: str) -> bool:
    """Say whether a database at `revision` is older than this program. Raises Conflict if it is newer."""
    if revision not in REVISIONS:
        raise Conflict(
            f"the database was written by a newer version of Runstead (schema {revision}, this program knows "
            f"{HEAD}): install that version or a later one, or restore the backup made before the upgrade: {name}"
        )
    return revision != HEAD


def upgrade(connect: Callable[[], Any], dialect_name: str, begin: str) -> None:
    """Bring an old database up to date, in one transaction; `begin`, its first statement, keeps others out."""
    # Alembic takes long to import and is needed once per upgrade.
    from runstead.stores import migration

    migration.upgrade(connect, dialect_name, begin)
