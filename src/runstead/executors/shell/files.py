"""Files of a container, by the programs of its image: names are resolved by processes inside, never out of it."""

import asyncio
import errno
import os
import posixpath
import re
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from runstead.executors.inside import OpenFile
from runstead.executors.shell.lanes import Answer, Lane, LaneCut, Lanes
from runstead.model.errors import Conflict, EntryNotFound, Invalid, RunsteadError, Unsupported
from runstead.model.executions import FileEntry

_BLOCK = 1 << 16
_STEP = 1 << 20
_LISTING_BYTES = 1 << 26
_MISSING = re.compile(r"no such file|nonexistent", re.IGNORECASE)
_NO_PROGRAM = 127
_REFUSED = 10
_FOLDER, _NO_FILE, _OF_PROC = 11, 12, 13
_ERRNOS = (
    ("No space left", errno.ENOSPC),
    ("Disk quota", errno.EDQUOT),
    ("File too large", errno.EFBIG),
    ("Read-only", errno.EROFS),
)
_ENTRY = re.compile(rb"([0-9a-f]+) (\d+) (-?\d+) ")


class ShellFile(OpenFile):
    """A regular file that a shell inside holds open."""

    def __init__(self, lanes: Lanes, lane: Lane) -> None:
        self._lanes = lanes
        self._lane: Lane | None = lane
        self._turn = asyncio.Lock()

    async def size(self) -> int:
        """See OpenFile."""
        async with self._turn:
            answer = await self._ask("rs_size")
            if answer.code != 0:
                raise _failure(answer)
            return int(answer.output)

    async def read(self, offset: int, count: int) -> bytes:
        """See OpenFile."""
        parts: list[bytes] = []
        async with self._turn:
            while count > 0:
                skipped, begin = divmod(offset, _BLOCK)
                blocks = min(-(-(begin + count) // _BLOCK), _STEP // _BLOCK + 1)
                answer = await self._ask("rs_read", str(skipped), str(blocks), most=(blocks + 1) * _BLOCK)
                data = answer.output[begin : begin + count]
                if answer.code != 0 and not answer.output:
                    raise _failure(answer)
                parts.append(data)
                offset += len(data)
                count -= len(data)
                if len(answer.output) < blocks * _BLOCK:
                    break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def write(self, offset: int, data: bytes) -> None:
        """See OpenFile."""
        left = memoryview(data)
        async with self._turn:
            lane = self._open()
            while left:
                block = _largest_step(offset)
                # To the next round offset first: `dd` seeks in blocks.
                count = min(len(left), _BLOCK - offset % _BLOCK if block < _BLOCK else _STEP)
                words = ("rs_write", lane.mark, str(count), str(block), str(offset // block))
                answer = await self._ask(*words, data=bytes(left[:count]))
                if answer.code != 0:
                    raise _failure(answer)
                offset += count
                left = left[count:]

    async def truncate(self, size: int) -> None:
        """See OpenFile."""
        async with self._turn:
            answer = await self._ask("rs_cut", str(size))
            if answer.code != 0:
                raise _failure(answer)

    async def close(self) -> None:
        """See OpenFile."""
        lane, self._lane = self._lane, None
        if lane is None:
            return
        try:
            await lane.ask("rs_close")
        except LaneCut:
            return
        finally:
            self._lanes.give_back(lane)

    def _open(self) -> Lane:
        if self._lane is None:
            raise OSError(errno.EBADF, "the file was closed")
        return self._lane

    async def _ask(self, *words: str, data: bytes | None = None, most: int = _BLOCK) -> Answer:
        try:
            return await self._open().ask(*words, data=data, most=most)
        except LaneCut:
            raise OSError(errno.EIO, "what held the file open inside of the job is gone") from None


def _largest_step(offset: int) -> int:
    """Return the largest block, up to a megabyte, that an offset is a multiple of."""
    return min(offset & -offset, _STEP) if offset else _STEP


class Files:
    """The files of one attempt."""

    def __init__(self, lanes: Lanes, folder: str) -> None:
        self._lanes = lanes
        self._folder = folder

    async def open(self, path: str, *, write: bool, mode: int | None, parents: bool, replace: bool) -> OpenFile:
        """See Inside."""
        there = self._where(path)
        if posixpath.normpath(there).startswith("/proc/"):
            raise Invalid(f"files of /proc are only read by programs: {path}")
        permissions = "" if mode is None or not write else f"{mode & 0o7777:o}"
        flags = ("1" if write else "", permissions, "1" if write and parents else "", "1" if write and replace else "")
        lane = await self._lanes.take()
        try:
            answer = await lane.ask("rs_open", there, *flags)
        except LaneCut:
            self._lanes.give_back(lane)
            raise await self._lanes.why_cut() from None
        except BaseException:
            self._lanes.give_back(lane)
            raise
        if answer.code != 0:
            self._lanes.give_back(lane)
            raise _open_failure(answer, path)
        return ShellFile(self._lanes, lane)

    async def stat(self, path: str) -> FileEntry:
        """See Inside."""
        there = self._where(path)
        answer = await self._lanes.ask("rs_stat", there)
        if answer.code != 0:
            raise _refusal(answer, path)
        [found] = _entries(answer.output, there.encode("utf-8", "surrogateescape")) or [None]
        if found is None:
            raise Invalid(f"what the image's `stat` says makes no sense: {path}")
        return _entry(found, _tidy(there))

    async def list_folder(self, path: str, after: str | None, limit: int) -> Sequence[FileEntry]:
        """See Inside."""
        there = self._where(path)
        answer = await self._lanes.ask("rs_entries", there, most=_LISTING_BYTES)
        if answer.code not in (0, 1):  # 1: some were deleted meanwhile
            raise _refusal(answer, path)
        rows = [row for row in _entries(answer.output, None) if after is None or row[3] > after]
        base = _tidy(there).rstrip("/")
        return [_entry(row, f"{base}/{row[3]}") for row in sorted(rows, key=lambda row: row[3])[:limit]]

    async def make_folder(self, path: str) -> None:
        """See Inside."""
        answer = await self._lanes.ask("mkdir", "-p", self._where(path))
        if answer.code != 0:
            raise Invalid(f"the folder cannot be made: {_words(answer)}: {path}")

    async def delete(self, path: str, *, recursive: bool) -> None:
        """See Inside."""
        there = self._where(path).rstrip("/")
        if posixpath.basename(there) in ("", ".", ".."):
            raise Invalid(f"this cannot be deleted: {path}")
        answer = await self._lanes.ask("rs_delete", there, "1" if recursive else "")
        if answer.code != 0:
            raise _refusal(answer, path)

    def _where(self, path: str) -> str:
        if "\0" in path:
            raise Invalid("a path has no zero bytes")
        return posixpath.join(self._folder, path)


def _tidy(path: str) -> str:
    """Return an absolute path without what says nothing; ".." stays, it may follow a link."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _entries(text: bytes, path: bytes | None) -> list[tuple[int, int, int, str]]:
    """Return mode, size, time and name of each; names hold no slash, so that none can look like the next row."""
    found: list[tuple[int, int, int, str]] = []
    at = 0
    while (row := _ENTRY.match(text, at)) is not None:
        begin = row.end() + (len(path) if path is not None else len(b"./"))
        end = text.find(b"//\n", begin)
        if end < 0:
            break
        name = os.fsdecode(text[begin:end])
        found.append((int(row[1], 16), int(row[2]), int(row[3]), name))
        at = end + len(b"//\n")
    return found


def _entry(row: tuple[int, int, int, str], path: str) -> FileEntry:
    mode, size, modified, _ = row
    return FileEntry(
        name=path.rpartition("/")[2],
        path=path,
        kind=_kind(mode),
        size_bytes=size,
        modified_at=datetime.fromtimestamp(modified, UTC),
        mode=stat.S_IMODE(mode),
    )


def _all_words(answer: Answer) -> str:
    return (answer.said + "\n" + answer.output.decode("utf-8", "replace")).strip()


def _kind(mode: int) -> Literal["file", "dir", "symlink", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "dir"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def _words(answer: Answer) -> str:
    said = _all_words(answer)
    return said.splitlines()[-1] if said else f"it ended with {answer.code}"


def _open_failure(answer: Answer, path: str) -> RunsteadError:
    if answer.code == _FOLDER:
        return Conflict(f"this is a folder: {path}")
    if answer.code == _NO_FILE:
        return Invalid(f"this is no regular file: {path}")
    if answer.code == _OF_PROC:
        return Invalid(f"files of /proc are only read by programs: {path}")
    if answer.code == _REFUSED:
        return Invalid(f"the folder cannot be made: {_words(answer)}: {path}")
    return _refusal(answer, path)


def _refusal(answer: Answer, path: str) -> RunsteadError:
    said = _words(answer)
    if answer.code == _NO_PROGRAM:
        return Unsupported(f"the image lacks a program that this needs: {said}")
    if _MISSING.search(said):
        return EntryNotFound(f"there is no such file or folder: {path}")
    return Invalid(f"{said}: {path}")


def _failure(answer: Answer) -> OSError:
    said = _all_words(answer)
    number = next((number for words, number in _ERRNOS if words in said), errno.EIO)
    return OSError(number, said[:500])
