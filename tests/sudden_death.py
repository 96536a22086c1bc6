"""Ends this process as a power cut would, at the n-th of all the moments between which something becomes durable."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runstead.stores.sqlite import SqliteDatabase


def die_at(number: int) -> None:
    """Count every fsync, link, unlink and database write, before and after; SIGKILL at the n-th."""
    lock = threading.Lock()
    count = 0

    def step() -> None:
        nonlocal count
        with lock:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **options: Any) -> Any:
            step()
            try:
                return function(*arguments, **options)
            finally:
                step()

        return stepped

    write = SqliteDatabase.write

    async def stepped_write(self: SqliteDatabase, work: Any) -> Any:
        step()
        result = await write(self, work)
        step()
        return result

    os.fsync = around(os.fsync)
    os.link = around(os.link)
    Path.unlink = around(Path.unlink)  # type: ignore[method-assign]
    SqliteDatabase.write = stepped_write  # type: ignore[method-assign]
