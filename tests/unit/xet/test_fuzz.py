"""Whatever the bytes: a value or a FormatError, and never much memory."""

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runstead.xet.compression import Decompressor
from runstead.xet.errors import FormatError
from runstead.xet.hashes import hash_from_text
from runstead.xet.reconstruction import reconstruct, span_of
from runstead.xet.shard import read_shard, write_shard
from runstead.xet.terms import Terms
from runstead.xet.verification import named_xorbs, verify_shard
from runstead.xet.xorb import XorbVerifier, unpack_chunks, verify_xorb, walk_xorb
from runstead.xet.xorb_footer import read_footer
from runstead.xet.xorb_layout import unpack_layout

CORPUS = sorted((Path(__file__).parents[2] / "fuzz" / "xet").iterdir())
VECTORS = Path(__file__).parents[2] / "vectors" / "xet"
XORBS = [path.read_bytes() for path in CORPUS if path.name.startswith("xorb-")]
XORBS.append((VECTORS / "xorbs" / "16619aac4438b362612d2c60dd867555fa7ea0e95c6d19bd0d07324a47108d39.xorb").read_bytes())
SHARDS = [path.read_bytes() for path in CORPUS if path.name.startswith("shard-")]
SHARDS += [path.read_bytes() for path in sorted(VECTORS.glob("*/*.shard"))]
STORED = {
    hash_from_text(path.stem): verify_xorb(path.read_bytes(), hash_from_text(path.stem))
    for path in sorted(VECTORS.glob("xorbs/*.xorb"))
}
LAYOUTS = {name: facts.layout for name, facts in STORED.items()}
NUMBERS = [0, 1, 7, 8, 47, 48, 200, 8192, 8193, 131072, 131073, 2**24 - 1, 2**31, 2**32 - 1]


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """Change one to four things: a bit, a number, a stretch left out, doubled or moved, or the end."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            width = chance.choice([3, 4, 8])
            number = chance.choice([*NUMBERS, len(data), len(data) - 200]) % (1 << 8 * width)
            at -= at % chance.choice([1, 4, 8])
            changed[at : at + width] = number.to_bytes(width, "little")
        elif kind == 2:
            del changed[at : at + chance.choice([1, 8, 48, 1000])]
        elif kind == 3:
            changed[at:at] = changed[at : at + chance.choice([1, 8, 48, 1000])]
        elif kind == 4:
            other = chance.randrange(len(changed) + 1)
            changed[at : at + 48] = changed[other : other + 48]
        else:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


def _tolerated(function: Callable[[], object]) -> None:
    try:
        function()
    except FormatError as error:
        assert str(error)


def _xorb(data: bytes) -> None:
    _tolerated(lambda: unpack_layout(walk_xorb(data).pack()))
    _tolerated(lambda: verify_xorb(data, bytes(32)))
    _tolerated(lambda: [bytes(chunk) for chunk in unpack_chunks(data)])
    _tolerated(lambda: read_footer(data))
    _tolerated(lambda: unpack_layout(data))
    for scheme in range(4):
        _tolerated(lambda scheme=scheme: Decompressor().unpack(data, scheme, 131072))


def _shard(data: bytes) -> None:
    try:
        shard = read_shard(data)
    except FormatError as error:
        assert str(error)
        return
    assert read_shard(write_shard(shard)).files == shard.files
    named_xorbs(shard)
    _tolerated(lambda: verify_shard(shard, STORED.get))
    for entry in shard.files:
        _tolerated(lambda entry=entry: reconstruct(span_of(entry.terms, (3, 1 << 40)), LAYOUTS))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_kept_inputs(path):
    data = path.read_bytes()
    tracemalloc.start()
    try:
        _xorb(data)
        _shard(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000 + 10 * len(data)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(range(len(XORBS))), st.integers(0, 2**63))
def test_changed_xorbs(which, seed):
    _xorb(_mutated(XORBS[which], random.Random(seed)))


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(range(len(SHARDS))), st.integers(0, 2**63))
def test_changed_shards(which, seed):
    _shard(_mutated(SHARDS[which], random.Random(seed)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes(data):
    _xorb(data)
    _shard(data)
    _shard(SHARDS[0][:48] + data)
    _tolerated(lambda: Terms(data))
    _tolerated(lambda: hash_from_text(data.decode("latin-1")))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(range(len(XORBS))), st.integers(0, 2**63))
def test_a_body_in_pieces_is_judged_like_the_whole(which, seed):
    chance = random.Random(seed)
    data = _mutated(XORBS[which], chance)

    def in_pieces():
        verifier, at = XorbVerifier(), 0
        while at < len(data):
            size = chance.choice([1, 7, 8, 9, 5000, 131080])
            verifier.feed(data[at : at + size])
            at += size
        return verifier.finish(bytes(32))

    with pytest.raises(FormatError) as whole:
        verify_xorb(data, bytes(32))
    with pytest.raises(FormatError) as pieces:
        in_pieces()
    assert str(pieces.value) == str(whole.value)
