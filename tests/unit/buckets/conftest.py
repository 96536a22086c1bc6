"""The services of buckets over a real database, a clock turned by hand, and content that is only pretended."""

from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runstead.events.local import LocalEventBus
from runstead.model.accounts import Caller, Permission, Token, TokenRole, User
from runstead.model.content import CasToken, ContentFile
from runstead.services.buckets.batches import Batches
from runstead.services.buckets.buckets import Buckets
from runstead.services.buckets.following import Following
from runstead.services.buckets.keeping import Keeping
from runstead.services.content.content import Content
from runstead.stores.bucket_log import SqlBucketLog
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.database import Database
from runstead.stores.opening import open_database

START = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)
HISTORY_DAYS = 30


class Clock:
    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)

    def turn(self, **span: float) -> None:
        self.at += timedelta(**span)


@dataclass
class PretendedContent(Content):
    """Knows which scope has a claim on what; every file has as many bytes as its first byte says."""

    claims: dict[str, set[bytes]] = field(default_factory=dict)
    lost: set[bytes] = field(default_factory=set)
    held: set[bytes] = field(default_factory=set)
    forgotten: list[str] = field(default_factory=list)

    def upload(self, scope: str, *file_hashes: bytes) -> None:
        self.claims.setdefault(scope, set()).update(file_hashes)

    async def cas_token(self, scope: str, permission: Permission, base_url: str) -> CasToken:
        return CasToken(f"{permission} {scope}", 0, base_url)

    async def take(self, scope: str, file_hashes: Collection[bytes]) -> Mapping[bytes, int]:
        return await self.hold(set(file_hashes) & self.claims.get(scope, set()))

    async def share(self, scope: str, file_hashes: Collection[bytes]) -> Mapping[bytes, int]:
        self.upload(scope, *file_hashes)
        return await self.hold(file_hashes)

    async def hold(self, file_hashes: Collection[bytes]) -> Mapping[bytes, int]:
        self.held.update(file_hashes)
        return {each: each[0] for each in set(file_hashes) - self.lost}

    async def file(self, file_hash: bytes) -> ContentFile:
        return ContentFile(file_hash, file_hash[0])

    def read(self, file_hash: bytes, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def store(self, scope: str, pieces: AsyncIterable[bytes]) -> ContentFile:
        raise NotImplementedError

    async def forget(self, scope: str) -> None:
        self.forgotten.append(scope)


@dataclass
class World:
    database: Database
    clock: Clock
    content: PretendedContent
    events: LocalEventBus

    def __post_init__(self) -> None:
        self.store = SqlBucketStore(self.database)
        self.log = SqlBucketLog(self.database)
        self.buckets = Buckets(self.store, self.content, self.events, self.clock)
        self.batches = Batches(self.store, self.buckets, self.content, self.events, self.clock)
        self.following = Following(self.store, self.log, self.events)
        self.keeping = Keeping(self.store, self.log, self.content, self.events, self.clock, HISTORY_DAYS)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = await open_database(f"sqlite:///{tmp_path}/runstead.db")
    yield World(database, Clock(), PretendedContent(), LocalEventBus())
    await database.close()


@pytest.fixture
def alice() -> Caller:
    return person("alice")


def person(name: str, role: TokenRole = TokenRole.WRITE) -> Caller:
    user = User(f"id of {name}", name, name, False, START)
    return Caller(user, Token("t", user.id, "t", role, START, "abcd"))


def hash_of(size: int) -> bytes:
    return bytes([size]) + b"h" * 31
