"""What buckets were: shown, brought back, and forgotten in the end; and what of stored content they need."""

from collections.abc import AsyncIterator, Collection
from datetime import datetime, timedelta

from runstead.events.interface import BUCKETS, EventBus
from runstead.kit.clock import Clock
from runstead.model.buckets import Bucket, KeptFile
from runstead.model.errors import BackendFailure, Invalid, NotFound
from runstead.services.content.content import Content, FileRoots
from runstead.stores.interface import BucketLog, BucketStore
from runstead.xet.hashes import hash_to_text

EVERY_SECONDS = 600.0
LOG_DAYS = 1.0
"""How long a follower may be away and still be told what it missed."""

_AT_ONCE = 1000


class Keeping:
    """The history of buckets. What was overwritten or deleted stays `history_days`."""

    def __init__(
        self,
        store: BucketStore,
        log: BucketLog,
        content: Content,
        events: EventBus,
        clock: Clock,
        history_days: float,
    ) -> None:
        self._store = store
        self._log = log
        self._content = content
        self._events = events
        self._clock = clock
        self._history = timedelta(days=history_days)

    async def find(self, namespace: str, name: str) -> Bucket:
        """Return a bucket. Raises NotFound, with what is known of a deleted one of that name."""
        bucket = await self._store.find(namespace, name)
        if bucket is not None:
            return bucket
        deleted = await self._store.deleted(namespace, name)
        hint = "; one was deleted, bring it back with --deleted" if deleted else ""
        raise NotFound(f"there is no bucket of that name{hint}: {namespace}/{name}")

    async def deleted(self, namespace: str, name: str) -> list[Bucket]:
        """Return the deleted buckets of that name that can be restored, last deleted first."""
        return await self._store.deleted(namespace, name)

    async def kept(self, bucket: Bucket, prefix: str) -> AsyncIterator[KeptFile]:
        """Yield the former files at or below a path, by path and age."""
        after = ("", 0)
        while files := await self._log.kept(bucket.seq, prefix, after, _AT_ONCE):
            for file in files:
                yield file
            after = (files[-1].file.path, files[-1].version)

    async def restore(self, bucket: Bucket, at: datetime, prefix: str = "") -> list[str]:
        """Make everything at or below a path what it was at an instant; return the paths that changed.

        What is there now goes into the history as well, so this can be undone. Raises Invalid for an instant that
        the history does not reach, BackendFailure if content was lost; what came before it stays restored.
        """
        now = self._clock.now()
        if not now - self._history <= at <= now:
            raise Invalid(
                f"the history reaches {self._history.total_seconds() / 86400:g} days back, so a time from "
                f"{(now - self._history).isoformat(timespec='seconds')} until now can be restored, not {at.isoformat()}"
            )
        changed: list[str] = []
        start: str | None = ""
        while start is not None:
            edits, start = await self._log.differences(bucket.seq, prefix, at, start, 5 * _AT_ONCE)
            hashes = {file.file_hash for file in edits.values() if file is not None}
            lost = hashes - (await self._content.hold(hashes)).keys()
            if lost:
                raise BackendFailure(f"stored content that was kept is lost: {hash_to_text(min(lost))}")
            batch = await self._store.apply(bucket.seq, edits, now)
            changed += [change.path for change in batch.changes]
            self._events.publish(BUCKETS, bucket.id)
        return changed

    async def undelete(self, namespace: str, name: str) -> Bucket:
        """Bring the bucket of that name back that was deleted last. Raises NotFound, or Conflict with a living one."""
        deleted = await self._store.deleted(namespace, name)
        if not deleted or not await self._store.undelete(deleted[0].id):
            raise NotFound(f"no deleted bucket of that name is kept: {namespace}/{name}")
        return await self.find(namespace, name)

    async def run(self) -> None:
        """Forget what is old enough, then rest."""
        await self.run_once()
        await self._clock.sleep(EVERY_SECONDS)

    async def run_once(self) -> None:
        """Forget what has been kept long enough, in small steps."""
        now = self._clock.now()
        while await self._log.forget_batches(now - timedelta(days=LOG_DAYS), _AT_ONCE) == _AT_ONCE:
            pass
        while await self._log.forget_kept(now - self._history, _AT_ONCE):
            pass
        while (emptied := await self._log.empty_deleted(now - self._history, _AT_ONCE)) is not None:
            bucket, is_empty = emptied
            if is_empty:
                await self._content.forget(bucket.scope)
                await self._log.remove_deleted(bucket.id)


class BucketRoots(FileRoots):
    """What buckets refer to."""

    def __init__(self, log: BucketLog) -> None:
        self._log = log

    async def referenced(self) -> AsyncIterator[Collection[bytes]]:
        """Yield the hashes of files, then those of former files: what goes from the one to the other is met."""
        place: tuple[int, str] | None = (0, "")
        while place is not None:
            hashes, place = await self._log.hashes(place, 5 * _AT_ONCE)
            yield hashes
        kept: tuple[int, int, str] | None = (0, 0, "")
        while kept is not None:
            hashes, kept = await self._log.kept_hashes(kept, 5 * _AT_ONCE)
            yield hashes
