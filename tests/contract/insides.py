"""A running attempt to work in, for the suites about the inside of attempts; rows and site as for executors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from contract import test_executors as suite
from contract.test_executors import Site
from runstead.executors.inside import Execution, Inside
from runstead.model.errors import NotRunning, Unsupported
from runstead.model.executions import Command, Ended
from runstead.model.launches import Handle, Launch

OK = Ended(0, None)
site = suite.site


@dataclass
class Ran:
    """A program that has ended."""

    ended: Ended
    pieces: list[tuple[str, bytes]]

    @property
    def out(self) -> str:
        return b"".join(data for name, data in self.pieces if name == "stdout").decode()

    @property
    def err(self) -> str:
        return b"".join(data for name, data in self.pieces if name == "stderr").decode()


@dataclass
class Room:
    """A running attempt without a command, and its inside."""

    site: Site
    launch: Launch
    handle: Handle
    inside: Inside

    async def run(self, *argv: str, **options: Any) -> Ran:
        async with self.running(*argv, **options) as execution:
            return await collect(execution)

    async def shell(self, script: str, **options: Any) -> Ran:
        return await self.run("sh", "-c", script, **options)

    @asynccontextmanager
    async def running(self, *argv: str, **options: Any) -> AsyncIterator[Execution]:
        execution = await self.inside.execute(Command(argv, **options))
        try:
            yield execution
        finally:
            await execution.close()

    async def processes(self) -> set[str]:
        """Return the arguments of everything that runs inside, but for ourselves."""
        ran = await self.shell(
            "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>/dev/null",
        )
        return {line.strip() for line in ran.out.splitlines()}

    async def absent(self, *words: str) -> None:
        """Wait until no process has one of these in its arguments."""
        async with asyncio.timeout(5):
            while found := {line for line in await self.processes() if any(word in line for word in words)}:
                await asyncio.sleep(0.02)
        assert not found


async def collect(execution: Execution) -> Ran:
    pieces = []
    while (piece := await execution.read()) is not None:
        pieces.append((piece.stream, piece.data))
    return Ran(await execution.wait(), pieces)


async def enter(site: Site, *argv: str, **changes: Any) -> Room:
    launch = site.launch(*argv, **changes)
    handle = await site.start(launch)
    try:
        return Room(site, launch, handle, await site.executor.inside(handle))
    except NotRunning as error:
        raise AssertionError((await site.executor.poll([handle]), site.lines(launch))) from error


@pytest.fixture
async def room(site: Site) -> Room:
    if not site.capabilities.inside:
        with pytest.raises(Unsupported):
            await site.executor.inside(await site.start(site.launch("sleep", "60")))
        pytest.skip("no way in here")
    # Two hundred programs at once, each with the process of ours that stands by it, want more than a small job has.
    return await enter(site, memory_bytes=1 << 30)


async def write(room: Room, path: str, data: bytes, **options: Any) -> None:
    file = await room.inside.open_file(path, write=True, replace=True, **options)
    await file.write(0, data)
    await file.close()


async def read(room: Room, path: str) -> bytes:
    file = await room.inside.open_file(path)
    try:
        return await file.read(0, await file.size())
    finally:
        await file.close()


def own(room: Room) -> str:
    """Return a directory that is the attempt's own."""
    return "/tmp" if room.site.row.isolated else "."
