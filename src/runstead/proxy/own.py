"""The server's own requests on a connection: uvicorn serves them, with more care for how they begin and end.

How they begin: a request that came so close behind another one that nobody could look at it first may be for a port.
How they end: uvicorn closes a connection with what is unread on it, and the kernel then throws away the answer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runstead.proxy import answers
from runstead.proxy.heads import Field
from runstead.proxy.native import VISIT
from runstead.services.exposure import Visit


class OwnRequests(HttpToolsProtocol):
    """One connection, as far as requests of the server's own go."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.lingers = False  # the last answer was sent; what still comes is read and dropped
        self.own = False  # the request in hand is the server's own
        self.passed_on = False  # the connection comes from a proxy that is trusted
        self._judged = False  # somebody looked at the head that uvicorn is about to read
        self._parsing: object = None  # the parser that is inside of a request
        self._native: tuple[Visit, bytes] | None = None
        self._served = False  # there was a request: uvicorn has a `cycle`
        self._writing = cast("_Writing", None)

    # What a connection has to be able to do

    def linger(self) -> None:
        """Send no more, and read on for a while."""
        raise NotImplementedError

    def names_port(self) -> bool:
        """Say whether the request whose head uvicorn has read is for a port of a job."""
        raise NotImplementedError

    def origin(self, fields: list[Field]) -> tuple[str, bool]:
        """Return the address of who sent a request with these fields, and whether it was by https."""
        raise NotImplementedError

    # What it may ask

    @property
    def whole(self) -> bool:
        """Whether the request was received to its end."""
        return self._parsing is not self.parser

    @property
    def answered(self) -> bool:
        """Whether the answer was sent, or there is nothing to answer."""
        return not self._served or self.cycle.response_complete

    def serve_own(self, data: bytes) -> None:
        """Serve what begins with a request that is known to be the server's own."""
        self.own = self._judged = True
        super().data_received(data)

    def serve_by(self, app: Callable[..., Awaitable[None]], visit: Visit, target: bytes, head: bytes) -> None:
        """Have an application of this server answer a request for a port."""
        self._native = visit, target
        ordinary, self.app = self.app, cast("Any", app)
        try:
            self.serve_own(head)
        finally:
            self.app, self._native = ordinary, None

    # What uvicorn does

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._writing = _Writing(self.transport, self._end)

    def on_message_begin(self) -> None:
        """A request of the server's own begins."""
        self._parsing = self.parser
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """It was received whole."""
        self._parsing = None
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """Its head was read: hand it to whom it is for."""
        ordinary = self.app
        if not self._judged and self.names_port():
            self.app = cast("Any", _misdirected)
        super().on_headers_complete()
        self.app = ordinary
        self._judged = False
        self._served = True
        self.cycle.transport = cast("asyncio.Transport", self._writing)
        scope = cast("dict[str, Any]", self.scope)
        if self.passed_on:
            client, secure = self.origin(self.headers)
            scope["client"], scope["scheme"] = (client, 0), "https" if secure else "http"
        if self._native is not None:
            visit, target = self._native
            path, _, query = target.partition(b"?")
            scope["path"], scope["raw_path"], scope["query_string"] = _decoded(path), path, query
            scope.setdefault("extensions", {})[VISIT] = visit

    def on_response_complete(self) -> None:
        """It was answered: go on with the next, if there may be one."""
        if self.lingers:
            self.server_state.total_requests += 1
            self.pipeline.clear()
        else:
            super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        if self._served:
            self.cycle.disconnected = True  # an answer that is not there yet would come behind this one
        self.transport.write(answers.answer(400, {"error": msg, "cause": "request"}, None, close=True))
        self.linger()

    def _end(self) -> None:
        """End the connection, as uvicorn wants after an answer."""
        if self.whole:
            self.transport.close()
        else:
            self.linger()


class _Writing:
    """What uvicorn has of the connection to write an answer to: it cannot close it by itself."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


def _decoded(path: bytes) -> str:
    return unquote(path.decode("latin-1"))


async def _misdirected(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
    body = b'{"error": "send this request once the answer before it is there"}'
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 421, "headers": headers})
    await send({"type": "http.response.body", "body": body})
