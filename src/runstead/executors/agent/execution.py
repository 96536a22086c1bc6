"""Programs that run inside of an attempt while this server attends to them: the server's ends of their pipes."""

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable, Mapping
from typing import Any, Literal

from runstead.executors.agent.lanes import Lane, LaneCut, readable, writable
from runstead.executors.inside import Execution
from runstead.model.executions import Ended, Output, TerminalSize

_READ_BYTES = 1 << 17
_LINGER_SECONDS = 2.0  # for output that descendants hold open after the end
_KILL_SECONDS = 15.0
_END_OF_INPUT = b"\x04"  # what closes the input of a terminal
_KILLED = 9


class AttendedExecution(Execution):
    """A program whose worker is at the other end of a lane."""

    def __init__(
        self, lane: Lane, started: Mapping[str, Any], fds: list[int], give_back: Callable[[Lane], None]
    ) -> None:
        self.pid = int(started["pid"])
        self._lane = lane
        self._give_back = give_back
        named = dict(zip(started["names"], fds, strict=True))
        self._terminal: int | None = named.get("terminal")
        self._input: int | None = named.get("stdin", self._terminal)
        outputs: tuple[tuple[Literal["stdout", "stderr"], str], ...]
        outputs = (
            (("stdout", "terminal"),) if self._terminal is not None else (("stdout", "stdout"), ("stderr", "stderr"))
        )
        self._outputs: list[tuple[Literal["stdout", "stderr"], int]] = [(name, named[fd]) for name, fd in outputs]
        self._fds = set(fds)
        self._again = False  # whether the lane can be used for something else
        self._closed = False
        self._ended_at: float | None = None
        self._end = asyncio.create_task(self._await_end())

    async def _await_end(self) -> Ended:
        try:
            message = await self._lane.receive()
        except LaneCut:  # somebody killed its worker, or the attempt is over
            ended = Ended(None, _KILLED)
        else:
            ended = ended_from(message["ended"])
            self._again = bool(message["again"]) and not self._closed
        self._ended_at = asyncio.get_running_loop().time()
        return ended

    async def read(self) -> Output | None:
        """See Execution."""
        while self._outputs:
            for stream in list(self._outputs):
                data = self._read_now(stream[1])
                if data:
                    # The other one is looked at first the next time: neither starves.
                    self._outputs.sort(key=lambda other, mine=stream: other == mine)
                    return Output(stream[0], data)
                if data is not None:
                    self._outputs.remove(stream)
                    self._let_go(stream[1])
            if self._outputs and not await self._await_output():
                return None
        return None

    def _read_now(self, fd: int) -> bytes | None:
        """Return what is there, nothing at the end, None when there may be something later."""
        if fd not in self._fds:
            return b""
        try:
            return os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:  # a terminal that nobody has open any more
            return b""

    async def _await_output(self) -> bool:
        """Wait until there may be output; False when there will be none worth waiting for."""
        loop = asyncio.get_running_loop()
        waiting = [asyncio.ensure_future(readable(fd)) for _, fd in self._outputs]
        try:
            if self._ended_at is None:
                await asyncio.wait([*waiting, self._end], return_when=asyncio.FIRST_COMPLETED)
                return True
            left = self._ended_at + _LINGER_SECONDS - loop.time()
            done, _ = await asyncio.wait(waiting, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            return bool(done)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def write(self, data: bytes) -> None:
        """See Execution."""
        left = memoryview(data)
        while left:
            if self._input is None:
                raise BrokenPipeError
            try:
                left = left[os.write(self._input, left) :]
            except BlockingIOError:
                await writable(self._input)

    async def end_input(self) -> None:
        """See Execution."""
        if self._input is None:
            return
        if self._terminal is not None:
            await self.write(_END_OF_INPUT)
        else:
            self._let_go(self._input)
        self._input = None

    async def wait(self) -> Ended:
        """See Execution."""
        return await asyncio.shield(self._end)

    async def signal(self, number: int) -> None:
        """See Execution."""
        if self._ended_at is None and not self._closed:
            try:
                await self._lane.send({"op": "signal", "number": number})
            except LaneCut:
                return

    async def resize(self, size: TerminalSize) -> None:
        """See Execution."""
        if self._terminal is not None and self._terminal in self._fds:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))

    async def close(self) -> None:
        """See Execution."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._again:
                self._give_back(self._lane)
            elif self._end.done():
                self._lane.close()
            else:
                self._lane.cut()
                await asyncio.wait([self._end], timeout=_KILL_SECONDS)
                self._end.cancel()
                self._lane.close()
        finally:
            self._outputs, self._input = [], None
            for fd in list(self._fds):
                self._let_go(fd)

    def _let_go(self, fd: int) -> None:
        self._fds.discard(fd)
        os.close(fd)


def ended_from(values: Mapping[str, Any]) -> Ended:
    """Return how a program ended from what its worker says."""
    return Ended(values["exit_code"], values["signal"], bool(values["timed_out"]))
