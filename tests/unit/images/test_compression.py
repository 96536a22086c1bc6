"""Layers as registries keep them, in whatever pieces they come."""

import contextlib
import gzip
import os
import subprocess
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import zstd_compress
from runstead.images.archive import Damaged
from runstead.images.compression import decompressed

TEXT = os.urandom(1000) * 3000 + bytes(3_000_000)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def multi_gzip(data: bytes) -> bytes:
    return b"".join(gzip.compress(part, 1) for part in cut(data, 500_000))


def multi_zstd(data: bytes) -> bytes:
    """As tools write it that make an index: frames, and between them some that hold no content."""
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
    return skippable + b"".join(zstd_compress(part) + skippable for part in cut(data, 2_000_000))


@pytest.mark.parametrize("size", [1 << 18, 1000, 3])
@pytest.mark.parametrize("compress", [gzip.compress, multi_gzip, zstd_compress, multi_zstd, bytes])
def test_what_was_compressed_comes_out(compress: object, size: int) -> None:
    assert callable(compress)
    data = TEXT if size > 3 else TEXT[:20_000]
    found = list(decompressed(cut(compress(data), size)))
    assert b"".join(found) == data
    assert max(len(piece) for piece in found) <= 1 << 20 or compress is bytes


@pytest.mark.parametrize("compress", [gzip.compress, zstd_compress])
def test_a_small_piece_that_stands_for_much_comes_out_in_pieces(compress: object) -> None:
    assert callable(compress)
    bomb = compress(bytes(300_000_000))
    sizes = [len(piece) for piece in decompressed(iter([bomb]))]
    assert sum(sizes) == 300_000_000
    assert max(sizes) <= 1 << 20


def test_padding_behind_the_end_is_none_of_it() -> None:
    assert b"".join(decompressed(cut(gzip.compress(b"abc") + bytes(2000), 100))) == b"abc"


@pytest.mark.parametrize("compress", [gzip.compress, zstd_compress])
def test_what_breaks_off_or_is_damaged_is_found(compress: object) -> None:
    assert callable(compress)
    good = compress(TEXT)
    with pytest.raises(Damaged, match="breaks off"):
        list(decompressed(cut(good[:-10], 1000)))
    with pytest.raises(Damaged):
        list(decompressed(cut(good[:2000] + b"\xff" * 300 + good[2300:], 1000)))


def test_nothing_is_nothing() -> None:
    assert list(decompressed(iter([]))) == []


def test_what_pigz_and_zlib_write() -> None:
    command = ["gzip", "-c", "--rsyncable"]
    written = subprocess.run(command, input=TEXT, check=True, stdout=subprocess.PIPE).stdout
    assert b"".join(decompressed(cut(written, 10_000))) == TEXT
    assert b"".join(decompressed(iter([zlib.compress(b"x")]))) == zlib.compress(b"x")  # no form that layers have


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b""]))
def test_noise_is_refused_or_passed_on(noise: bytes, magic: bytes) -> None:
    with contextlib.suppress(Damaged):
        assert isinstance(b"".join(decompressed(cut(magic + noise, 7))), bytes)
