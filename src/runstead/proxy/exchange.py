"""One request on its way into a job, and its answer on the way back.

Heads are read and rewritten; of bodies only the framing is followed. Neither side is read faster than the other one
takes. All of it happens in callbacks of the event loop: a task for each piece of a body would cost more than the piece.
"""

import asyncio
import contextlib
import socket
import struct
from typing import Protocol

from runstead.proxy.backends import Backend, Backends, Connect, Key
from runstead.proxy.framing import Endless, Scanner, scanner
from runstead.proxy.heads import (
    MAX_HEAD_BYTES,
    AnswerHead,
    BadMessage,
    Framing,
    RequestHead,
    read_answer,
    write_answer,
    write_request,
)
from runstead.proxy.rewriting import Passage, for_client, for_job
from runstead.proxy.tunnels import Tunnel
from runstead.services.exposure import Gone, PortError, Visit

_REPLAYABLE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))
_SWITCHING = 101
_RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: do not end the connection, reset it."""


class Client(Protocol):
    """The client's connection, as an exchange needs it."""

    transport: asyncio.Transport

    def exchange_is_over(self, rest: bytes, *, keep: bool, whole: bool) -> None:
        """Go on with what came behind the request; without `keep` end the connection.

        `whole`: the request was received to its end. It was, if the connection is kept.
        """
        ...

    def exchange_failed(self, error: PortError | BadMessage) -> None:
        """Answer with an error; nothing was answered yet."""
        ...

    def exchange_lost(self, exchange: "Exchange") -> None:
        """The job let go of the connection without an answer: find out why, or try again if it is `replayable`."""
        ...

    def becomes(self, tunnel: Tunnel) -> None:
        """The rest of the connection is a tunnel."""
        ...


