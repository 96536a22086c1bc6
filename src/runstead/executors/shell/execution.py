"""Programs that run inside of a container while this server attends to them, by the engine's API."""

import asyncio
import contextlib
from typing import Literal

from runstead.executors.inside import Execution
from runstead.executors.shell.door import STDERR, Door, Stream
from runstead.executors.shell.lanes import Watch
from runstead.model.errors import RunsteadError
from runstead.model.executions import Ended, Output, TerminalSize

_KILL_SECONDS = 15.0
_KILLED = 9
_LOOK_SECONDS = 0.5
_LINGER_SECONDS = 2.0  # for output that descendants hold open after the end
_END_OF_INPUT = b"\x04"  # what closes the input of a terminal


class ShellExecution(Execution):
    """A program that carries a mark, behind a stream of the engine's."""

    def __init__(
        self, door: Door, watch: Watch, mark: str, number: str, stream: Stream, pid: int, *, terminal: bool, given: bool
    ) -> None:
        self.pid = pid
        self._door = door
        self._watch = watch
        self._mark = mark
        self._number = number
        self._stream = stream
        self._terminal = terminal
        self._given = given or terminal  # whether there is an input that was not closed yet
        self._asked: set[int] = set()  # signals that we sent
        self._timed_out = False
        self._closed = False
        self._end = asyncio.create_task(self._await_end())
        self._limit: asyncio.Task[None] | None = None

    def limit(self, seconds: float) -> None:
        """Kill it with all it started after so many seconds."""
        self._limit = asyncio.create_task(self._keep_time(seconds))

    async def _keep_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self._end.done():
            self._timed_out = True
            await self._kill()

    async def _await_end(self) -> Ended:
        while not self._stream.ended:
            await self._stream.settled.wait()
            if not self._stream.ended:  # nobody reads, so that there may be an end that we do not see
                found = await self._door.look(self._number)
                if found is None or not found.get("Running"):
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        code = await self._door.code(self._number)
        if self._timed_out and self._limit is not None:
            await asyncio.wait([self._limit])  # all that it started is gone then, too
            return Ended(None, _KILLED, timed_out=True)
        if code is None:
            return Ended(None, _KILLED)  # the container is gone with it
        if code - 128 in self._asked:  # an engine tells no signal; this one it got from us
            return Ended(None, code - 128)
        return Ended(code, None)

    async def read(self) -> Output | None:
        """See Execution."""
        if self._closed:
            return None
        reading = asyncio.ensure_future(self._stream.read())
        try:
            await asyncio.wait([reading, self._end], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await asyncio.wait([reading], timeout=_LINGER_SECONDS)
            piece = reading.result() if reading.done() else None
        finally:
            reading.cancel()
        if piece is None:
            return None
        name: Literal["stdout", "stderr"] = "stderr" if piece[0] == STDERR else "stdout"
        return Output(name, piece[1])

    async def write(self, data: bytes) -> None:
        """See Execution."""
        if not self._given or self._closed:
            raise BrokenPipeError
        await self._stream.write(data)

    async def end_input(self) -> None:
        """See Execution."""
        if not self._given or self._closed:
            return
        self._given = False
        if self._terminal:
            with contextlib.suppress(BrokenPipeError):
                await self._stream.write(_END_OF_INPUT)
        else:
            self._stream.end_input()

    async def wait(self) -> Ended:
        """See Execution."""
        return await asyncio.shield(self._end)

    async def signal(self, number: int) -> None:
        """See Execution."""
        if not self._end.done() and not self._closed:
            self._asked.add(number)
            with contextlib.suppress(RunsteadError):
                await self._watch.ask("rs_signal", self._mark, str(self.pid), str(number))

    async def resize(self, size: TerminalSize) -> None:
        """See Execution."""
        if self._terminal and not self._end.done():
            await self._door.resize(self._number, size)

    async def close(self) -> None:
        """See Execution."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._end.done():
                self._asked.add(_KILLED)
                await self._kill()
                await asyncio.wait([self._end], timeout=_KILL_SECONDS)
        finally:
            for task in (self._limit, self._end):
                if task is not None and not task.done():
                    task.cancel()
            await asyncio.shield(self._stream.close())

    async def _kill(self) -> None:
        with contextlib.suppress(RunsteadError):  # it is over, or the engine is away: its watch does it then
            await self._watch.kill(self._mark)
