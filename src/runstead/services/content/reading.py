"""Reading files in the server: fetched, unpacked and verified in threads, some pieces ahead of the reader."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from runstead.model.errors import Invalid
from runstead.services.content.reconstructions import Plan, Reconstructions
from runstead.services.content.threads import Threads
from runstead.services.content.xorbs import Xorbs, damaged
from runstead.stores.interface import StoredXorb
from runstead.xet.errors import InvalidXorb
from runstead.xet.hashes import HASH_BYTES, chunk_hash
from runstead.xet.xorb import unpack_chunks

_PIECE_BYTES = 1 << 20
_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Run:
    """Chunks of one xorb that follow each other, from `start` up to `end` (exclusive)."""

    xorb: StoredXorb
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some runs, to be unpacked one after another; of the result `length` bytes are wanted after the first `skip`."""

    runs: tuple[Run, ...]
    skip: int
    length: int


class Reading:
    """Reads files."""

    def __init__(self, reconstructions: Reconstructions, xorbs: Xorbs, threads: Threads) -> None:
        self._reconstructions = reconstructions
        self._xorbs = xorbs
        self._threads = threads

    async def read(self, file_hash: bytes, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Yield the bytes of a file from `start` up to `end` or its end; see `Content.read`."""
        file = await self._reconstructions.find(file_hash)
        end = file.size if end is None else min(end, file.size)
        if start == end and start in (0, file.size) and file.size == 0:
            return
        if not 0 <= start < end:
            raise Invalid(f"bytes {start} to {end} (exclusive) are not in a file of {file.size} bytes", "range")
        plan = await self._reconstructions.plan(file, (start, end))
        coming: deque[asyncio.Future[bytes]] = deque()
        try:
            for piece in pieces(plan):
                coming.append(asyncio.ensure_future(self._threads.wait(self._unpack, piece)))
                if len(coming) >= _AHEAD:
                    yield await coming.popleft()
            while coming:
                yield await coming.popleft()
        finally:
            for one in coming:
                one.cancel()

    def _unpack(self, piece: Piece) -> bytes:
        parts: list[bytes | memoryview] = []
        for run in piece.runs:
            parts += self._verified(run)
        if len(parts) == 1 and len(parts[0]) == piece.length:
            return bytes(parts[0])
        whole = b"".join(parts)
        return whole if len(whole) == piece.length else whole[piece.skip : piece.skip + piece.length]

    def _verified(self, run: Run) -> Iterator[memoryview]:
        facts = run.xorb.facts
        hashes = facts.chunk_hashes or b""
        data = self._xorbs.read(run.xorb, *facts.layout.stored_range(run.start, run.end))
        index = run.start
        try:
            for chunk in unpack_chunks(data):
                if chunk_hash(chunk) != hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)]:
                    raise damaged(run.xorb, f"chunk {index} does not have its hash")
                yield chunk
                index += 1
        except InvalidXorb as error:
            raise damaged(run.xorb, f"from chunk {run.start} on: {error}") from error
        if index != run.end:
            raise damaged(run.xorb, f"from chunk {run.start} on there are {index - run.start} chunks")


def pieces(plan: Plan) -> Iterator[Piece]:
    """Yield pieces of about a MiB of content each that make up what was asked for."""
    skip, left = plan.reconstruction.offset_into_first_range, plan.reconstruction.length
    runs: list[Run] = []
    size = 0
    for run, length in _runs(plan):
        runs.append(run)
        size += length
        if size >= _PIECE_BYTES:
            take = min(size - skip, left)
            yield Piece(tuple(runs), skip, take)
            runs, size, skip, left = [], 0, 0, left - take
    if runs:
        yield Piece(tuple(runs), skip, left)


def _runs(plan: Plan) -> Iterator[tuple[Run, int]]:
    """Yield every term, cut into runs of at most a MiB of content (or one chunk), with the length of each."""
    for term in plan.reconstruction.terms:
        xorb = plan.xorbs[term.xorb_hash]
        offsets = xorb.facts.layout.unpacked_offsets
        start = term.start
        while start < term.end:
            limit = int(offsets[start]) + _PIECE_BYTES
            end = min(term.end, max(start + 1, int(offsets.searchsorted(limit, side="right")) - 1))
            yield Run(xorb, start, end), int(offsets[end]) - int(offsets[start])
            start = end
