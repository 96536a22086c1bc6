"""Bodies that a thread takes off the socket: the connection goes on as if nothing had been."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from runstead.api.bodies import BodyLost, BodyProtocol
from runstead.api.exchange import ClientGone, Exchange

BODY = bytes(range(256)) * 8_000


class App:
    """Answers with how the body came and how long it was; `/early` answers before it has read everything."""

    def __init__(self) -> None:
        self.lost = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send)
        with exchange.direct_body() as body:
            if body is not None:
                try:
                    whole = await asyncio.to_thread(lambda: b"".join(map(bytes, body.pieces())))
                except BodyLost:
                    self.lost.set()
                    return
                await exchange.answer(200, b"direct %d %d" % (len(whole), whole == BODY))
                return
        try:
            whole = await exchange.whole_body(1 << 30)
        except ClientGone:
            return
        await exchange.answer(200, b"plain %d %d" % (len(whole), whole == BODY))


@pytest.fixture(params=["uvloop", "asyncio"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[int, App]]:
    app = App()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=BodyProtocol, ws="none", lifespan="off", loop=request.param, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield listener.getsockname()[1], app
    server.should_exit = True
    thread.join()


def head(length: int, extra: str = "") -> bytes:
    return f"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{extra}\r\n".encode()


class Line:
    """One connection, spoken by hand."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.waiting = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> bytes:
        while b"\r\n\r\n" not in self.waiting:
            self.waiting += self._more()
        top, _, rest = self.waiting.partition(b"\r\n\r\n")
        length = int(top.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
        while len(rest) < length:
            rest += self._more()
        self.waiting = rest[length:]
        return rest[:length]

    def _more(self) -> bytes:
        data = self.socket.recv(65536)
        assert data, "the connection was closed"
        return data


def test_one_connection_many_requests(served: tuple[int, App]) -> None:
    line = Line(served[0])
    for _ in range(5):
        line.send(head(len(BODY)) + BODY)
        assert line.answer() == b"direct %d 1" % len(BODY)
        line.send(head(3) + b"abc")
        assert line.answer() == b"plain 3 0"
        line.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert line.answer() == b"plain 0 0"


def test_requests_sent_ahead(served: tuple[int, App]) -> None:
    line = Line(served[0])
    sending = threading.Thread(target=line.send, args=((head(len(BODY)) + BODY) * 3 + head(2) + b"ab",))
    sending.start()
    assert [line.answer() for _ in range(4)][-1] == b"plain 2 0"
    sending.join()


def test_a_body_in_drops(served: tuple[int, App]) -> None:
    line = Line(served[0])
    line.send(head(len(BODY)))
    for start in range(0, len(BODY), 300_001):
        line.send(BODY[start : start + 300_001])
    assert line.answer() == b"direct %d 1" % len(BODY)


def test_ordinary_ways(served: tuple[int, App]) -> None:
    line = Line(served[0])
    line.send(head(len(BODY), "Expect: 100-continue\r\n"))
    assert line.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    line.send(BODY)
    assert line.answer() == b"plain %d 1" % len(BODY)
    line.send(b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    line.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
    assert line.answer() == b"plain %d 1" % len(BODY)


def test_a_client_that_leaves(served: tuple[int, App]) -> None:
    line = Line(served[0])
    line.send(head(len(BODY)) + BODY[:1_000_000])
    line.socket.close()
    assert served[1].lost.wait(10)


def test_many_at_once(served: tuple[int, App]) -> None:
    lines = [Line(served[0]) for _ in range(8)]
    threads = [threading.Thread(target=line.send, args=(head(len(BODY)) + BODY,)) for line in lines]
    for thread in threads:
        thread.start()
    assert [line.answer() for line in lines] == [b"direct %d 1" % len(BODY)] * 8
    for thread in threads:
        thread.join()
