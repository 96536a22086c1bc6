"""Where a request comes from and where it may be sent on to: this site, and nowhere else."""

import re
from urllib.parse import urlsplit

from starlette.requests import Request

from runstead.model.errors import Forbidden

START = "/"
_LONGEST = 2000
_PRINTABLE = re.compile(r"[!-~]+")


def safe_next(text: str | None) -> str:
    """Return where to go after signing in: a path of this site, or its start for anything else."""
    if not text or len(text) > _LONGEST or not _PRINTABLE.fullmatch(text):
        return START
    # Browsers read "\" as "/", and "//name" or "/\name" as the address of another host.
    if not text.startswith("/") or text.startswith("//") or "\\" in text:
        return START
    try:
        parts = urlsplit(text)
    except ValueError:
        return START
    if parts.scheme or parts.netloc or parts.path in ("/login", "/logout"):
        return START
    return text


def is_secure(request: Request, public_url: str | None) -> bool:
    """Say whether the browser reached this server by https, as far as can be known behind a proxy."""
    if request.url.scheme == "https":
        return True
    return public_url is not None and urlsplit(public_url)[:2] == ("https", request.headers.get("host"))


def base_url(request: Request, public_url: str | None) -> str:
    """Return the URL of this server as its users know it."""
    return public_url if public_url is not None else f"{request.url.scheme}://{request.url.netloc}"


def check_same_origin(request: Request, public_url: str | None) -> None:
    """Refuse a request that a page of another site sent. Raises Forbidden, also if the browser does not say."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        raise Forbidden("this form was sent by another site, so nothing was done")
    origin = request.headers.get("origin")
    if origin is None and site is None:
        raise Forbidden("the browser does not say which page sent this form, so nothing was done")
    if origin is not None and not _is_ours(origin, request, public_url):
        raise Forbidden(f"this form was sent by another site, so nothing was done: {origin[:100]}")


def _is_ours(origin: str, request: Request, public_url: str | None) -> bool:
    scheme, host, *_ = urlsplit(origin)
    if public_url is not None and (scheme, host) == urlsplit(public_url)[:2]:
        return True
    # A proxy may have taken the TLS off, but none puts it on.
    return host == request.headers.get("host") and scheme in ("https", request.url.scheme)
