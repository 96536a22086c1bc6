"""Opens the database that a URL names."""

from pathlib import Path
from urllib.parse import unquote

from runstead.model.errors import Invalid
from runstead.stores.database import Database

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")


async def open_database(url: str, connections: int = 10) -> Database:
    """Open the database at `url`, creating its tables or bringing them up to date.

    `sqlite:///relative/path`, `sqlite:////absolute/path` or `postgresql://user:password@host/name`; PostgreSQL
    gets that many `connections`. Raises Unavailable if it cannot be reached, Conflict if it was written by a newer
    version of this program, Invalid for a URL that means nothing.
    """
    if url.startswith(_SQLITE) and len(url) > len(_SQLITE):
        from runstead.stores.sqlite import SqliteDatabase

        return await SqliteDatabase.open(Path(unquote(url.removeprefix(_SQLITE))))
    if url.startswith(_POSTGRES):
        # An extra of the distribution: only who uses it needs its driver.
        from runstead.stores.postgres import PostgresDatabase

        return await PostgresDatabase.open(url, connections)
    raise Invalid(f"a database is sqlite:///path or postgresql://user@host/name: {url.partition('://')[0]}", "database")
