"""Following a bucket: what changed since some point, then what changes, as it happens."""

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from runstead.events.interface import BUCKETS, EventBus
from runstead.kit.wakeup import Wakeup
from runstead.model.buckets import Batch, Bucket
from runstead.stores.interface import BucketLog, BucketStore

KEEPALIVE_SECONDS = 25.0  # a follower gives up after 90 of silence (wire-storage §13)
_POLL_SECONDS = 5.0  # for what another process changed
_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Ready:
    """All that was before is told; what follows is live. The version to come back with."""

    version: int


@dataclass(frozen=True, slots=True)
class Reset:
    """That point is too long ago: begin anew."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Ask again: the server stops, or the bucket is not what it was. The version to come back with."""

    version: int


Told = Ready | Batch | Reset | Reconnect | None
"""None is a sign of life."""


class Following:
    """Tells any number of followers."""

    def __init__(self, store: BucketStore, log: BucketLog, events: EventBus) -> None:
        self._store = store
        self._log = log
        self._events = events
        self._open: set[Wakeup] = set()
        self._closing = False

    def close(self) -> None:
        """Ask all followers to come back."""
        self._closing = True
        for wakeup in self._open:
            wakeup.notify()

    async def follow(self, bucket: Bucket, since: int | datetime | None) -> AsyncGenerator[Told]:
        """Yield what happened after a version or an instant (None: nothing), then what happens, in order.

        Ends after Reset and Reconnect, and when the bucket is gone. Whoever follows may see it now; when that may
        have changed, they are asked to come back.
        """
        with self._subscribed(bucket) as wakeup:
            version = await self._beginning(bucket, since)
            if version is None:
                yield Reset()
                return
            ready, silent = False, 0.0
            while not self._closing:
                batches = await self._log.batches(bucket.seq, version, _AT_ONCE)
                for batch in batches:
                    yield batch
                    version = batch.version
                if len(batches) == _AT_ONCE:
                    continue
                if not ready:
                    ready = True
                    yield Ready(version)
                woken = await wakeup.wait(_POLL_SECONDS)
                silent = 0.0 if batches else silent + _POLL_SECONDS
                if not batches and not await self._same(bucket):
                    break
                if not woken and silent >= KEEPALIVE_SECONDS:
                    silent = 0.0
                    yield None
            yield Reconnect(version)

    async def _beginning(self, bucket: Bucket, since: int | datetime | None) -> int | None:
        if isinstance(since, datetime):
            return await self._log.version_at(bucket.seq, since)
        reach = await self._log.reach(bucket.seq)
        if reach is None:
            return None
        version, oldest = reach
        if since is None:
            return version
        return since if oldest <= since <= version else None

    async def _same(self, bucket: Bucket) -> bool:
        """Say whether the bucket still has its name and is seen by the same people."""
        now = await self._store.find(bucket.namespace.name, bucket.name)
        return now is not None and now.id == bucket.id and now.private == bucket.private

    @contextmanager
    def _subscribed(self, bucket: Bucket) -> Generator[Wakeup]:
        with self._events.subscribe(BUCKETS, bucket.id) as wakeup:
            self._open.add(wakeup)
            try:
                yield wakeup
            finally:
                self._open.discard(wakeup)
