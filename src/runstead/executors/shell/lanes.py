"""Shells that wait for commands inside of a container: what is asked for often is not started anew each time."""

import asyncio
import contextlib
import re
import secrets
import shlex
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from runstead.executors.shell import scripts
from runstead.executors.shell.door import STDERR, Door, Stream
from runstead.model.errors import BackendFailure, NotRunning, Unavailable

_IDLE_KEPT = 4  # of one attempt and user
_IDLE_SECONDS = 10.0
_SAID_BYTES = 4096


class LaneCut(Exception):
    """The shell is gone: somebody killed it, or the attempt is over, or the engine started none and said why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command printed, how it ended, and its complaints."""

    code: int
    output: bytes
    said: str


class Lane:
    """One shell. Used by one task at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._mark = secrets.token_hex(16)
        self.spoiled = False  # an answer was not awaited to its end

    async def teach(self, script: str) -> None:
        """Have it know what `scripts` says. Raises LaneCut."""
        try:
            await self._stream.write(script.encode())
        except BrokenPipeError:
            raise LaneCut(await self.last_words()) from None

    async def ask(self, *words: str, data: bytes | None = None, most: int = 1 << 26) -> Answer:
        """Run a command, one of those it was taught; with `data` it takes these as its input once it says "go".

        `most`: bytes of output. Raises LaneCut; when it is cancelled the lane cannot be used any more.
        """
        self.spoiled = True
        line = " ".join(shlex.quote(word) for word in words).encode("utf-8", "surrogateescape")
        given = b" </dev/null" if data is None else b""
        asked = b"%b%b 2>&1\nprintf '\\n%%s:%%s\\n' %b $?\n" % (line, given, self._mark.encode())
        try:
            await self._stream.write(asked)
            if data is not None:
                await self._read(re.compile(rb"%b:go\n" % self._mark.encode()), most)
                await self._stream.write(data)
            found, output, said = await self._read(re.compile(rb"\n%b:(\d+)\n" % self._mark.encode()), most)
        except BrokenPipeError:
            raise LaneCut(await self.last_words()) from None
        self.spoiled = False
        return Answer(int(found[1]), output, said.decode("utf-8", "replace").strip())

    @property
    def mark(self) -> str:
        """What its own lines begin with."""
        return self._mark

    @property
    def gone(self) -> bool:
        """Whether the shell has ended."""
        return self._stream.ended

    async def last_words(self) -> str:
        """Return what a shell that is gone left unsaid: mostly why the engine started none."""
        said = b""
        while (piece := await self._stream.read()) is not None:
            said = (said + piece[1])[-_SAID_BYTES:]
        return said.decode("utf-8", "replace").strip()

    async def _read(self, wanted: re.Pattern[bytes], most: int) -> tuple[re.Match[bytes], bytes, bytes]:
        output, said = bytearray(), b""
        while (piece := await self._stream.read()) is not None:
            stream, data = piece
            if stream == STDERR:
                said = (said + data)[-_SAID_BYTES:]
                continue
            looked = max(len(output) - 64, 0)
            output += data
            if (found := wanted.search(output, looked)) is not None:
                return found, bytes(output[: found.start()]), said
            if len(output) > most + 4096:
                raise BackendFailure("a program of the image said more than it was asked for")
        raise LaneCut((bytes(output[-_SAID_BYTES:]) + said).decode("utf-8", "replace").strip())

    async def close(self) -> None:
        """End the shell."""
        await self._stream.close()


async def _opened(door: Door, user: str | None, script: str) -> Lane:
    """Return a new shell that knows a script. Raises NotRunning, Unavailable."""
    lane = Lane(await door.open_shell(user))
    try:
        await lane.teach(script)
        await lane.ask(":")
    except LaneCut as cut:
        await lane.close()
        raise await door.why_not(str(cut)) from None
    except BaseException:
        await asyncio.shield(lane.close())
        raise
    return lane


class Lanes:
    """The shells of one attempt, as one user."""

    def __init__(self, door: Door, user: str | None) -> None:
        self._door = door
        self._user = user
        self._idle: list[tuple[float, Lane]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def lane(self) -> AsyncGenerator[Lane]:
        """Lend a shell. Raises NotRunning, Unsupported, Unavailable."""
        lane = await self.take()
        try:
            yield lane
        except LaneCut:
            raise await self.why_cut() from None
        finally:
            self.give_back(lane)

    async def ask(self, *words: str, most: int = 1 << 26) -> Answer:
        """Run one command; a shell that died while it was idle is replaced."""
        while True:
            fresh = not self._idle
            lane = await self.take()
            try:
                return await lane.ask(*words, most=most)
            except LaneCut:
                if fresh:
                    raise await self.why_cut() from None
            finally:
                self.give_back(lane)

    async def take(self) -> Lane:
        """Return a shell that is the caller's until it is given back."""
        if self._idle:
            return self._idle.pop()[1]
        return await _opened(self._door, self._user, scripts.LANE)

    def give_back(self, lane: Lane) -> None:
        """Keep a shell for the next one, if it may be used again."""
        loop = asyncio.get_running_loop()
        if lane.spoiled or len(self._idle) >= _IDLE_KEPT:
            self._end(lane)
            return
        self._idle.append((loop.time(), lane))
        if self._sweep is None:
            self._sweep = loop.call_later(_IDLE_SECONDS, self._end_idle)

    async def why_cut(self) -> Exception:
        """Say why a shell is gone."""
        if not await self._door.runs():
            return NotRunning(f"the job does not run any more: {self._door.container}")
        return Unavailable("the shell that this server uses inside of the job was killed, or there is no room for it")

    def close(self) -> None:
        """End those that are idle."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        idle, self._idle = self._idle, []
        for _, lane in idle:
            self._end(lane)

    def _end_idle(self) -> None:
        self._sweep = None
        loop = asyncio.get_running_loop()
        old = [lane for at, lane in self._idle if at + _IDLE_SECONDS <= loop.time()]
        self._idle = [(at, lane) for at, lane in self._idle if lane not in old]
        for lane in old:
            self._end(lane)
        if self._idle:
            self._sweep = loop.call_later(_IDLE_SECONDS, self._end_idle)

    def _end(self, lane: Lane) -> None:
        task = asyncio.create_task(lane.close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Watch:
    """The shell that ends what this server started and does not attend to any more; also when the server is killed."""

    def __init__(self, door: Door, user: str | None) -> None:
        self._door = door
        self._user = user
        self._session = secrets.token_hex(8)
        self._count = 0
        self._lane: Lane | None = None
        self._turn = asyncio.Lock()

    async def mark(self) -> str:
        """Return what the next program is told apart by; from now on it does not outlive this server."""
        async with self._turn:
            await self._awake()
        self._count += 1
        return f"{self._session}-{self._count}_"

    async def ask(self, *words: str) -> Answer:
        """Run a command. Raises NotRunning, Unavailable."""
        async with self._turn:
            for again in (True, False):
                lane = await self._awake()
                try:
                    return await lane.ask(*words)
                except LaneCut:
                    await lane.close()
                    self._lane = None
                    if not again:
                        break
                except BaseException:
                    self._lane = None
                    await asyncio.shield(lane.close())
                    raise
        if not await self._door.runs():
            raise NotRunning(f"the job does not run any more: {self._door.container}")
        raise Unavailable("there is no room for one more process in the job; if that stays so, end it")

    async def kill(self, mark: str) -> None:
        """End all that carries a mark."""
        await self.ask("rs_kill", f"{scripts.MARK}={mark}")

    async def _awake(self) -> Lane:
        if self._lane is not None and self._lane.gone:
            await self._lane.close()
            self._lane = None
        if self._lane is None:
            last_will = scripts.LAST_WILL % f"{scripts.MARK}={self._session}-"
            self._lane = await _opened(self._door, self._user, scripts.LANE + last_will)
        return self._lane

    async def close(self) -> None:
        """Let go; what still runs under a mark is ended."""
        if self._lane is not None:
            await self._lane.close()
            self._lane = None
