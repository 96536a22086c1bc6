"""Whether a shard tells the truth about stored xorbs (wire-storage §6).

What a sender states is believed only as far as the store can confirm it: a xorb is there and has these chunks, a
term lies within its xorb and its sender knows the chunks it refers to, a file's name follows from its chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from runstead.xet.errors import InvalidShard
from runstead.xet.hashes import HASH_BYTES, ZERO_HASH, file_hash_of_root, hash_to_text, range_hash
from runstead.xet.merkle import MerkleTree, merkle_root
from runstead.xet.shard import FileEntry, Shard, XorbBlock
from runstead.xet.terms import Term, Terms
from runstead.xet.xorb_layout import XorbFacts

MAX_REFERENCED_CHUNKS = 1 << 25
"""Chunks that all terms of a shard may refer to together, about 2 TB of files; it bounds the time of a check."""

FindXorb = Callable[[bytes], XorbFacts | None]
"""Gives what is known of the stored xorb with this hash, None if there is none; a dictionary's `get` is one."""


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """A file whose name follows from its terms; `sha256` is what the sender says, it is not checked here."""

    file_hash: bytes
    terms: Terms
    file_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class VerifiedShard:
    """The files of a shard, and the xorbs it lists with their chunk hashes, which are now known to be right."""

    files: tuple[VerifiedFile, ...]
    xorbs: tuple[XorbFacts, ...]


def named_xorbs(shard: Shard) -> list[bytes]:
    """Return each xorb that a shard lists or refers to, once: what `verify_shard` will look for."""
    names = dict.fromkeys(block.xorb_hash for block in shard.xorbs)
    for entry in shard.files:
        names.update(dict.fromkeys(entry.terms.xorb_hashes()))
    return list(names)


def verify_shard(
    shard: Shard,
    find_xorb: FindXorb,
    *,
    max_chunks: int = MAX_REFERENCED_CHUNKS,
    progress: Callable[[int, int], None] | None = None,
) -> VerifiedShard:
    """Check an uploaded shard against the stored xorbs; `progress` hears how many of how many files are done.

    Raises InvalidShard for the first thing that is not true, naming the file or xorb and the values at fault:
    also for HMACs instead of hashes, a file without range hashes, a term into a xorb whose chunk hashes are
    neither known nor listed, and for more than `max_chunks` chunks altogether.
    """
    if shard.footer is not None and shard.footer.hmac_key != ZERO_HASH:
        raise InvalidShard("an uploaded shard shows plain hashes, this one has an HMAC key in its footer")
    listed: dict[bytes, XorbFacts] = {}
    for index, block in enumerate(shard.xorbs):
        if block.xorb_hash in listed:
            raise InvalidShard(f"xorb {index} is listed a second time: {hash_to_text(block.xorb_hash)}")
        listed[block.xorb_hash] = verify_block(block, find_xorb(block.xorb_hash), index)
    verifier = FileVerifier(lambda xorb_hash: listed.get(xorb_hash) or find_xorb(xorb_hash), max_chunks)
    files: list[VerifiedFile] = []
    for entry in shard.files:
        files.append(verifier.verify(entry))
        if progress is not None:
            progress(len(files), len(shard.files))
    return VerifiedShard(tuple(files), tuple(listed.values()))


