"""Running one action on a server's accounts, whether or not the server runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from runstead.kit.settings import Settings
from runstead.services.accounts import Accounts

Result = TypeVar("Result")


def with_accounts(settings: Settings, action: Callable[[Accounts], Awaitable[Result]]) -> Result:
    """Open the accounts of the data directory, do the action, close them, and return its result."""
    from runstead.app.opening.accounts import open_accounts

    async def run() -> Result:
        async with open_accounts(settings) as accounts:
            return await action(accounts)

    return asyncio.run(run())
