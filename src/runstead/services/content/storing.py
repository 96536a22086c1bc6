"""Files that the server itself has the bytes of: cut into chunks, packed into xorbs, stored like any upload."""

import hashlib
from collections.abc import AsyncIterable, Iterator
from pathlib import Path

from runstead.kit.clock import Clock
from runstead.model.content import EMPTY_FILE, ContentFile
from runstead.objects.interface import ObjectStore
from runstead.services.content.receipt import Receipt, Received
from runstead.services.content.threads import Threads
from runstead.services.content.xorbs import Xorbs
from runstead.stores.interface import ContentStore, EligibleChunk, StoredFile
from runstead.xet.chunking import chunks
from runstead.xet.dedup import eligible_chunks
from runstead.xet.hashes import HASH_BYTES, file_hash_of_root
from runstead.xet.merkle import MerkleTree
from runstead.xet.terms import Term, terms_of
from runstead.xet.xorb_builder import BuiltXorb, XorbBuilder
from runstead.xet.xorb_layout import XorbFacts

_XORB_BYTES = 16 * 1024 * 1024
"""Content per xorb. Less than a xorb may hold: it is put together in memory."""
_READ_BYTES = 1 << 20


class Storing:
    """Stores files."""

    def __init__(self, store: ContentStore, xorbs: Xorbs, objects: ObjectStore, threads: Threads, clock: Clock) -> None:
        self._store = store
        self._xorbs = xorbs
        self._objects = objects
        self._threads = threads
        self._clock = clock

    async def store(self, scope: str, pieces: AsyncIterable[bytes]) -> ContentFile:
        """Store a file for a scope; see `Content.store`."""
        staged = await self._threads.wait(self._objects.new_staged)
        try:
            sha256 = await self._spool(staged, pieces)
            file, eligible = await self._pack(staged)
        finally:
            staged.unlink(missing_ok=True)
        if file.file_hash != EMPTY_FILE:
            file = StoredFile(file.file_hash, file.size, file.terms, sha256)
            await self._store.register(scope, [file], eligible, self._clock.now())
        return ContentFile(file.file_hash, file.size, sha256)

    async def _spool(self, staged: Path, pieces: AsyncIterable[bytes]) -> str:
        """Write the bytes aside; return their SHA-256. The next step then works at its own pace."""
        digest = hashlib.sha256()
        with staged.open("wb") as file:
            async for piece in pieces:
                if len(piece) > _READ_BYTES // 4:
                    await self._threads.work(digest.update, piece)
                    await self._threads.work(file.write, piece)
                else:
                    digest.update(piece)
                    file.write(piece)
        return digest.hexdigest()

    async def _pack(self, staged: Path) -> tuple[StoredFile, list[EligibleChunk]]:
        tree = MerkleTree()
        terms: list[Term] = []
        packed: list[XorbFacts] = []
        with staged.open("rb") as file:
            coming = _built(iter(lambda: file.read(_READ_BYTES), b""))
            while (built := await self._threads.work(next, coming, None)) is not None:
                await self._xorbs.keep(await self._threads.work(self._receive, built))
                facts = built.facts
                lengths = facts.layout.chunk_lengths()
                tree.add(facts.chunk_hashes or b"", lengths)
                terms.append(Term(facts.xorb_hash, 0, len(lengths), facts.layout.unpacked_bytes))
                packed.append(facts)
        root = tree.root()
        if root is None:
            return StoredFile(EMPTY_FILE, 0, terms_of([]), None), []
        name = file_hash_of_root(root)
        file_ = StoredFile(name, sum(term.unpacked_bytes for term in terms), terms_of(terms), None)
        return file_, list(_eligible(packed, name))

    def _receive(self, built: BuiltXorb) -> Received:
        receipt = Receipt(built.facts.xorb_hash, self._objects.new_staged(), len(built.body))
        try:
            receipt.feed(built.body)
            return receipt.finish()
        finally:
            receipt.abandon()


def _built(data: Iterator[bytes]) -> Iterator[BuiltXorb]:
    builder, size = XorbBuilder(), 0
    for chunk in chunks(data):
        if size + len(chunk) > _XORB_BYTES or not builder.fits(len(chunk)):
            yield builder.finish()
            builder, size = XorbBuilder(), 0
        builder.add(chunk)
        size += len(chunk)
    if builder.chunk_count:
        yield builder.finish()


def _eligible(packed: list[XorbFacts], file_hash: bytes) -> Iterator[EligibleChunk]:
    for number, facts in enumerate(packed):
        hashes = facts.chunk_hashes or b""
        indexes = eligible_chunks(hashes)
        for index in {0, *indexes} if number == 0 else indexes:
            yield EligibleChunk(hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)], facts.xorb_hash, file_hash)
