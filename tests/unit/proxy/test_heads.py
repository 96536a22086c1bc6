"""Heads: what is read is what was sent, and nothing that could be read otherwise."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstead.proxy.heads import BadMessage, Framing, read_answer, read_request, write_answer, write_request

TOKENS = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789!#$%&'*+-.^_`|~", min_size=1, max_size=20).map(str.encode)
VALUES = st.binary(max_size=60).map(lambda data: bytes(b for b in data if b == 9 or 32 <= b != 127).strip(b" \t"))


@given(TOKENS, st.lists(st.tuples(TOKENS, VALUES), max_size=8))
def test_a_request_comes_back(method: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    data = write_request(method, b"/a?b", 1, fields)
    head = read_request(data, len(data))
    assert (head.method, head.target, head.minor, head.fields) == (method, b"/a?b", 1, fields)


@given(st.integers(100, 999), st.lists(st.tuples(TOKENS, VALUES), max_size=8))
def test_an_answer_comes_back(status: int, fields: list[tuple[bytes, bytes]]) -> None:
    data = write_answer(status, b"Some Reason", fields)
    head = read_answer(data, len(data))
    assert (head.status, head.reason, head.fields) == (status, b"Some Reason", fields)


@given(st.binary(max_size=120))
def test_nothing_is_an_unexpected_error(data: bytes) -> None:
    for whole in (data + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n"):
        for read in (read_request, read_answer):
            try:
                head = read(whole, len(whole))
                head.body()
            except BadMessage:
                continue
            assert all(b"\r" not in value and b"\n" not in value and b"\0" not in value for _, value in head.fields)


@pytest.mark.parametrize(
    "line",
    [
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET / HTTP/2.0",
        b"GET / http/1.1",
        b"GET /\xff HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GE(T / HTTP/1.1",
        b"GET /",
    ],
)
def test_lines_that_are_no_requests(line: bytes) -> None:
    data = line + b"\r\nHost: x\r\n\r\n"
    with pytest.raises(BadMessage):
        read_request(data, len(data))


def test_blanks_cost_no_time() -> None:
    """A pattern that tried every way to divide them would take minutes."""
    data = b"GET / HTTP/1.1\r\nX:" + b" " * 200_000 + b"\x00\r\n\r\n"
    began = time.monotonic()
    with pytest.raises(BadMessage):
        read_request(data, len(data))
    assert time.monotonic() - began < 2


def framing(*lines: bytes, method: bytes = b"GET", status: bytes = b"200") -> tuple[Framing, int]:
    data = b"HTTP/1.1 " + status + b" OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    return read_answer(data, len(data)).body_after(method)


def test_how_answers_end() -> None:
    assert framing() == (Framing.CLOSE, 0)
    assert framing(b"Content-Length: 5") == (Framing.LENGTH, 5)
    assert framing(b"Transfer-Encoding: Chunked") == (Framing.CHUNKED, 0)
    assert framing(b"Content-Length: 5", method=b"HEAD") == (Framing.NONE, 0)
    assert framing(b"Content-Length: 5", status=b"304") == (Framing.NONE, 0)
    assert framing(status=b"204") == (Framing.NONE, 0)
    with pytest.raises(BadMessage):
        framing(b"Content-Length: 5", b"Transfer-Encoding: chunked")
