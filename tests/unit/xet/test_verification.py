from dataclasses import replace

import pytest

from runstead.xet.errors import InvalidShard
from runstead.xet.hashes import ZERO_HASH, file_hash, hash_from_text, hash_to_text, range_hash
from runstead.xet.shard import FileEntry, Shard, ShardFooter, XorbBlock, block_of, read_shard
from runstead.xet.terms import RECORD_BYTES, Term, Terms, terms_of
from runstead.xet.verification import FileVerifier, named_xorbs, verify_shard
from runstead.xet.xorb_builder import XorbBuilder
from runstead.xet.xorb_layout import XorbFacts

CHUNKS = [bytes([index]) * (index + 1) for index in range(6)]


def _facts() -> XorbFacts:
    builder = XorbBuilder()
    for chunk in CHUNKS:
        builder.add(chunk)
    return builder.finish().facts


FACTS = _facts()
NAME = hash_to_text(FACTS.xorb_hash)
UNPROVEN = replace(FACTS, chunk_hashes=None)
LENGTHS = FACTS.layout.chunk_lengths()


def _file(*ranges: tuple[int, int]) -> FileEntry:
    parts = [FACTS.chunk_hashes[32 * start : 32 * end] for start, end in ranges]
    lengths = [length for start, end in ranges for length in LENGTHS[start:end]]
    terms = terms_of(Term(FACTS.xorb_hash, start, end, sum(LENGTHS[start:end])) for start, end in ranges)
    return FileEntry(file_hash(b"".join(parts), lengths), terms, b"".join(map(range_hash, parts)))


BLOCK = block_of(FACTS, FACTS.chunk_hashes)
FILE = _file((0, 3), (2, 6), (2, 3))
SHARD = Shard((FILE,), (BLOCK,))


def _find(*facts: XorbFacts):
    return {fact.xorb_hash: fact for fact in facts}.get


def test_recorded_uploads(vectors):
    stored = {hash_from_text(name): vectors.facts(name) for name in vectors.bodies()}
    listed = {}
    for step in vectors.data["uploads"]:
        shard = read_shard(vectors.read(step["shard"]))
        if not all(hash_to_text(name) in vectors.bodies() for name in named_xorbs(shard)):
            continue
        for known in (
            stored,
            {name: listed.get(name) or replace(facts, chunk_hashes=None) for name, facts in stored.items()},
        ):
            seen = []
            found = verify_shard(shard, known.get, progress=lambda done, total, seen=seen: seen.append((done, total)))
            assert [hash_to_text(file.file_hash) for file in found.files] == [
                vectors.files[name]["xet_hash"] for name in step["file_order_in_shard"]
            ]
            assert [file.file_bytes for file in found.files] == [
                vectors.files[name]["size"] for name in step["file_order_in_shard"]
            ]
            assert seen == [(done, len(found.files)) for done in range(1, len(found.files) + 1)]
            assert all(stored[facts.xorb_hash] == facts for facts in found.xorbs)
        listed.update((facts.xorb_hash, facts) for facts in found.xorbs)
    assert len(listed) == 4
    after_dedup = read_shard(vectors.read("dedup/resulting_upload.shard"))
    assert verify_shard(after_dedup, stored.get).files[0].file_bytes == 1_000_000


@pytest.mark.parametrize("stored", [FACTS, UNPROVEN])
def test_a_true_shard(stored):
    found = verify_shard(SHARD, _find(stored))
    assert found.xorbs == (FACTS,)
    assert [(file.file_hash, file.file_bytes) for file in found.files] == [(FILE.file_hash, 27)]
    assert found.files[0].terms == FILE.terms


def test_names_to_look_for():
    other = FileEntry(b"f" * 32, terms_of([Term(b"o" * 32, 0, 1, 1), Term(FACTS.xorb_hash, 0, 1, 1)]), bytes(64))
    assert named_xorbs(Shard((other, FILE), (BLOCK,))) == [FACTS.xorb_hash, b"o" * 32]


def test_an_empty_file():
    empty = FileEntry(ZERO_HASH, Terms(b""), b"")
    assert verify_shard(Shard((empty,), ()), _find()).files[0].file_bytes == 0
    with pytest.raises(InvalidShard, match="give the hash " + "0" * 64):
        verify_shard(Shard((replace(empty, file_hash=b"f" * 32),), ()), _find())


