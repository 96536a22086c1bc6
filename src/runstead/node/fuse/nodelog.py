"""What the kernel was told of nodes and open files, for the daemon that comes after one that was killed.

A record is one write: a daemon that dies leaves whole ones. It need not survive more than daemons, because without
the mount that its keeper holds it means nothing.

    ("n", node, parent, name, content, stage, flags, mode, (user, group), request)    told of
    ("m", node, parent, name)       renamed
    ("b", path, path)               the files in a folder are being moved, until "m" says that it is done
    ("x", node)                     without a name from now on
    ("k", node)                     a folder that stays when it is empty
    ("p", node, mode, user, group, marked)
    ("s", node, stage)              staged from now on
    ("u", node, content)            has this content from now on
    ("f", node)                     forgotten
    ("y", path), ("z", path)        a folder that the store still lists is none; not so any more
    ("h", handle, node, writes, backing number, request, shared)    opened, if shared by and for all who read
    ("r", handle)                   closed
"""

import contextlib
import marshal
import os
from collections.abc import Callable, Generator, Iterable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Record = tuple[Any, ...]

_COMPACT_BYTES = 4 << 20


class NodeLog:
    """The log of one mount; without a path nothing is kept."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self._compact_at = _COMPACT_BYTES
        self._gathered: list[bytes] | None = None
        self.snapshot: Callable[[], Iterable[Record]] = tuple  # all that counts now

    def start(self) -> None:
        """Begin with what counts now."""
        if self._path is None:
            return
        fresh = self._path + ".tmp"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = b"".join(_packed(record) for record in self.snapshot())
        written = 0
        while written < len(data):
            written += os.write(fd, memoryview(data)[written:])
        os.rename(fresh, self._path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, len(data)
        self._compact_at = max(_COMPACT_BYTES, 4 * len(data))

    def write(self, *record: object) -> None:
        """Add a record; the mount's lock is held."""
        if self._fd < 0:
            return
        data = _packed(record)
        if self._gathered is None:
            self._put(data)
        else:
            self._gathered.append(data)

    @contextlib.contextmanager
    def together(self) -> Generator[None]:
        """Write with one call what is written meanwhile."""
        gathered: list[bytes] = []
        self._gathered = gathered
        try:
            yield
        finally:
            self._gathered = None
            if gathered:
                self._put(b"".join(gathered))

    def _put(self, data: bytes) -> None:
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                os.ftruncate(self._fd, self._size)
                return  # the disk is full: the next daemon knows less
        except OSError:
            return
        self._size += written
        if self._size > self._compact_at:
            try:
                self.start()
            except OSError:
                self._compact_at *= 2

    def read(self) -> "Iterator[Record]":
        """Yield what another daemon has written."""
        if self._path is None:
            return
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return
        at = 0
        while at + 4 <= len(data):
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            if end > len(data):
                return
            yield marshal.loads(data[at + 4 : end])  # noqa: S302 - our own words, to ourselves
            at = end

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _packed(record: "Record") -> bytes:
    data = marshal.dumps(record)
    return len(data).to_bytes(4, "little") + data
