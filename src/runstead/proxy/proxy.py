"""What all connections share: who is let in, where requests go, and what must not go on for ever."""

import asyncio
import contextlib
import re
import socket
from dataclasses import dataclass

import structlog

from runstead.model.errors import RunsteadError
from runstead.proxy import answers
from runstead.proxy.backends import Backends, Connect, Key
from runstead.proxy.door import Arrival, Door, Found
from runstead.proxy.exchange import Exchange
from runstead.proxy.forwarding import TrustedProxies
from runstead.proxy.gate import Admitted, Elsewhere, Gate
from runstead.proxy.heads import BadMessage, RequestHead, read_request
from runstead.proxy.native import Native, Onward
from runstead.proxy.rewriting import Passage
from runstead.proxy.tunnels import Tunnel
from runstead.services.exposure import Exposure, PortError, Silent, Visit
from runstead.services.port_addresses import PREFIX, PortAddress, PortAddresses

log = structlog.get_logger()

_SWEEP_SECONDS = 1.0
_HEAD_SECONDS = 30.0  # from the first byte of a head to its last
_IDLE_SECONDS = 75.0  # until the next request begins
_LINGER_SECONDS = 5.0  # for the next piece of an upload that was answered already, on a connection that is to end
_LINGER_MOST_SECONDS = 30.0  # for all of it
_STALLED_SECONDS = 300.0  # of a client that neither sends what it announced nor reads what it asked for
_ARRIVAL_SECONDS = 120.0  # within which a connection to ourselves says something, or is dropped
_RECHECK_SECONDS = 30.0  # how often what lasts is checked again against tokens and ports

