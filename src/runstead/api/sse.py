"""Server-sent events, framed the one way the clients read them: `data: {` (wire-jobs §9.1)."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from json.encoder import encode_basestring_ascii

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runstead.node.logformat import PREFIX_BYTES, STAMP_BYTES

_KEEPALIVE = b": keep-alive\n\n"
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


def encode_log_lines(lines: bytes) -> bytes:
    """Return log lines in stored form as events. JSON is ASCII: clients also split lines on U+2028 and its like."""
    events: list[str] = []
    for line in lines.decode("utf-8", "replace").split("\n")[:-1]:
        text = encode_basestring_ascii(line[PREFIX_BYTES:].removesuffix("\r"))
        events.append(f'data: {{"data":{text},"timestamp":"{line[:STAMP_BYTES]}"}}\n\n')
    return "".join(events).encode("ascii")


class EventStream(Response):
    """Sends blocks of events as they come; a block of None is a sign of life."""

    def __init__(self, blocks: AsyncGenerator[bytes | None]) -> None:
        super().__init__()
        self._blocks = blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send until the blocks end or the client goes away."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            await self._blocks.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        async for block in self._blocks:
            await send({"type": "http.response.body", "body": block or _KEEPALIVE, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
