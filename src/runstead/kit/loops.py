"""Background duties: a name, one round of work, and how long to rest when nothing wakes it."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()

_REST_AFTER_FAILURE_SECONDS = 1.0


async def forever(name: str, round_of_work: Callable[[], Awaitable[object]]) -> None:
    """Call `round_of_work` again and again until cancelled; a failing round is logged and followed by a rest."""
    while True:
        try:
            await round_of_work()
        except Exception:
            log.exception("a round of a background duty failed; it will be tried again", duty=name)
            await asyncio.sleep(_REST_AFTER_FAILURE_SECONDS)
