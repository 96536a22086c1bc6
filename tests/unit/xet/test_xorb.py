import mmap
import os
import tempfile
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runstead.xet.compression import Scheme
from runstead.xet.errors import InvalidXorb
from runstead.xet.hashes import chunk_hash, hash_from_text, hash_to_text
from runstead.xet.xorb import MAX_FOOTER_BYTES, XorbVerifier, unpack_chunks, verify_xorb, walk_xorb
from runstead.xet.xorb_builder import XorbBuilder
from runstead.xet.xorb_footer import read_footer, write_footer
from runstead.xet.xorb_layout import MAX_CHUNK_BYTES, MAX_XORB_BYTES, MAX_XORB_CHUNKS, unpack_layout

CHUNKS = st.lists(
    st.tuples(
        st.one_of(st.binary(min_size=1, max_size=300), st.builds(bytes, st.integers(1, 9000))),
        st.sampled_from([None, *Scheme]),
    ),
    min_size=1,
    max_size=20,
)


def _header(payload: int, scheme: int, unpacked: int, version: int = 0) -> bytes:
    return bytes([version]) + payload.to_bytes(3, "little") + bytes([scheme]) + unpacked.to_bytes(3, "little")


def _plain(data: bytes) -> bytes:
    return _header(len(data), 0, len(data)) + data


def _built(chunks):
    builder = XorbBuilder()
    for chunk, scheme in chunks:
        assert builder.add(chunk, scheme) == chunk_hash(chunk)
    return builder.finish()


def test_headers_of_recorded_bodies(vectors):
    for name, body in vectors.bodies().items():
        record, layout = vectors.xorbs[name], walk_xorb(body)
        lengths = [length for _, length in record["chunks"]]
        ends = layout.stored_offsets.tolist()
        assert layout.chunk_count == record["n_chunks"]
        assert layout.stored_bytes == record["serialized_bytes"] == len(body)
        assert layout.unpacked_bytes == record["raw_bytes"]
        assert layout.chunk_lengths() == lengths
        assert [end - start - 8 for start, end in pairwise(ends)] == record["compressed_lengths"]
        assert [body[start + 4] for start in ends[:-1]] == record["schemes"]


def test_recorded_bodies_are_what_they_are_called(vectors):
    for name, body in vectors.bodies().items():
        hashes, lengths = vectors.chunk_list(name)
        facts = verify_xorb(body, hash_from_text(name))
        assert facts.chunk_hashes == hashes
        assert facts.layout == walk_xorb(body)
        assert [chunk_hash(chunk) for chunk in unpack_chunks(body)] == [
            hashes[at : at + 32] for at in range(0, len(hashes), 32)
        ]
        assert [len(chunk) for chunk in unpack_chunks(body)] == lengths


def test_all_schemes_are_recorded(vectors):
    schemes = vectors.xorbs["d275965c5d0f0c1c669430326e6a74f975b4a613bc5ed952ff1cd14c36f246cc"]["schemes"]
    assert set(schemes) == {0, 1, 2}


def test_content_of_recorded_bodies(vectors):
    for name in ("rand1m", "mix", "zeros1m", "text300k", "f32_200k", "sha200k", "one", "s100", "rand300k"):
        content = b""
        for term in vectors.terms(name):
            body = vectors.bodies()[term["xorb"]]
            start, end = walk_xorb(body).stored_range(term["start"], term["end"])
            part = b"".join(unpack_chunks(memoryview(body)[start:end]))
            assert len(part) == term["unpacked_length"]
            content += part
        assert content == vectors.input(name)


@pytest.mark.parametrize("size", [1, 3, 8, 1000, 65536, 10**9])
def test_verifying_while_the_body_arrives(vectors, size):
    name = "16619aac4438b362612d2c60dd867555fa7ea0e95c6d19bd0d07324a47108d39"
    body = vectors.bodies()[name]
    verifier = XorbVerifier()
    for at in range(0, len(body), size):
        verifier.feed(body[at : at + size])
    assert verifier.finish(hash_from_text(name)) == vectors.facts(name)


