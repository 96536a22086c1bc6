"""Garbage collection against a model: nothing promised is ever removed, and what nobody needs goes in the end."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runstead.objects.disk import DiskObjectStore
from runstead.services.content.content import FileRoots
from runstead.services.content.service import StoredContent
from runstead.stores.content import SqlContentStore
from runstead.stores.sqlite import SqliteDatabase

GRACE = timedelta(days=28)
SCOPES = ("bucket:a", "bucket:b")


class TurnedClock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


class Buckets(FileRoots):
    def __init__(self) -> None:
        self.files: dict[str, set[bytes]] = {scope: set() for scope in SCOPES}
        self.pause = 0.0

    async def referenced(self) -> AsyncIterator[Collection[bytes]]:
        for scope in SCOPES:
            yield list(self.files[scope])
            await asyncio.sleep(self.pause)


class Model(RuleBasedStateMachine):
    """Two buckets over one store. What is referred to, or was promised within the grace period, has to be there."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="collect-"))
        self.loop = asyncio.new_event_loop()
        self.clock, self.buckets = TurnedClock(), Buckets()
        self.database = SqliteDatabase(self.folder / "db")
        self.store = SqlContentStore(self.database)
        self.objects = DiskObjectStore(self.folder / "objects")
        self.content: StoredContent = self.run(self.make())
        self.contents: dict[bytes, bytes] = {}
        self.promised: dict[bytes, datetime] = {}  # files, when somebody was last told that they are here
        self.xorbs: dict[bytes, datetime] = {}
        self.terms: dict[bytes, Any] = {}

    async def make(self) -> StoredContent:
        return StoredContent(self.store, self.objects, self.clock, b"k" * 32)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.content.close()
        self.run(self.database.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    async def upload(self, scope: str, seed: int) -> bytes:
        data = seed.to_bytes(4, "little") * 3000

        async def pieces() -> AsyncIterator[bytes]:
            yield data

        found = await self.content.store(scope, pieces())
        self.contents[found.file_hash] = data
        self.promised[found.file_hash] = self.clock.now()
        stored = await self.store.file(found.file_hash)
        assert stored is not None
        self.terms[found.file_hash] = stored.terms
        for name in stored.terms.xorb_hashes():
            self.xorbs[name] = self.clock.now()
        return found.file_hash

    async def add(self, scope: str, name: bytes) -> None:
        """What a bucket does for `addFile`: take, then refer."""
        if name in await self.content.take(scope, [name]):
            self.promised[name] = self.clock.now()
            await asyncio.sleep(0)
            self.buckets.files[scope].add(name)

    async def copy(self, source: str, target: str, name: bytes) -> None:
        if name in self.buckets.files[source] and name in await self.content.share(target, [name]):
            self.promised[name] = self.clock.now()
            await asyncio.sleep(0)
            self.buckets.files[target].add(name)

    async def remove(self, scope: str, name: bytes) -> None:
        self.buckets.files[scope].discard(name)

    async def collect(self) -> None:
        await self.content.collecting([self.buckets]).collect()

    def known(self, data: st.DataObject) -> bytes:
        return data.draw(st.sampled_from(sorted(self.contents)))

    @rule(scope=st.sampled_from(SCOPES), seed=st.integers(0, 5))
    def uploads(self, scope: str, seed: int) -> None:
        name = self.run(self.upload(scope, seed))
        self.run(self.add(scope, name))

    @rule(scope=st.sampled_from(SCOPES), seed=st.integers(0, 5))
    def uploads_and_leaves(self, scope: str, seed: int) -> None:
        self.run(self.upload(scope, seed))

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), scope=st.sampled_from(SCOPES))
    def adds_later(self, data: st.DataObject, scope: str) -> None:
        self.run(self.add(scope, self.known(data)))

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), scope=st.sampled_from(SCOPES))
    def removes(self, data: st.DataObject, scope: str) -> None:
        self.run(self.remove(scope, self.known(data)))

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def a_client_trusts_a_xorb(self, data: st.DataObject) -> None:
        """A grant answers 200, and later a shard comes that names the xorb."""
        name = self.known(data)
        needed = self.terms[name].xorb_hashes()
        if set(needed) == self.run(self.content.xorbs.confirm(needed)):
            for one in needed:
                self.xorbs[one] = self.clock.now()

    @rule(days=st.sampled_from([0.3, 1.0, 5.0, 14.0, 27.0, 29.0, 31.0]))
    def waits(self, days: float) -> None:
        self.clock.time += timedelta(days=days)

    @rule()
    def collects(self) -> None:
        self.run(self.collect())

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), seed=st.integers(0, 5), pause=st.sampled_from([0.0, 0.003, 0.02]), back=st.booleans())
    def all_at_once(self, data: st.DataObject, seed: int, pause: float, back: bool) -> None:
        """A file moves from bucket to bucket, another is uploaded, while two collections run."""
        name = self.known(data)
        one, other = reversed(SCOPES) if back else SCOPES
        self.buckets.pause = pause

        async def move() -> None:
            await self.copy(one, other, name)
            if name in self.buckets.files[other]:
                await self.remove(one, name)

        async def send() -> None:
            await self.add(one, await self.upload(one, seed))

        async def everything() -> None:
            await asyncio.gather(self.collect(), move(), send(), self.collect())

        self.run(everything())
        self.buckets.pause = 0.0

    @invariant()
    def what_is_referred_to_is_whole(self) -> None:
        for name in set().union(*self.buckets.files.values()):
            assert self.run(self.read(name)) == self.contents[name]

    @invariant()
    def what_was_promised_is_there(self) -> None:
        now = self.clock.now()
        for name, at in self.promised.items():
            if now - at <= GRACE:
                assert name in self.run(self.content.hold([name])), (at, now)
                self.promised[name] = now

    @invariant()
    def xorbs_that_were_promised_are_there(self) -> None:
        now = self.clock.now()
        kept = [name for name, at in self.xorbs.items() if now - at <= GRACE]
        assert set(self.run(self.store.xorbs(kept))) == set(kept)

    async def read(self, name: bytes) -> bytes:
        return b"".join([piece async for piece in self.content.read(name)])


