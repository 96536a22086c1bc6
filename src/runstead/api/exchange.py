"""One HTTP request and its answer in plain ASGI, for routes whose bodies are too large for a framework."""

import json
from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from runstead.api.bodies import EXTENSION, BodyProtocol, DirectBody
from runstead.model.errors import Invalid, TooLarge

Headers = Iterable[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection before the body was whole. There is nobody to answer."""


class Exchange:
    """A request, and the means to answer it once."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.started = False
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str | None:
        """Return the first header of that lower case name."""
        for found, value in self.scope["headers"]:
            if found == name:
                return value.decode("latin-1")
        return None

    @property
    def bearer_token(self) -> str | None:
        """The token of the Authorization header."""
        scheme, _, value = (self.header(b"authorization") or "").partition(" ")
        return value.strip() or None if scheme.lower() == "bearer" else None

    @property
    def content_length(self) -> int | None:
        """The announced length of the body."""
        text = self.header(b"content-length")
        return int(text) if text is not None and text.isascii() and text.isdigit() else None

    @property
    def base_url(self) -> str:
        """The URL by which the client reached this server, as far as the request says."""
        host = self.header(b"host")
        if host is None:
            name, port = self.scope["server"]
            host = f"{name}:{port}"
        return f"{self.scope['scheme']}://{host}"

    def query(self) -> Mapping[str, str]:
        """Return the query, the last of equal names."""
        return dict(parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True))

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises ClientGone if it ends too soon."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            more = message.get("more_body", False)
            data = message.get("body", b"")
            if data:
                yield data

    @contextmanager
    def direct_body(self) -> Generator[DirectBody | None]:
        """Give out the body for a thread to read, or None if it has to come by `body`."""
        protocol = self.scope.get("extensions", {}).get(EXTENSION)
        length = self.content_length
        taken = protocol.take(self.scope, length) if isinstance(protocol, BodyProtocol) and length else None
        try:
            yield taken
        finally:
            if taken is not None and isinstance(protocol, BodyProtocol):
                protocol.give_back(taken)

    async def whole_body(self, limit_bytes: int) -> bytearray:
        """Return the body. Raises TooLarge once it is larger than that."""
        if (self.content_length or 0) > limit_bytes:
            raise TooLarge(f"the body of this request is larger than {limit_bytes} bytes")
        whole = bytearray()
        async for data in self.body():
            if len(whole) + len(data) > limit_bytes:
                raise TooLarge(f"the body of this request is larger than {limit_bytes} bytes")
            whole += data
        return whole

    async def json(self, limit_bytes: int) -> Any:
        """Return the body read as JSON. Raises Invalid."""
        try:
            return json.loads(await self.whole_body(limit_bytes))
        except (ValueError, RecursionError) as error:
            raise Invalid(f"the body is not valid JSON: {error}") from error

    async def answer(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        """Answer with these bytes; to a HEAD, with their length alone."""
        await self.start(status, (*headers, (b"content-length", b"%d" % len(body))))
        await self.send(b"" if self.method == "HEAD" else body, more=False)

    async def answer_json(self, status: int, value: object) -> None:
        """Answer with a value as JSON."""
        await self.answer(status, json.dumps(value, separators=(",", ":")).encode(), JSON)

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers; the body follows with `send`."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def send(self, data: bytes | bytearray | memoryview, *, more: bool = True) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


JSON = ((b"content-type", b"application/json"),)