@given(CHUNKS, st.lists(st.integers(0, 4000), min_size=1, max_size=10), st.booleans())
def test_build_and_back(chunks, sizes, footer):
    built = _built(chunks)
    body = built.body + write_footer(built.facts) if footer else built.body
    assert verify_xorb(body, built.facts.xorb_hash) == built.facts
    assert walk_xorb(body) == built.facts.layout
    assert [bytes(chunk) for chunk in unpack_chunks(body)] == [chunk for chunk, _ in chunks]
    assert unpack_layout(built.facts.layout.pack()) == built.facts.layout
    verifier, at, turn = XorbVerifier(), 0, 0
    while at < len(body):
        size = sizes[turn % len(sizes)] or 1
        verifier.feed(memoryview(body)[at : at + size])
        at, turn = at + size, turn + 1
    assert verifier.finish(built.facts.xorb_hash) == built.facts


@given(CHUNKS)
def test_footer_and_back(chunks):
    facts = _built(chunks).facts
    data = write_footer(facts)
    assert len(data) == 96 + 40 * len(chunks)
    footer = read_footer(data)
    assert (footer.xorb_hash, footer.chunk_hashes, footer.layout) == (facts.xorb_hash, facts.chunk_hashes, facts.layout)


def test_a_footer_that_contradicts_itself():
    data = write_footer(_built([(b"abc", None), (b"defg", None)]).facts)
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 0x81
        if 128 <= at < 144:
            continue  # an offset may become another possible one
        if 8 <= at < 40 or 52 <= at < 116 or len(data) - 20 <= at < len(data) - 4:
            read_footer(bytes(broken))  # hashes and reserved bytes cannot contradict anything
        else:
            with pytest.raises(InvalidXorb):
                read_footer(bytes(broken))
    for size in (0, 95, 96, len(data) - 1):
        with pytest.raises(InvalidXorb):
            read_footer(data[:size])


def test_a_memory_map_can_be_closed_afterwards():
    built = _built([(os.urandom(5000), Scheme.NONE), (bytes(5000), Scheme.LZ4)])
    with tempfile.TemporaryFile() as file:
        file.write(built.body[:-1] + b"x")
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert walk_xorb(mapped) == built.facts.layout
            try:
                verify_xorb(mapped, built.facts.xorb_hash)
            except InvalidXorb as error:
                kept = error
            mapped.close()
    assert "chunk 1" in str(kept)


