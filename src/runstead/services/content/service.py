"""Stored content, joined: what the routes of the content store and the other services use."""

from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from runstead.kit.clock import Clock
from runstead.model.accounts import Permission
from runstead.model.content import EMPTY_FILE, CasToken, ContentFile
from runstead.objects.interface import ObjectStore
from runstead.services.content.checking import Checking
from runstead.services.content.collecting import Collecting
from runstead.services.content.content import Content, FileRoots
from runstead.services.content.dedup import Deduplication
from runstead.services.content.links import Links
from runstead.services.content.reading import Reading
from runstead.services.content.reconstructions import Reconstructions
from runstead.services.content.serving import Serving
from runstead.services.content.shards import Shards
from runstead.services.content.storing import Storing
from runstead.services.content.threads import Threads
from runstead.services.content.tokens import CasCaller, CasTokens
from runstead.services.content.xorbs import Xorbs
from runstead.stores.interface import ContentStore

PATH = "/xet"
"""Where on the server's origin the content store is; its name follows."""


@dataclass(frozen=True, slots=True)
class ContentLimits:
    """How long things hold, in seconds."""

    token_seconds: int = 3600
    url_seconds: int = 3600
    grant_seconds: int = 3600
    grace: timedelta = timedelta(days=28)  # from the last confirmation of what nobody refers to to its removal


class StoredContent(Content):
    """All of it."""

    def __init__(
        self,
        store: ContentStore,
        objects: ObjectStore,
        clock: Clock,
        key: bytes,
        limits: ContentLimits | None = None,
    ) -> None:
        self.limits = limits or ContentLimits()
        self.threads = Threads()
        self.tokens = CasTokens(key)
        self.links = Links(key)
        self.xorbs = Xorbs(store, objects, self.threads, clock)
        self.shards = Shards(store, self.xorbs, self.threads, clock)
        self.deduplication = Deduplication(store, self.xorbs, self.threads, clock, key)
        self.reconstructions = Reconstructions(store, self.xorbs, self.links, self.threads, self.limits.url_seconds)
        self.serving = Serving(self.xorbs, self.links)
        self._reading = Reading(self.reconstructions, self.xorbs, self.threads)
        self._storing = Storing(store, self.xorbs, objects, self.threads, clock)
        self._store = store
        self._objects = objects
        self._clock = clock

    async def open(self) -> None:
        """Clear what a crash left. For the one server of the data directory, before it answers anything."""
        await self.threads.wait(self._objects.clear_staged)

    def close(self) -> None:
        """Finish what was begun in threads."""
        self.threads.close()

    def collecting(self, roots: Sequence[FileRoots], every_seconds: float = 0) -> Collecting:
        """Return the garbage collection, for content that these are all who refer to."""
        return Collecting(
            self._store, self._objects, roots, self.threads, self._clock, self.limits.grace, every_seconds
        )

    def checking(self, roots: Sequence[FileRoots]) -> Checking:
        """Return the check of everything stored."""
        return Checking(self._store, self._objects, roots, self.threads)

    async def cas_token(self, scope: str, permission: Permission, base_url: str) -> CasToken:
        """Return a token for a scope."""
        now = self._clock.now()
        expires_at = int(now.timestamp()) + self.limits.token_seconds
        name = await self._store.store_id(now)
        return CasToken(
            self.tokens.mint(CasCaller(scope, permission), expires_at), expires_at, f"{base_url}{PATH}/{name}"
        )

    async def take(self, scope: str, file_hashes: Collection[bytes]) -> Mapping[bytes, int]:
        """Hold files that the scope has a claim on; return their sizes."""
        found = await self._store.hold_files(_stored(file_hashes), self._clock.now(), scope)
        return _with_empty(found, file_hashes)

    async def share(self, scope: str, file_hashes: Collection[bytes]) -> Mapping[bytes, int]:
        """Give the scope a claim on files and hold them; return their sizes."""
        found = await self._store.claim_files(scope, _stored(file_hashes), self._clock.now())
        return _with_empty(found, file_hashes)

    async def hold(self, file_hashes: Collection[bytes]) -> Mapping[bytes, int]:
        """Hold files; return their sizes."""
        found = await self._store.hold_files(_stored(file_hashes), self._clock.now())
        return _with_empty(found, file_hashes)

    async def file(self, file_hash: bytes) -> ContentFile:
        """Return what is known of a file."""
        found = await self.reconstructions.find(file_hash)
        return ContentFile(found.file_hash, found.size, found.sha256)

    def read(self, file_hash: bytes, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield bytes of a file."""
        return self._reading.read(file_hash, start, end)

    async def store(self, scope: str, pieces: AsyncIterable[bytes]) -> ContentFile:
        """Store a file that the server has the bytes of."""
        return await self._storing.store(scope, pieces)

    async def forget(self, scope: str) -> None:
        """Drop all claims of a scope."""
        await self._store.drop_claims(scope)


def _stored(file_hashes: Collection[bytes]) -> list[bytes]:
    return [each for each in file_hashes if each != EMPTY_FILE]


def _with_empty(found: dict[bytes, int], asked: Collection[bytes]) -> dict[bytes, int]:
    if EMPTY_FILE in asked:
        found[EMPTY_FILE] = 0
    return found
