"""Reading logs and waiting for jobs, each within bounds of time and size."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from runstead.mcp.hub import Hub, HubError, Query, job_path
from runstead.mcp.wire import Json, is_over

Report = Callable[[float, float | None, str], Awaitable[None]]
"""Tells who waits how far it is: seconds gone, seconds in all, and what happened last."""

_MARKER = "===== Job started"
_LONGEST_LINE = 2000
_MOST_TEXT = 60_000
_SHORTEST_SECRET = 6
_SNAPSHOT_SECONDS = 5.0
_REPORT_EVERY_SECONDS = 1.0
_SIGN_OF_LIFE_SECONDS = 5.0
_AGAIN_SECONDS = 1.0
_AWAY = (0, 502, 503, 504)


class Tail:
    """The last lines of a log, with what must not be shown taken out of them."""

    def __init__(self, lines: int, hidden: Iterable[str]) -> None:
        self._lines: deque[str] = deque(maxlen=lines)
        self._hidden = sorted({text for text in hidden if len(text) >= _SHORTEST_SECRET}, key=len, reverse=True)
        self.seen = 0

    def add(self, line: str) -> None:
        """Take the next line."""
        if line.startswith(_MARKER):
            return
        self.seen += 1
        self._lines.append(line)

    @property
    def last(self) -> str:
        """The last line, fit to be shown."""
        return self._shown(self._lines[-1]) if self._lines else ""

    def lines(self) -> list[str]:
        """Return the lines that fit into an answer, oldest first."""
        kept: deque[str] = deque()
        left = _MOST_TEXT
        for line in reversed(self._lines):
            shown = self._shown(line)
            left -= len(shown) + 1
            if left < 0:
                break
            kept.appendleft(shown)
        return list(kept)

    def _shown(self, line: str) -> str:
        for text in self._hidden:
            line = line.replace(text, "[hidden]")
        if len(line) > _LONGEST_LINE:
            return f"{line[:_LONGEST_LINE]} [and {len(line) - _LONGEST_LINE:,} more characters]"
        return line


@dataclass(frozen=True, slots=True)
class Followed:
    """How a job stands after it was followed for a while."""

    job: Json
    tail: Tail

    @property
    def is_over(self) -> bool:
        """Whether it ended meanwhile."""
        return is_over(self.job)


async def inspect(hub: Hub, namespace: str, job_id: str) -> dict[str, Any]:
    """Return a job. Raises HubError."""
    return await hub.call("GET", job_path(namespace, job_id))


async def follow(hub: Hub, job: Json, seconds: float, tail: Tail, report: Report, *, from_start: bool) -> Followed:
    """Wait for the end of a job, no longer than that, and read its log on the way: all of it, or what is new.

    The end of the log's stream is the news that the job is over; it is asked for itself whenever a stream ends.
    """
    namespace, job_id = job["owner"]["name"], job["id"]
    began = time.monotonic()
    until = began + seconds
    query: Query = () if from_start else (("tail", "0"),)
    job = await _inspect_soon(hub, namespace, job_id, until)
    while not is_over(job) and (left := until - time.monotonic()) > 0 and not hub.closing.is_set():
        told = _Told(report, began, seconds, job)
        try:
            async with hub.events(job_path(namespace, job_id, "logs"), query) as events:
                await _read(events, left, tail, told, skip=tail.seen if from_start else 0)
        except HubError as error:
            if error.status in (401, 403, 404):
                raise
        job = await _inspect_soon(hub, namespace, job_id, until)
        left = until - time.monotonic()
        if not is_over(job) and left > 0 and not hub.closing.is_set():
            await asyncio.sleep(min(_AGAIN_SECONDS, left))
            job = await _inspect_soon(hub, namespace, job_id, until)
    return Followed(job, tail)


async def _inspect_soon(hub: Hub, namespace: str, job_id: str, until: float) -> dict[str, Any]:
    """Return a job; while there is time for it, wait for a server that is away."""
    while True:
        try:
            return await inspect(hub, namespace, job_id)
        except HubError as error:
            left = until - time.monotonic()
            if error.status not in _AWAY or left <= 0:
                raise
            await asyncio.sleep(min(_AGAIN_SECONDS, left))


async def read_tail(hub: Hub, job: Json, tail: Tail, lines: int) -> None:
    """Read the last lines there are now; returns when the log falls silent if the job is not over."""
    path = job_path(job["owner"]["name"], job["id"], "logs")
    over = is_over(job)
    deadline = time.monotonic() + (_SNAPSHOT_SECONDS if not over else 60.0)
    async with hub.events(path, (("tail", str(lines)),)) as events:
        coming = aiter(events)
        pause = max(hub.quiet_seconds, 0.5) if not over else 60.0
        while (left := deadline - time.monotonic()) > 0:
            batch = await _next(coming, min(pause, left))
            if not batch:
                return
            for event in batch:
                tail.add(event["data"])
            pause = hub.quiet_seconds if not over else pause


class _Told:
    """Reports progress often enough to be alive, and seldom enough to be read."""

    def __init__(self, report: Report, began: float, seconds: float, job: Json) -> None:
        self._report = report
        self._began = began
        self._seconds = seconds
        self._stage: str = job["status"]["stage"]
        self._last = 0.0

    async def tell(self, line: str = "") -> None:
        now = time.monotonic()
        if now - self._last < _REPORT_EVERY_SECONDS:
            return
        self._last = now
        await self._report(round(now - self._began, 3), self._seconds, line or f"the job is {self._stage}")


async def _read(events: AsyncIterator[list[Any]], seconds: float, tail: Tail, told: _Told, skip: int) -> None:
    """Read until the stream ends or the time is over."""
    deadline = time.monotonic() + seconds
    coming = aiter(events)
    pending: asyncio.Future[list[Any] | None] | None = None
    try:
        await told.tell()
        while (left := deadline - time.monotonic()) > 0:
            pending = pending or asyncio.ensure_future(_batch(coming))
            done, _ = await asyncio.wait({pending}, timeout=min(left, _SIGN_OF_LIFE_SECONDS))
            if not done:
                await told.tell()
                continue
            batch, pending = pending.result(), None
            if batch is None:
                return
            for event in batch:
                if event["data"].startswith(_MARKER):
                    continue
                if skip:
                    skip -= 1
                    continue
                tail.add(event["data"])
            await told.tell(tail.last)
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def _batch(coming: AsyncIterator[list[Any]]) -> list[Any] | None:
    return await anext(coming, None)


async def _next(coming: AsyncIterator[list[Any]], seconds: float) -> list[Any] | None:
    try:
        async with asyncio.timeout(seconds):
            return await anext(coming, None)
    except TimeoutError:
        return None
