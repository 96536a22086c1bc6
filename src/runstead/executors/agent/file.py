"""Open files of an attempt: read and written by threads of this process, at the speed of its disk."""

import asyncio
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from runstead.executors.inside import OpenFile

Result = TypeVar("Result")


class InsideFile(OpenFile):
    """A regular file that a worker inside opened and passed to us."""

    def __init__(self, fd: int, threads: ThreadPoolExecutor) -> None:
        self._fd = fd
        self._threads = threads
        self._busy = 0
        self._closing: asyncio.Future[None] | None = None

    async def size(self) -> int:
        """See OpenFile."""
        return os.fstat(self._open()).st_size

    async def read(self, offset: int, count: int) -> bytes:
        """See OpenFile."""
        return await self._in_thread(lambda fd: _read(fd, offset, count))

    async def write(self, offset: int, data: bytes) -> None:
        """See OpenFile."""
        await self._in_thread(lambda fd: _write(fd, offset, data))

    async def truncate(self, size: int) -> None:
        """See OpenFile."""
        await self._in_thread(lambda fd: os.ftruncate(fd, size))

    async def close(self) -> None:
        """See OpenFile."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, os.close, fd))

    def _open(self) -> int:
        if self._fd < 0:
            raise OSError(errno.EBADF, "the file was closed")
        return self._fd

    async def _in_thread(self, work: Callable[[int], Result]) -> Result:
        # A copy: whoever is cancelled may close the file while the thread is still at it.
        fd = os.dup(self._open())

        def run() -> Result:
            try:
                return work(fd)
            finally:
                os.close(fd)

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)


def _read(fd: int, offset: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0 and (part := os.pread(fd, count, offset)):
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write(fd: int, offset: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        left = left[written:]
        offset += written
