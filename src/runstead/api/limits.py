"""ASGI wrappers around the whole application: the size of bodies, the date of answers."""

import asyncio
import time
from email.utils import formatdate

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runstead.api.errors import error_response

# Clients read an answer only when they have sent everything, and a connection closed before then loses it.
_DISCARD_SECONDS = 10.0
_DISCARD_FACTOR = 8


class _BodyTooLargeError(Exception):
    pass


class BodyLimit:
    """Answers 413 to a request whose body is larger than allowed; what is more than that is never kept."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not announced.isdigit() or int(announced) > self._max_bytes:
            await self._refuse(scope, receive, send, more=True)
            return
        received = 0
        more = True
        started = False

        async def counted() -> Message:
            nonlocal received, more
            message = await receive()
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
            if received > self._max_bytes:
                raise _BodyTooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if received > self._max_bytes and not started:
                raise _BodyTooLargeError  # whatever the application made of half a body
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _BodyTooLargeError:
            if started:
                raise
            await self._refuse(scope, receive, send, more=more)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, *, more: bool) -> None:
        if more and (b"expect", b"100-continue") not in scope["headers"]:
            await self._discard(receive)
        message = (
            f"the request's body is larger than {self._max_bytes:,} bytes; this server's limit is server.max_body_bytes"
        )
        await error_response(413, "TooLarge", message, {"Connection": "close"})(scope, receive, send)

    async def _discard(self, receive: Receive) -> None:
        left = self._max_bytes * _DISCARD_FACTOR
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while left > 0 and (message := await receive()).get("more_body"):
                    left -= len(message["body"])
        except TimeoutError:
            return


class DateHeader:
    """Gives every answer the present second as `Date`: clients compare log times with it (wire-jobs §9.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._second = 0
        self._text = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                second = int(time.time())
                if second != self._second:
                    self._second, self._text = second, formatdate(second, usegmt=True).encode()
                message["headers"] = [*message.get("headers", ()), (b"date", self._text)]
            await send(message)

        await self._app(scope, receive, dated)
