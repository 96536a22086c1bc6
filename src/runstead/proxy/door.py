"""A connection of the server: what is for ports of jobs goes there, the rest is served as ever.

A mixin over uvicorn's HTTP protocol (`own.py`). It looks at bytes only where a request begins; the decision is made
for each request anew, for clients use one connection for the server's own API and for ports of jobs.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from runstead.model.errors import Invalid, RunsteadError
from runstead.proxy import answers
from runstead.proxy.exchange import Exchange
from runstead.proxy.forwarding import TrustedProxies
from runstead.proxy.heads import MAX_HEAD_BYTES, BadMessage, Field, RequestHead
from runstead.proxy.own import OwnRequests
from runstead.proxy.tunnels import Tunnel
from runstead.services.exposure import PortError, Visit
from runstead.services.port_addresses import PortAddress

_BARE = re.compile(rb"(?<!\r)\n\r?\n|\n\n")
_TLS = b"\x16"
_BUFFERED_BYTES = 256 * 1024


class _Partner(Protocol):
    """What a connection is joined with while a request is not the server's own."""

    lasts: bool
    active_at: float

    def from_client(self, data: bytes) -> None: ...
    def client_eof(self) -> bool: ...
    def client_lost(self) -> None: ...
    def client_is_full(self, full: bool) -> None: ...
    def abort(self) -> None: ...
    def finish(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where a connection comes from."""

    client: tuple[str, int] | None
    passed_on: bool  # by a proxy that is trusted to say whose requests they are


@dataclass(frozen=True, slots=True)
class Found:
    """A request that is not for the server's own application. Without an address it is a CONNECT to ourselves."""

    head: RequestHead
    address: PortAddress | None
    host: str
    secure: bool
    client: str  # the address it came from


class Middle(Protocol):
    """What all connections share."""

    doors: "set[Door]"
    trusted: TrustedProxies

    def arrival(self, client: tuple[str, int] | None) -> Arrival:
        """Say where a connection from this address comes from."""
        ...

    def find(self, door: "Door", data: bytes, end: int) -> Found | None:
        """Say whom a request is for: None for the server itself. Raises BadMessage for one that is malformed."""
        ...

    def names_port(self, url: bytes, fields: list[tuple[bytes, bytes]]) -> bool:
        """Say whether a request is for a port, by what uvicorn read of it."""
        ...

    async def serve(self, door: "Door", found: Found, data: bytes) -> None:
        """Let a request in and send it where it belongs; `data` is its head. Raises the reasons why not."""
        ...

    def lost(self, exchange: Exchange) -> None:
        """Find out why a job did not answer, or send the request again on a fresh connection."""
        ...

    def report(self, error: Exception) -> None:
        """Log what should not have happened."""
        ...


class Door(OwnRequests):
    """One connection of a client."""

    def __init__(self, *arguments: Any, proxy: Middle, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.partner: _Partner | None = None
        self.visit: Visit | None = None  # of the request that is on its way
        self.waiting_since = self.loop.time()  # for the client to begin, or to go on with, a request
        self._proxy = proxy
        self._held = b""  # the beginning of a request
        self._deciding: asyncio.Task[None] | None = None
        self.answered_at = 0.0  # for the last time, if it lingers

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(cast("asyncio.Transport", transport))
        self.transport.set_write_buffer_limits(_BUFFERED_BYTES)
        arrived = self._proxy.arrival(self.client)
        self.client, self.passed_on = arrived.client, arrived.passed_on
        self._proxy.doors.add(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.partner is not None:
            self.partner.from_client(data)
        elif self._deciding is not None:
            self._held += data
            self.transport.pause_reading()
        elif self.lingers:
            self.waiting_since = self.loop.time()
        elif self.own and not (self.whole and self.answered):
            if self.answered:  # the rest of an upload: it is dropped
                self.waiting_since = self.loop.time()
            super().data_received(data)
        else:
            self._begin(self._held + data if self._held else data)

    def eof_received(self) -> Any:  # as asyncio has it; uvicorn never needs to say anything
        """See asyncio."""
        return self.partner.client_eof() if self.partner is not None else super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._proxy.doors.discard(self)
        if self._deciding is not None:
            self._deciding.cancel()
        partner, self.partner = self.partner, None
        if partner is not None:
            partner.client_lost()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio."""
        if self.partner is not None:
            self.partner.client_is_full(True)
        super().pause_writing()

    def resume_writing(self) -> None:
        """See asyncio."""
        if self.partner is not None:
            self.partner.client_is_full(False)
        super().resume_writing()

    def shutdown(self) -> None:
        """The server stops: let what is in hand end."""
        if self.partner is not None:
            self.partner.finish()
        elif self.lingers:
            self.transport.close()
        elif self._deciding is None:
            super().shutdown()

    # Where a request begins

    def _begin(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if not self._held:
            self.waiting_since = self.loop.time()
            if data[:2] == b"\r\n":
                data = data.lstrip(b"\r\n")
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._held = data
            if data[:1] == _TLS or _BARE.search(data):
                self._refuse(BadMessage("this is not HTTP/1.1"))
            elif len(data) > MAX_HEAD_BYTES:
                self._refuse(BadMessage(f"the head of a request has at most {MAX_HEAD_BYTES:,} bytes", 431))
            return
        self._held = b""
        try:
            found = self._proxy.find(self, data, end + 4)
        except BadMessage as error:
            self._refuse(error)
            return
        if found is None:
            self.serve_own(data)
            return
        self.own = False
        self._held = data[end + 4 :]
        self._decide(found, self._proxy.serve(self, found, data[: end + 4]))

    def _decide(self, found: Found, work: Awaitable[None]) -> None:
        async def decide() -> None:
            try:
                await work
            except RunsteadError as error:
                self.refuse(error, found.head)
            except BadMessage as error:
                self._deciding = None
                self._refuse(error)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self._proxy.report(error)
                self.refuse(RunsteadError("the server failed on this request; its log says why"), found.head)

        self._deciding = self.loop.create_task(decide())

    @property
    def secure(self) -> bool:
        """Whether the connection itself is encrypted."""
        return self.scheme == "https"

    # What a decision leads to. Each is the end of the deciding.

    def join(self, partner: _Partner, visit: Visit | None) -> bytes:
        """Join the connection with what the request goes to; return what came behind its head."""
        self._deciding = None
        self.partner = partner
        self.visit = visit
        early, self._held = self._held, b""
        if not self.transport.is_closing():
            self.transport.resume_reading()
        return early

    def serve_native(self, app: Callable[..., Awaitable[None]], visit: Visit, target: bytes, data: bytes) -> None:
        """Have an application of this server answer the request; `data` is its head."""
        self._deciding = None
        held, self._held = self._held, b""
        if not self.transport.is_closing():
            self.transport.resume_reading()
        self.serve_by(app, visit, target, data)  # the head alone: what follows may be another request
        if held:
            self.data_received(held)

    def answer(self, data: bytes, head: RequestHead) -> None:
        """Answer here, and go on with the connection if the request is whole."""
        self._deciding = None
        if self.transport.is_closing():
            return
        self.transport.resume_reading()
        self.transport.write(data)
        # What came of a body was not followed: better to begin anew.
        if self._has_body(head) or not head.keeps_alive or b"\r\nConnection: close\r\n" in data:
            self.linger()
        else:
            self._next(self._held)

    def refuse(self, error: RunsteadError, head: RequestHead | None) -> None:
        """Answer with an error."""
        close = head is None or self._has_body(head) or not head.keeps_alive
        data = answers.refusal(error, head, close=close)
        if head is None:
            self._deciding = None
            self.transport.write(data)
            self.linger()
        else:
            self.answer(data, head)

    def _has_body(self, head: RequestHead) -> bool:
        return head.first(b"content-length") not in (None, b"0") or head.first(b"transfer-encoding") is not None

    def _refuse(self, error: BadMessage) -> None:
        said = {"error": str(error), "cause": "request"}
        self.transport.write(answers.answer(error.status, said, None, close=True))
        self.linger()

    def linger(self) -> None:
        """Send no more, and read on for a while: what is unread when a connection is closed destroys the answer."""
        self._held = b""
        self.lingers, self.own = True, False
        self.answered_at = self.waiting_since = self.loop.time()
        if self.transport.is_closing():
            return
        self.transport.resume_reading()
        if self.transport.can_write_eof():  # not with TLS, where an end is an end of both directions
            self.transport.write_eof()

    def _next(self, rest: bytes) -> None:
        """Go on with the next request."""
        self._held = b""
        self.waiting_since = self.loop.time()
        if rest:
            self._begin(rest)

    @property
    def waits(self) -> bool:
        """Whether nothing is on its way: neither a request of the server's own nor one of a job."""
        return self.partner is None and self._deciding is None and not self.own

    @property
    def drops(self) -> bool:
        """Whether what is on its way is the rest of an upload that was answered, and nothing else."""
        return self.own and self.answered and not self.whole

    @property
    def began(self) -> bool:
        """Whether part of a head was received."""
        return bool(self._held)

    # What exchanges tell (exchange.Client)

    def exchange_is_over(self, rest: bytes, *, keep: bool, whole: bool) -> None:
        """See exchange.Client."""
        self.partner = self.visit = None
        if not keep and (rest or not whole):
            self.linger()
        elif not keep:
            self.transport.close()
        elif not self.transport.is_closing():
            self.transport.resume_reading()
            self._next(rest)

    def exchange_failed(self, error: PortError | BadMessage) -> None:
        """See exchange.Client."""
        exchange, self.partner, self.visit = self.partner, None, None
        head = exchange.head if isinstance(exchange, Exchange) else None
        refused = error if isinstance(error, RunsteadError) else Invalid(str(error))
        if not self.transport.is_closing():
            self.transport.write(answers.refusal(refused, head, close=True))
            self.linger()

    def exchange_lost(self, exchange: Exchange) -> None:
        """See exchange.Client."""
        self._proxy.lost(exchange)

    def becomes(self, tunnel: Tunnel) -> None:
        """See exchange.Client."""
        self.partner = tunnel

    # What uvicorn asks

    def names_port(self) -> bool:
        """See OwnRequests."""
        return self._proxy.names_port(self.url, self.headers)

    def origin(self, fields: list[Field]) -> tuple[str, bool]:
        """See OwnRequests."""
        client = self.client[0] if self.client is not None else "unknown"
        if not self.passed_on:
            return client, self.secure
        return self._proxy.trusted.origin(fields, client, secure=self.secure)
