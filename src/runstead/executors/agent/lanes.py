"""Connections to the agent inside of a running attempt (`runstead.node.agent`): one request at a time on each.

A connection has a worker of its own at the other end, a forked process; those that have nothing to do are kept a
moment for the next request.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from runstead.model.errors import (
    BackendFailure,
    Conflict,
    EntryNotFound,
    Invalid,
    RunsteadError,
    Unavailable,
    Unsupported,
)
from runstead.node import framing
from runstead.node.inside import agent, refusal

_MOST_FDS = 8
_IDLE_KEPT = 16  # of one attempt
_ALL_IDLE_KEPT = 128  # each is a process of a megabyte or two
_IDLE_SECONDS = 5.0
_PIECE = 1 << 18
_BUSY_PAUSES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)

_REFUSALS: Mapping[str, type[RunsteadError]] = {
    refusal.INVALID: Invalid,
    refusal.MISSING: EntryNotFound,
    refusal.CONFLICT: Conflict,
    refusal.UNAVAILABLE: Unavailable,
    refusal.UNSUPPORTED: Unsupported,
}


class LaneCut(Exception):
    """The other end is gone: its worker was killed, or the attempt is over."""


class Lane:
    """One connection. Used by one task at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._incoming = framing.Incoming()
        self._messages: list[dict[str, Any]] = []
        self._fds: list[int] = []

    async def ask(self, message: Mapping[str, object]) -> tuple[dict[str, Any], list[int]]:
        """Send a request; return the answer with the open files that came with it, which are the caller's now.

        Raises what was answered instead, and LaneCut. When it is cancelled the lane cannot be used any more.
        """
        try:
            await self.send(message)
            answer = await self.receive()
        except BaseException:
            self.close()
            raise
        fds, self._fds = self._fds, []
        if "error" not in answer:
            return answer["ok"], fds
        raise _REFUSALS.get(answer["error"], BackendFailure)(str(answer["message"]))

    async def send(self, message: Mapping[str, object]) -> None:
        """Send without waiting for an answer. Raises LaneCut."""
        try:
            data = memoryview(framing.encode(message))
            if len(data) > framing.LIMIT:
                raise Invalid("arguments and environment together are too long")
            with contextlib.suppress(BlockingIOError):
                data = data[self._connection.send(data) :]
            if data:
                await asyncio.get_running_loop().sock_sendall(self._connection, data)
        except OSError as error:
            raise LaneCut from error

    async def receive(self) -> dict[str, Any]:
        """Return the next message. Raises LaneCut."""
        while not self._messages:
            if not self._take():
                await readable(self._connection.fileno())
        return self._messages.pop(0)

    def _take(self) -> bool:
        """Read what there is; False when there is nothing yet."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._connection, _PIECE, _MOST_FDS)
        except BlockingIOError:
            return False
        except OSError as error:
            raise LaneCut from error
        self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:
            raise Unavailable("this server has too many open files")
        if not data:
            raise LaneCut
        for fd in fds:
            os.set_blocking(fd, False)
        self._messages.extend(self._incoming.feed(data))
        return True

    def is_usable(self) -> bool:
        """Say whether the other end is there, and nothing is left to be read."""
        return self._connection.fileno() >= 0 and not self._messages and framing.is_silent(self._connection)

    def cut(self) -> None:
        """Say that there will be no more requests: the other end leaves off what it does, and goes."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of it. Idempotent."""
        self._connection.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []


class Idle:
    """How many lanes have nothing to do, over all attempts of an executor."""

    def __init__(self) -> None:
        self.count = 0


class Lanes:
    """The lanes to one attempt: made when needed, some kept while there is nothing to do."""

    def __init__(
        self,
        folder: str,
        name: str,
        why_gone: Callable[[], RunsteadError],
        all_idle: Idle,
        socket_name: str = agent.SOCKET,
    ) -> None:
        self._folder = folder  # the directory that the agent's socket is in
        self._socket_name = socket_name
        self._name = name  # for people
        self._why_gone = why_gone
        self._all_idle = all_idle
        self._idle: list[tuple[float, Lane]] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def take(self) -> Lane:
        """Return a lane that is the caller's alone. Raises NotRunning, Unavailable."""
        while self._idle:
            lane = self._idle.pop()[1]
            self._all_idle.count -= 1
            if lane.is_usable():
                return lane
            lane.close()
        return await self.connect()

    def give_back(self, lane: Lane) -> None:
        """Keep a lane for the next request, if it is good for one."""
        full = len(self._idle) >= _IDLE_KEPT or self._all_idle.count >= _ALL_IDLE_KEPT
        if self._closed or full or not lane.is_usable():
            lane.close()
            return
        loop = asyncio.get_running_loop()
        self._idle.append((loop.time(), lane))
        self._all_idle.count += 1
        if self._sweep is None:
            self._sweep = loop.call_later(_IDLE_SECONDS, self._close_idle)

    async def ask(self, message: Mapping[str, object]) -> tuple[dict[str, Any], list[int]]:
        """Have a request answered that leaves nothing behind on its lane, twice if need be: see `Lane.ask`."""
        for last in (False, True):
            lane = await self.take()
            try:
                answer = await lane.ask(message)
            except LaneCut:
                lane.close()
                if last:
                    raise await self.why_cut() from None
                continue
            except RunsteadError:
                self.give_back(lane)
                raise
            except BaseException:
                lane.close()
                raise
            self.give_back(lane)
            return answer
        raise AssertionError

    async def warm(self) -> None:
        """Have a worker at hand for the first request, which would wait for one otherwise."""
        with contextlib.suppress(RunsteadError):
            await self.ask({"op": "ready"})

    async def why_cut(self) -> RunsteadError:
        """Return what to raise when a lane was cut in the middle of a request."""
        for pause in _BUSY_PAUSES:  # if the attempt is ending just now, this is soon to be seen
            try:
                (await self.connect()).close()
            except RunsteadError as error:
                return error
            await asyncio.sleep(pause)
        return Unavailable(f"what served the request inside of the job was killed: {self._name}")

    async def connect(self) -> Lane:
        """Make a new lane. Raises NotRunning, Unavailable."""
        return await connect(self._folder, self._socket_name, self._why_gone)

    def close(self) -> None:
        """Close those that have nothing to do; what goes on, goes on."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for _, lane in self._idle:
            lane.close()
        self._all_idle.count -= len(self._idle)
        self._idle = []

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() - _IDLE_SECONDS
        for since, lane in self._idle:
            if since <= until:
                lane.close()
                self._all_idle.count -= 1
        self._idle = [entry for entry in self._idle if entry[0] > until]
        self._sweep = loop.call_later(_IDLE_SECONDS, self._close_idle) if self._idle else None


async def connect(folder: str, socket_name: str, why_gone: Callable[[], RunsteadError]) -> Lane:
    """Connect to a socket in a directory. Raises what `why_gone` says when nobody listens, Unavailable."""
    for pause in (*_BUSY_PAUSES, None):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(framing.socket_address(opened, folder, socket_name))
            finally:
                os.close(opened)
            return Lane(connection)
        except BlockingIOError:
            connection.close()
            if pause is not None:
                await asyncio.sleep(pause)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            raise why_gone() from None
        except OSError as error:
            connection.close()
            raise Unavailable(f"the job cannot be reached: {error}") from error
    raise Unavailable("too much is asked for at once inside of the job", retry_after_seconds=1)


async def readable(fd: int) -> None:
    """Wait until there is something to read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def writable(fd: int) -> None:
    """Wait until something can be written."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
