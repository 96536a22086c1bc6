"""The directory that holds all of a server: private, and of one server at a time."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from runstead.model.errors import Conflict, Unavailable


@contextmanager
def hold_data_directory(path: Path) -> Generator[None]:
    """Hold the data directory for this process; the kernel lets go of it however the process ends."""
    make_private(path)
    lock: TextIO = (path / "server.lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another server uses this data directory; stop it, or choose one with --data-dir: {path}"
            ) from None
        yield


def make_private(path: Path) -> None:
    """Make the data directory, for its owner alone. Raises Unavailable when that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "it is not writable")
    except OSError as error:
        raise Unavailable(
            f"the data directory cannot be used ({error.strerror}); choose one with --data-dir: {path}"
        ) from error