class Exchange:
    """A request and its answer."""

    lasts = False  # it ends by itself, sooner or later

    def __init__(
        self,
        client: Client,
        head: RequestHead,
        body: tuple[Framing, int],
        target: bytes,
        passage: Passage,
        visit: Visit,
        backends: Backends,
        way: tuple[Key, Connect],
    ) -> None:
        self.visit = visit
        self.way = way  # into the job
        self.head = head
        self.began_at = self.active_at = asyncio.get_running_loop().time()
        self.answering = False  # the final head of the answer was sent
        self.client_full = False
        self.gone = False  # the client is
        self._client = client
        self._passage = passage
        self._target = target
        self._framing = body[0]
        self._up: Scanner = scanner(*body)
        self._down: Scanner | None = None
        self._backends = backends
        self._backend: Backend | None = None
        self._buffer = b""  # the beginning of the answer's head
        self._rest = b""  # what the client sent behind the request
        self._sent_body = False
        self._keep_client = head.keeps_alive
        self._keep_backend = False
        self._loop = asyncio.get_running_loop()

    @property
    def replayable(self) -> bool:
        """Whether the request may be sent again: it did nothing, or nothing came of it."""
        return (
            self._backend is not None
            and self._backend.used
            and self.head.method in _REPLAYABLE
            and not self._sent_body
            and not self._buffer
        )

    @property
    def uploading(self) -> bool:
        """Whether the client has not sent all of the request."""
        return not self._up.done

    def begin(self, backend: Backend, early: bytes) -> None:
        """Send the request; `early` is what came of the body with its head."""
        self._backend = backend
        backend.user = self
        if not self._rest:
            self._hold_client(False)
        fields = for_job(self.head, self._passage, self._framing)
        backend.transport.write(write_request(self.head.method, self._target, self.head.minor, fields))
        if early:
            self.from_client(early)

    def from_client(self, data: bytes) -> None:
        """Take what the client sent."""
        self.active_at = self._loop.time()
        if self._up.done:
            self._set_aside(data)
            return
        try:
            size = self._up.feed(data)
        except BadMessage as error:
            self._fail(error)
            return
        if self._backend is not None:  # else the answer is whole, and nobody wants the rest
            self._sent_body = True
            self._backend.transport.write(data if size == len(data) else data[:size])
        if size < len(data):
            self._set_aside(data[size:])
        if self._up.done and self._backend is None:
            self._over()

    def from_job(self, data: bytes) -> None:
        """See backends.User."""
        self.active_at = self._loop.time()
        if self._down is None:
            self._buffer += data
            while self._down is None:
                end = self._buffer.find(b"\r\n\r\n")
                if end < 0:
                    if len(self._buffer) > MAX_HEAD_BYTES:
                        self._bad_answer(BadMessage("the head of the answer is too long"))
                    return
                whole, self._buffer = self._buffer, b""
                try:
                    rest = self._head(whole, end + 4)
                except BadMessage as error:
                    self._bad_answer(error)
                    return
                if rest is None:
                    return
                if self._down is None:
                    self._buffer = rest
                else:
                    data = rest
        self._body(data)

    def _head(self, data: bytes, end: int) -> bytes | None:
        """Take a head of an answer; return what follows it, None after a change of protocols. Raises BadMessage."""
        answer = read_answer(data, end)
        rest = data[end:]
        if answer.status == _SWITCHING:
            self._switch(answer, rest)
            return None
        if answer.status < 200:
            if self.head.minor:
                fields = for_client(answer, self._passage, Framing.NONE)
                self._client.transport.write(write_answer(answer.status, answer.reason, fields))
            return rest
        framing, length = answer.body_after(self.head.method)
        if framing is Framing.CHUNKED and not self.head.minor:
            raise BadMessage("the answer to a request of HTTP/1.0 is chunked")
        self._down = scanner(framing, length)
        self._keep_backend = answer.keeps_alive and framing is not Framing.CLOSE
        self._keep_client = self._keep_client and framing is not Framing.CLOSE
        # To HEAD and in 304 the coding tells what there would be.
        told = Framing.CHUNKED if answer.first(b"transfer-encoding") and self.head.minor else framing
        fields = for_client(answer, self._passage, told)
        if not self._keep_client:
            fields.append((b"Connection", b"close"))
        elif not self.head.minor:
            fields.append((b"Connection", b"keep-alive"))
        self.answering = True
        self._client.transport.write(write_answer(answer.status, answer.reason, fields))
        return rest

    def _body(self, data: bytes) -> None:
        down = self._down
        if down is None:
            return
        if data:
            try:
                size = down.feed(data)
            except BadMessage:
                self._cut()
                return
            if size < len(data):  # more than there should be
                self._keep_backend = False
                data = data[:size]
            self._client.transport.write(data)
        if down.done:
            self._answered()

    def _answered(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            if self._keep_backend and self._up.done:
                self._backends.keep(backend)
            else:
                backend.release()
        if self._up.done or not self._keep_client:
            self._over()
        else:  # what is still coming is read and dropped, or the client could not read the answer
            self._hold_client(False)

    def _over(self) -> None:
        self._client.exchange_is_over(self._rest, keep=self._keep_client, whole=self._up.done)

    def _switch(self, answer: AnswerHead, rest: bytes) -> None:
        upgrade = self.head.upgrade
        if upgrade is None or upgrade.lower() == b"h2c" or not self._up.done or self._backend is None:
            raise BadMessage("the program changes to a protocol that nobody asked for")
        protocol = answer.first(b"upgrade") or upgrade
        fields = for_client(answer, self._passage, Framing.NONE)
        fields += ((b"Connection", b"Upgrade"), (b"Upgrade", protocol))
        self._client.transport.write(write_answer(_SWITCHING, answer.reason or b"Switching Protocols", fields))
        backend, self._backend = self._backend, None
        tunnel = Tunnel(self._client.transport, backend)
        early, self._rest = self._rest, b""
        self._client.becomes(tunnel)
        if rest:
            tunnel.from_job(rest)
        if early:
            tunnel.from_client(early)
            self._hold_client(False)

    # Ends of connections

    def client_eof(self) -> bool:
        """The client has closed: nobody waits for the answer."""
        return False

    def client_lost(self) -> None:
        """The client is gone, and the job shall notice."""
        self.gone = True
        self._let_go()

    def job_eof(self) -> bool:
        """See backends.User."""
        if self._framing_ends_with_connection():
            self._keep_backend = False
            self._answered()
        return False

    def job_lost(self, error: Exception | None) -> None:
        """See backends.User."""
        if self._framing_ends_with_connection() and error is None:
            self._backend = None
            self._answered()
        elif self.answering:
            self._backend = None
            self._cut()
        else:
            self._hold_client(True)  # until it is known what becomes of the request
            self._client.exchange_lost(self)

    def _framing_ends_with_connection(self) -> bool:
        return isinstance(self._down, Endless) and self._backend is not None

    def client_is_full(self, full: bool) -> None:
        """What was sent to the client waits to be read there, or no longer."""
        self.client_full = full
        self.active_at = self._loop.time()
        if self._backend is not None and not self._backend.transport.is_closing():
            if full:
                self._backend.transport.pause_reading()
            else:
                self._backend.transport.resume_reading()

    def job_is_full(self, full: bool) -> None:
        """See backends.User."""
        if not self._rest:
            self._hold_client(full)

    def abort(self) -> None:
        """End it at once."""
        self._client.transport.abort()

    def finish(self) -> None:
        """The server stops: this is the last exchange on its connection."""
        self._keep_client = False

    def give_up(self, error: PortError | BadMessage) -> None:
        """Answer with an error, or cut off what was begun."""
        self._fail(error)

    def _bad_answer(self, error: BadMessage) -> None:
        self._fail(Gone(f"the program in the job does not answer in HTTP/1.1: {error}", "bad-answer"))

    def _fail(self, error: PortError | BadMessage) -> None:
        self._let_go()
        if self.answering:
            self._cut()
        else:
            self._client.exchange_failed(error)

    def _cut(self) -> None:
        """End an answer that was begun, so that the client can tell that it is not whole."""
        self._let_go()
        if isinstance(self._down, Endless):  # an ordinary end would say that it is whole
            connection = self._client.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._client.transport.abort()
        else:
            self._client.transport.close()

    def _let_go(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.release()

    def _set_aside(self, data: bytes) -> None:
        self._rest += data
        self._hold_client(True)

    def _hold_client(self, hold: bool) -> None:
        transport = self._client.transport
        if not transport.is_closing():
            if hold:
                transport.pause_reading()
            else:
                transport.resume_reading()
