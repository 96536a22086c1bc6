"""Runs the migrations with Alembic. Imported only when a database is older than this program."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import NullPool

SCRIPTS = Path(__file__).parent / "migrations"


def upgrade(connect: Callable[[], Any], dialect_name: str, begin: str, revision: str = "head") -> None:
    """Run all migrations that are missing up to `revision`, in one transaction that starts with the statement `begin`.

    `begin` makes others wait who would do the same; they then find nothing left to do.
    """
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    engine = create_engine(f"{dialect_name}://", creator=connect, poolclass=NullPool)

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "begin", on_begin)
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
