"""Block checksums: any run of blocks checks, any flipped bit shows."""

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from runstead.services.content.checksums import BLOCK_BYTES, Checksummer, blocks_around, is_intact
from runstead.services.content.marks import Marks
from runstead.xet.checksum import crc64nvme

DATA = os.urandom(3 * BLOCK_BYTES + 777)


def sums(data: bytes, step: int) -> bytes:
    checksummer = Checksummer()
    for start in range(0, len(data), step):
        checksummer.feed(data[start : start + step])
    assert (checksummer.whole, checksummer.length) == (crc64nvme(data), len(data))
    return checksummer.finish()


@given(st.integers(1, 200_000))
@settings(max_examples=20, deadline=None)
def test_the_size_of_pieces_does_not_matter(step: int) -> None:
    assert sums(DATA, max(step, 999)) == sums(DATA, len(DATA))


def test_whole_blocks() -> None:
    assert len(sums(DATA[: 2 * BLOCK_BYTES], 1000)) == 16
    assert len(sums(DATA[: 2 * BLOCK_BYTES + 1], 1000)) == 24


@given(st.integers(0, len(DATA) - 1), st.integers(1, len(DATA)), st.integers(0, 8 * len(DATA) - 1))
@settings(deadline=None)
def test_any_range(start: int, length: int, flipped: int) -> None:
    end = min(len(DATA), start + length)
    checksums = sums(DATA, 100_000)
    first, behind = blocks_around(start, end, len(DATA))
    assert first <= start and end <= behind <= len(DATA)
    assert is_intact(DATA[first:behind], first, checksums)
    at = flipped // 8
    if first <= at < behind:
        wrong = bytearray(DATA[first:behind])
        wrong[at - first] ^= 1 << flipped % 8
        assert not is_intact(wrong, first, checksums)


@given(st.sets(st.binary(min_size=32, max_size=32)), st.sets(st.binary(min_size=32, max_size=32)))
@settings(deadline=None)
def test_marks(marked: set[bytes], others: set[bytes]) -> None:
    marks = Marks()
    marks.add(marked)
    assert marks.unmarked(marked) == []
    prefixes = {each[:8] for each in marked}
    assert set(marks.unmarked(others)) == {each for each in others if each[:8] not in prefixes}


def test_many_marks() -> None:
    many = [os.urandom(32) for _ in range(150_000)]
    marks = Marks()
    marks.add(many)
    assert marks.unmarked([*many[:1000], bytes(32)]) == [bytes(32)]
