"""Reading the logs of jobs, live, by any number of followers at once.

Followers of one job move through the same file in the same steps, so a block that one of them has read and
encoded is handed to the others: two hundred followers cost one read and one encoding. Blocks are immutable,
hence never stale.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from runstead.events.interface import JOBS, LOGS, EventBus
from runstead.logs.interface import START, LogStore, Position
from runstead.model.errors import Invalid
from runstead.model.jobs import Job
from runstead.stores.interface import JobStore

_BLOCK_BYTES = 128 * 1024
_PART_BYTES = 512 * 1024
_PLACE = re.compile(r"([1-9]\d{0,8}):(\d{1,18})", re.ASCII)
_CACHED_BLOCKS = 128
_HEAD_BYTES = 4096
KEEPALIVE_SECONDS = 25.0  # a snapshot ends after 5 s of silence, a follower gives up after 120 (wire-jobs §9)
_POLL_SECONDS = 0.5
# Between two deliveries to all followers of a job: more of them, longer steps, the same cost.
_SHORTEST_STEP_SECONDS = 0.002
_STEP_PER_FOLLOWER_SECONDS = 0.0001


@dataclass(frozen=True, slots=True)
class _Block:
    encoded: bytes
    end: Position


@dataclass(frozen=True, slots=True)
class Written:
    """Some lines of a log, encoded, and the places before and behind them."""

    start: Position
    encoded: bytes
    end: Position


def place_text(position: Position) -> str:
    """Return a place in a log as text."""
    return f"{position.attempt}:{position.offset}"


def read_place(text: str) -> Position:
    """Return the place that `place_text` wrote. Raises Invalid."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise Invalid(f"not a place in a log, which has the form attempt:offset: {text[:50]!r}")
    return Position(int(found[1]), int(found[2]))


class Logs:
    """Streams logs in an encoded form that the front end chooses once."""

    def __init__(
        self, store: JobStore, logs: LogStore, events: EventBus, encode: Callable[[bytes], bytes], marker: bytes
    ) -> None:
        self._store = store
        self._logs = logs
        self._events = events
        self._encode = encode
        self._marker = marker
        self._blocks: OrderedDict[tuple[str, Position], _Block] = OrderedDict()
        self._reading: dict[tuple[str, Position], asyncio.Task[_Block | None]] = {}
        self._followers: dict[str, int] = {}
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams where they are; clients come back and go on from there."""
        self._closing.set()

    async def stream(self, job: Job, tail: int | None) -> AsyncGenerator[bytes | None]:
        """Yield encoded blocks of the log from the start (or the last `tail` lines) until the job is over.

        Yields None when it is time for a sign of life. Ends after the last line of a terminal job.
        """
        position = START
        if tail is not None:
            position = await self._logs.tail(job.id, tail)
            if position != START and (marker := await self._start_marker(job)):
                yield marker
        async with aclosing(self.follow(job, position)) as written:
            async for one in written:
                yield one and one.encoded

    async def follow(self, job: Job, position: Position) -> AsyncGenerator[Written | None]:
        """Yield the log from a place on as `stream` does, with the place behind each block: where to go on from."""
        self._followers[job.id] = self._followers.get(job.id, 0) + 1
        try:
            with self._events.subscribe(LOGS, job.id) as grown, self._events.subscribe(JOBS, job.id) as changed:
                silent = 0.0
                ended = job.stage.is_terminal
                while not self._closing.is_set():
                    block = await self._block(job.id, position)
                    if block is not None:
                        yield Written(position, block.encoded, block.end)
                        position = block.end
                        silent = 0.0
                        if not ended:
                            await asyncio.sleep(
                                max(_SHORTEST_STEP_SECONDS, self._followers[job.id] * _STEP_PER_FOLLOWER_SECONDS)
                            )
                        continue
                    if ended:
                        return
                    woken = await grown.wait(_POLL_SECONDS)
                    if not woken:
                        silent += _POLL_SECONDS
                    if await changed.wait(0) or not woken:
                        fresh = await self._store.get(job.id)
                        ended = fresh is None or fresh.stage.is_terminal
                    if silent >= KEEPALIVE_SECONDS:
                        silent = 0.0
                        yield None
        finally:
            self._followers[job.id] -= 1
            if not self._followers[job.id]:
                del self._followers[job.id]

    async def part(self, job: Job, before: Position | None, count: int) -> Written:
        """Return up to `count` lines before a place (None: the last ones there are now); none where the log begins."""
        found = await self._logs.read_back(job.id, before, count, _PART_BYTES)
        return Written(found.start, self._encode(found.lines), found.end)

    async def copy(self, job: Job) -> AsyncGenerator[bytes]:
        """Yield the log as it is now, in blocks of whole lines in stored form; the last may hold a little more."""
        end = (await self._logs.read_back(job.id, None, 1, _PART_BYTES)).end
        position = START
        while (position.attempt, position.offset) < (end.attempt, end.offset):
            block = await self._logs.read(job.id, position, _BLOCK_BYTES)
            if not block.lines:
                return
            yield block.lines
            position = block.end

    async def _start_marker(self, job: Job) -> bytes | None:
        """Return the first line of the log if it is the start marker, which `tail` never hides (wire-jobs §9.1)."""
        head = (await self._logs.read(job.id, START, _HEAD_BYTES)).lines
        line = head[: head.find(b"\n") + 1]
        return self._encode(line) if self._marker in line else None

    async def _block(self, job_id: str, position: Position) -> _Block | None:
        key = (job_id, position)
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
            return block
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._read(key))
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(reading)

    async def _read(self, key: tuple[str, Position]) -> _Block | None:
        block = await self._logs.read(*key, _BLOCK_BYTES)
        if not block.lines:
            return None
        encoded = self._encode(block.lines)
        found = self._blocks[key] = _Block(encoded, block.end)
        while len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return found
