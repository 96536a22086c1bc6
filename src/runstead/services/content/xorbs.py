"""Stored xorbs: taken in, found again, and read with every byte checked."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Collection, Iterator
from datetime import datetime
from typing import Protocol

import structlog

from runstead.kit.clock import Clock
from runstead.model.errors import ContentDamaged, NotFound, RunsteadError
from runstead.objects.interface import ObjectStore
from runstead.services.content.cache import Cache
from runstead.services.content.checksums import BLOCK_BYTES, blocks_around, is_intact
from runstead.services.content.receipt import Receipt, Received
from runstead.services.content.threads import Threads
from runstead.stores.interface import ContentStore, StoredXorb
from runstead.xet.hashes import Buffer, hash_to_text

log = structlog.get_logger()

PREFIX = "xorbs"
"""Where the objects of xorbs are."""
_PIECE_BYTES = 16 * BLOCK_BYTES
_FEED_BYTES = 1 << 20
_CACHE_BYTES = 32 * 1024 * 1024
_GIVE_UP_SECONDS = 5
_MOST_SUSPECTS = 1000


class BlockingBody(Protocol):
    """A body that one thread reads, waiting for the client."""

    def pieces(self) -> Iterator[memoryview]:
        """Yield the body; each piece is valid until the next one is asked for."""
        ...

    def drain(self) -> None:
        """Read what is left and drop it."""
        ...

    def give_up(self) -> None:
        """Make the thread that reads end soon. Called by another."""
        ...


class Xorbs:
    """Everything about xorbs but how files are made of them."""

    def __init__(self, store: ContentStore, objects: ObjectStore, threads: Threads, clock: Clock) -> None:
        self._store = store
        self._objects = objects
        self._threads = threads
        self._clock = clock
        self._cache = Cache[bytes, StoredXorb](_CACHE_BYTES, _size_of)
        self._suspects: dict[str, None] = {}

    async def confirm(self, hashes: Collection[bytes]) -> set[bytes]:
        """Return which of these are stored; those stay for the grace period."""
        return await self._store.confirm_xorbs(hashes, self._now())

    async def find(self, hashes: Collection[bytes]) -> dict[bytes, StoredXorb]:
        """Return what is known of those of these xorbs that are stored."""
        wanted = dict.fromkeys(hashes)
        found = {each: xorb for each in wanted if (xorb := self._cache.get(each)) is not None}
        missing = [each for each in wanted if each not in found]
        if missing:
            for each, xorb in (await self._store.xorbs(missing)).items():
                self._cache.put(each, xorb)
                found[each] = xorb
        return found

    async def get(self, xorb_hash: bytes) -> StoredXorb:
        """Return what is known of a stored xorb. Raises NotFound."""
        found = await self.find([xorb_hash])
        if xorb_hash not in found:
            raise NotFound(f"this store does not hold the xorb {hash_to_text(xorb_hash)}")
        return found[xorb_hash]

    async def receive(
        self,
        xorb_hash: bytes,
        body: AsyncIterable[Buffer],
        *,
        limit_bytes: int,
        length: int | None = None,
        checksum: int | None = None,
    ) -> bool:
        """Take in a whole body; return whether it was new. It is durable, verified and confirmed then.

        Raises Invalid, with nothing stored, unless it is what was announced.
        """
        staged = await self._threads.wait(self._objects.new_staged)
        receipt = Receipt(xorb_hash, staged, limit_bytes)
        try:
            await self._feed(receipt, body)
            received = await self._threads.work(receipt.finish, length, checksum)
        finally:
            receipt.abandon()
        return await self.keep(received)

    async def receive_direct(
        self,
        xorb_hash: bytes,
        body: BlockingBody,
        *,
        limit_bytes: int,
        length: int | None = None,
        checksum: int | None = None,
    ) -> bool:
        """Do the same with a body that a thread can read by itself; the thread is done with it afterwards."""

        def take_in() -> Received:
            try:
                receipt = Receipt(xorb_hash, self._objects.new_staged(), limit_bytes)
                try:
                    for piece in body.pieces():
                        receipt.feed(piece)
                    return receipt.finish(length, checksum)
                finally:
                    receipt.abandon()
            except RunsteadError:
                body.drain()
                raise

        taking = asyncio.ensure_future(self._threads.receive(take_in))
        try:
            received = await asyncio.shield(taking)
        except asyncio.CancelledError:
            body.give_up()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(taking, _GIVE_UP_SECONDS)
            raise
        return await self.keep(received)

    @property
    def can_receive_direct(self) -> bool:
        """Whether a thread is free for that."""
        return self._threads.can_receive

    async def keep(self, received: Received) -> bool:
        """Store what was received, unless there is an equal xorb; return whether it was new."""
        facts = received.facts
        try:
            if facts.xorb_hash in await self.confirm([facts.xorb_hash]):
                return False
            key = new_key(facts.xorb_hash)
            await self._threads.wait(self._objects.put, key, received.staged)
        finally:
            await self._threads.wait(_remove, received)
        xorb = StoredXorb(facts, key, received.checksums)
        stays = await self._store.add_xorb(xorb, self._now())
        self._cache.drop(facts.xorb_hash)
        if stays.key == key:
            return True
        await self._threads.wait(self._objects.delete, key)
        return False

    async def pieces(self, xorb: StoredXorb, first: int, last: int) -> AsyncGenerator[memoryview]:
        """Yield the stored bytes from `first` to `last` (inclusive), each piece checked before it is yielded.

        Raises ContentDamaged where they are damaged. Whoever asks again for what broke off is told at once: of an
        object in which damage was seen, everything that is wanted is checked before the first piece.
        """
        position, end = first, last + 1
        if xorb.key in self._suspects:
            while position < end:
                position += len(await self._threads.wait(self._checked, xorb, position, _piece_end(position, end)))
            position = first
        ahead = self._ahead(xorb, position, end)
        try:
            while ahead is not None:
                piece = await ahead
                position += len(piece)
                ahead = self._ahead(xorb, position, end)
                yield piece
        except ContentDamaged:
            ahead = None
            self._cache.drop(xorb.facts.xorb_hash)  # another server may have replaced the object
            self._suspects[xorb.key] = None
            if len(self._suspects) > _MOST_SUSPECTS:
                del self._suspects[next(iter(self._suspects))]
            raise
        finally:
            if ahead is not None:
                ahead.cancel()

    def url(self, xorb: StoredXorb, seconds: int) -> str | None:
        """Return where clients may read the object themselves, if the store of objects offers that."""
        return self._objects.url(xorb.key, seconds)

    def read(self, xorb: StoredXorb, start: int, end: int) -> bytes:
        """Return stored bytes, unchecked. Blocks. Raises ContentDamaged if they are not there."""
        try:
            return self._objects.read(xorb.key, start, end)
        except NotFound as error:
            raise damaged(xorb, "its object is missing") from error

    def _ahead(self, xorb: StoredXorb, position: int, end: int) -> "asyncio.Future[memoryview] | None":
        if position >= end:
            return None
        return asyncio.ensure_future(self._threads.wait(self._checked, xorb, position, _piece_end(position, end)))

    def _checked(self, xorb: StoredXorb, start: int, end: int) -> memoryview:
        first, behind = blocks_around(start, end, xorb.facts.layout.stored_bytes)
        data = self.read(xorb, first, behind)
        if not is_intact(data, first, xorb.checksums):
            raise damaged(xorb, f"bytes {first} to {behind} (exclusive) do not have their checksum")
        return memoryview(data)[start - first : end - first]

    async def _feed(self, receipt: Receipt, body: AsyncIterable[Buffer]) -> None:
        """Gather what arrives while a thread works on what arrived before."""
        busy: asyncio.Future[None] | None = None
        gathered = bytearray()
        try:
            async for data in body:
                gathered += data
                if len(gathered) >= _FEED_BYTES:
                    if busy is not None:
                        await busy
                    busy = self._threads.start(receipt.feed, gathered)
                    gathered = bytearray()
            if busy is not None:
                await busy
            if gathered:
                busy = self._threads.start(receipt.feed, gathered)
                await busy
        finally:
            if busy is not None and not busy.done():
                # The thread still uses the file that is about to be removed.
                with contextlib.suppress(Exception):
                    await asyncio.shield(busy)

    def _now(self) -> datetime:
        return self._clock.now()


def _piece_end(position: int, end: int) -> int:
    return min(end, position - position % BLOCK_BYTES + _PIECE_BYTES)


def new_key(xorb_hash: bytes) -> str:
    """Return a key that no object ever had: what replaces a xorb must not meet the one that is being deleted."""
    name = hash_to_text(xorb_hash)
    return f"{PREFIX}/{name[:2]}/{name}-{secrets.token_hex(4)}"


def tag_of(xorb: StoredXorb) -> str:
    """Return what tells this object of the xorb from any other."""
    return xorb.key.rpartition("-")[2]


def damaged(xorb: StoredXorb, problem: str) -> ContentDamaged:
    """Return the error for a xorb that is not what it should be, after telling the log."""
    name = hash_to_text(xorb.facts.xorb_hash)
    log.error("a stored xorb is damaged; run `runstead fsck`", xorb=name, key=xorb.key, problem=problem)
    return ContentDamaged(f"what is stored is damaged, so it is not given out: xorb {name}: {problem}")


def _size_of(xorb: StoredXorb) -> int:
    return 48 * xorb.facts.layout.chunk_count + len(xorb.checksums) + 500


def _remove(received: Received) -> None:
    received.staged.unlink(missing_ok=True)
