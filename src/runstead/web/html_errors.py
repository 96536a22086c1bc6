"""Errors for people: the refusals of the whole server as pages, for browsers; programs keep the Hub's form."""

import json
import re
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runstead.web.visit import VISIT, Site, Visit, see

_MOST_BYTES = 64 * 1024
# What programs read by token, people read by session, elsewhere.
_RESOLVE = re.compile(r"(/buckets/[^/]+/[^/]+)/resolve/(.+)")
_TITLES = {
    400: "This request makes no sense here",
    401: "Sign in first",
    403: "This is not yours to see or do",
    404: "There is nothing here",
    405: "That cannot be done here",
    409: "That is not possible now",
    500: "The server failed",
    501: "This server does not have that",
    503: "Not at the moment",
}


class HtmlErrors:
    """Wraps an application whose errors are JSON."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not _is_for_a_person(scope):
            await self._app(scope, receive, send)
            return
        held: Message | None = None
        body = b""

        async def watched(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start" and _is_error(message):
                held = message
            elif held is None:
                await send(message)
            else:
                body += message.get("body", b"")[: _MOST_BYTES - len(body)]
                if not message.get("more_body", False):
                    await self._send_page(scope, receive, send, held, body)

        await self._app(scope, receive, watched)

    async def _send_page(self, scope: Scope, receive: Receive, send: Send, start: Message, body: bytes) -> None:
        status: int = start["status"]
        file = _RESOLVE.fullmatch(scope["raw_path"].decode("latin-1"))
        if status == HTTPStatus.UNAUTHORIZED and file:
            await see(f"{file[1]}/download/{file[2]}")(scope, receive, send)
            return
        values = await self._values(scope, status, body)
        response = self._site.templates.page("error.html", values, status)
        for name, value in Headers(raw=start["headers"]).items():
            if name not in ("content-type", "content-length"):
                response.headers.setdefault(name, value)
        await response(scope, receive, send)

    async def _values(self, scope: Scope, status: int, body: bytes) -> dict[str, Any]:
        request = Request(scope)
        visit: Visit | None = scope.get(VISIT)
        if visit is None and status < 500:
            visit = await self._site.visit(request)
        return {
            **(visit.shared if visit else {"visit": None}),
            "status": status,
            "title": _TITLES.get(status) or HTTPStatus(status).phrase,
            "message": _message(body),
            "next": request.url.path if request.method == "GET" else "/",
        }


def _is_for_a_person(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return (
        "text/html" in headers.get("accept", "")
        and "authorization" not in headers
        and not scope["path"].startswith("/api/")
    )


def _is_error(start: Message) -> bool:
    return start["status"] >= 400 and Headers(raw=start["headers"]).get("content-type", "") == "application/json"


def _message(body: bytes) -> str:
    try:
        found = json.loads(body)
        return str(found["error"])
    except (ValueError, KeyError, TypeError):
        return ""