def verify_block(block: XorbBlock, stored: XorbFacts | None, index: int = 0) -> XorbFacts:
    """Return the facts of a stored xorb with the chunk hashes a shard lists for it.

    Raises InvalidShard if there is no such xorb or counts, lengths or hashes differ from what is stored. Hashes
    not yet known must have the name of the xorb as their root. `index` is for the message.
    """
    what = f"xorb {index}, {hash_to_text(block.xorb_hash)},"
    if stored is None:
        raise InvalidShard(f"{what} is listed but not stored")
    layout = stored.layout
    if block.chunk_count != layout.chunk_count:
        raise InvalidShard(f"{what} has {layout.chunk_count} chunks, the shard lists {block.chunk_count}")
    wrong = (block.chunk_starts() != layout.unpacked_offsets[:-1]) | (
        block.chunk_lengths() != np.diff(layout.unpacked_offsets)
    )
    if wrong.any():
        chunk = int(wrong.argmax())
        raise InvalidShard(
            f"{what} chunk {chunk} is {layout.unpacked_offsets[chunk + 1] - layout.unpacked_offsets[chunk]} bytes "
            f"from {layout.unpacked_offsets[chunk]}, the shard says {block.chunk_lengths()[chunk]} from "
            f"{block.chunk_starts()[chunk]}"
        )
    if block.unpacked_bytes != layout.unpacked_bytes:
        raise InvalidShard(
            f"{what} has {layout.unpacked_bytes} bytes of content, the shard says {block.unpacked_bytes}"
        )
    hashes = block.chunk_hashes()
    if stored.chunk_hashes is None:
        root = merkle_root(hashes, layout.chunk_lengths())
        if root != block.xorb_hash:
            raise InvalidShard(f"{what} is listed with chunk hashes whose root is {hash_to_text(root)}")
        return replace(stored, chunk_hashes=hashes)
    if hashes != stored.chunk_hashes:
        chunk = next(
            at
            for at in range(block.chunk_count)
            if _hashes(hashes, at, at + 1) != _hashes(stored.chunk_hashes, at, at + 1)
        )
        raise InvalidShard(
            f"{what} chunk {chunk} has the hash {hash_to_text(_hashes(stored.chunk_hashes, chunk, chunk + 1))}, "
            f"the shard says {hash_to_text(_hashes(hashes, chunk, chunk + 1))}"
        )
    return stored


class FileVerifier:
    """Checks files one by one against stored xorbs, up to a number of chunks altogether."""

    def __init__(self, find_xorb: FindXorb, max_chunks: int = MAX_REFERENCED_CHUNKS) -> None:
        self._find_xorb = find_xorb
        self._max_chunks = max_chunks
        self._chunks = 0
        self._files = 0

    def verify(self, entry: FileEntry) -> VerifiedFile:
        """Check every term of a file, and its hash. Raises InvalidShard, see `verify_shard`."""
        what = f"file {self._files}, {hash_to_text(entry.file_hash)},"
        self._files += 1
        if entry.range_hashes is None:
            raise InvalidShard(f"{what} has no range hashes")
        tree, size = MerkleTree(), 0
        for index, term in enumerate(entry.terms):
            hashes, lengths = self._chunks_of(term, f"{what} term {index}")
            proof = range_hash(hashes)
            stated = _hashes(entry.range_hashes, index, index + 1)
            if proof != stated:
                raise InvalidShard(
                    f"{what} term {index}: range hash is {hash_to_text(stated)}, should be {hash_to_text(proof)}"
                )
            tree.add(hashes, lengths)
            size += term.unpacked_bytes
        root = tree.root()
        name = ZERO_HASH if root is None else file_hash_of_root(root)
        if name != entry.file_hash:
            raise InvalidShard(f"{what} has terms that give the hash {hash_to_text(name)}")
        return VerifiedFile(entry.file_hash, entry.terms, size, entry.sha256)

    def _chunks_of(self, term: Term, what: str) -> tuple[bytes, list[int]]:
        """Return hashes and lengths of the chunks of a term after checking its bounds and length."""
        facts = self._find_xorb(term.xorb_hash)
        if facts is None:
            raise InvalidShard(f"{what}: xorb {hash_to_text(term.xorb_hash)} is not stored")
        if facts.chunk_hashes is None:
            raise InvalidShard(f"{what}: the chunk hashes of xorb {hash_to_text(term.xorb_hash)} are not known")
        if not term.start < term.end <= facts.layout.chunk_count:
            raise InvalidShard(
                f"{what}: chunks {term.start} to {term.end} (exclusive) are not in xorb "
                f"{hash_to_text(term.xorb_hash)} of {facts.layout.chunk_count}"
            )
        self._chunks += term.end - term.start
        if self._chunks > self._max_chunks:
            raise InvalidShard(f"{what}: the shard refers to more than {self._max_chunks} chunks")
        offsets = facts.layout.unpacked_offsets[term.start : term.end + 1]
        size = int(offsets[-1]) - int(offsets[0])
        if term.unpacked_bytes != size:
            raise InvalidShard(
                f"{what}: chunks {term.start} to {term.end} (exclusive) of xorb {hash_to_text(term.xorb_hash)} have "
                f"{size} bytes, not {term.unpacked_bytes}"
            )
        return _hashes(facts.chunk_hashes, term.start, term.end), np.diff(offsets).tolist()


def _hashes(hashes: bytes, start: int, end: int) -> bytes:
    return hashes[HASH_BYTES * start : HASH_BYTES * end]
