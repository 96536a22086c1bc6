import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lz4 import frame

from runstead.xet.compression import (
    Decompressor,
    Scheme,
    compress,
    compress_smallest,
    group_bytes,
    ungroup_bytes,
)
from runstead.xet.errors import InvalidChunk

CONTENTS = st.one_of(
    st.binary(min_size=1, max_size=5000),
    st.builds(lambda data, times: data * times, st.binary(min_size=1, max_size=40), st.integers(1, 3000)),
)


@given(CONTENTS, st.sampled_from(Scheme))
def test_compress_and_back(data, scheme):
    payload = compress(data, scheme)
    assert bytes(Decompressor().unpack(payload, scheme, len(data))) == data


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 131071, 131072])
@pytest.mark.parametrize("scheme", Scheme)
def test_sizes_around_the_blocks_of_a_frame(size, scheme):
    unpacker = Decompressor()
    for data in (os.urandom(size), bytes(size)):
        assert bytes(unpacker.unpack(memoryview(compress(data, scheme)), scheme, size)) == data


def test_frames_look_like_those_of_clients():
    small, large = compress(b"a" * 65536, Scheme.LZ4), compress(b"a" * 65537, Scheme.LZ4)
    assert small.startswith(bytes.fromhex("04224d186040")) and large.startswith(bytes.fromhex("04224d186050"))
    assert small.endswith(bytes(4)) and large.endswith(bytes(4))


@pytest.mark.parametrize("length", range(1, 10))
def test_groups(length):
    data = bytes(range(length))
    grouped = group_bytes(data)
    assert grouped == b"".join(data[position::4] for position in range(4))
    assert ungroup_bytes(grouped) == data


@given(CONTENTS)
def test_group_and_back(data):
    assert ungroup_bytes(group_bytes(memoryview(data))) == data


def test_the_smallest_wins():
    noise = os.urandom(5000)
    words = (np.random.default_rng(1).integers(0, 1 << 12, 5000, dtype="<u4") | 0x3F800000).tobytes()
    assert compress_smallest(noise) == (Scheme.NONE, noise)
    assert compress_smallest(b"abc" * 1000)[0] is Scheme.LZ4
    assert compress_smallest(words)[0] is Scheme.GROUPED_LZ4


def test_a_bomb_is_not_unfolded():
    bomb = frame.compress(bytes(1 << 30), store_size=False, block_linked=False)
    with pytest.raises(InvalidChunk, match="more than the 131072 bytes"):
        Decompressor().unpack(bomb, Scheme.LZ4, 131072)


def _good() -> bytes:
    return compress(b"some text " * 100, Scheme.LZ4)


@pytest.mark.parametrize(
    "payload",
    [
        _good()[:-1],
        _good()[:-4],
        _good()[:20],
        _good() + b"x",
        _good() + _good(),
        b"\x00" + _good()[1:],
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd",
        b"\x04\x22\x4d\x18",
        b"",
        compress(b"some text " * 99, Scheme.LZ4),
        compress(b"some text " * 101, Scheme.LZ4),
    ],
    ids=lambda payload: f"{len(payload)} bytes",
)
@pytest.mark.parametrize("scheme", [Scheme.LZ4, Scheme.GROUPED_LZ4])
def test_payloads_that_are_not_exactly_the_chunk(payload, scheme):
    unpacker = Decompressor()
    with pytest.raises(InvalidChunk):
        unpacker.unpack(payload, scheme, 1000)
    assert unpacker.unpack(_good(), Scheme.LZ4, 1000) == b"some text " * 100


def test_other_schemes_and_lengths():
    with pytest.raises(InvalidChunk, match="scheme 3"):
        Decompressor().unpack(b"abc", 3, 3)
    with pytest.raises(InvalidChunk, match="3 bytes, its header says 4"):
        Decompressor().unpack(b"abc", Scheme.NONE, 4)
