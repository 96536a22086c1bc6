"""What must not go on for ever: heads that never end, clients that do nothing, programs that do not answer."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from runstead.model.errors import NotFound
from runstead.model.jobs import Initiator, Job, JobSpec, Phase, Stage
from runstead.proxy import proxy as module
from runstead.proxy.door import Door
from runstead.proxy.gate import Admitted, Gate
from runstead.proxy.proxy import Proxy
from runstead.services.exposure import Exposure, Visit
from runstead.services.port_addresses import PortAddresses

JOB = "a" * 24
NOW = datetime(2026, 1, 1, tzinfo=UTC)
A_JOB = Job(
    *(1, JOB, "n", "alice", "user", "n", "alice", JobSpec(("x",), "f", docker_image="i"), Stage.RUNNING),
    *(Phase.RUNNING, None, NOW, Initiator("user", "n")),
)


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
    """In the place of the services: everybody may, until told otherwise."""

    port: int
    closed: bool = False

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


@dataclass
class Place:
    proxy: Proxy
    ways: Ways
    program: Program
    port: int

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
    del scope, receive
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    program = Program()
    job = await asyncio.start_server(program.serve, "127.0.0.1", 0)
    ways = Ways(job.sockets[0].getsockname()[1])
    proxy = Proxy(cast(Exposure, ways), cast(Gate, ways), PortAddresses(), 60)
    config = uvicorn.Config(application, log_config=None, lifespan="off", ws="none")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: Door(config, state, {}, proxy=proxy), "127.0.0.1", 0
    )
    async with server, job:
        yield Place(proxy, ways, program, server.sockets[0].getsockname()[1])


REQUEST = f"GET /jobs-proxy/{JOB}--8000.port/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def until(seen: Any) -> None:
    async with asyncio.timeout(10):
        while not seen():
            await asyncio.sleep(0.005)


async def test_a_head_that_never_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.client(b"GET / HTTP/1.1\r\nHost: x\r\nX: ") as (reader, _):
        await until(lambda: any(door.began for door in place.proxy.doors))
        await place.sweep()
        assert len(place.proxy.doors) == 1  # it has its time
        monkeypatch.setattr(module, "_HEAD_SECONDS", -1)
        await place.sweep()
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


async def test_a_connection_that_says_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.client(b"") as (reader, _):
        await until(lambda: place.proxy.doors)
        monkeypatch.setattr(module, "_IDLE_SECONDS", -1)
        await place.sweep()
        assert await reader.read() == b""


async def test_a_kept_connection_has_an_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.client(REQUEST * 2) as (reader, _):
        assert (await reader.readexactly(2 * 150))[:15] == b"HTTP/1.1 200 OK"
        await until(lambda: all(door.waits for door in place.proxy.doors))
        monkeypatch.setattr(module, "_IDLE_SECONDS", -1)
        await place.sweep()
        await reader.read()
        assert reader.at_eof()
    assert place.program.heads == 2


async def test_an_upload_that_stands_still(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.program.answer = b""
    data = REQUEST.replace(b"GET", b"POST").replace(b"Host", b"Content-Length: 10\r\nHost")
    async with place.client(data) as (reader, _):
        await until(lambda: place.program.heads)
        monkeypatch.setattr(module, "_STALLED_SECONDS", -1)
        await place.sweep()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await asyncio.wait_for(place.program.gone.wait(), 10)


async def test_a_client_that_does_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.program.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 50_000_000
    async with place.client(REQUEST):
        await until(lambda: any(getattr(door.partner, "client_full", False) for door in place.proxy.doors))
        monkeypatch.setattr(module, "_STALLED_SECONDS", -1)
        await place.sweep()
        await until(lambda: not place.proxy.doors)
        await asyncio.wait_for(place.program.gone.wait(), 10)


async def test_a_program_that_does_not_answer(place: Place) -> None:
    place.program.answer = b""
    async with place.client(REQUEST) as (reader, _):
        await until(lambda: place.program.heads)
        place.proxy._answer_seconds = -1  # pyright: ignore[reportPrivateUsage]
        await place.sweep()
        said = await reader.read()
        assert said.startswith(b"HTTP/1.1 504 ")
        assert b"X-Runstead-Cause: no-answer" in said


async def test_a_client_that_goes_is_missed_by_the_job(place: Place) -> None:
    """A long computation is not for nobody."""
    place.program.answer = b""
    async with place.client(REQUEST):
        await until(lambda: place.program.heads)
    await asyncio.wait_for(place.program.gone.wait(), 10)


async def test_what_lasts_is_checked_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.program.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun"
    async with place.client(REQUEST) as (reader, _):
        await reader.readuntil(b"begun")
        monkeypatch.setattr(module, "_RECHECK_SECONDS", -1)
        await place.sweep()
        assert place.proxy.doors
        place.ways.closed = True
        await place.sweep()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def test_connections_into_the_job_are_kept_and_given_back(place: Place) -> None:
    async with place.client(REQUEST) as (reader, writer):
        await reader.readuntil(b"ok")
        writer.write(REQUEST)
        await reader.readuntil(b"ok")
    assert place.program.heads == 2
    assert not place.program.gone.is_set()  # one connection served both
    monkey = pytest.MonkeyPatch()
    monkey.setattr("runstead.proxy.backends._IDLE_SECONDS", -1)
    await place.sweep()
    monkey.undo()
    await asyncio.wait_for(place.program.gone.wait(), 10)


async def test_a_kept_connection_that_died_costs_no_request(place: Place) -> None:
    async with place.client(REQUEST) as (reader, writer):
        await reader.readuntil(b"ok")
        place.program.answer = b""
        writer.write(REQUEST)
        await until(lambda: place.program.heads == 2)
        place.program.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain"
        for door in place.proxy.doors:
            exchange = cast(Any, door.partner)
            exchange._backend.transport.abort()
        assert b"again" in await reader.readuntil(b"again")
    assert place.program.heads == 3


async def test_the_servers_own_requests_are_served_as_ever(place: Place) -> None:
    async with place.client(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n" + REQUEST) as (reader, _):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        # It came in one piece with the other: it has to be sent again.
        assert (await reader.read()).startswith(b"HTTP/1.1 421 ")
