"""Small files that were read: they stay ready for the kernel between a close and the next open.

To have the kernel read a file of this node by itself takes several calls, and to take that back as many: more than the
reading of a small file. All readers of such a node therefore share one open file, which is let go of when its node is
forgotten, becomes another, or others are in want of its room. Whoever calls has the mount's lock.
"""

import collections
import os
from collections.abc import Callable, Iterator

from runstead.node.fuse import protocol
from runstead.node.fuse.backing import Backing
from runstead.node.fuse.cache import Cache
from runstead.node.fuse.tree import Node

_LARGEST_BYTES = 1 << 20  # of larger ones the reading costs more than the opening
_UNKNOWN = 1 << 60  # how many have it open, where another daemon opened it for them


class Shared:
    """One open file, for all who read a node."""

    __slots__ = ("answer", "backing", "handle", "is_counted", "node", "users")

    def __init__(self, node: Node, backing: Backing, handle: int, answer: bytes) -> None:
        self.node = node
        self.backing = backing
        self.handle = handle
        self.answer = answer  # to OPEN
        self.users = 0
        self.is_counted = False  # among those for which there is room


class Kept:
    """The shared files of one mount, by node. A node that has one is in use for all others while somebody reads it."""

    def __init__(self, cache: Cache, let_go: Callable[[Shared], None]) -> None:
        self._cache = cache
        self._let_go = let_go
        self._files: dict[int, Shared] = {}
        self._idle: collections.OrderedDict[int, Shared] = collections.OrderedDict()  # those nobody reads

    def __iter__(self) -> Iterator[Shared]:
        return iter(self._files.values())

    def __contains__(self, number: int) -> bool:
        return number in self._files

    def open(self, number: int) -> bytes | None:
        """Return the answer to who opens a node for reading, None if it is not kept."""
        file = self._files.get(number)
        if file is None:
            return None
        if file.users == 0:
            del self._idle[number]
            file.node.backing = file.backing
        file.users += 1
        return file.answer

    def close(self, number: int, handle: int) -> bool:
        """Somebody closes a node that he has opened by this handle; False if that is not kept."""
        file = self._files.get(number)
        if file is None or file.handle != handle:
            return False
        file.users -= 1
        if file.users == 0:
            file.node.backing = None
            self._idle[number] = file
            if file.node.orphan or file.node.lookups <= 0:
                self.drop(file.node)
        return True

    def may_have(self, backing: Backing) -> bool:
        """Whether this can be kept; takes its room, that of others if need be."""
        cached = backing.cached
        if cached is None or not cached.whole or cached.content.size > _LARGEST_BYTES:
            return False
        while not self._cache.keep(cached.content.size, len(self._files)):
            if not self._idle:
                return False
            self.drop(next(iter(self._idle.values())).node)
        return True

    def add(self, file: Shared) -> None:
        """Keep what `may_have` allowed; nobody has it open yet."""
        file.is_counted = True
        self._files[file.node.id] = file
        self._idle[file.node.id] = file

    def restore(self, file: Shared) -> None:
        """Keep what another daemon has opened: it stays until its mount goes."""
        file.users = _UNKNOWN
        file.node.backing = file.backing
        self._files[file.node.id] = file

    def drop(self, node: Node) -> None:
        """Let go of a node's file, if it is kept and nobody reads it."""
        if node.id in self._idle:
            self._remove(self._files[node.id])

    def _remove(self, file: Shared) -> None:
        del self._files[file.node.id]
        self._idle.pop(file.node.id, None)
        file.node.backing = None
        cached = file.backing.cached
        if cached is not None and file.is_counted:
            self._cache.keep_no_more(cached.content.size)
        self._let_go(file)

    def forget(self, number: int) -> None:
        """The kernel was told of a node, and has forgotten it."""
        file = self._idle.get(number)
        if file is not None and file.node.lookups <= 0:
            self.drop(file.node)

    def drop_all(self) -> None:
        """The mount is gone: let go of all, whoever was reading."""
        for file in list(self._files.values()):
            self._remove(file)


def reads_only(flags: int) -> bool:
    """Whether who opens a file so leaves it as it is."""
    return not flags & (os.O_ACCMODE | os.O_TRUNC)


def packed(handle: int, backing: Backing) -> bytes:
    """Return the answer to OPEN."""
    flags = protocol.FOPEN_NOFLUSH
    if backing.number:
        flags |= protocol.FOPEN_PASSTHROUGH
    elif backing.cached is not None:
        flags |= protocol.FOPEN_KEEP_CACHE  # a node's content does not change
    return protocol.OPEN_OUT.pack(handle, flags, backing.number)
