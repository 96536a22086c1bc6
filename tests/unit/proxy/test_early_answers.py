"""Answers before the end of an upload: none is lost, whoever closes first and whatever is still under way.

A connection that is closed while something is unread is reset, and what its other end was sent may be gone then.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import uvloop

import proxy_place
from proxy_place import REQUEST, Place, until, upload
from runstead.proxy import proxy as module

LARGE = 20_000_000
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"


pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


@pytest.fixture(params=["uvloop", "asyncio"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Each loop has its own idea of what comes first."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture
async def listener() -> AsyncIterator[socket.socket]:
    """Where the job listens; nobody accepts but the test."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


@pytest.fixture
async def place(listener: socket.socket, event_loop_policy: asyncio.AbstractEventLoopPolicy) -> AsyncIterator[Place]:
    wanted = isinstance(event_loop_policy, uvloop.EventLoopPolicy)
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop) is wanted
    async with proxy_place.proxy_to(listener.getsockname()[1]) as place:
        yield place


async def connected(place: Place) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", place.port))
    return made


async def accepted(listener: socket.socket) -> socket.socket:
    made, _ = await asyncio.get_running_loop().sock_accept(listener)
    return made


async def send(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def read(connection: socket.socket, until: bytes = b"\r\n\r\n") -> bytes:
    found = b""
    async with asyncio.timeout(20):
        while not found.endswith(until):
            more = await asyncio.get_running_loop().sock_recv(connection, 65536)
            assert more, found
            found += more
    return found


def holds(connection: socket.socket, size: int) -> bool:
    """Say whether so much lies there to be read."""
    with contextlib.suppress(BlockingIOError):
        return len(connection.recv(size, socket.MSG_PEEK)) == size
    return False


async def test_it_was_sent_before_the_job_reset_the_connection(place: Place, listener: socket.socket) -> None:
    """What meets the reset first is the next piece of the upload; the answer still lies there to be read."""
    with await connected(place) as client:
        await send(client, upload(100) + b"x" * 10)
        job = await accepted(listener)
        await read(job, b"x" * 10)
        await send(client, b"y" * 10)
        await until(lambda: holds(job, 10))
        exchange = cast(Any, place.door.partner)
        pass_on = exchange.from_client

        def answered_meanwhile(data: bytes) -> None:
            job.send(TOO_LARGE)
            job.close()
            exchange.from_client = pass_on
            pass_on(data)

        exchange.from_client = answered_meanwhile
        await send(client, b"z" * 10)
        assert (await read(client)).startswith(b"HTTP/1.1 413 ")
        # The rest of the upload is dropped, and the connection goes on.
        await send(client, b"x" * 70 + REQUEST)
        with await accepted(listener) as job:
            await read(job)
            await send(job, b"HTTP/1.1 204 No Content\r\n\r\n")
            assert (await read(client)).startswith(b"HTTP/1.1 204 ")


async def test_there_was_none_and_the_upload_goes_on(place: Place, listener: socket.socket) -> None:
    """While it is found out who is to blame, nothing is sent to a connection that is gone."""
    with await connected(place) as client:
        await send(client, upload(LARGE) + b"x" * 10)
        with await accepted(listener) as job:
            await read(job, b"x" * 10)
            await send(client, b"y" * 10)
            await until(lambda: holds(job, 10))
        await asyncio.wait_for(place.ways.asked.wait(), 20)
        await send(client, b"z" * 10_000)
        for _ in range(10):
            await asyncio.sleep(0)
        place.ways.known.set()
        assert b"X-Runstead-Cause: connection-lost" in await read(client, b"}")
        await send(client, b"z" * (LARGE - 10_020))
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


async def test_the_job_lets_go_when_nothing_more_fits(place: Place, listener: socket.socket) -> None:
    place.ways.known.set()
    with await connected(place) as client:
        sending = asyncio.create_task(send(client, upload(LARGE) + b"x" * LARGE))
        with await accepted(listener) as job:
            await until(lambda: holds(job, 200))
            await until(lambda: not place.door.transport.is_reading())
        assert b"X-Runstead-Cause: connection-lost" in await read(client, b"}")
        await asyncio.wait_for(sending, 20)


async def test_an_answer_without_end_is_cut_by_a_reset(place: Place, listener: socket.socket) -> None:
    """Only its connection could have told that it is whole."""
    with await connected(place) as client:
        await send(client, upload(LARGE) + b"x" * 10)
        with await accepted(listener) as job:
            await read(job, b"x" * 10)
            await send(client, b"y" * 10)
            await until(lambda: holds(job, 10))
            await send(job, b"HTTP/1.1 413 Too Large\r\n\r\nhalf of the reas")
        with pytest.raises(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(client, 65536):
                pass


async def test_an_answer_that_ends_with_its_connection_ends(place: Place, listener: socket.socket) -> None:
    """Clients stop their uploads at an error, and wait for the end of the answer."""
    with await connected(place) as client:
        await send(client, upload(LARGE) + b"x" * 10)
        with await accepted(listener) as job:
            await read(job, b"x" * 10)
            await send(job, b"HTTP/1.1 413 Too Large\r\n\r\nthe reason")
        assert (await read(client, b"the reason")).startswith(b"HTTP/1.1 413 ")
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 20) == b""


def head_of(line: str, *fields: str) -> bytes:
    return "\r\n".join((line, "Host: x", *fields, "", "")).encode()


PORT = f"POST {proxy_place.TARGET} HTTP/1.1"
NATIVE = proxy_place.TARGET.replace("--8000", "--9000")
LENGTH = f"Content-Length: {LARGE}"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(head_of(PORT, LENGTH), 404, id="refused"),
        pytest.param(head_of(PORT, LENGTH, "Content-Length: 5"), 400, id="two lengths"),
        pytest.param(head_of(PORT, LENGTH, "No colon"), 400, id="malformed"),
        pytest.param(head_of("POST http://example.com/ HTTP/1.1", LENGTH), 403, id="elsewhere"),
        pytest.param(head_of("POST /last HTTP/1.1", LENGTH), 200, id="the server's own"),
        pytest.param(head_of(f"POST {NATIVE}last HTTP/1.1", LENGTH), 200, id="in place of the job"),
        pytest.param(head_of("POST /any HTTP/1.1", LENGTH, "Connection: close"), 200, id="the client's wish"),
        pytest.param(head_of("POST /any HTTP/1.1", LENGTH, "Content-Length: 5"), 400, id="malformed, the server's own"),
    ],
)
async def test_answers_of_ours_are_read_after_all_was_sent(place: Place, head: bytes, status: int) -> None:
    """As most clients do it."""
    place.ways.closed = NATIVE.encode() not in head

    def upload_then_read() -> bytes:
        with socket.create_connection(("127.0.0.1", place.port), timeout=20) as client:
            client.sendall(head + b"x" * LARGE)
            found = b""
            while more := client.recv(65536):
                found += more
            return found

    found = await asyncio.to_thread(upload_then_read)
    assert found.startswith(b"HTTP/1.1 %d " % status), found[:500]
    assert found.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("limit", ["_LINGER_SECONDS", "_LINGER_MOST_SECONDS"])
@pytest.mark.parametrize("target", [proxy_place.TARGET, "/last"])
async def test_reading_on_has_an_end(place: Place, monkeypatch: pytest.MonkeyPatch, target: str, limit: str) -> None:
    place.ways.closed = True
    with await connected(place) as client:
        await send(client, head_of(f"POST {target} HTTP/1.1", LENGTH) + b"x" * 1000)
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b"H"
        await until(lambda: place.door.lingers)
        await place.sweep()
        assert place.proxy.doors
        monkeypatch.setattr(module, limit, -1)
        await place.sweep()
        await until(lambda: not place.proxy.doors)


async def test_what_is_dropped_after_an_answer_has_to_come(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that is read for the sake of the connection alone keeps it for as long as it goes on."""
    with await connected(place) as client:
        await send(client, head_of("POST /any HTTP/1.1", LENGTH) + b"x" * 1000)
        assert (await read(client)).startswith(b"HTTP/1.1 200 ")
        await place.sweep()
        assert place.proxy.doors
        monkeypatch.setattr(module, "_STALLED_SECONDS", -1)
        await place.sweep()
        await until(lambda: not place.proxy.doors)
