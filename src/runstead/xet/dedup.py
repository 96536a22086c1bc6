"""Answers to a client that asks whether the store has a chunk already (wire-storage §7)."""

from collections.abc import Iterable

import numpy as np

from runstead.xet.errors import InvalidShard
from runstead.xet.hashes import hash_to_text, keyed_hashes
from runstead.xet.shard import Shard, ShardFooter, block_of, write_shard
from runstead.xet.xorb_layout import XorbFacts

_ELIGIBLE_EVERY = 1024


def eligible_chunks(chunk_hashes: bytes) -> list[int]:
    """Return which of these chunks, by index, a client may ask for wherever they stand in a file.

    Besides these it asks for the first chunk of each file. `chunk_hashes` has 32 bytes per chunk.
    """
    last_numbers = np.frombuffer(chunk_hashes, "<u8")[3::4]
    return np.flatnonzero(last_numbers % _ELIGIBLE_EVERY == 0).tolist()


def dedup_answer(
    xorbs: Iterable[XorbFacts], *, hmac_key: bytes, created_at: int, key_expires_at: int, lookups: bool = True
) -> bytes:
    """Return the shard that tells a client of these xorbs; it may use them until `key_expires_at`.

    Chunk hashes are shown as HMACs under the 32 bytes of `hmac_key`, plainly if it is all zeros; instants are unix
    seconds. Raises InvalidShard for a xorb whose chunk hashes are not known.
    """
    blocks = [
        block_of(facts, keyed_hashes(hmac_key, _known_hashes(facts)))
        for facts in sorted(xorbs, key=lambda facts: hash_to_text(facts.xorb_hash))
    ]
    footer = ShardFooter(hmac_key, created_at, key_expires_at, lookups)
    return write_shard(Shard((), tuple(blocks), footer))


def _known_hashes(facts: XorbFacts) -> bytes:
    if facts.chunk_hashes is None:
        raise InvalidShard(f"xorb {hash_to_text(facts.xorb_hash)}: its chunk hashes are not known")
    return facts.chunk_hashes