def _changed(block: XorbBlock, at: int) -> XorbBlock:
    records = bytearray(block.records)
    records[at] ^= 1
    return replace(block, records=bytes(records))


def _term(index: int, **changes) -> FileEntry:
    terms = list(FILE.terms)
    terms[index] = replace(terms[index], **changes)
    return replace(FILE, terms=terms_of(terms))


UNTRUE = {
    "xorb is lost": (SHARD, None, "xorb 0, .* listed but not stored"),
    "term into a lost xorb": (Shard((FILE,), ()), None, "term 0: xorb .* is not stored"),
    "hashes never seen": (Shard((FILE,), ()), UNPROVEN, "term 0: the chunk hashes .* not known"),
    "listed twice": (Shard((), (BLOCK, BLOCK)), FACTS, "xorb 1 is listed a second time"),
    "chunk count": (Shard((), (replace(BLOCK, records=BLOCK.records[:-48]),)), FACTS, "6 chunks, the shard lists 5"),
    "chunk length": (Shard((), (_changed(BLOCK, RECORD_BYTES * 4 + 36),)), FACTS, "chunk 4 is 5 bytes from 10, .* 4"),
    "chunk start": (
        Shard((), (_changed(BLOCK, RECORD_BYTES * 2 + 32),)),
        FACTS,
        "chunk 2 is 3 bytes from 3, .* from 2",
    ),
    "content length": (
        Shard((), (replace(BLOCK, unpacked_bytes=22),)),
        FACTS,
        "21 bytes of content, the shard says 22",
    ),
    "chunk hash": (Shard((), (_changed(BLOCK, RECORD_BYTES * 3),)), FACTS, "chunk 3 has the hash"),
    "root of the hashes": (Shard((), (_changed(BLOCK, RECORD_BYTES * 3),)), UNPROVEN, "whose root is"),
    "no range hashes": (Shard((replace(FILE, range_hashes=None),), ()), FACTS, "file 0, .* no range hashes"),
    "range hash": (Shard((replace(FILE, range_hashes=bytes(96)),), ()), FACTS, "term 0: range hash is 0000"),
    "end outside": (Shard((_term(1, end=7),), ()), FACTS, "term 1: chunks 2 to 7 .* of 6"),
    "nothing referred to": (Shard((_term(1, end=2),), ()), FACTS, "term 1: chunks 2 to 2"),
    "backwards": (Shard((_term(1, start=2**32 - 1),), ()), FACTS, "term 1: chunks 4294967295 to 6"),
    "term length": (Shard((_term(2, unpacked_bytes=4),), ()), FACTS, "term 2: .* have 3 bytes, not 4"),
    "other range": (Shard((_term(2, start=3, end=4, unpacked_bytes=4),), ()), FACTS, "term 2: range hash"),
    "file hash": (Shard((replace(FILE, file_hash=b"f" * 32),), ()), FACTS, "file 0, .* has terms that give the hash"),
    "second file": (Shard((FILE, replace(_file((0, 1)), file_hash=ZERO_HASH)), ()), FACTS, "file 1, 0000"),
    "hashes are hidden": (Shard((), (), ShardFooter(hmac_key=b"k" * 32)), FACTS, "HMAC"),
}


@pytest.mark.parametrize("case", UNTRUE)
def test_untrue_shards(case):
    shard, stored, message = UNTRUE[case]
    with pytest.raises(InvalidShard, match=message):
        verify_shard(shard, _find(*([stored] if stored else [])))


def test_proof_of_a_range_needs_every_hash_of_it():
    """The hash of a range one longer does not open the shorter one, nor the other way round."""
    wrong = replace(FILE, range_hashes=range_hash(FACTS.chunk_hashes[:64]) + FILE.range_hashes[32:])
    with pytest.raises(InvalidShard, match="term 0: range hash"):
        verify_shard(Shard((wrong,), (BLOCK,)), _find(FACTS))


def test_work_is_bounded():
    assert verify_shard(SHARD, _find(FACTS), max_chunks=8).files
    with pytest.raises(InvalidShard, match="term 2: the shard refers to more than 7 chunks"):
        verify_shard(SHARD, _find(FACTS), max_chunks=7)
    verifier = FileVerifier(_find(FACTS), 15)
    verifier.verify(FILE)
    with pytest.raises(InvalidShard, match=r"file 1, .* more than 15"):
        verifier.verify(FILE)
