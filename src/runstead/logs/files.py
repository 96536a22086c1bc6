"""Logs as files: one per attempt, `<root>/<last two of the id>/<job id>/<attempt>.log`.

The supervisor appends whole lines; readers take whole lines only, so that a line that is being written, or was
cut by a crash, is never seen until `seal` has repaired it. All file work happens in threads.
"""

import asyncio
import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from runstead.logs.interface import START, LogBlock, LogPart, LogStore, Position
from runstead.node.logformat import PREFIX_BYTES, STAMP_BYTES, encode, parse_stamp, stamp
from runstead.node.spreading import spread

_BACKWARD_BYTES = 64 * 1024


class FileLogStore(LogStore):
    """Logs in a directory that server and supervisors share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def sink(self, job_id: str, attempt: int) -> Path:
        """Return the file of the attempt; its folder exists."""
        folder = f"{self._root}/{job_id[-2:]}/{job_id}"
        try:  # for each job that starts: a tenth of what it takes to ask first
            os.mkdir(folder, 0o700)  # noqa: PTH102 (a string)
        except FileExistsError:
            pass
        except FileNotFoundError:
            Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            spread(str(self._root))
        return Path(f"{folder}/{attempt}.log")

    async def append(self, job_id: str, attempt: int, texts: Sequence[str], at: datetime) -> None:
        """Add lines of our own."""
        await asyncio.to_thread(self._append, job_id, attempt, texts, at)

    async def read(self, job_id: str, position: Position, limit_bytes: int) -> LogBlock:
        """Return whole lines from `position` on."""
        return await asyncio.to_thread(self._read, job_id, position, limit_bytes)

    async def tail(self, job_id: str, count: int) -> Position:
        """Return the place from which on there are `count` lines now."""
        return await asyncio.to_thread(self._tail, job_id, count)

    async def read_back(self, job_id: str, end: Position | None, count: int, limit_bytes: int) -> LogPart:
        """Return the last lines before `end`."""
        return await asyncio.to_thread(self._read_back, job_id, end, count, limit_bytes)

    async def end_time(self, job_id: str) -> datetime | None:
        """Return the time of the last line."""
        return await asyncio.to_thread(self._end_time, job_id)

    async def seal(self, job_id: str, attempt: int) -> None:
        """Repair a cut last line and make the file durable."""
        await asyncio.to_thread(self._seal, job_id, attempt)

    async def delete(self, job_id: str) -> None:
        """Remove the job's folder."""
        await asyncio.to_thread(shutil.rmtree, self._folder(job_id), ignore_errors=True)

    def _folder(self, job_id: str) -> Path:
        return self._root / job_id[-2:] / job_id

    def _path(self, job_id: str, attempt: int) -> Path:
        return self._folder(job_id) / f"{attempt}.log"

    def _attempts(self, job_id: str) -> list[int]:
        try:
            names = [path.name for path in self._folder(job_id).iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(name[:-4]) for name in names if name.endswith(".log") and name[:-4].isdigit())

    def _append(self, job_id: str, attempt: int, texts: Sequence[str], at: datetime) -> None:
        last = self._end_time(job_id)
        prefix = stamp(max(at, last) if last else at) + b" "
        block = b"".join(text.encode("utf-8", "replace").replace(b"\n", b" ") + b"\n" for text in texts)
        with self.sink(job_id, attempt).open("ab") as file:
            file.write(encode(block, prefix))

    def _read(self, job_id: str, position: Position, limit_bytes: int) -> LogBlock:
        while True:
            lines = _whole_lines(self._path(job_id, position.attempt), position.offset, limit_bytes)
            if lines:
                return LogBlock(lines, Position(position.attempt, position.offset + len(lines)))
            later = [attempt for attempt in self._attempts(job_id) if attempt > position.attempt]
            if not later:
                return LogBlock(b"", position)
            # An attempt is sealed before the next begins; look once more, it may have grown before it was.
            lines = _whole_lines(self._path(job_id, position.attempt), position.offset, limit_bytes)
            if lines:
                return LogBlock(lines, Position(position.attempt, position.offset + len(lines)))
            position = Position(later[0], 0)

    def _tail(self, job_id: str, count: int) -> Position:
        attempts = self._attempts(job_id)
        if not attempts:
            return START
        for attempt in reversed(attempts):
            path = self._path(job_id, attempt)
            if count == 0:
                return Position(attempt, _whole_size(path))
            offset, found = _lines_from_end(path, count)
            count -= found
            if count == 0:
                return Position(attempt, offset)
        return Position(attempts[0], 0)

    def _read_back(self, job_id: str, end: Position | None, count: int, limit_bytes: int) -> LogPart:
        for attempt in reversed(self._attempts(job_id)):
            if end is not None and attempt > end.attempt:
                continue
            path = self._path(job_id, attempt)
            size = _whole_size(path)
            stop = min(end.offset, size) if end is not None and attempt == end.attempt else size
            start, lines = _lines_before(path, stop, count, limit_bytes)
            if lines:
                return LogPart(Position(attempt, start), lines, Position(attempt, start + len(lines)))
        return LogPart(START, b"", START)

    def _end_time(self, job_id: str) -> datetime | None:
        for attempt in reversed(self._attempts(job_id)):
            path = self._path(job_id, attempt)
            offset, found = _lines_from_end(path, 1)
            if found:
                with path.open("rb") as file:
                    file.seek(offset)
                    return parse_stamp(file.read(STAMP_BYTES))
        return None

    def _seal(self, job_id: str, attempt: int) -> None:
        path = self._path(job_id, attempt)
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            return
        with file:
            size = file.seek(0, os.SEEK_END)
            whole = _whole_size(path)
            if size > whole:
                if size - whole < PREFIX_BYTES:
                    file.truncate(whole)
                else:
                    file.write(b"\n")
                file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path, offset: int, limit_bytes: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(limit_bytes)
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def _lines_before(path: Path, stop: int, count: int, limit_bytes: int) -> tuple[int, bytes]:
    """Return the last whole lines that end at or before `stop`, and where the first of them begins."""
    begin = max(0, stop - limit_bytes)
    with path.open("rb") as file:
        file.seek(begin)
        data = file.read(stop - begin)
    first = 0 if begin == 0 else data.find(b"\n") + 1
    end = data.rfind(b"\n") + 1
    cut = end - 1
    for _ in range(count):
        cut = data.rfind(b"\n", first, max(cut, first))
        if cut < 0:
            break
    start = first if cut < 0 else cut + 1
    return begin + start, data[start:end]


def _whole_size(path: Path) -> int:
    """Return the size without an unfinished last line."""
    offset, found = _lines_from_end(path, 1)
    if not found:
        return 0
    with path.open("rb") as file:
        file.seek(offset)
        return offset + len(file.readline())


def _lines_from_end(path: Path, count: int) -> tuple[int, int]:
    """Return the start of the last `count` whole lines of a file, and how many there are up to `count`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return 0, 0
    newlines = 0
    with file:
        position = file.seek(0, os.SEEK_END)
        while position > 0:
            step = min(_BACKWARD_BYTES, position)
            position -= step
            file.seek(position)
            data = file.read(step)
            at = len(data)
            while (at := data.rfind(b"\n", 0, at)) >= 0:
                newlines += 1
                if newlines > count:
                    return position + at + 1, count
    return 0, newlines
