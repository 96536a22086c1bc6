"""Registering files: a shard is believed as far as the store can prove it (wire-storage §5.2, §6)."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping

from runstead.kit.clock import Clock
from runstead.model.content import EMPTY_FILE
from runstead.model.errors import Invalid
from runstead.services.content.cache import Cache
from runstead.services.content.threads import Threads
from runstead.services.content.xorbs import Xorbs
from runstead.stores.interface import ContentStore, EligibleChunk, StoredFile, StoredXorb
from runstead.xet.dedup import eligible_chunks
from runstead.xet.errors import FormatError
from runstead.xet.hashes import HASH_BYTES, Buffer, hash_to_text
from runstead.xet.shard import MAX_SHARD_BYTES, Shard, read_shard
from runstead.xet.verification import VerifiedFile, VerifiedShard, named_xorbs, verify_shard
from runstead.xet.xorb_layout import XorbFacts

_NEW_NAME_AFTER_SECONDS = 600.0
_BIG_BYTES = 4 * 1024 * 1024
_KEPT_BYTES = 16 * 1024 * 1024
_LOADED_AT_ONCE = 16
_LOAD_SECONDS = 60.0


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
        loop = asyncio.get_running_loop()

        def load(some: list[bytes]) -> dict[bytes, StoredXorb]:
            return asyncio.run_coroutine_threadsafe(self._store.xorbs(some), loop).result(_LOAD_SECONDS)

        verified, chunks = await self._threads.work(_verify, shard, _Facts(names, load))
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


class _Facts:
    """Facts of the xorbs a shard names, loaded in the order it names them; a few are kept, however many those are."""

    def __init__(self, names: list[bytes], load: Callable[[list[bytes]], dict[bytes, StoredXorb]]) -> None:
        self._names = names
        self._places = {name: place for place, name in enumerate(names)}
        self._load = load
        self._kept = Cache[bytes, XorbFacts](_KEPT_BYTES, lambda facts: 48 * facts.layout.chunk_count + 500)

    def find(self, xorb_hash: bytes) -> XorbFacts | None:
        """Return what is known of a xorb. Blocks."""
        found = self._kept.get(xorb_hash)
        if found is None and xorb_hash in self._places:
            place = self._places[xorb_hash]
            for name, xorb in self._load(self._names[place : place + _LOADED_AT_ONCE]).items():
                if name != xorb_hash:
                    self._kept.put(name, xorb.facts)
                else:
                    found = xorb.facts
            if found is not None:
                self._kept.put(xorb_hash, found)
        return found


def _read(body: Buffer) -> Shard:
    if len(body) > MAX_SHARD_BYTES:
        raise Invalid(f"a shard has at most {MAX_SHARD_BYTES} bytes, this one {len(body)}")
    try:
        return read_shard(body)
    except FormatError as error:
        raise Invalid(str(error)) from error


def _verify(shard: Shard, facts: _Facts) -> tuple[VerifiedShard, list[EligibleChunk]]:
    try:
        verified = verify_shard(shard, facts.find)
    except FormatError as error:
        raise Invalid(str(error)) from error
    return verified, list(_eligible(verified, facts))


def _eligible(verified: VerifiedShard, facts: _Facts) -> Iterator[EligibleChunk]:
    """Yield the chunks of these files that clients may ask for; those in older xorbs are known already."""
    listed = {xorb.xorb_hash: (xorb, eligible_chunks(xorb.chunk_hashes or b"")) for xorb in verified.xorbs}
    seen: set[bytes] = set()
    for file in verified.files:
        for chunk in _of_file(file, listed, facts):
            if chunk.chunk_hash not in seen:
                seen.add(chunk.chunk_hash)
                yield chunk


def _of_file(
    file: VerifiedFile, listed: Mapping[bytes, tuple[XorbFacts, list[int]]], facts: _Facts
) -> Iterator[EligibleChunk]:
    if not file.terms:
        return
    first = file.terms[0]
    holder = listed[first.xorb_hash][0] if first.xorb_hash in listed else facts.find(first.xorb_hash)
    if holder is not None:
        yield _chunk(holder, first.start, file.file_hash)
    for term in file.terms:
        if term.xorb_hash in listed:
            holder, eligible = listed[term.xorb_hash]
            for index in eligible[bisect_left(eligible, term.start) : bisect_left(eligible, term.end)]:
                yield _chunk(holder, index, file.file_hash)


def _chunk(xorb: XorbFacts, index: int, file_hash: bytes) -> EligibleChunk:
    hashes = xorb.chunk_hashes or b""
    return EligibleChunk(hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)], xorb.xorb_hash, file_hash)
