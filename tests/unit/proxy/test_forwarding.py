"""Who sent a request that came through proxies, and what strangers can say about it."""

import asyncio
from collections.abc import Sequence

import pytest

from proxy_place import JOB, TARGET, proxy_to
from runstead.proxy.forwarding import TrustedProxies

TRUSTED = TrustedProxies(["10.0.0.0/24", "192.0.2.7", "fd00::/8"])
PROXY = "10.0.0.1"


def test_who_is_trusted() -> None:
    assert all(one in TRUSTED for one in ("10.0.0.1", "10.0.0.255", "192.0.2.7", "fd00::1", "::ffff:10.0.0.1"))
    assert not any(one in TRUSTED for one in ("10.0.1.1", "192.0.2.8", "127.0.0.1", "::1", "unknown", ""))
    assert "10.0.0.1" not in TrustedProxies()


@pytest.mark.parametrize(
    ("chains", "client"),
    [
        ((), PROXY),
        (("203.0.113.9",), "203.0.113.9"),
        (("1.2.3.4, 203.0.113.9",), "203.0.113.9"),  # what the client wrote itself stands on the left
        (("1.2.3.4", "203.0.113.9, 10.0.0.2"), "203.0.113.9"),  # two proxies, and two lines
        (("10.0.0.3, 10.0.0.2",), "10.0.0.3"),
        (("nonsense",), PROXY),
        (("203.0.113.9, nonsense, 10.0.0.2",), "10.0.0.2"),
        (("2001:db8::1",), "2001:db8::1"),
        (("",), PROXY),
    ],
)
def test_the_client_is_the_last_that_no_proxy_is(chains: Sequence[str], client: str) -> None:
    fields = [(b"X-Forwarded-For", chain.encode()) for chain in chains]
    assert TRUSTED.origin(fields, PROXY, secure=False) == (client, False)


@pytest.mark.parametrize(
    ("said", "connection", "secure"),
    [
        ((), False, False),
        ((), True, True),
        (("https",), False, True),
        (("HTTPS ",), False, True),
        (("http",), True, False),
        (("https, http",), False, False),  # the nearest proxy has the last word
        (("http", "https"), False, True),
        (("gopher",), False, False),
    ],
)
def test_what_was_spoken(said: Sequence[str], connection: bool, secure: bool) -> None:
    fields = [(b"x-forwarded-proto", one.encode()) for one in said]
    assert TRUSTED.origin(fields, PROXY, secure=connection) == (PROXY, secure)


async def seen_by_the_job(trusted: TrustedProxies, *, by_connect: bool) -> bytes:
    """The head of a request with forged fields, as the program in the job gets it."""
    heads: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.put_nowait(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    program = await asyncio.start_server(serve, "127.0.0.1", 0)
    forged = b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n"
    async with program, proxy_to(program.sockets[0].getsockname()[1], trusted) as place:
        ask = f"CONNECT {JOB}--8000.localhost:80 HTTP/1.1\r\nHost: x\r\n\r\n".encode() if by_connect else b""
        async with place.client(ask) as (reader, writer):
            if by_connect:
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(f"GET {TARGET} HTTP/1.1\r\nHost: x\r\n".encode() + forged + b"\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    return heads.get_nowait()


async def test_a_trusted_proxy_is_believed_and_nobody_else() -> None:
    believed = await seen_by_the_job(TrustedProxies(["127.0.0.1"]), by_connect=False)
    assert b"\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n" in believed
    ignored = await seen_by_the_job(TRUSTED, by_connect=False)
    assert b"\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n" in ignored


async def test_the_way_through_this_server_makes_nobody_trusted() -> None:
    """A CONNECT arrives from an address of this machine, where a trusted proxy may be, too."""
    seen = await seen_by_the_job(TrustedProxies(["127.0.0.1"]), by_connect=True)
    assert b"\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n" in seen
