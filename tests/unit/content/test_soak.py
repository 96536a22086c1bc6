"""Uploads, copies, deletes, reads and garbage collections, all at once, on a clock that runs ten days a second."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runstead.objects.disk import DiskObjectStore
from runstead.services.content.content import FileRoots
from runstead.services.content.service import StoredContent
from runstead.stores.content import SqlContentStore
from runstead.stores.sqlite import SqliteDatabase

SECONDS = 8
SCOPES = ("bucket:a", "bucket:b", "bucket:c")


class HurriedClock:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=10) * (time.monotonic() - self._began)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Buckets(FileRoots):
    def __init__(self) -> None:
        self.files: dict[str, set[bytes]] = {scope: set() for scope in SCOPES}

    async def referenced(self) -> AsyncIterator[Collection[bytes]]:
        for scope in SCOPES:
            yield list(self.files[scope])
            await asyncio.sleep(random.random() / 50)


async def test_soak(tmp_path: Path) -> None:
    clock, buckets, contents = HurriedClock(), Buckets(), dict[bytes, bytes]()
    database = SqliteDatabase(tmp_path / "db")
    store = SqlContentStore(database)
    objects = DiskObjectStore(tmp_path / "objects")
    content = StoredContent(store, objects, clock, b"k" * 32)
    until = time.monotonic() + SECONDS
    done = dict.fromkeys(("uploaded", "copied", "removed", "read", "collected"), 0)

    async def upload() -> None:
        while time.monotonic() < until:
            data = random.randbytes(4) * random.choice([10, 5_000, 60_000])
            scope = random.choice(SCOPES)

            async def pieces(data: bytes = data) -> AsyncIterator[bytes]:
                yield data

            name = (await content.store(scope, pieces())).file_hash
            contents[name] = data
            assert name in await content.take(scope, [name])
            buckets.files[scope].add(name)
            done["uploaded"] += 1
            await asyncio.sleep(random.random() / 20)

    async def move() -> None:
        while time.monotonic() < until:
            source, target = random.sample(SCOPES, 2)
            if buckets.files[source]:
                name = random.choice(list(buckets.files[source]))
                assert name in await content.share(target, [name])
                buckets.files[target].add(name)
                buckets.files[source].discard(name)
                done["copied"] += 1
            await asyncio.sleep(random.random() / 50)

    async def remove() -> None:
        while time.monotonic() < until:
            scope = random.choice(SCOPES)
            if len(buckets.files[scope]) > 10:
                buckets.files[scope].discard(random.choice(list(buckets.files[scope])))
                done["removed"] += 1
            await asyncio.sleep(random.random() / 50)

    async def read() -> None:
        while time.monotonic() < until:
            every = [name for scope in SCOPES for name in buckets.files[scope]]
            if every:
                name = random.choice(every)
                assert b"".join([piece async for piece in content.read(name)]) == contents[name]
                done["read"] += 1
            await asyncio.sleep(0.005)

    async def collect() -> None:
        while time.monotonic() < until:
            done["collected"] += (await content.collecting([buckets]).collect()).files
            await asyncio.sleep(random.random() / 10)

    await asyncio.gather(upload(), upload(), move(), move(), remove(), read(), read(), collect(), collect())
    for scope in SCOPES:
        for name in buckets.files[scope]:
            assert b"".join([piece async for piece in content.read(name)]) == contents[name]
        buckets.files[scope].clear()
    await asyncio.sleep(3.2)
    await content.collecting([buckets]).collect()
    assert await store.files_after(b"", 1) == []
    assert await store.xorbs_after(b"", 1) == []
    assert list(objects.list("")) == []
    assert all(done.values()), done
    content.close()
    await database.close()
