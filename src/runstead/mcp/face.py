"""`/mcp` on the server: streamable HTTP, with the tokens of the API.

Every request stands for itself: it carries its token, is answered, and leaves nothing behind. So there are no
sessions that another caller could use, that a restart of the server could lose, or that another server of the same
database would not know. What the protocol needs a session for (the server asking the client) the tools do not do.

The protocol's library is imported with the first request.
"""

import asyncio
import ipaddress
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from runstead.mcp.hub import Hub
from runstead.mcp.own import OwnHub, OwnParts
from runstead.model.errors import Unauthenticated
from runstead.services.accounts import Accounts
from runstead.services.buckets.batches import Batches
from runstead.services.buckets.buckets import Buckets
from runstead.services.content.service import StoredContent

PATH = "/mcp"
_METADATA = "/.well-known/oauth-protected-resource"
_HUB = "runstead.hub"  # in the scope of a request
_LAST_ANSWERS_SECONDS = 3.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class McpContext:
    """What `/mcp` works with."""

    accounts: Accounts
    buckets: Buckets
    batches: Batches
    content: StoredContent
    public_url: str | None


class McpFace:
    """Serves `/mcp`."""

    def __init__(self, app: ASGIApp, context: McpContext) -> None:
        """`app` is the application that this is part of: the tools ask it."""
        self._context = context
        self._parts = OwnParts(app, context.buckets, context.batches, context.content)
        self._starting = asyncio.Lock()
        self._closing = asyncio.Event()
        self._answering: set[asyncio.Task[Any]] = set()
        self._manager: Any = None
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope)
        base = self._base_url(request)
        if (refusal := self._foreign_origin(request, base)) is not None:
            await refusal(scope, receive, send)
            return
        if request.method != "POST":
            # There is no stream of the server's own to listen to, and no session to end.
            await _refusal(405, "only POST is served here: every request stands for itself", {"Allow": "POST"})(
                scope, receive, send
            )
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        try:
            caller = await self._context.accounts.recognize(token or None)
        except Unauthenticated as error:
            await _unauthorized(error, base, given=bool(token))(scope, receive, send)
            return
        scope[_HUB] = OwnHub(self._parts, caller, token, scope, base, self._closing)
        manager = await self._started()
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            await manager.handle_request(scope, receive, send)
        finally:
            self._answering.discard(task)

    async def close(self) -> None:
        """Answer what waits with what there is, and end what is not answered soon."""
        self._closing.set()
        if self._answering:
            _, late = await asyncio.wait(self._answering, timeout=_LAST_ANSWERS_SECONDS)
            for task in late:
                task.cancel()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def metadata(self, request: Request) -> Response:
        """Describe how `/mcp` is authorized (RFC 9728). No server gives out tokens for it: its operator does."""
        return JSONResponse(
            {
                "resource": self._base_url(request) + PATH,
                "resource_name": "Runstead",
                "bearer_methods_supported": ["header"],
            }
        )

    async def _started(self) -> Any:
        async with self._starting:
            if self._running is None or self._running.done():
                ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self._running = asyncio.create_task(self._run(ready))
                self._manager = await ready
            return self._manager

    async def _run(self, ready: "asyncio.Future[Any]") -> None:
        try:
            manager = await asyncio.to_thread(_create_manager)
        except BaseException as error:
            ready.set_exception(error)
            raise
        async with manager.run():
            ready.set_result(manager)
            await asyncio.Event().wait()

    def _base_url(self, request: Request) -> str:
        return self._context.public_url or f"{request.url.scheme}://{request.url.netloc}"

    def _foreign_origin(self, request: Request, base: str) -> Response | None:
        """Refuse a page of another site, whatever name it made itself reach this server by.

        A browser tells the origin of the page. Ours is the public URL, or an address that no name can be bound to.
        """
        origin = request.headers.get("origin")
        if origin is None:
            return None
        own = self._context.public_url
        if own is not None and origin == _origin(own):
            return None
        host = _host(origin)
        if host in _LOOPBACK or (origin == _origin(base) and _is_address(host)):
            return None
        return _refusal(403, f"pages of {origin[:200]} may not use this server")


def with_mcp(app: Starlette, context: McpContext) -> McpFace:
    """Add `/mcp` to the application, behind its own routes."""
    face = McpFace(app, context)
    routes = [
        Route(PATH, face, include_in_schema=False),
        *(Route(path, face.metadata, include_in_schema=False) for path in (_METADATA, _METADATA + PATH)),
    ]
    app.router.routes.extend(routes)
    return face


def _create_manager() -> Any:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from runstead.mcp.protocol import Context, create_server

    def hub_of(context: Context) -> Hub:
        assert context.request is not None
        return context.request.scope[_HUB]

    return StreamableHTTPSessionManager(create_server(hub_of), stateless=True)


def _unauthorized(error: Unauthenticated, base: str, *, given: bool) -> Response:
    parts = ['Bearer realm="Runstead"', f'resource_metadata="{base}{_METADATA}{PATH}"']
    if given:
        parts.append('error="invalid_token"')
    message = (
        f"{error.message}. Send the header Authorization: Bearer <token>; the operator of the server makes tokens "
        "with `runstead token add`"
    )
    return _refusal(401, message, {"WWW-Authenticate": ", ".join(parts)})


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps({"error": message}).encode()
    text = message if message.isascii() and message.isprintable() else "refused"
    return Response(body, status, {"X-Error-Message": text[:1000], **(headers or {})}, "application/json")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
