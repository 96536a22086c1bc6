import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstead.xet.errors import InvalidShard, InvalidTerms
from runstead.xet.hashes import ZERO_HASH, hash_from_text, hash_to_text
from runstead.xet.shard import (
    MAX_SHARD_BYTES,
    FileEntry,
    Shard,
    ShardFooter,
    XorbBlock,
    read_shard,
    write_shard,
)
from runstead.xet.terms import Term, Terms, terms_of

HASHES = st.binary(min_size=32, max_size=32).filter(lambda value: value != b"\xff" * 32)
U32 = st.integers(0, 2**32 - 1)
TERMS = st.lists(st.builds(Term, HASHES, U32, U32, U32), max_size=5).map(terms_of)


@st.composite
def files(draw):
    terms = draw(TERMS)
    ranges = draw(st.none() | st.binary(min_size=32 * len(terms), max_size=32 * len(terms)))
    return FileEntry(draw(HASHES), terms, ranges, draw(st.none() | HASHES.map(bytes.hex)))


BLOCKS = st.builds(
    XorbBlock, HASHES, U32, U32, st.integers(1, 4).flatmap(lambda n: st.binary(min_size=48 * n, max_size=48 * n))
)
FOOTERS = st.builds(
    ShardFooter,
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.just(False),
)
SHARDS = st.builds(
    Shard,
    st.lists(files(), max_size=4).map(tuple),
    st.lists(BLOCKS, max_size=3).map(tuple),
    st.none() | FOOTERS,
)


def test_every_recorded_shard_is_written_as_it_was_read(vectors):
    for path, data in vectors.shards().items():
        assert write_shard(read_shard(data)) == data, path


def test_what_clients_upload(vectors):
    for step in vectors.data["uploads"]:
        data = vectors.read(step["shard"])
        assert (len(data), hashlib.sha256(data).hexdigest()) == (step["shard_bytes"], step["shard_sha256"])
        shard = read_shard(data)
        assert shard.footer is None
        assert [hash_to_text(entry.file_hash) for entry in shard.files] == [
            vectors.files[name]["xet_hash"] for name in step["file_order_in_shard"]
        ]
        assert sorted(step["file_order_in_shard"]) == sorted(step["files"])
        assert [hash_to_text(block.xorb_hash) for block in shard.xorbs] == step["new_xorbs"]
        texts = [hash_to_text(entry.file_hash) for entry in shard.files]
        assert texts == sorted(texts)


def test_files_of_the_uploads(vectors):
    for step in vectors.data["uploads"]:
        entries = read_shard(vectors.read(step["shard"])).files
        for name, entry in zip(step["file_order_in_shard"], entries, strict=True):
            record, terms = vectors.files[name], vectors.terms(name)
            assert entry.range_hashes is not None
            assert [
                {
                    "xorb": hash_to_text(term.xorb_hash),
                    "start": term.start,
                    "end": term.end,
                    "unpacked_length": term.unpacked_bytes,
                    "range_hash": hash_to_text(entry.range_hashes[32 * index : 32 * index + 32]),
                }
                for index, term in enumerate(entry.terms)
            ] == terms
            assert len(entry.terms) == record["n_terms"]
            assert entry.terms.file_bytes == record["size"]
            assert entry.sha256 == record["shard_sha256_field"]
            assert entry.sha256 in (None, record["input_sha256"])
            assert int(record["shard_flags"], 16) == (0xC0000000 if entry.sha256 else 0x80000000)


def test_an_empty_file_is_an_entry_without_terms(vectors):
    entry = read_shard(vectors.read("shards/01_batch.shard")).files[0]
    assert entry == FileEntry(ZERO_HASH, Terms(b""), b"")


