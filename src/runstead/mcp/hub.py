"""What the operations need of the Hub's API, wherever it is.

There is one implementation of every operation, and it speaks the Hub's own words: paths, JSON and event streams. Who
carries them differs. `runstead mcp` sends them to any endpoint over HTTP (`remote.py`); the server's own `/mcp` hands
them to its application in the same process (`own.py`), so that an agent there is validated, authorized and refused
by the very code that serves every other client, and nothing is written twice. Only putting a file into a bucket is
the carrier's own business: a client uploads through Xet, the server stores what it has in memory already.
"""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

Query = Sequence[tuple[str, str]]

_EVENT = b"data: {"
# What has no route is answered without a reason, or, by the hosted Hub, with these; a job that is not there has one.
_UNKNOWN_ROUTE = (404, 405)
_HOSTED_UNKNOWN_ROUTE = ("Sorry, we can't find the page you are looking for.", "Not Found", "Method Not Allowed")
_NOT_IMPLEMENTED = 501


class HubError(Exception):
    """A request that was refused or could not be answered. Status 0: nobody could be reached.

    501: the endpoint does not have what was asked for, whatever status it said that with.
    """

    def __init__(self, status: int, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, read whole. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, or None if there is none. Raises HubError with the server's reason for an error."""
        if self.status >= 400:
            raise self._refusal()
        try:
            return json.loads(self.body) if self.body.strip() else None
        except ValueError as error:
            raise HubError(self.status, f"the answer is not JSON: {self.body[:200]!r}") from error

    def _refusal(self) -> HubError:
        reason = self._reason()
        if self.status in _UNKNOWN_ROUTE and (reason is None or reason in _HOSTED_UNKNOWN_ROUTE):
            return HubError(_NOT_IMPLEMENTED, "this endpoint does not have that operation")
        return HubError(self.status, reason or f"HTTP status {self.status}", self.headers.get("retry-after"))

    def _reason(self) -> str | None:
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("error"), str):  # pyright: ignore[reportUnknownMemberType]
            return found["error"]  # pyright: ignore[reportUnknownVariableType]
        return self.headers.get("x-error-message")


@dataclass(slots=True)
class Stream:
    """An answer that comes in pieces."""

    status: int
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes] = field(repr=False)


class Hub(ABC):
    """One endpoint as one caller sees it."""

    closing: asyncio.Event
    """Set when what waits shall answer with what it has."""
    endpoint: str
    """The URL that people use, without a slash at the end."""
    token: str
    """The caller's own, for jobs that ask for it. Never shown."""
    limits_pages = False
    """Whether lists may be asked for by length. The Hub decides that itself, and no client of it asks."""
    quiet_seconds: float
    """After how long a silence a log that is not over has been read up to the present."""

    @abstractmethod
    async def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Send a request; `path` holds the query. Raises HubError if there is no answer."""

    @abstractmethod
    def stream(self, path: str) -> AbstractAsyncContextManager[Stream]:
        """Send a GET whose answer is read as it comes. Raises HubError if there is no answer."""

    @abstractmethod
    async def store(self, bucket: str, path: str, data: bytes) -> None:
        """Put a file into a private bucket, which is made if it is not there. Raises HubError."""

    @abstractmethod
    def local_script(self, path: str) -> bytes | None:
        """Return a script that lies where the agent is; None if there is none, or this is not that place."""

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send a request and return the JSON of its answer. Raises HubError."""
        sent = None if body is None else json.dumps(body).encode()
        return (await self.request(method, with_query(path, query), sent, headers or {})).json()

    async def page(self, path: str, query: Query = ()) -> tuple[list[Any], str | None]:
        """Return a page of a list and the path of the next one. Raises HubError."""
        reply = await self.request("GET", with_query(path, query), None, {})
        return reply.json(), _next_path(reply.headers.get("link", ""))

    @asynccontextmanager
    async def events(self, path: str, query: Query = ()) -> AsyncGenerator[AsyncIterator[list[Any]]]:
        """Open an event stream; yields its events, as many at a time as came together. Raises HubError."""
        async with self.stream(with_query(path, query)) as stream:
            if stream.status >= 400:
                body = b"".join([piece async for piece in stream.pieces])
                Reply(stream.status, stream.headers, body).json()
            yield _events(stream.pieces)


def with_query(path: str, query: Query) -> str:
    """Return a path with its query."""
    return f"{path}?{urlencode(list(query))}" if query else path


def job_path(namespace: str, *parts: str, scheduled: bool = False) -> str:
    """Return the path of a namespace's jobs, or of what is below."""
    root = "/api/scheduled-jobs" if scheduled else "/api/jobs"
    return "/".join((root, *(quote(part, safe="") for part in (namespace, *parts))))


async def _events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[list[Any]]:
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        events = [json.loads(line[len(_EVENT) - 1 :]) for line in lines if line.startswith(_EVENT)]
        if events:
            yield events


def _next_path(link: str) -> str | None:
    """Return path and query of the next page, from a header as the Hub sends it."""
    for part in link.split(","):
        target, _, parameters = part.partition(";")
        if 'rel="next"' in parameters:
            url = urlsplit(target.strip().strip("<>"))
            return f"{url.path}?{url.query}" if url.query else url.path
    return None
