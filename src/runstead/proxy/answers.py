"""What the proxy itself answers when a port cannot be reached: each reason told apart, for programs and for people.

Every such answer has `X-Runstead-Cause`, which no answer of a job can have: with it the environment is to blame,
without it the application.
"""

import html
import json
from collections.abc import Mapping
from http import HTTPStatus

from runstead.model.errors import (
    Forbidden,
    Invalid,
    NotFound,
    RunsteadError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from runstead.proxy.heads import Field, RequestHead, write_answer
from runstead.services.exposure import Gone, NotReady, Silent

_STATUS: tuple[tuple[type[RunsteadError], int], ...] = (
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (NotReady, 503),
    (Gone, 502),
    (Silent, 504),
    (Unavailable, 503),
    (Unsupported, 501),
    (Invalid, 400),
)
_CAUSE = {401: "token", 403: "access", 404: "no-such-port", 400: "request", 501: "unsupported", 503: "server-busy"}


def refusal(error: RunsteadError, head: RequestHead | None, *, close: bool) -> bytes:
    """Return the whole answer for an expected error."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    cause = getattr(error, "cause", None) or _CAUSE.get(status, "server")
    fields: list[Field] = []
    if status == HTTPStatus.UNAUTHORIZED:
        fields.append((b"WWW-Authenticate", b'Bearer realm="Runstead"'))
    wait = getattr(error, "retry_after_seconds", None)
    if wait is not None:
        fields.append((b"Retry-After", b"%d" % wait))
    said: dict[str, str] = {"error": error.message, "cause": cause}
    if isinstance(error, Gone) and error.failure_class is not None:
        said["failureClass"] = error.failure_class
        fields.append((b"X-Runstead-Failure-Class", error.failure_class.encode()))
    return answer(status, said, head, close=close, fields=fields)


def answer(
    status: int, said: dict[str, str], head: RequestHead | None, *, close: bool, fields: list[Field] | None = None
) -> bytes:
    """Return a whole answer: JSON, or a small page for those who look at it in a browser."""
    if head is not None and wants_page(head):
        kind, body = b"text/html; charset=utf-8", _page(status, said)
    else:
        kind, body = b"application/json", json.dumps(said).encode()
    return write_answer(
        status,
        _reason(status),
        [
            (b"Content-Type", kind),
            (b"Content-Length", b"%d" % len(body)),
            (b"X-Runstead-Cause", said["cause"].encode()),
            (b"X-Error-Message", _header_text(said["error"])),
            (b"Cache-Control", b"no-store"),
            (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
            *(fields or ()),
            *(((b"Connection", b"close"),) if close else ()),
        ],
    ) + (b"" if head is not None and head.method == b"HEAD" else body)


def told(said: Mapping[str, object], head: RequestHead) -> bytes:
    """Return the whole answer for a request that was answered here, as JSON."""
    body = json.dumps(said).encode()
    fields = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    head_bytes = write_answer(200, _reason(200), [*fields, (b"Cache-Control", b"no-store")])
    return head_bytes + (b"" if head.method == b"HEAD" else body)


def bare(status: int, fields: list[Field], *, close: bool = False) -> bytes:
    """Return an answer without a body."""
    shut = [(b"Connection", b"close")] if close else []
    length = [(b"Content-Length", b"0")] if status != HTTPStatus.NO_CONTENT else []
    return write_answer(status, _reason(status), [*fields, *length, (b"Cache-Control", b"no-store"), *shut])


def page_to(url: str, head: RequestHead) -> bytes:
    """Return a page that leads to another site by itself: a form's answer may not send the browser there (CSP)."""
    where = html.escape(url, quote=True)
    body = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={where}">'
        f'<title>On the way</title><p><a href="{where}">Go on</a></p></html>\n'
    ).encode()
    fields: list[Field] = [
        (b"Content-Type", b"text/html; charset=utf-8"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
        (b"Referrer-Policy", b"no-referrer"),
        (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
    ]
    return write_answer(200, b"OK", fields) + (b"" if head.method == b"HEAD" else body)


def wants_page(head: RequestHead) -> bool:
    """Say whether a browser is about to show the answer to somebody."""
    if head.method not in (b"GET", b"HEAD"):
        return False
    mode = head.first(b"sec-fetch-mode")
    return mode == b"navigate" if mode is not None else b"text/html" in (head.first(b"accept") or b"")


def _reason(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()


def _page(status: int, said: dict[str, str]) -> bytes:
    again = '<meta http-equiv="refresh" content="2">' if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    title, text = html.escape(HTTPStatus(status).phrase), html.escape(said["error"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{again}<title>{title}</title>'
        f"<h1>{status} {title}</h1><p>{text}</p></html>\n"
    ).encode("utf-8", "backslashreplace")


def _header_text(message: str) -> bytes:
    text = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in message)
    return text[:1000].encode("ascii", "replace")
