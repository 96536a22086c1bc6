"""One request of the protocol and its answer."""

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, cast

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from runstead.model.errors import Invalid, TooLarge

_LONGEST_QUERY_TEXT = 16_384


class ClientGone(Exception):
    """The client closed the connection. There is nobody to answer."""


class Exchange:
    """A request, and the means to answer it once."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._request = Request(scope, receive, send)
        self._receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.started = False

    @property
    def token(self) -> str | None:
        """The sandbox token that the client shows."""
        return self._request.headers.get("x-sandbox-token")

    @property
    def content_length(self) -> int | None:
        """The announced length of the body; None when it comes in chunks."""
        text = self._request.headers.get("content-length")
        return int(text) if text is not None and text.isascii() and text.isdigit() else None

    def query(self, name: str) -> str | None:
        """Return a value of the query, where `+` is a blank. Raises Invalid for what is no text."""
        value = self._request.query_params.get(name)
        if value is not None and len(value) > _LONGEST_QUERY_TEXT:
            raise Invalid(f"at most {_LONGEST_QUERY_TEXT} characters", name)
        return value

    def number(self, name: str) -> int | None:
        """Return a whole number of the query. Raises Invalid."""
        text = self.query(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise Invalid(f"should be a whole number, not {text[:40]!r}", name)
        return int(text)

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises ClientGone if it ends too soon."""
        try:
            async for data in self._request.stream():
                if data:
                    yield data
        except ClientDisconnect:
            raise ClientGone from None

    async def json(self, limit_bytes: int) -> Mapping[str, Any]:
        """Return the body read as a JSON object. Raises Invalid, TooLarge."""
        if (self.content_length or 0) > limit_bytes:
            raise TooLarge(f"the body of this request is larger than {limit_bytes:,} bytes")
        whole = bytearray()
        async for data in self.body():
            whole += data
            if len(whole) > limit_bytes:
                raise TooLarge(f"the body of this request is larger than {limit_bytes:,} bytes")
        try:
            value = json.loads(whole)
        except (ValueError, RecursionError) as error:
            raise Invalid(f"the body is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise Invalid("the body should be a JSON object")
        return cast("Mapping[str, Any]", value)

    async def gone(self) -> None:
        """Return when the client has closed the connection; for after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer_json(self, value: object, status: int = 200) -> None:
        """Answer with a value as JSON."""
        body = json.dumps(value, separators=(",", ":")).encode()
        await self.start([(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))], status)
        await self.send(b"" if self.method == "HEAD" else body, more=False)

    async def start(self, headers: Iterable[tuple[bytes, bytes]], status: int = 200) -> None:
        """Send status and headers; the body follows with `send`."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
