"""Large request bodies, taken straight off the socket by a thread.

An event loop costs more to receive a xorb than all the checking of it: every piece is read, parsed, copied and
handed over. `BodyProtocol` is uvicorn's HTTP protocol with one addition: once the headers of a request with a
length are parsed, its endpoint may ask for a `DirectBody`. The loop then leaves the connection alone until the body
has been read to its last byte, and goes on with the next request as if nothing had been. Where that is not possible
(TLS, a chunked body, `Expect`, another HTTP server) there is none, and the body comes the ordinary way.
"""

import os
import select
import socket
from collections.abc import Iterator
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

EXTENSION = "runstead.direct_body"
_BUFFER_BYTES = 512 * 1024
"""Small enough that what is received is still in the processor's cache when it is hashed and written."""
_LOOK_UP_MILLISECONDS = 1000
_PATIENCE_SECONDS = 120


class BodyLost(Exception):
    """The connection ended, or stood still for too long, before the body was whole."""


class DirectBody:
    """The body of one request. All methods but `give_up` and `release` belong to one thread, which they block."""

    def __init__(self, descriptor: int, first: bytearray, length: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._first = first
        self._left = length - len(first)
        self._given_up = False

    @property
    def is_whole(self) -> bool:
        """Whether all of it was read."""
        return self._left == 0

    def pieces(self) -> Iterator[memoryview]:
        """Yield the body; each piece is valid until the next one is asked for. Raises BodyLost."""
        if self._first:
            yield memoryview(self._first)
        buffer = memoryview(bytearray(min(_BUFFER_BYTES, max(self._left, 1))))
        while self._left:
            yield self._fill(buffer[: min(self._left, len(buffer))])

    def drain(self) -> None:
        """Read what is left and drop it, so that the client gets to read the answer. Raises BodyLost."""
        for _ in self.pieces():
            pass

    def give_up(self) -> None:
        """Make the thread raise BodyLost soon."""
        self._given_up = True

    def release(self) -> None:
        """Let go of the connection."""
        self._await_at_least(1)
        self._socket.close()

    def _fill(self, view: memoryview) -> memoryview:
        filled = 0
        while filled < len(view):
            try:
                count = self._socket.recv_into(view[filled:])
            except BlockingIOError:
                self._await_at_least(len(view) - filled)
                self._wait()
                continue
            except OSError as error:
                raise BodyLost from error
            if count == 0:
                raise BodyLost
            filled += count
        self._left -= filled
        return view

    def _await_at_least(self, size: int) -> None:
        """Be woken once so many bytes are there, not with every packet."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _wait(self) -> None:
        for _ in range(_PATIENCE_SECONDS):
            if self._poll.poll(_LOOK_UP_MILLISECONDS):
                return
            if self._given_up:
                raise BodyLost
            # The window may be too small for what was asked for.
            self._await_at_least(1)
        raise BodyLost


class BodyProtocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, and direct bodies."""

    def on_headers_complete(self) -> None:
        """Offer a direct body to whoever serves the request."""
        cast("dict[str, Any]", self.scope)["extensions"] = {EXTENSION: self}
        super().on_headers_complete()

    def take(self, scope: Scope, length: int) -> DirectBody | None:
        """Return the body of the request in hand, which has that length; None if it has to come the ordinary way."""
        cycle = self.cycle
        if (
            cast("Any", cycle.scope) is not scope
            or self.scheme != "http"
            or not cycle.more_body
            or cycle.waiting_for_100_continue
            or cycle.disconnected
            or self.transport.is_closing()
        ):
            return None
        self.flow.pause_reading()
        first, cycle.body = cycle.body, bytearray()
        return DirectBody(os.dup(self.transport.get_extra_info("socket").fileno()), first, length)

    def give_back(self, body: DirectBody) -> None:
        """Go on with the connection after a body: to the answer if it was read whole, else to its end."""
        body.release()
        if not body.is_whole or self.transport.is_closing():
            self.transport.abort()
            return
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.cycle.more_body = False
