"""The server that this is part of: its own application, asked in the same process with the caller's token."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Scope

from runstead.mcp.hub import Hub, HubError, Reply, Stream
from runstead.model.accounts import Caller, Permission
from runstead.model.errors import Conflict, RunsteadError
from runstead.services.buckets.batches import AddFile, Batches
from runstead.services.buckets.buckets import Buckets
from runstead.services.content.service import StoredContent

_PIECES_AHEAD = 8


@dataclass(frozen=True, slots=True)
class OwnParts:
    """What of the server the operations work with."""

    app: ASGIApp
    buckets: Buckets
    batches: Batches
    content: StoredContent


class OwnHub(Hub):
    """The server as one caller sees it, for the time of one request to `/mcp`."""

    limits_pages = True
    quiet_seconds = 0.15

    def __init__(
        self, parts: OwnParts, caller: Caller, token: str, scope: Scope, endpoint: str, closing: asyncio.Event
    ) -> None:
        """`scope` is that of the request to `/mcp`: links in answers carry the host by which the agent came."""
        self.endpoint = endpoint
        self.token = token
        self.closing = closing
        self._parts = parts
        self._caller = caller
        self._outer = scope

    async def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Have the application answer a request."""
        async with self._exchange(method, path, body, headers) as stream:
            return Reply(stream.status, stream.headers, b"".join([piece async for piece in stream.pieces]))

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncGenerator[Stream]:
        """Have the application answer a GET, piece by piece."""
        async with self._exchange("GET", path, None, {}) as stream:
            yield stream

    async def store(self, bucket: str, path: str, data: bytes) -> None:
        """Store a file."""
        parts = self._parts
        namespace, _, name = bucket.partition("/")

        async def pieces() -> AsyncIterator[bytes]:
            yield data

        try:
            with contextlib.suppress(Conflict):
                await parts.buckets.create(self._caller, namespace, name, private=True)
            found = await parts.buckets.get(self._caller, namespace, name, Permission.WRITE)
            if not found.private:
                raise HubError(403, f"the bucket {bucket} is public, and a script may be meant for few")
            file = await parts.content.store(found.scope, pieces())
            result = await parts.batches.apply(self._caller, namespace, name, [AddFile(path, file.file_hash)])
        except RunsteadError as error:
            raise HubError(400, error.message) from error
        if result.refused:
            raise HubError(400, result.refused[0].reason)

    def local_script(self, path: str) -> bytes | None:  # noqa: ARG002
        """Return nothing: the files of the server's machine are nobody's scripts."""
        return None

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> AsyncGenerator[Stream]:
        messages: asyncio.Queue[Message | None] = asyncio.Queue(_PIECES_AHEAD)
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body or b"", "more_body": False}
            await asyncio.Event().wait()  # the other side never leaves: it cancels
            raise AssertionError

        async def serve() -> None:
            try:
                await self._parts.app(self._scope(method, path, body, headers), receive, messages.put)
            finally:
                await messages.put(None)

        serving = asyncio.create_task(serve())
        try:
            start = await messages.get()
            if start is None:
                raise HubError(500, "the server failed on this request; its log says why")
            found = {name.decode().lower(): value.decode("latin-1") for name, value in start.get("headers", ())}
            yield Stream(start["status"], found, _pieces(messages))
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    def _scope(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Scope:
        raw, _, query = path.partition("?")
        outer = self._outer
        kept = [(name, value) for name, value in outer["headers"] if name in (b"host", b"user-agent")]
        own = {"authorization": f"Bearer {self.token}", **headers}
        if body is not None:
            own |= {"content-type": "application/json", "content-length": str(len(body))}
        return {
            "type": "http",
            "asgi": outer["asgi"],
            "http_version": "1.1",
            "method": method,
            "scheme": outer["scheme"],
            "server": outer.get("server"),
            "client": outer.get("client"),
            "root_path": "",
            "path": unquote(raw),
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "headers": [*kept, *((name.lower().encode(), value.encode("latin-1")) for name, value in own.items())],
            "state": {},
        }


async def _pieces(messages: "asyncio.Queue[Message | None]") -> AsyncGenerator[bytes]:
    while (message := await messages.get()) is not None:
        if body := message.get("body"):
            yield body
        if not message.get("more_body", False):
            return
