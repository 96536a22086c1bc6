"""The headers that keep pages private and scripts out."""

from starlette.responses import Response


def secure(response: Response, nonce: str | None = None) -> Response:
    """Give an answer the headers that it does not have yet; with a nonce it is a page that runs our scripts."""
    for name, value in _headers(nonce).items():
        response.headers.setdefault(name, value)
    return response


def _headers(nonce: str | None) -> dict[str, str]:
    return {
        "Content-Security-Policy": _page_policy(nonce) if nonce else "default-src 'none'; frame-ancestors 'none'",
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        # Not "no-referrer": with it, browsers hide the origin of our own forms.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Cache-Control": "private, no-store",
    }


def _page_policy(nonce: str) -> str:
    # Scripts by nonce and not 'self': files of buckets are on this origin too.
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'nonce-{nonce}'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types runstead",
        )
    )
