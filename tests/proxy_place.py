"""A proxy, with a program behind it and clients in front of it, all in the event loop of the test.

What a server knows of jobs, tokens and ports is left out: everybody may, until told otherwise.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from runstead.model.errors import NotFound
from runstead.model.jobs import Initiator, Job, JobSpec, Phase, Stage
from runstead.proxy.door import Door
from runstead.proxy.forwarding import TrustedProxies
from runstead.proxy.gate import Admitted, Gate
from runstead.proxy.proxy import Proxy
from runstead.services.exposure import Exposure, Gone, Onward, Visit
from runstead.services.port_addresses import PortAddresses

JOB = "a" * 24
NOW = datetime(2026, 1, 1, tzinfo=UTC)
A_JOB = Job(
    *(1, JOB, "n", "alice", "user", "n", "alice", JobSpec(("x",), "f", docker_image="i"), Stage.RUNNING),
    *(Phase.RUNNING, None, NOW, Initiator("user", "n")),
)
TARGET = f"/jobs-proxy/{JOB}--8000.port/"
REQUEST = f"GET {TARGET} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def upload(length: int) -> bytes:
    """Return the head of a request with a body."""
    return f"POST {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


@dataclass
class Program:
    """What runs in the job: it answers with what it is told to, and notes who went."""

    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    heads: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                self.heads += 1
                writer.write(self.answer)
        self.gone.set()
        writer.close()


@dataclass
class Ways:
    """In the place of the services."""

    port: int
    closed: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # who is to blame
    known: asyncio.Event = field(default_factory=asyncio.Event)

    def when_changed(self, tell: Any) -> None: ...

    async def visit(self, job_id: str, port: int, token_digest: bytes | None) -> Visit:
        if self.closed:
            raise NotFound("closed meanwhile")
        return Visit(A_JOB, port, None, token_digest)

    async def connect(self, visit: Visit, port: int | None = None) -> socket.socket:
        del visit, port
        made = socket.socket()
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.port))
        return made

    async def admit(self, head: Any, address: Any, *, secure: bool) -> Admitted:
        del head, secure
        return Admitted(await self.visit(address.job_id, address.port, None), False, False)

    async def blame(self, visit: Visit) -> Gone:
        del visit
        self.asked.set()
        await self.known.wait()
        return Gone("the program in the job closed the connection", "connection-lost")


@dataclass
class Place:
    proxy: Proxy
    ways: Ways
    port: int

    @property
    def door(self) -> Door:
        [door] = self.proxy.doors
        return door

    @contextlib.asynccontextmanager
    async def client(self, data: bytes) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def sweep(self) -> None:
        await asyncio.sleep(0)
        await self.proxy.run_once()


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The server's own pages: they answer before they read, and end the connection at `/last`."""
    del receive
    fields = [(b"content-length", b"0"), *([(b"connection", b"close")] if scope["path"] == "/last" else [])]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body"})


class Served:
    """What serves a port in place of the job."""

    app = staticmethod(application)

    def serves(self, job: Job, port: int) -> bool:
        del job
        return port == 9000

    async def onward(self, visit: Visit, target: str, fields: list[tuple[bytes, bytes]]) -> Onward | None:
        del visit, target, fields
        return None


@contextlib.asynccontextmanager
async def proxy_to(port: int, trusted: TrustedProxies | None = None) -> AsyncGenerator[Place]:
    """Serve with a proxy to what listens there; port 9000 is served by `application` in place of the job."""
    ways = Ways(port)
    proxy = Proxy(cast(Exposure, ways), cast(Gate, ways), PortAddresses(), 60, native=Served(), trusted=trusted)
    config = uvicorn.Config(application, log_config=None, lifespan="off", ws="none")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: Door(config, state, {}, proxy=proxy), "127.0.0.1", 0
    )
    async with server:
        yield Place(proxy, ways, server.sockets[0].getsockname()[1])


async def until(seen: Any) -> None:
    async with asyncio.timeout(20):
        while not seen():
            await asyncio.sleep(0.005)
