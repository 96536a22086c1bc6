"""Chunks that are handed over together come to be a file, whatever their order and however little a call writes."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from runstead.node.fuse.cache import BLOCK, Cache, CachedFile, Filling
from runstead.node.fuse.source import Content, Piece
from runstead.xet.hashes import chunk_hash, file_hash

DATA = random.Random(4).randbytes(3 * BLOCK + 12_345)


def _pieces() -> list[Piece]:
    dice, offset = random.Random(5), 0
    found: list[Piece] = []
    while offset < len(DATA):
        data = DATA[offset : offset + dice.randrange(8 << 10, 128 << 10)]
        found.append(Piece(offset, memoryview(data), chunk_hash(data)))
        offset += len(data)
    return found


def _file(folder: Path) -> CachedFile:
    cache = Cache(str(folder / "cache"), 1 << 30, 1.0)
    cache.open()
    pieces = _pieces()
    name = file_hash(b"".join(piece.hash for piece in pieces), [len(piece.data) for piece in pieces])
    return cache.take(Content(name, len(DATA), 0))


def _fill(file: CachedFile, ranges: list[tuple[int, int]], groups: list[list[Piece]]) -> None:
    let_go = file.reserve()
    assert let_go is not None
    for start, end in ranges:
        filling = Filling(file, start, end)
        for group in groups:
            filling.take([piece for piece in group if piece.offset < end and piece.offset + len(piece.data) > start])
    let_go()


def test_a_file_of_two_ranges_with_chunks_in_any_order_and_some_twice(tmp_path: Path) -> None:
    file, pieces = _file(tmp_path), _pieces()
    random.Random(6).shuffle(pieces)
    _fill(file, [(0, 2 * BLOCK), (2 * BLOCK, len(DATA))], [pieces[:20], pieces[10:], pieces])
    assert file.whole
    assert os.pread(file.fd, len(DATA) + 1, 0) == DATA


def test_a_call_that_writes_less_than_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_some(fd: int, views: Sequence[memoryview], offset: int) -> int:
        return os.pwrite(fd, views[0][:4097], offset)

    file = _file(tmp_path)
    monkeypatch.setattr(os, "pwritev", write_some)
    _fill(file, [(0, len(DATA))], [_pieces()])
    assert file.whole
    assert os.pread(file.fd, len(DATA) + 1, 0) == DATA


def test_a_chunk_that_is_not_what_the_hash_says(tmp_path: Path) -> None:
    file, pieces = _file(tmp_path), _pieces()
    pieces[7] = Piece(pieces[7].offset, pieces[7].data, chunk_hash(b"another"))
    _fill(file, [(0, len(DATA))], [pieces])
    assert file.bad
    assert not file.whole
