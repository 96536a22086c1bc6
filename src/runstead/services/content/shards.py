"""Registering files: a shard is believed as far as the store can prove it (wire-storage §5.2, §6)."""

import asyncio
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from runstead.kit.clock import Clock
from runstead.model.content import EMPTY_FILE
from runstead.model.errors import Invalid
from runstead.services.content.threads import Threads
from runstead.services.content.xorbs import Xorbs
from runstead.stores.interface import ContentStore, EligibleChunk, StoredFile
from runstead.xet.dedup import eligible_chunks
from runstead.xet.errors import FormatError
from runstead.xet.hashes import HASH_BYTES, Buffer, hash_to_text
from runstead.xet.shard import MAX_SHARD_BYTES, Shard, read_shard
from runstead.xet.verification import VerifiedFile, VerifiedShard, named_xorbs, verify_shard
from runstead.xet.xorb_layout import XorbFacts

_NEW_NAME_AFTER_SECONDS = 600.0
_BIG_BYTES = 4 * 1024 * 1024


class LostXorbs(Invalid):
    """A shard names xorbs that are not stored: lost, or never uploaded."""


class Shards:
    """Takes shards."""

    def __init__(self, store: ContentStore, xorbs: Xorbs, threads: Threads, clock: Clock) -> None:
        self._store = store
        self._xorbs = xorbs
        self._threads = threads
        self._clock = clock
        self._big = asyncio.Semaphore(1)
        self._small = asyncio.Semaphore(8)

    def room_for(self, size: int) -> asyncio.Semaphore:
        """Return what to hold while a shard of this size is read and registered; it bounds the memory for all."""
        return self._big if size > _BIG_BYTES else self._small

    async def register(self, scope: str, store_id: str, body: Buffer) -> int:
        """Register the files of a shard for a scope and return how many there are; durable then.

        Raises Invalid, with nothing registered, if any of it is wrong; LostXorbs if it names a xorb that is not
        here. The client then believes too much of the store it knows by `store_id`, so the store gets a new name.
        """
        shard = await self._threads.work(_read, body)
        names = named_xorbs(shard)
        found = await self._xorbs.confirm(names)
        lost = [name for name in names if name not in found]
        if lost:
            raise await self._lost(lost, store_id)
        stored = await self._store.xorbs(names)
        facts = {name: xorb.facts for name, xorb in stored.items()}
        verified, chunks = await self._threads.work(_verify, shard, facts)
        files = [
            StoredFile(file.file_hash, file.file_bytes, file.terms, file.sha256)
            for file in verified.files
            if file.file_hash != EMPTY_FILE
        ]
        await self._store.register(scope, files, chunks, self._clock.now())
        return len(verified.files)

    async def _lost(self, lost: list[bytes], store_id: str) -> LostXorbs:
        now = self._clock.now()
        await self._store.renew_store_id(store_id, now, _NEW_NAME_AFTER_SECONDS)
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        return LostXorbs(
            "this store does not hold data that the client believes is here; run the command again, and it will be "
            f"uploaded: xorb {hash_to_text(lost[0])}{others}"
        )


def _read(body: Buffer) -> Shard:
    if len(body) > MAX_SHARD_BYTES:
        raise Invalid(f"a shard has at most {MAX_SHARD_BYTES} bytes, this one {len(body)}")
    try:
        return read_shard(body)
    except FormatError as error:
        raise Invalid(str(error)) from error


def _verify(shard: Shard, facts: Mapping[bytes, XorbFacts]) -> tuple[VerifiedShard, list[EligibleChunk]]:
    try:
        verified = verify_shard(shard, facts.get)
    except FormatError as error:
        raise Invalid(str(error)) from error
    return verified, list(_eligible(verified, facts))


def _eligible(verified: VerifiedShard, facts: Mapping[bytes, XorbFacts]) -> Iterator[EligibleChunk]:
    """Yield the chunks of these files that clients may ask for; those in older xorbs are known already."""
    listed = {xorb.xorb_hash: eligible_chunks(xorb.chunk_hashes or b"") for xorb in verified.xorbs}
    seen: set[bytes] = set()
    for file in verified.files:
        for chunk in _of_file(file, listed, facts):
            if chunk.chunk_hash not in seen:
                seen.add(chunk.chunk_hash)
                yield chunk


def _of_file(
    file: VerifiedFile, listed: Mapping[bytes, list[int]], facts: Mapping[bytes, XorbFacts]
) -> Iterator[EligibleChunk]:
    if not file.terms:
        return
    first = file.terms[0]
    yield _chunk(facts[first.xorb_hash], first.start, file.file_hash)
    for term in file.terms:
        eligible = listed.get(term.xorb_hash)
        if eligible:
            for index in eligible[bisect_left(eligible, term.start) : bisect_left(eligible, term.end)]:
                yield _chunk(facts[term.xorb_hash], index, file.file_hash)


def _chunk(xorb: XorbFacts, index: int, file_hash: bytes) -> EligibleChunk:
    hashes = xorb.chunk_hashes or b""
    return EligibleChunk(hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)], xorb.xorb_hash, file_hash)
