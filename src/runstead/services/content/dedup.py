"""Answers to clients that ask whether a chunk is stored already, so that they need not send it (wire-storage §7).

Chunks are shown as HMACs: whoever has a chunk recognises it, nobody learns of one they do not have. What an answer
allows is decided later and elsewhere: a shard has to prove, by its range hashes, that its sender knows the content.
"""

from runstead.kit.clock import Clock
from runstead.services.content.cache import Cache
from runstead.services.content.keys import derive
from runstead.services.content.threads import Threads
from runstead.services.content.xorbs import Xorbs
from runstead.stores.interface import ContentStore, EligibleChunk
from runstead.xet.dedup import dedup_answer

_PERIOD_SECONDS = 7 * 24 * 3600
"""How long a key is used. Clients may use what they learned under it for one more period: far below the grace."""
_MOST_XORBS = 32
_CACHE_BYTES = 16 * 1024 * 1024

_Key = tuple[int, tuple[bytes, ...]]


class Deduplication:
    """Answers such queries."""

    def __init__(self, store: ContentStore, xorbs: Xorbs, threads: Threads, clock: Clock, key: bytes) -> None:
        self._store = store
        self._xorbs = xorbs
        self._threads = threads
        self._clock = clock
        self._key = derive(key, "deduplication")
        self._answers = Cache[_Key, bytes](_CACHE_BYTES, len)

    async def answer(self, chunk_hash: bytes) -> bytes | None:
        """Return a shard with the xorbs of a file that the chunk is in, None if it is not known."""
        chunk = await self._store.chunk(chunk_hash)
        if chunk is None:
            return None
        names = await self._names(chunk)
        confirmed = await self._xorbs.confirm(names)
        if chunk.xorb_hash not in confirmed:
            return None
        period = int(self._clock.now().timestamp()) // _PERIOD_SECONDS
        shown = tuple(sorted(confirmed))
        answer = self._answers.get((period, shown))
        if answer is None:
            answer = await self._make(period, shown)
            self._answers.put((period, shown), answer)
        return answer

    async def _names(self, chunk: EligibleChunk) -> list[bytes]:
        """Return the xorbs of the file from the chunk's own on: what the client is about to come to."""
        file = await self._store.file(chunk.file_hash)
        names = file.terms.xorb_hashes() if file is not None else []
        if chunk.xorb_hash not in names:
            return [chunk.xorb_hash]
        at = names.index(chunk.xorb_hash)
        return (names[at:] + names[:at])[:_MOST_XORBS]

    async def _make(self, period: int, names: tuple[bytes, ...]) -> bytes:
        found = await self._xorbs.find(names)
        return await self._threads.work(
            dedup_answer,
            [xorb.facts for xorb in found.values()],
            hmac_key=derive(self._key, str(period)),
            created_at=period * _PERIOD_SECONDS,
            key_expires_at=(period + 2) * _PERIOD_SECONDS,
        )
