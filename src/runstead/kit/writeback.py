"""Telling the kernel to begin writing a file to disk, so that waiting for it later takes less long."""

import ctypes
import functools
import sys
from collections.abc import Callable

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin writing what is dirty, wait for nothing


def begin_writeback(descriptor: int, start: int, length: int) -> None:
    """Begin writing that part of the file, where the system can do so. Promises nothing; `fsync` does."""
    call = _sync_file_range()
    if call is not None:
        call(descriptor, ctypes.c_longlong(start), ctypes.c_longlong(length), _WRITE)


@functools.cache
def _sync_file_range() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
