"""HTTP for a program that must stay small: kept connections, bounded waits, repeated where that is safe.

What a program reading a file sees of a store that fails is one thing: an OSError within the time that was allowed.
"""

import errno
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KEPT = 16  # idle connections per origin
_CONNECT_SECONDS = 5.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 3.0
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_LARGEST_JSON = 64 << 20

Response = http.client.HTTPResponse


class Refused(OSError):
    """The server answered, and the answer is no; `status` is the HTTP status, errno what a program is told."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(_NUMBERS.get(status, errno.EIO), f"HTTP {status}: {text}")
        self.status = status


_NUMBERS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 413: errno.EFBIG, 507: errno.ENOSPC}


class Transient(OSError):
    """The same request may succeed later."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EIO, text)


class Web:
    """Requests to any number of origins."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds  # how long a connection may say nothing
        self._lock = threading.Lock()
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}

    def open(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> "Exchange":
        """Send a request and return its exchange, 2xx answered. Raises Refused and Transient."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        for fresh in (False, True):
            connection = None if fresh else self._take(origin)
            reused = connection is not None
            if connection is None:
                connection = self._connect(parts.scheme, parts.netloc)
            try:
                connection.request(method, target, body, dict(headers))
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if reused and not isinstance(error, TimeoutError):
                    continue  # the server had closed it meanwhile
                raise Transient(f"{method} {origin}{parts.path}: {_words(error)}") from error
            exchange = Exchange(self, origin, connection, response)
            if 200 <= response.status < 300:
                return exchange
            text = exchange.refusal()
            if response.status in _TRANSIENT:
                raise Transient(f"{method} {origin}{parts.path}: HTTP {response.status}: {text}")
            raise Refused(response.status, text)
        raise Transient(f"{method} {origin}{parts.path}: the server closes its connections")

    def json(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> "Any":
        """Return the JSON of an answer."""
        return self.json_and_headers(method, url, headers, body)[0]

    def json_and_headers(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> "tuple[Any, Mapping[str, str]]":
        """Return the JSON of an answer, and its headers."""
        exchange = self.open(method, url, headers, body)
        data = exchange.rest(_LARGEST_JSON)
        try:
            return json.loads(data), {n.lower(): v for n, v in exchange.response.headers.items()}
        except ValueError as error:
            raise Transient(f"{method} {url.partition('?')[0]}: not JSON: {data[:80]!r}") from error

    def keep(self, origin: str, connection: http.client.HTTPConnection) -> None:
        """Take a connection back for the next request."""
        with self._lock:
            idle = self._idle.setdefault(origin, [])
            if len(idle) < _KEPT:
                idle.append(connection)
                return
        connection.close()

    def _take(self, origin: str) -> http.client.HTTPConnection | None:
        with self._lock:
            idle = self._idle.get(origin)
            return idle.pop() if idle else None

    def _connect(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        connection = kind(netloc, timeout=min(_CONNECT_SECONDS, self._stall_seconds))
        try:
            connection.connect()
        except OSError as error:
            raise Transient(f"{scheme}://{netloc}: {_words(error)}") from error
        connection.sock.settimeout(self._stall_seconds)
        return connection


class Exchange:
    """A request that was answered with success; read it to its end, or close it."""

    def __init__(self, web: Web, origin: str, connection: http.client.HTTPConnection, response: Response) -> None:
        self._web = web
        self._origin = origin
        self._connection = connection
        self.response = response

    def read_into(self, view: memoryview) -> int:
        """Read some bytes; 0 at the end. Raises Transient."""
        try:
            return self.response.readinto(view)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Transient(f"{self._origin}: {_words(error)}") from error

    def patience(self, seconds: float) -> None:
        """Allow this connection to say nothing for so long."""
        if self._connection.sock is not None:  # type: ignore[reportUnnecessaryComparison] - closed at once
            self._connection.sock.settimeout(seconds)

    def line(self) -> bytes:
        """Read one line; empty at the end. Raises Transient."""
        try:
            return self.response.readline(1 << 20)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Transient(f"{self._origin}: {_words(error)}") from error

    def rest(self, most: int) -> bytes:
        """Read the whole answer. Raises Transient."""
        try:
            data = self.response.read(most + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Transient(f"{self._origin}: {_words(error)}") from error
        if len(data) > most:
            self.close()
            raise Transient(f"{self._origin}: the answer is larger than {most} bytes")
        self.done()
        return data

    def refusal(self) -> str:
        """Read an answer that is an error, and return its words."""
        said = self.response.headers.get("X-Error-Message")
        try:
            data = self.rest(1 << 16)
        except OSError:
            data = b""
        return said or data[:200].decode("utf-8", "replace")

    def done(self) -> None:
        """Give the connection back, if it can be used again."""
        if self.response.isclosed() and not self.response.will_close:
            self._web.keep(self._origin, self._connection)
        else:
            self.close()

    def close(self) -> None:
        """Stop reading."""
        self._connection.close()


def persist(attempt: "Callable[[], Any]", within_seconds: float) -> "Any":
    """Return what `attempt` returns, repeating it while it raises Transient and there is time."""
    until = time.monotonic() + within_seconds
    pause = _FIRST_PAUSE
    while True:
        try:
            return attempt()
        except Transient:
            if time.monotonic() + pause > until:
                raise
        time.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 - not a secret
        pause = min(pause * 2, _LONGEST_PAUSE)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
