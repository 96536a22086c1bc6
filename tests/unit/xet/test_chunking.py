import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runstead.xet.chunking import GEAR_TABLE, MIN_CHUNK_BYTES, chunk_ends, chunks
from runstead.xet.hashes import chunk_hash, file_hash, hash_to_text
from runstead.xet.xorb_layout import MAX_CHUNK_BYTES


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _plain_ends(data: bytes) -> list[int]:
    """The definition, byte by byte."""
    table = GEAR_TABLE.tolist()
    ends, start, rolling = [], 0, 0
    for index, byte in enumerate(data):
        rolling = ((rolling << 1) + table[byte]) & 0xFFFFFFFFFFFFFFFF
        size = index + 1 - start
        if (size >= 8192 and rolling >> 48 == 0) or size == 131072:
            ends.append(index + 1)
            start, rolling = index + 1, 0
    return ends if start == len(data) else [*ends, len(data)]


def test_table():
    digest = hashlib.sha256(GEAR_TABLE.astype("<u8").tobytes()).hexdigest()
    assert digest == "e1d3936666d7ae7a977c958e9afcc75f90aaca758ce5fbe4ece61dffefe1912c"


def test_chunks_of_every_input(vectors):
    for name, file in vectors.files.items():
        data = vectors.input(name)
        assert hashlib.sha256(data).hexdigest() == file["input_sha256"]
        wanted = []
        for term in vectors.terms(name):
            wanted += [tuple(chunk) for chunk in vectors.xorbs[term["xorb"]]["chunks"][term["start"] : term["end"]]]
        parts = list(chunks([data]))
        assert [(hash_to_text(chunk_hash(part)), len(part)) for part in parts] == wanted
        assert b"".join(parts) == data
        assert [len(part) for part in parts] == [
            end - start for start, end in zip([0, *chunk_ends(data)], chunk_ends(data), strict=False)
        ]


@pytest.mark.parametrize("size", [997, 8191, 65536, 131073, 700001])
def test_size_of_the_pieces_does_not_matter(vectors, size):
    data = vectors.input("mix")
    assert list(chunks(_pieces(data, size))) == list(chunks([data]))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    length=st.integers(0, 400_000),
    repeat=st.sampled_from([3, 1000, 50_000, 400_000]),
    size=st.integers(1000, 300_000),
)
def test_agrees_with_the_definition(seed, length, repeat, size):
    pattern = hashlib.shake_128(seed.to_bytes(8, "little")).digest(repeat)
    data = (pattern * (length // repeat + 1))[:length]
    ends = _plain_ends(data)
    assert chunk_ends(data) == ends
    parts = list(chunks(_pieces(data, size)))
    assert b"".join(parts) == data
    assert [sum(map(len, parts[: index + 1])) for index in range(len(parts))] == ends
    assert all(MIN_CHUNK_BYTES <= len(part) <= MAX_CHUNK_BYTES for part in parts[:-1])


def test_file_hash_of_the_real_client(tmp_path):
    hf_xet = pytest.importorskip("hf_xet")
    stream = hashlib.shake_128(b"files").digest(3_000_000)
    sizes = [1, 8191, 8192, 8193, 131071, 131072, 131073, 1_000_003, 3_000_000]
    paths = []
    for size in sizes:
        path = tmp_path / str(size)
        path.write_bytes(stream[:size])
        paths.append(str(path))
    for size, info in zip(sizes, hf_xet.hash_files(paths), strict=True):
        parts = list(chunks([stream[:size]]))
        ours = file_hash(b"".join(map(chunk_hash, parts)), list(map(len, parts)))
        assert hash_to_text(ours) == info.hash
