"""What must not go on for ever: heads that never end, clients that do nothing, programs that do not answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import pytest

import proxy_place
from proxy_place import REQUEST, Program, until
from runstead.proxy import proxy as module


@dataclass
class Place(proxy_place.Place):
    program: Program


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    program = Program()
    job = await asyncio.start_server(program.serve, "127.0.0.1", 0)
    async with job, proxy_place.proxy_to(job.sockets[0].getsockname()[1]) as place:
        yield Place(place.proxy, place.ways, place.port, program)


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
