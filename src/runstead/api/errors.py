"""The one table from errors to HTTP, in the Hub's form: status, `X-Error-Code`, `X-Error-Message`, JSON `error`.

huggingface_hub 2.4.0 shows the header and the body's `error`, and nothing of FastAPI's own form (wire-jobs §2.2).
"""

from collections.abc import Mapping
from typing import Any, cast

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from runstead.model.errors import (
    BackendFailure,
    Conflict,
    ContentDamaged,
    Forbidden,
    Invalid,
    NotFound,
    OverBudget,
    RepoHidden,
    RepoNotFound,
    RunsteadError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

log = structlog.get_logger()

STATUS: Mapping[type[RunsteadError], int] = {
    Invalid: 400,
    Unauthenticated: 401,
    OverBudget: 402,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    ContentDamaged: 410,  # not a 500: clients repeat those for minutes
    TooLarge: 413,
    BackendFailure: 500,
    Unsupported: 501,
    Unavailable: 503,
}
# Codes that clients act on; elsewhere the name of the class serves.
CODES: Mapping[type[RunsteadError], str] = {RepoHidden: RepoNotFound.__name__}
_LONGEST_HEADER = 1000


def status_of(error: RunsteadError) -> int:
    """Return the status for an error, that of its nearest class in the table."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def code_of(error: RunsteadError) -> str:
    """Return the code for an error."""
    return CODES.get(type(error), type(error).__name__)


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error in the Hub's form."""
    text = message.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair cannot be sent
    return JSONResponse(
        {"error": text},
        status,
        {"X-Error-Code": code, "X-Error-Message": _header_text(message), **(headers or {})},
    )


def install(app: FastAPI) -> None:
    """Make every error of the application answer in the Hub's form."""

    @app.exception_handler(RunsteadError)
    async def expected(_: Request, error: RunsteadError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        headers: dict[str, str] = {}
        if isinstance(error, Unauthenticated):
            headers["WWW-Authenticate"] = 'Bearer realm="Runstead"'
        if isinstance(error, Unavailable):
            headers["Retry-After"] = str(error.retry_after_seconds)
        return error_response(status_of(error), code_of(error), error.message, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return error_response(400, Invalid.__name__, "; ".join(_complaints(error)))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        if error.status_code == 400 and error.__cause__ is not None:
            return error_response(400, Invalid.__name__, _unreadable(error.__cause__))
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        if error.status_code == 404:
            message += "; this server has no such address"
        return error_response(error.status_code, "HttpError", message, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        log.error("a request failed unexpectedly", method=request.method, path=request.url.path, exc_info=error)
        return error_response(500, "InternalError", "the server failed on this request; its log says why")


def _complaints(error: RequestValidationError) -> list[str]:
    complaints: list[str] = []
    for one in cast("list[dict[str, Any]]", error.errors())[:5]:
        where = [str(part)[:60] for part in one["loc"] if part not in ("body", "query", "path", "header")]
        if one["type"] == "json_invalid":
            complaints.append(f"the body is not valid JSON: {one.get('ctx', {}).get('error', one['msg'])}")
        elif not where and one["type"] in ("model_attributes_type", "missing"):
            complaints.append("the body should be a JSON object, sent with Content-Type: application/json")
        else:
            complaints.append(f"{'.'.join(where) or 'body'}: {one['msg'].removeprefix('Value error, ')}")
    return list(dict.fromkeys(complaints))


def _unreadable(cause: BaseException) -> str:
    """Say why a body could not even be parsed."""
    match cause:
        case UnicodeDecodeError():
            return f"the body is not valid JSON: {cause.reason} at byte {cause.start}; JSON is sent as UTF-8"
        case RecursionError():
            return "the body is not a request of this address: it is nested too deeply"
        case ValueError():
            return f"the body is not valid JSON: {cause}"
        case _:
            return "the body could not be read"


def _header_text(message: str) -> str:
    """Return a message as a header may carry it: in one line of ASCII, without control characters."""
    text = message.replace("\r", " ").replace("\n", " ")
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text)
    return text[:_LONGEST_HEADER]
