"""Events to a page, for as long as its session holds."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from runstead.web.visit import Visit

KEEP_ALIVE = b": keep-alive\n\n"
_CHECK_SECONDS = 10.0


class Events(StreamingResponse):
    """Server-sent events."""

    def __init__(self, visit: Visit, events: AsyncGenerator[bytes]) -> None:
        self._events = _while_valid(visit, events)
        headers = {"Cache-Control": "private, no-cache, no-transform", "X-Accel-Buffering": "no"}
        super().__init__(self._events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end or the browser goes away."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


def event(name: str, data: bytes, place: str | None = None) -> bytes:
    """Return one event. Its data is one line; `place` is what the browser comes back with after an interruption."""
    head = f"id: {place}\nevent: {name}\ndata: " if place is not None else f"event: {name}\ndata: "
    return head.encode("ascii") + data + b"\n\n"


async def _while_valid(visit: Visit, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    checked = time.monotonic()
    async with aclosing(events):
        yield b"retry: 2000\n\n"
        async for one in events:
            if time.monotonic() - checked > _CHECK_SECONDS:
                if not await visit.is_valid():
                    return
                checked = time.monotonic()
            yield one
