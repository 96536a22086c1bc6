"""Checking everything that is stored: every object hashed anew, every file put together from its chunks' hashes."""

from collections.abc import AsyncIterator, Sequence

from runstead.model.content import Damage
from runstead.model.errors import BackendFailure, NotFound
from runstead.objects.interface import ObjectStore
from runstead.services.content.content import FileRoots
from runstead.services.content.marks import Marks
from runstead.services.content.threads import Threads
from runstead.stores.interface import ContentStore, StoredFile, StoredXorb, XorbEntry
from runstead.xet.errors import FormatError
from runstead.xet.hashes import HASH_BYTES, ZERO_HASH, file_hash_of_root, hash_to_text
from runstead.xet.merkle import MerkleTree
from runstead.xet.xorb import XorbVerifier

_READ_BYTES = 4 * 1024 * 1024
_XORBS_AT_ONCE = 20
_FILES_AT_ONCE = 200


class Checking:
    """Checks the store."""

    def __init__(self, store: ContentStore, objects: ObjectStore, roots: Sequence[FileRoots], threads: Threads) -> None:
        self._store = store
        self._objects = objects
        self._roots = roots
        self._threads = threads

    async def check(self, quarantine: bool = True) -> AsyncIterator[Damage | int]:
        """Yield what is wrong, and between that, how many bytes were read so far.

        What is damaged is taken out of use, unless `quarantine` is False: it is no longer given out, and the next
        upload of the same content replaces it.
        """
        read = 0
        after = b""
        while entries := await self._store.xorbs_after(after, _XORBS_AT_ONCE):
            after = entries[-1].xorb_hash
            stored = await self._store.xorbs([entry.xorb_hash for entry in entries])
            for entry in entries:
                async for damage in self._check_xorb(entry, stored.get(entry.xorb_hash), quarantine):
                    yield damage
                read += entry.stored_bytes
                yield read
        async for damage in self._check_files():
            yield damage

    async def _check_xorb(self, entry: XorbEntry, xorb: StoredXorb | None, quarantine: bool) -> AsyncIterator[Damage]:
        name = hash_to_text(entry.xorb_hash)
        if xorb is None:
            if not entry.usable:
                yield Damage("xorb", name, "it was found damaged before, or is being removed")
            return
        problem = await self._threads.wait(self._problem, xorb)
        if problem is not None:
            if quarantine:
                await self._store.quarantine(entry.xorb_hash, xorb.key)
            yield Damage("xorb", name, problem)

    def _problem(self, xorb: StoredXorb) -> str | None:
        """Return what is wrong with a xorb. Blocks."""
        facts, size = xorb.facts, xorb.facts.layout.stored_bytes
        try:
            found = self._objects.size(xorb.key)
            if found != size:
                return "its object is missing" if found is None else f"its object has {found} bytes, not {size}"
            verifier = XorbVerifier()
            for start in range(0, size, _READ_BYTES):
                verifier.feed(self._objects.read(xorb.key, start, min(start + _READ_BYTES, size)))
            if verifier.finish(facts.xorb_hash) != facts:
                return "its chunks are not where its row says"
        except (FormatError, NotFound, BackendFailure) as error:
            return str(error)
        return None

    async def _check_files(self) -> AsyncIterator[Damage]:
        present = Marks()
        after = b""
        while files := await self._store.files_after(after, _FILES_AT_ONCE):
            after = files[-1].file_hash
            present.add(file.file_hash for file in files)
            for file in files:
                problem = await self._problem_of_file(file)
                if problem is not None:
                    yield Damage("file", hash_to_text(file.file_hash), problem)
        for root in self._roots:
            async for hashes in root.referenced():
                for missing in present.unmarked(each for each in hashes if each != ZERO_HASH):
                    yield Damage("file", hash_to_text(missing), "it is referred to and not stored")

    async def _problem_of_file(self, file: StoredFile) -> str | None:
        names = file.terms.xorb_hashes()
        tree, size = MerkleTree(), 0
        known: dict[bytes, StoredXorb] = {}
        for start in range(0, len(names), _XORBS_AT_ONCE):
            known |= await self._store.xorbs(names[start : start + _XORBS_AT_ONCE])
        for name in names:
            if name not in known:
                return f"it needs the xorb {hash_to_text(name)}, which is lost or damaged"
        for term in file.terms:
            facts = known[term.xorb_hash].facts
            lengths = facts.layout.chunk_lengths()[term.start : term.end]
            tree.add((facts.chunk_hashes or b"")[HASH_BYTES * term.start : HASH_BYTES * term.end], lengths)
            size += sum(lengths)
        root = tree.root()
        if root is None or file_hash_of_root(root) != file.file_hash or size != file.size:
            return "its terms do not give its hash"
        return None
