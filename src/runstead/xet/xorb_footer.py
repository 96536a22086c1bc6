"""The footer that older clients and the public store append to a xorb (wire-storage §2).

A server needs none: it keeps the offsets elsewhere and serves ranges of the chunks only. Reading one is for xorbs
taken over from another store, writing one for a reader that insists on it.
"""

from dataclasses import dataclass
from struct import Struct

import numpy as np

from runstead.xet.errors import InvalidXorb
from runstead.xet.hashes import HASH_BYTES, hash_to_text
from runstead.xet.xorb import FOOTER_MARK
from runstead.xet.xorb_layout import MAX_XORB_CHUNKS, XorbFacts, XorbLayout, layout_of_ends

_FIXED_BYTES = 92
_BYTES_PER_CHUNK = 40
_VERSION = 1
_HASHES_MARK, _HASHES_VERSION = b"XBLBHSH", 0
_BOUNDARIES_MARK, _BOUNDARIES_VERSION = b"XBLBBND", 1
_HEAD = Struct("<7sB32s7sBI")
_BOUNDARIES = Struct("<7sBI")
_TAIL = Struct("<III16xI")


@dataclass(frozen=True, slots=True)
class XorbFooter:
    """What a footer claims: name, chunk hashes (32 bytes each) and layout of its xorb. Nothing of it is proven."""

    xorb_hash: bytes
    chunk_hashes: bytes
    layout: XorbLayout


def write_footer(facts: XorbFacts) -> bytes:
    """Return the footer of a xorb. Raises InvalidXorb if its chunk hashes are not known."""
    count = facts.layout.chunk_count
    if facts.chunk_hashes is None or len(facts.chunk_hashes) != HASH_BYTES * count:
        raise InvalidXorb(f"xorb {hash_to_text(facts.xorb_hash)}: the hashes of its {count} chunks are not known")
    boundaries_from_end = _BOUNDARIES.size + 8 * count + _TAIL.size - 4
    hashes_from_end = boundaries_from_end + 12 + HASH_BYTES * count
    return b"".join(
        (
            _HEAD.pack(FOOTER_MARK, _VERSION, facts.xorb_hash, _HASHES_MARK, _HASHES_VERSION, count),
            facts.chunk_hashes,
            _BOUNDARIES.pack(_BOUNDARIES_MARK, _BOUNDARIES_VERSION, count),
            facts.layout.stored_offsets[1:].astype("<u4").tobytes(),
            facts.layout.unpacked_offsets[1:].astype("<u4").tobytes(),
            _TAIL.pack(count, hashes_from_end, boundaries_from_end, _FIXED_BYTES + _BYTES_PER_CHUNK * count),
        )
    )


def read_footer(data: bytes) -> XorbFooter:
    """Read a footer of version 1 from exactly its bytes. Raises InvalidXorb where a field contradicts another."""
    count, left_over = divmod(len(data) - _FIXED_BYTES - 4, _BYTES_PER_CHUNK)
    if left_over or not 1 <= count <= MAX_XORB_CHUNKS:
        raise InvalidXorb(f"a footer has 96 bytes and 40 per chunk, 1 to {MAX_XORB_CHUNKS} chunks, not {len(data)}")
    mark, version, xorb_hash, hashes_mark, hashes_version, hashes_count = _HEAD.unpack_from(data)
    hashes_end = _HEAD.size + HASH_BYTES * count
    boundaries_mark, boundaries_version, boundaries_count = _BOUNDARIES.unpack_from(data, hashes_end)
    ends_start = hashes_end + _BOUNDARIES.size
    tail_start = ends_start + 8 * count
    tail_count, hashes_from_end, boundaries_from_end, length = _TAIL.unpack_from(data, tail_start)
    for name, found, wanted in (
        ("mark", mark, FOOTER_MARK),
        ("version", version, _VERSION),
        ("mark of the hashes", hashes_mark, _HASHES_MARK),
        ("version of the hashes", hashes_version, _HASHES_VERSION),
        ("count of hashes", hashes_count, count),
        ("mark of the boundaries", boundaries_mark, _BOUNDARIES_MARK),
        ("version of the boundaries", boundaries_version, _BOUNDARIES_VERSION),
        ("count of boundaries", boundaries_count, count),
        ("count", tail_count, count),
        ("distance of the hashes", hashes_from_end, len(data) - 4 - _HEAD.size + 12),
        ("distance of the boundaries", boundaries_from_end, len(data) - 4 - hashes_end),
        ("length", length, len(data) - 4),
    ):
        if found != wanted:
            raise InvalidXorb(f"footer of {len(data)} bytes: {name} is {found!r}, should be {wanted!r}")
    ends = np.frombuffer(data, "<u4", 2 * count, ends_start)
    return XorbFooter(xorb_hash, data[_HEAD.size : hashes_end], layout_of_ends(ends[:count], ends[count:]))
