"""Opens the database of a server."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from runstead.app.data_directory import make_private
from runstead.kit.settings import Settings
from runstead.stores.database import Database
from runstead.stores.opening import open_database


@asynccontextmanager
async def opened_database(settings: Settings) -> AsyncGenerator[Database]:
    """Open a server's database, whether the server runs or not; made where there is none."""
    make_private(settings.server.data_dir)
    database = await open_database(settings.database_url)
    try:
        yield database
    finally:
        await database.close()
