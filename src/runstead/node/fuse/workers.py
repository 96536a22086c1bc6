"""Threads that wait on behalf of others; started when there is something to wait for, never more than allowed."""

import queue
import sys
import threading
from collections.abc import Callable


class Workers:
    """Does what it is given, in order of arrival, with at most `most` threads."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, task: Callable[[], None]) -> None:
        """Have something done soon."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
        self._tasks.put(task)

    def _run(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                task()
            except Exception as error:
                sys.excepthook(type(error), error, error.__traceback__)
            with self._lock:
                self._free = min(self._free + 1, self._threads)
