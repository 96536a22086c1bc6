"""Opens who may use a server, and what they used."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from runstead.app.opening.database import opened_database
from runstead.kit.clock import SystemClock
from runstead.kit.settings import Settings
from runstead.services.accounts import Accounts
from runstead.services.usage import Usage
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.usage import SqlUsageStore


@asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncGenerator[Accounts]:
    """Open the accounts of a server, whether it runs or not."""
    async with opened_database(settings) as database:
        yield Accounts(SqlAccountStore(database), SystemClock())


@asynccontextmanager
async def open_usage(settings: Settings) -> AsyncGenerator[Usage]:
    """Open what jobs used and what they may cost, whether the server runs or not."""
    async with opened_database(settings) as database:
        yield Usage(SqlUsageStore(database), SqlAccountStore(database), SystemClock())