def test_xorbs_of_the_uploads(vectors):
    for step in vectors.data["uploads"]:
        for block in read_shard(vectors.read(step["shard"])).xorbs:
            record = vectors.xorbs[hash_to_text(block.xorb_hash)]
            hashes, lengths = vectors.chunk_list(hash_to_text(block.xorb_hash))
            assert block.chunk_count == record["n_chunks"]
            assert block.unpacked_bytes == record["raw_bytes"]
            assert block.stored_bytes == record["disk_bytes_field_in_shard"] == 0
            assert block.chunk_hashes() == hashes
            assert block.chunk_lengths().tolist() == lengths
            assert block.chunk_starts().tolist() == [sum(lengths[:index]) for index in range(len(lengths))]


@given(SHARDS)
def test_write_and_back(shard):
    data = write_shard(shard)
    assert read_shard(data) == shard
    assert read_shard(memoryview(bytearray(data))) == shard


@given(st.lists(files(), min_size=1, max_size=6), st.lists(BLOCKS, min_size=1, max_size=4))
def test_lookup_tables(entries, blocks):
    shard = Shard(tuple(entries), tuple(blocks), ShardFooter(lookups=True))
    data = write_shard(shard)
    assert read_shard(data) == shard
    numbers = struct.unpack("<9Q32s2Q48x4Q", data[-200:])
    files_at, xorbs_at, file_table, file_count, xorb_table, xorb_count, chunk_table, chunk_count = numbers[1:9]
    assert (file_count, xorb_count) == (len(entries), len(blocks))
    assert chunk_count == sum(block.chunk_count for block in blocks)
    assert numbers[-4:] == (
        sum(block.stored_bytes for block in blocks),
        sum(entry.terms.file_bytes for entry in entries),
        sum(block.unpacked_bytes for block in blocks),
        len(data) - 200,
    )
    for table, count, section, owners in (
        (file_table, file_count, files_at, {entry.file_hash for entry in entries}),
        (xorb_table, xorb_count, xorbs_at, {block.xorb_hash for block in blocks}),
    ):
        rows = list(struct.iter_unpack("<QI", data[table : table + 12 * count]))
        assert [key for key, _ in rows] == sorted(key for key, _ in rows)
        for key, record in rows:
            found = data[section + 48 * record :][:32]
            assert int.from_bytes(found[:8], "little") == key and found in owners
    rows = list(struct.iter_unpack("<QII", data[chunk_table : chunk_table + 16 * chunk_count]))
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    for key, record, chunk in rows:
        assert data[xorbs_at + 48 * (record + 1 + chunk) :][:8] == key.to_bytes(8, "little")


