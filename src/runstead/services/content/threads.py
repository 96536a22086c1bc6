"""The threads that stored content is worked on in, away from the event loop.

Hashing and unpacking gain nothing from more threads than there are cores; waiting for disks and stores does. So
there are several kinds, and none can starve another.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_WAITERS = 24
_RECEIVERS = 64


class Threads:
    """Runs functions in threads."""

    def __init__(self) -> None:
        self._workers = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "runstead-content")
        self._waiters = ThreadPoolExecutor(_WAITERS, "runstead-objects")
        self._receivers = ThreadPoolExecutor(_RECEIVERS, "runstead-receiving")
        self._receiving = 0

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what mostly computes."""
        return await self.start(function, *args, **kwargs)

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
        """Begin what mostly computes."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._workers, lambda: function(*args, **kwargs))

    async def wait(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what mostly waits."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._waiters, lambda: function(*args, **kwargs))

    @property
    def can_receive(self) -> bool:
        """Whether a thread is free to wait for a client."""
        return self._receiving < _RECEIVERS

    async def receive(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what waits for a client. It must end by itself when the caller is cancelled."""
        loop = asyncio.get_running_loop()
        self._receiving += 1
        running = loop.run_in_executor(self._receivers, lambda: function(*args, **kwargs))
        running.add_done_callback(self._received)
        return await asyncio.shield(running)

    def _received(self, _: "asyncio.Future[T]") -> None:
        self._receiving -= 1

    def close(self) -> None:
        """Finish what was begun."""
        self._receivers.shutdown()
        self._workers.shutdown()
        self._waiters.shutdown()