class Patient(Model):
    """The same, where looking does not hold anything: what nobody wants is gone at the end."""

    @invariant()
    def what_was_promised_is_there(self) -> None:
        now = self.clock.now()
        for name, at in self.promised.items():
            if now - at <= GRACE:
                assert self.run(self.store.file(name)) is not None, (at, now)

    def teardown(self) -> None:
        self.clock.time += GRACE + timedelta(days=2, minutes=1)
        self.run(self.collect())
        referred: set[bytes] = set().union(*self.buckets.files.values())
        assert {file.file_hash for file in self.run(self.store.files_after(b"", 100))} == referred
        needed = {name for one in referred for name in self.terms[one].xorb_hashes()}
        assert {entry.xorb_hash for entry in self.run(self.store.xorbs_after(b"", 100))} == needed
        assert len(list(self.objects.list(""))) == len(needed)
        super().teardown()


_settings = settings(max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
TestModel = Model.TestCase
TestModel.settings = _settings
TestPatient = Patient.TestCase
TestPatient.settings = _settings


async def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    clock = TurnedClock()
    clock.time = datetime.now(UTC)
    database = SqliteDatabase(tmp_path / "db")
    objects = DiskObjectStore(tmp_path / "objects")
    content = StoredContent(SqlContentStore(database), objects, clock, b"k" * 32)
    staged = objects.new_staged()
    staged.write_bytes(b"left")
    objects.put("xorbs/ab/left-1", staged)
    assert (await content.collecting([]).collect()).objects == 0
    clock.time += timedelta(days=3)
    assert (await content.collecting([]).collect(dry=True)).objects == 1
    assert objects.size("xorbs/ab/left-1") == 4
    assert (await content.collecting([]).collect()).bytes == 4
    assert objects.size("xorbs/ab/left-1") is None
    content.close()
    await database.close()


async def test_dry_says_what_would_go_and_removes_nothing(tmp_path: Path) -> None:
    clock = TurnedClock()
    database = SqliteDatabase(tmp_path / "db")
    store = SqlContentStore(database)
    content = StoredContent(store, DiskObjectStore(tmp_path / "objects"), clock, b"k" * 32)

    async def pieces() -> AsyncIterator[bytes]:
        yield os.urandom(50_000)

    await content.store("s", pieces())
    clock.time += GRACE + timedelta(days=2)
    would = await content.collecting([]).collect(dry=True)
    assert (would.files, would.xorbs) == (1, 1) and would.bytes > 50_000
    assert await store.files_after(b"", 10)
    assert await content.collecting([]).collect() == would
    assert not await store.files_after(b"", 10)
    content.close()
    await database.close()


async def test_a_move_behind_the_back_of_a_collection(tmp_path: Path) -> None:
    """A collection looks at one bucket, the file moves there, the collection looks at the bucket it was in."""
    clock = TurnedClock()
    database = SqliteDatabase(tmp_path / "db")
    content = StoredContent(SqlContentStore(database), DiskObjectStore(tmp_path / "objects"), clock, b"k" * 32)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"moving" * 10_000

    name = (await content.store("bucket:b", pieces())).file_hash
    clock.time += GRACE + timedelta(days=5)
    looked, moved = asyncio.Event(), asyncio.Event()

    class Roots(FileRoots):
        async def referenced(self) -> AsyncIterator[Collection[bytes]]:
            yield []
            looked.set()
            await moved.wait()
            yield []

    collecting = asyncio.create_task(content.collecting([Roots()]).collect())
    await looked.wait()
    assert name in await content.share("bucket:a", [name])
    moved.set()
    assert (await collecting).files == 0
    assert b"".join([piece async for piece in content.read(name)]) == b"moving" * 10_000
    content.close()
    await database.close()
