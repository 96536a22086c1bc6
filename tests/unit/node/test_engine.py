"""How the output of an engine's container is read."""

import pytest

from runstead.node.engine import Frames


def _frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize("size", [1, 3, 8, 9, 1000])
def test_frames_may_be_cut_anywhere(size: int) -> None:
    sent = [(1, b"out\n"), (2, b"e" * 300), (1, b""), (1, b"\x01\x00\x00\x00\x00\x00\x00\x05")]
    stream = b"".join(_frame(*one) for one in sent)
    frames, found = Frames(), {1: b"", 2: b""}
    for at in range(0, len(stream), size):
        for number, piece in frames.feed(stream[at : at + size]):
            found[number] += piece
    assert found == {1: b"out\n" + sent[3][1], 2: b"e" * 300}
