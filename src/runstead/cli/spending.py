"""Running one action on what jobs used and may cost, whether or not the server runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from runstead.kit.settings import Settings
from runstead.services.usage import Usage

Result = TypeVar("Result")


def with_usage(settings: Settings, action: Callable[[Usage], Awaitable[Result]]) -> Result:
    """Open the records of the data directory, do the action, close them, and return its result."""
    from runstead.app.opening.accounts import open_usage

    async def run() -> Result:
        async with open_usage(settings) as usage:
            return await action(usage)

    return asyncio.run(run())