def _edited(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


UPLOAD = write_shard(
    Shard(
        (FileEntry(b"f" * 32, terms_of([Term(b"x" * 32, 0, 1, 10)]), b"r" * 32, "ab" * 32),),
        (XorbBlock(b"x" * 32, 10, 0, bytes(48)),),
    )
)
ANSWER = write_shard(Shard((), (XorbBlock(b"x" * 32, 10, 0, bytes(48)),), ShardFooter()))
U64_MAX = b"\xff" * 8
BROKEN = {
    "empty": (b"", "0 bytes is cut short: header"),
    "other tag": (_edited(UPLOAD, 0, b"PK"), "begins with 504b"),
    "other version": (_edited(UPLOAD, 32, b"\x03"), "version 3"),
    "other footer": (_edited(UPLOAD, 40, b"\x64"), "this one 100"),
    "absurd footer": (_edited(UPLOAD, 40, U64_MAX), "18446744073709551615"),
    "cut in its footer": (_edited(UPLOAD, 40, b"\xc8") + bytes(199), "cut short in its footer"),
    "cut in a header": (UPLOAD[:60], "file 0 needs 48 bytes from byte 48"),
    "cut after the files": (UPLOAD[:288], "xorb 0"),
    "no end of the xorbs": (UPLOAD[:-48], "xorb 1"),
    "too many terms": (_edited(UPLOAD, 84, b"\xff\xff\xff\xff"), "file 0 needs 206158430160 bytes"),
    "unknown flag": (_edited(UPLOAD, 80, b"\x01"), "flags 0xc0000001"),
    "missing range hashes": (UPLOAD[:96] + UPLOAD[192:], "cut short"),
    "no chunks": (_edited(UPLOAD, 324, bytes(4)), "xorb 0 has 0 chunks"),
    "too many chunks": (_edited(UPLOAD, 324, b"\xff\xff\xff\xff"), "4294967295 chunks"),
    "more than it needs": (UPLOAD + b"x", "has more than it needs"),
    "answer, version": (_edited(ANSWER, len(ANSWER) - 200, b"\x02"), "version is 2"),
    "answer, files elsewhere": (_edited(ANSWER, len(ANSWER) - 192, b"\x31"), "offset of the files is 49"),
    "answer, xorbs elsewhere": (_edited(ANSWER, len(ANSWER) - 184, U64_MAX), "offset of the xorbs"),
    "answer, table elsewhere": (_edited(ANSWER, len(ANSWER) - 160, U64_MAX), "lookup of xorbs"),
    "answer, table too long": (_edited(ANSWER, len(ANSWER) - 136, U64_MAX), "lookup of chunks"),
    "answer, footer elsewhere": (_edited(ANSWER, len(ANSWER) - 8, U64_MAX), "offset of itself"),
    "answer, cut": (ANSWER[:-1], "footer at byte"),
    "too long": (bytes(MAX_SHARD_BYTES + 1), "at most 67108864"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_shards(case):
    data, message = BROKEN[case]
    with pytest.raises(InvalidShard, match=message):
        read_shard(data)


def test_every_cut_is_noticed(vectors):
    for path in ("shards/01_batch.shard", "shards/05_repo_sha256.shard", "dedup/response.shard"):
        data = vectors.read(path)
        bare = len(write_shard(replace(read_shard(data), footer=None)))
        for size in range(len(data)):
            if size == bare:
                continue  # what hf_xet 1.1 sends: a footer is announced and left out
            with pytest.raises(InvalidShard):
                read_shard(data[:size])


def test_an_announced_footer_may_be_left_out():
    assert read_shard(_edited(UPLOAD, 40, b"\xc8")) == read_shard(UPLOAD)


@pytest.mark.parametrize(
    "shard",
    [
        Shard((FileEntry(b"short", Terms(b"")),), ()),
        Shard((FileEntry(b"f" * 32, Terms(b""), b"r" * 32),), ()),
        Shard((), (XorbBlock(b"x" * 31, 0, 0, b""),)),
        Shard((), (XorbBlock(b"x" * 32, 1 << 32, 0, b""),)),
        Shard((), (XorbBlock(b"x" * 32, 0, -1, b""),)),
        Shard((), (XorbBlock(b"x" * 32, 0, 0, b"47"),)),
        Shard((), (), ShardFooter(hmac_key=b"")),
        Shard((), (), ShardFooter(created_at=-1)),
        Shard((), (), ShardFooter(key_expires_at=1 << 64)),
    ],
)
def test_what_cannot_be_written(shard):
    with pytest.raises(InvalidShard, match="cannot be written"):
        write_shard(shard)


def test_terms_as_a_sequence():
    listed = [Term(b"a" * 32, 0, 3, 100), Term(b"b" * 32, 5, 6, 2**32 - 1), Term(b"a" * 32, 1, 2, 7)]
    terms = terms_of(listed)
    assert list(terms) == listed == [terms[index] for index in range(len(terms))]
    assert terms.file_bytes == 100 + 2**32 - 1 + 7
    assert terms.xorb_hashes() == [b"a" * 32, b"b" * 32]
    assert Terms(terms.records) == terms
    assert terms_of([]) == Terms(b"") and Terms(b"").file_bytes == 0


def test_terms_that_are_none():
    with pytest.raises(InvalidTerms, match="47"):
        Terms(bytes(47))
    for term in (Term(b"a", 0, 1, 1), Term(b"a" * 32, -1, 1, 1), Term(b"a" * 32, 0, 1, 2**32)):
        with pytest.raises(InvalidTerms, match="term 1 cannot be written"):
            terms_of([Term(hash_from_text("0" * 64), 0, 1, 1), term])
