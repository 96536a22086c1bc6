"""The hashes of Xet and their text form (wire-storage §1).

A hash is 32 bytes everywhere inside the server. Its text, used in URLs, JSON and merkle nodes, writes each group
of eight bytes backwards. Lists of hashes travel as one bytes value of 32 bytes per hash, in order, which is also
how shards and range hashes want them.
"""

import re
from collections.abc import Sequence
from mmap import mmap
from struct import Struct
from typing import TypeAlias

from blake3 import blake3

from runstead.xet.errors import InvalidHash
from runstead.xet.merkle import merkle_root

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap
"""Contiguous bytes that can be read without a copy."""

HASH_BYTES = 32
ZERO_HASH = bytes(HASH_BYTES)
"""The file hash of an empty file."""

_DATA_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_VERIFICATION_KEY = bytes.fromhex("7f1857d6ce56ed66127ff913e7a5c3f3a4cd26d5b5db49e64124987f28fb94c3")
_GROUPS = Struct("<4Q")
_GROUPS_OF_TEXT = Struct(">4Q")
_TEXT = re.compile(r"[0-9a-f]{64}", re.ASCII)


def hash_to_text(value: bytes) -> str:
    """Return the 64 digits that stand for a hash. Raises InvalidHash unless there are 32 bytes."""
    if len(value) != HASH_BYTES:
        raise InvalidHash(f"a hash has {HASH_BYTES} bytes, this one {len(value)}: {value[:40].hex()}")
    return _GROUPS_OF_TEXT.pack(*_GROUPS.unpack(value)).hex()


def hash_from_text(text: str) -> bytes:
    """Return the 32 bytes that 64 lower case digits stand for. Raises InvalidHash for any other text."""
    if not _TEXT.fullmatch(text):
        raise InvalidHash(f"not a hash of 64 lower case hexadecimal digits: {text[:80]!r}")
    return _GROUPS.pack(*_GROUPS_OF_TEXT.unpack(bytes.fromhex(text)))


def chunk_hash(data: Buffer) -> bytes:
    """Return the hash of a chunk's uncompressed bytes."""
    return blake3(data, key=_DATA_KEY).digest()


def range_hash(chunk_hashes: Buffer) -> bytes:
    """Return the hash by which a term proves that its sender knows the chunks, 32 bytes each, it refers to."""
    return blake3(chunk_hashes, key=_VERIFICATION_KEY).digest()


def file_hash(chunk_hashes: bytes, lengths: Sequence[int]) -> bytes:
    """Return the hash of a file made of these chunks; of an empty file when there are none."""
    return file_hash_of_root(merkle_root(chunk_hashes, lengths)) if lengths else ZERO_HASH


def file_hash_of_root(root: bytes) -> bytes:
    """Return the hash of a file whose chunks, at least one, have this merkle root."""
    return blake3(root, key=ZERO_HASH).digest()


def keyed_hashes(key: bytes, hashes: Buffer) -> bytes:
    """Return the HMACs of a list of hashes, in order, as a deduplication answer shows them (wire-storage §7).

    A key of zeros means that hashes are shown plainly.
    """
    if key == ZERO_HASH:
        return bytes(hashes)
    view = memoryview(hashes)
    return b"".join(
        blake3(view[start : start + HASH_BYTES], key=key).digest() for start in range(0, len(view), HASH_BYTES)
    )