GOOD = _plain(b"hello") + _plain(b"world!")
BROKEN = {
    "nothing": (b"", "at least one chunk"),
    "half a header": (GOOD + b"\x00\x01\x02", "chunk 2 at byte 27: header is cut short after 3"),
    "half a payload": (GOOD[:-1], "chunk 1"),
    "version": (GOOD + _header(1, 0, 1, version=1) + b"x", "version 1"),
    "scheme": (GOOD + _header(1, 3, 1) + b"x", "scheme 3"),
    "no payload": (GOOD + _header(0, 1, 5), "payload of 0"),
    "no content": (GOOD + _header(5, 1, 0) + b"xxxxx", "length of 0"),
    "large payload": (_header(262145, 1, 5) + bytes(262145), "payload of 262145"),
    "large content": (_header(5, 1, 131073) + b"xxxxx", "length of 131073"),
    "plain lengths differ": (_header(5, 0, 6) + b"xxxxx", "5 bytes but 6 long"),
    "zeros": (bytes(100), "payload of 0"),
    "text": (b"<html>not a xorb</html>", "version 60"),
    "half a footer mark": (GOOD + b"XETBLOB", "cut short after 7"),
    "endless footer": (GOOD + b"XETBLOB\x01" + bytes(MAX_FOOTER_BYTES), "footer at byte 27"),
    "only a footer": (b"XETBLOB\x01" + bytes(100), "at least one chunk"),
    "one chunk too many": (_plain(b"x") * (MAX_XORB_CHUNKS + 1), "at most 8192"),
    "too long": (_plain(bytes(131072)) * 513, "67174400"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_headers(case):
    body, message = BROKEN[case]
    with pytest.raises(InvalidXorb, match=message):
        walk_xorb(body)
    with pytest.raises(InvalidXorb, match=message):
        verify_xorb(body, bytes(32))
    verifier = XorbVerifier()
    with pytest.raises(InvalidXorb, match=message):
        for at in range(0, len(body), 100_000):
            verifier.feed(body[at : at + 100_000])
        verifier.finish(bytes(32))


def test_as_large_as_a_xorb_may_be():
    fits = _plain(bytes(131072)) * 512 + _plain(bytes(MAX_XORB_BYTES - 512 * 131080 - 8))
    assert walk_xorb(fits).stored_bytes == MAX_XORB_BYTES
    assert walk_xorb(_plain(b"x") * MAX_XORB_CHUNKS).chunk_count == MAX_XORB_CHUNKS


def test_other_content_under_a_name(vectors):
    name = "f1376370d2dff8ec59b0dc3349190cff18d4174a13e0fa87c0c0a37c08bbbadb"
    body = bytearray(vectors.bodies()[name])
    body[500_000] ^= 1
    assert walk_xorb(body) == vectors.facts(name).layout
    with pytest.raises(InvalidXorb, match=f"not {name}"):
        verify_xorb(body, hash_from_text(name))
    with pytest.raises(InvalidXorb, match="not " + "0" * 64):
        verify_xorb(vectors.bodies()[name], bytes(32))


def test_payload_that_does_not_unpack():
    builder = XorbBuilder()
    builder.add(b"first", Scheme.NONE)
    builder.add(b"abc" * 1000, Scheme.LZ4)
    body = bytearray(builder.finish().body)
    body[13 + 8] ^= 0xFF
    with pytest.raises(InvalidXorb, match="chunk 1 at byte 13: LZ4"):
        verify_xorb(body, bytes(32))
    with pytest.raises(InvalidXorb, match="chunk 1 at byte 13: LZ4"):
        list(unpack_chunks(body))
    with pytest.raises(InvalidXorb, match="chunk 1 at byte 13: payload is cut short after 2"):
        list(unpack_chunks(builder.finish().body[:23]))


def test_building_knows_its_limits():
    builder = XorbBuilder()
    with pytest.raises(InvalidXorb, match="at least one"):
        builder.finish()
    for length in (0, MAX_CHUNK_BYTES + 1):
        with pytest.raises(InvalidXorb, match=f"{length} bytes"):
            builder.add(bytes(length))
    for _ in range(512):
        builder.add(bytes(MAX_CHUNK_BYTES), Scheme.NONE)
    left = MAX_XORB_BYTES - 512 * 131080 - 8
    assert builder.fits(left) and not builder.fits(left + 1)
    with pytest.raises(InvalidXorb, match="does not fit"):
        builder.add(os.urandom(left + 1))
    builder.add(bytes(left), Scheme.NONE)
    assert len(builder.finish().body) == MAX_XORB_BYTES


def test_no_more_chunks_than_allowed():
    builder = XorbBuilder()
    for _ in range(MAX_XORB_CHUNKS):
        builder.add(b"x", Scheme.NONE)
    assert not builder.fits(1)
    with pytest.raises(InvalidXorb, match="does not fit"):
        builder.add(b"x")


@settings(max_examples=50)
@given(st.binary(max_size=100))
def test_layouts_that_no_xorb_has(data):
    try:
        layout = unpack_layout(data)
    except InvalidXorb:
        return
    assert layout.pack() == data


def test_layout_says_which_chunk_is_wrong():
    good = walk_xorb(GOOD).pack()
    with pytest.raises(InvalidXorb, match="chunk 1 cannot end at byte 13"):
        unpack_layout(good[:8] * 2)
    for data in (b"", good[:-1], bytes(8 * (MAX_XORB_CHUNKS + 1))):
        with pytest.raises(InvalidXorb, match=f"this one {len(data)}"):
            unpack_layout(data)


def test_names_are_printed_as_the_client_prints_them():
    facts = _built([(b"x", None)]).facts
    with pytest.raises(InvalidXorb, match=hash_to_text(facts.xorb_hash)):
        verify_xorb(_plain(b"x"), bytes(32))
