"""Framing is followed to the byte, however the bytes arrive."""

import pytest
from h11 import SERVER, Connection, Data, EndOfMessage, RemoteProtocolError, Request
from hypothesis import given
from hypothesis import strategies as st

from runstead.proxy.framing import Chunked, Counted, scanner
from runstead.proxy.heads import BadMessage, Framing

BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=6)


def chunked(parts: list[bytes], trailers: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces: list[bytes] = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in [*pieces, data] if piece]


@given(BODIES, st.binary(max_size=50), st.lists(st.integers(1, 40), max_size=40))
def test_a_chunked_body_ends_where_it_ends(parts: list[bytes], behind: bytes, sizes: list[int]) -> None:
    body = chunked(parts, b"X-Sum: 1\r\n")
    found, taken = Chunked(), 0
    for piece in cut(body + behind, sizes):
        taken += found.feed(piece)
        if found.done:
            break
    assert found.done
    assert taken == len(body)


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=20))
def test_what_we_take_for_whole_another_reader_reads_alike(data: bytes, sizes: list[int]) -> None:
    """Whatever ends for us ends at the same byte for h11; whatever h11 refuses may be refused, never misread."""
    body = b"5\r\nhello\r\n" + data + b"0\r\n\r\n"
    found, taken = Chunked(), 0
    try:
        for piece in cut(body, sizes):
            taken += found.feed(piece)
            if found.done:
                break
    except BadMessage:
        return
    if not found.done:
        return
    reader = Connection(SERVER)
    reader.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body[:taken])
    assert isinstance(reader.next_event(), Request)
    while True:
        event = reader.next_event()
        if isinstance(event, EndOfMessage):
            break
        assert isinstance(event, Data), event
    assert reader.trailing_data[0] == b""


@given(st.integers(0, 500), st.lists(st.integers(1, 60), max_size=30))
def test_a_counted_body(length: int, sizes: list[int]) -> None:
    found, taken = Counted(length), 0
    for piece in cut(b"x" * (length + 30), sizes):
        if found.done:
            break
        taken += found.feed(piece)
    assert found.done
    assert taken == length


def test_no_body_and_one_without_end() -> None:
    assert scanner(Framing.NONE, 0).done
    endless = scanner(Framing.CLOSE, 0)
    assert endless.feed(b"abc") == 3
    assert not endless.done


@pytest.mark.parametrize("size", [4097, 100_000])
def test_a_size_line_has_an_end(size: int) -> None:
    found = Chunked()
    with pytest.raises(BadMessage):
        found.feed(b"5;" + b"x" * size)


def test_trailers_have_an_end() -> None:
    found = Chunked()
    with pytest.raises(BadMessage):
        found.feed(b"0\r\n" + b"X: " + b"y" * 70_000)


def test_the_peer_is_as_strict() -> None:
    """The test above is worth something only while its reader refuses something."""
    reader = Connection(SERVER)
    reader.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    reader.next_event()
    with pytest.raises(RemoteProtocolError):
        reader.next_event()
