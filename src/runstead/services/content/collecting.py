"""Garbage collection: mark what is referred to, sweep what nobody has counted on for weeks.

Safe beside everything else, and beside another collection, because of two rules and nothing more.

Who relies on something says so first. An answer that a xorb is here (a grant's 200, a commit, a deduplication
answer, an accepted shard) confirms the xorb; who is about to refer to a file holds it. Both are writes to the row
in question, and fail if it is gone.

What is removed is removed by one statement that looks again at when it was last confirmed or held. So whichever
comes first wins whole: the promise, and the row stays for the grace period, or the removal, and the promise is
refused. No lock is held, and it does not matter how old the marks are by then: whatever became referred to since
they were made was held after that, thus within the grace period.

Objects go last: a xorb is doomed, its object deleted, its row dropped. A crash leaves a doomed row, which the next
collection takes up. An upload that replaces a doomed xorb has a key of its own.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice

import structlog

from runstead.kit.clock import Clock
from runstead.model.content import Collected
from runstead.objects.interface import ObjectStore, StoredObject
from runstead.services.content.content import FileRoots
from runstead.services.content.marks import Marks
from runstead.services.content.threads import Threads
from runstead.services.content.xorbs import PREFIX
from runstead.stores.interface import ContentStore, StoredFile, XorbEntry

log = structlog.get_logger()

CONFIRMED_DAILY = timedelta(days=1)
"""Confirmations are written once a day at most, so what looks a day old may have been confirmed just now."""
_ORPHANED_AFTER = timedelta(days=2)
"""An object is put before its row is written. Longer than any upload takes between the two."""
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class _Round:
    before: datetime
    dry: bool


class Collecting:
    """Removes garbage."""

    def __init__(
        self,
        store: ContentStore,
        objects: ObjectStore,
        roots: Sequence[FileRoots],
        threads: Threads,
        clock: Clock,
        grace: timedelta,
        every_seconds: float = 0,
    ) -> None:
        self._store = store
        self._objects = objects
        self._roots = roots
        self._threads = threads
        self._clock = clock
        self._grace = grace
        self.every_seconds = every_seconds

    async def run(self) -> None:
        """Rest, then collect."""
        await self._clock.sleep(self.every_seconds)
        found = await self.collect()
        log.info("garbage was collected", files=found.files, xorbs=found.xorbs, bytes=found.bytes)

    async def collect(self, dry: bool = False) -> Collected:
        """Remove what nobody refers to and nobody counted on during the grace period; return how much that was.

        `dry` removes nothing and returns what would go.
        """
        round_ = _Round(self._clock.now() - self._grace - CONFIRMED_DAILY, dry)
        referred = await self._referred()
        files, needed = await self._sweep_files(referred, round_)
        found = await self._sweep_xorbs(needed, round_)
        objects, size = await self._sweep_objects(round_)
        return replace(found, files=files, objects=objects, bytes=found.bytes + size)

    async def _referred(self) -> Marks:
        marks = Marks()
        for root in self._roots:
            async for hashes in root.referenced():
                marks.add(hashes)
        return marks

    async def _sweep_files(self, referred: Marks, round_: _Round) -> tuple[int, Marks]:
        """Remove files; return how many, and the xorbs that the others need."""
        swept, needed = 0, Marks()
        async for files in self._files():
            unmarked = set(referred.unmarked(file.file_hash for file in files))
            gone = set(await self._drop(unmarked, round_))
            swept += len(gone)
            needed.add(name for file in files if file.file_hash not in gone for name in file.terms.xorb_hashes())
        return swept, needed

    async def _drop(self, hashes: set[bytes], round_: _Round) -> list[bytes]:
        if round_.dry:
            return await self._store.files_held_before(hashes, round_.before)
        return await self._store.drop_files(hashes, round_.before)

    async def _sweep_xorbs(self, needed: Marks, round_: _Round) -> Collected:
        found = Collected()
        async for xorbs in self._xorbs():
            unmarked = needed.unmarked(xorb.xorb_hash for xorb in xorbs)
            doomed = await self._doom(unmarked, round_)
            if not round_.dry:
                for xorb in doomed:
                    await self._threads.wait(self._objects.delete, xorb.key)
                await self._store.drop_doomed([xorb.key for xorb in doomed])
            size = sum(xorb.stored_bytes for xorb in doomed)
            found = Collected(xorbs=found.xorbs + len(doomed), bytes=found.bytes + size)
        return found

    async def _doom(self, hashes: list[bytes], round_: _Round) -> list[XorbEntry]:
        if round_.dry:
            return await self._store.xorbs_confirmed_before(hashes, round_.before)
        return await self._store.doom_xorbs(hashes, round_.before)

    async def _sweep_objects(self, round_: _Round) -> tuple[int, int]:
        """Remove objects that no row knows: an upload was cut off, or its row was replaced."""
        before = self._clock.now() - _ORPHANED_AFTER
        count, size = 0, 0
        listed = self._objects.list(PREFIX)
        while batch := await self._threads.wait(_some, listed):
            old = {each.key: each.size for each in batch if each.modified_at < before}
            known = await self._store.known_keys(old)
            for key in old.keys() - known:
                if not round_.dry:
                    await self._threads.wait(self._objects.delete, key)
                count += 1
                size += old[key]
        return count, size

    async def _files(self) -> AsyncIterator[list[StoredFile]]:
        after = b""
        while files := await self._store.files_after(after, _AT_ONCE):
            after = files[-1].file_hash
            yield files

    async def _xorbs(self) -> AsyncIterator[list[XorbEntry]]:
        after = b""
        while xorbs := await self._store.xorbs_after(after, _AT_ONCE):
            after = xorbs[-1].xorb_hash
            yield xorbs


def _some(objects: Iterator[StoredObject]) -> list[StoredObject]:
    return list(islice(objects, _AT_ONCE))
