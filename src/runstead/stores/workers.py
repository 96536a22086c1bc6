"""Threads that run database work for coroutines.

A queue of tasks with one or more threads behind it. Each thread owns one connection for life, so no connection is
ever used by two. Answers go back to the event loop in one call per batch.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from runstead.model.errors import Unavailable
from runstead.stores.database import Transaction

T = TypeVar("T")

CLOSED = "the database is closed: this server is stopping"


@dataclass(slots=True, eq=False)
class Task:
    """One piece of work, and the coroutine that waits for it."""

    work: Callable[[Transaction], Any]
    writes: bool
    consistent: bool
    waiter: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop = field(repr=False)
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        """Give the waiter its answer, unless it was cancelled meanwhile. Runs on the event loop."""
        if self.waiter.done():
            return
        if self.error is not None:
            self.waiter.set_exception(self.error)
        else:
            self.waiter.set_result(self.result)


class Worker(Protocol):
    """What a thread does with the tasks it takes."""

    def perform(self, tasks: list[Task]) -> None:
        """Set `result` or `error` of each task. Raises nothing."""
        ...

    def rest(self) -> None:
        """Do what is better done while nobody waits. Called after answers went out."""
        ...

    def close(self) -> None:
        """Give back the connection."""
        ...


class Workers:
    """A queue of tasks and the threads that serve it."""

    def __init__(self, name: str, make: Callable[[], Worker], threads: int, batch: int) -> None:
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._batch = batch
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(make(),), name=f"{name}-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def submit(self, work: Callable[[Transaction], T], *, writes: bool, consistent: bool = False) -> T:
        """Run `work` in one of the threads and wait for its answer."""
        if self._closed:
            raise Unavailable(CLOSED)
        loop = asyncio.get_running_loop()
        task = Task(work, writes, consistent, loop.create_future(), loop)
        self._queue.put(task)
        return await task.waiter

    def close(self) -> None:
        """Let the threads finish what is queued, and wait for them."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, worker: Worker) -> None:
        try:
            while (first := self._queue.get()) is not None:
                tasks, last = self._more(first)
                _perform(worker, tasks)
                answer(tasks)
                worker.rest()
                if last:
                    return
        finally:
            worker.close()

    def _more(self, first: Task) -> tuple[list[Task], bool]:
        """Take what else is queued, up to the size of a batch; say whether the end of the queue was among it."""
        tasks = [first]
        while len(tasks) < self._batch:
            try:
                task = self._queue.get_nowait()
            except Empty:
                break
            if task is None:
                return tasks, True
            tasks.append(task)
        return tasks, False


def _perform(worker: Worker, tasks: list[Task]) -> None:
    """Perform the tasks; a defect in a worker must not leave its callers waiting for ever."""
    try:
        worker.perform(tasks)
    except BaseException as error:
        for task in tasks:
            task.error = task.error or error


def answer(tasks: Iterable[Task]) -> None:
    """Wake the waiters, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Task]] = {}
    for task in tasks:
        by_loop.setdefault(task.loop, []).append(task)
    for loop, answered in by_loop.items():
        # A loop that has been closed has no waiters left.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle_all, answered)


def _settle_all(tasks: list[Task]) -> None:
    for task in tasks:
        task.settle()