_PATH = PREFIX.encode()
_UNUSUAL = (_PATH, b"http://", b"https://", b"HTTP://", b"HTTPS://")
# Enough to tell most requests of the server's own apart without reading their heads.
_LOOKS_NAMED = re.compile(rb"\r\nhost:[ \t]*[0-9a-f]{24}--[0-9]", re.IGNORECASE)
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([^#]*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Connect:
    """A connection to ourselves that is on its way."""

    client: tuple[str, int] | None  # who asked for it
    since: float


class Proxy:
    """The ports of jobs, as far as HTTP is concerned."""

    def __init__(
        self,
        exposure: Exposure,
        gate: Gate,
        addresses: PortAddresses,
        answer_seconds: float,
        native: Native | None = None,
        own_hosts: frozenset[str] = frozenset(),
        trusted: TrustedProxies | None = None,
    ) -> None:
        self.doors: set[Door] = set()
        self._exposure = exposure
        self._gate = gate
        self._addresses = addresses
        self._answer_seconds = answer_seconds
        self._native = native
        self._own_hosts = own_hosts
        self.trusted = trusted or TrustedProxies()
        self._backends = Backends()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checked: dict[Door, float] = {}
        self._connects: dict[tuple[str, int], _Connect] = {}  # by the address under which they arrive here
        exposure.when_changed(self._ports_changed)

    # Which requests are for ports

    def arrival(self, client: tuple[str, int] | None) -> Arrival:
        """Say where a connection from this address comes from: a CONNECT to ourselves comes from who sent that."""
        through = self._connects.pop(client, None) if client is not None else None
        if through is not None:
            return Arrival(through.client, passed_on=False)
        return Arrival(client, passed_on=client is not None and client[0] in self.trusted)

    def find(self, door: Door, data: bytes, end: int) -> Found | None:
        """Say whom a request is for: None for the server itself. Raises BadMessage for one that is malformed."""
        blank = data.find(b" ", 0, 40) + 1
        if not data.startswith(_UNUSUAL, blank) and not _LOOKS_NAMED.search(data, 0, end) and data[:8] != b"CONNECT ":
            return None
        head = read_request(data, end)
        if head.method == b"CONNECT":
            return self._connect(head)
        host, target = head.host, head.target
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None:
            host, target = absolute[1], absolute[2] or b"/"
            target = target if target.startswith(b"/") else b"/" + target
        name = host.decode("latin-1")
        address = self._addresses.of_host(name, target.decode("latin-1"))
        address = address or self._addresses.of_target(target.decode("latin-1"))
        if address is not None:
            client, secure = door.origin(head.fields)
            return Found(head, address, name, secure, client)
        if absolute is not None and not self._is_own(name, door.transport):
            raise BadMessage(f"this server passes requests on to the ports of its jobs alone, not to {name[:100]}", 403)
        return None

    def names_port(self, url: bytes, fields: list[tuple[bytes, bytes]]) -> bool:
        """Say whether a request is for a port, by what uvicorn read of it."""
        if _PATH in url[:300]:
            return True
        host = next((value for name, value in fields if name == b"host"), b"")
        return b"--" in host and self._addresses.of_host(host.decode("latin-1"), "/") is not None

    def _connect(self, head: RequestHead) -> Found:
        host = head.target.decode("latin-1")
        if self._addresses.of_host(host, "/") is None:
            raise BadMessage(f"this server connects to the ports of its jobs alone, not to {host[:100]}", 403)
        return Found(head, None, host, secure=False, client="")

    def _is_own(self, name: str, transport: asyncio.Transport) -> bool:
        address = transport.get_extra_info("sockname")
        port = f":{address[1]}" if isinstance(address, tuple) else ""
        own = {f"{host}{port}" for host in ("localhost", "127.0.0.1", "[::1]")} | self._own_hosts
        return name.lower() in own or (isinstance(address, tuple) and name == f"{address[0]}{port}")

    # Where they go

    async def serve(self, door: Door, found: Found, data: bytes) -> None:
        """Let a request in and send it where it belongs; `data` is its head. Raises the reasons why not."""
        head, address = found.head, found.address
        if address is None:
            await self._join_ourselves(door)
            return
        body = head.body()
        outcome = await self._gate.admit(head, address, secure=found.secure)
        if isinstance(outcome, Elsewhere):
            door.answer(outcome.answer, head)
            return
        visit = outcome.visit
        onward = None
        if self._native is not None and self._native.serves(visit.job, visit.port):
            onward = await self._native.onward(visit, address.target, head.fields)
            if onward is None:
                door.serve_native(self._native.app, visit, address.target.encode("latin-1"), data)
                return
        passage = self._passage(found, outcome, address, onward)
        target = (onward.target if onward is not None else address.target).encode("latin-1")
        way = self._way(visit, onward)
        exchange = Exchange(door, head, body, target, passage, visit, self._backends, way)
        backend = await self._backends.take(*way)
        if door.transport.is_closing():
            backend.release()
            return
        exchange.begin(backend, b"")
        early = door.join(exchange, visit)
        if early:
            exchange.from_client(early)

    def _way(self, visit: Visit, onward: Onward | None) -> tuple[Key, Connect]:
        if onward is not None:
            return onward.key, onward.connect
        return (visit.job.id, str(visit.job.attempt), str(visit.port)), lambda: self._exposure.connect(visit)

    def _passage(self, found: Found, admitted: Admitted, address: PortAddress, onward: Onward | None) -> Passage:
        return Passage(
            prefix=address.prefix.encode("latin-1"),
            host=found.host.encode("latin-1"),
            scheme=b"https" if found.secure else b"http",
            client=found.client.encode(),
            authorized=admitted.authorized or onward is not None,
            without=onward.without if onward is not None else frozenset(),
            crossing=admitted.crossing,
        )

    async def _join_ourselves(self, door: Door) -> None:
        """Answer a CONNECT by a way to where this very server listens, which knows TLS and every host's name."""
        host, port = door.transport.get_extra_info("sockname")[:2]
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        made.setblocking(False)
        made.bind((host, 0))
        own = made.getsockname()[:2]
        self._connects[own] = _Connect(door.client, self._now())  # before it arrives: it must not count as our own
        backend = await self._backends.open(made, (host, port))
        door.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        tunnel = Tunnel(door.transport, backend)
        early = door.join(tunnel, None)
        if early:
            tunnel.from_client(early)

    # What goes wrong

    def lost(self, exchange: Exchange) -> None:
        """Find out why a job did not answer, or send the request again on a fresh connection."""
        self._keep(asyncio.get_running_loop().create_task(self._after_loss(exchange)))

    async def _after_loss(self, exchange: Exchange) -> None:
        if exchange.replayable:
            try:
                backend = await self._backends.take(*exchange.way, fresh=True)
            except PortError:
                pass  # it went away altogether
            else:
                if exchange.gone:
                    backend.release()
                else:
                    exchange.begin(backend, b"")
                return
        exchange.give_up(await self._exposure.blame(exchange.visit))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def report(self, error: Exception) -> None:
        """Log what should not have happened."""
        log.error("a request to a port failed unexpectedly", exc_info=error)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What must not go on for ever

    async def run(self) -> None:
        """Look after all connections, for ever."""
        try:
            while True:
                await asyncio.sleep(_SWEEP_SECONDS)
                await self.run_once()
        finally:
            self._backends.close()

    async def run_once(self) -> None:
        """Close what waited too long, and end what may not go on: its token is revoked, its port closed."""
        now = self._now()
        self._backends.sweep()
        for own in [own for own, one in self._connects.items() if now - one.since > _ARRIVAL_SECONDS]:
            del self._connects[own]
        for door in list(self.doors):
            self._look_at(door, now)
        for door in [door for door in self._checked if door not in self.doors or door.visit is None]:
            del self._checked[door]
        for door in list(self.doors):
            if door.visit is not None:
                await self._recheck(door, now)

    def _look_at(self, door: Door, now: float) -> None:
        partner = door.partner
        if isinstance(partner, Exchange):
            idle = now - partner.active_at
            if (partner.uploading or partner.client_full) and idle > _STALLED_SECONDS:
                partner.abort()
            elif not partner.answering and not partner.uploading and idle > self._answer_seconds:
                message = f"the program in the job did not answer within {self._answer_seconds:g} s"
                partner.give_up(Silent(message, "no-answer"))
        elif door.lingers:
            if now - door.waiting_since > _LINGER_SECONDS or now - door.answered_at > _LINGER_MOST_SECONDS:
                door.transport.close()
        elif door.drops:
            if now - door.waiting_since > _STALLED_SECONDS:
                door.transport.close()
        elif door.waits:
            waited = now - door.waiting_since
            if waited > (_HEAD_SECONDS if door.began else _IDLE_SECONDS):
                if door.began:
                    said = {"error": "the request did not arrive in time", "cause": "request"}
                    door.transport.write(answers.answer(408, said, None, close=True))
                door.transport.close()

    def _ports_changed(self, job_id: str) -> None:
        for door in self.doors:
            if door.visit is not None and door.visit.job.id == job_id:
                self._checked[door] = -_RECHECK_SECONDS
                self._keep(asyncio.get_running_loop().create_task(self._recheck(door, self._now())))

    async def _recheck(self, door: Door, now: float) -> None:
        """Look again at who was let in, as soon as the job's ports change and every now and then."""
        visit = door.visit
        if visit is None or now - self._checked.setdefault(door, now) < _RECHECK_SECONDS:
            return
        self._checked[door] = now
        try:
            await self._exposure.visit(visit.job.id, visit.port, visit.token_digest)
        except RunsteadError:
            if door.visit is visit and door.partner is not None:
                with contextlib.suppress(RuntimeError):
                    door.partner.abort()
