"""Files that are open: where their bytes are, how they come to be staged, and what happens at their last close.

A file that is read is backed by the node's cache, a small one also after its last close (`kept`). One that was opened
for writing is backed by a staged file. The kernel reads and writes both itself where it can. Reads through this daemon
are for what is not whole in the cache yet, and for kernels that cannot do without.

A file of the bucket that somebody here reads is opened for writing as a new node: the kernel takes one backing file per
node. Who had it open before keeps the version that was there.
"""

import errno
import os
import threading
from collections.abc import Callable

from runstead.node.fuse import protocol
from runstead.node.fuse.ahead import SMALL_BYTES, Ahead
from runstead.node.fuse.backing import Backing
from runstead.node.fuse.cache import Cache, CachedFile
from runstead.node.fuse.device import Device
from runstead.node.fuse.journal import Journal
from runstead.node.fuse.kept import Kept, Shared, packed, reads_only
from runstead.node.fuse.nodelog import NodeLog
from runstead.node.fuse.session import Request
from runstead.node.fuse.source import EMPTY, Content, Source
from runstead.node.fuse.staging import Staging, copy
from runstead.node.fuse.tree import Node, Tree
from runstead.node.fuse.upcoming import Upcoming

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FILLED_AT_OPEN = 4 << 20  # smaller files are fetched whole when they are opened
_FALLOC_KEEP_SIZE = 1


class _Handle:
    """One open file."""

    __slots__ = ("backing", "node", "writes")

    def __init__(self, node: Node, backing: Backing, *, writes: bool) -> None:
        self.node = node
        self.backing = backing
        self.writes = writes


class Files:
    """The open files of one mount."""

    def __init__(
        self,
        source: Source,
        tree: Tree,
        journal: Journal,
        staging: Staging,
        cache: Cache,
        log: NodeLog,
        lock: "threading.RLock",
        wake: Callable[[], None],
        first_handle: int,
    ) -> None:
        self._source = source
        self._tree = tree
        self._journal = journal
        self._staging = staging
        self._cache = cache
        self._ahead = Ahead(source, cache)
        self.upcoming = Upcoming(self._ahead.following, self._prepare)
        self._log = log
        self._lock = lock
        self.wake = wake  # there may be something to upload
        self._device = Device(-1, passthrough=False)
        self._handles: dict[int, _Handle] = {}
        self._kept = Kept(cache, self._let_go)
        self._next = first_handle
        self._taken: dict[int, int] = {}  # by the number of a request: what another daemon opened for it

    def attach(self, device: Device) -> None:
        """Learn what the kernel can."""
        self._device = device

    @property
    def writers(self) -> int:
        """How many files are open for writing."""
        return sum(handle.writes for handle in self._handles.values())

    def records(self) -> "list[tuple[object, ...]]":
        """Return all that the next daemon must know of open files."""
        shared = {file.handle for file in self._kept}
        return [_record(number, handle, 0, number in shared) for number, handle in self._handles.items()]

    def restore(self, records: "list[tuple[Any, ...]]") -> None:
        """Have those files open that were open when another daemon died."""
        for _, number, node_number, writes, backing_number, request, shared in records:
            node = self._tree.nodes.get(node_number)
            if node is None:
                continue
            try:
                backing = node.backing or self._backing_again(node)
            except OSError:
                continue  # its staged file is gone: what is read of it is an error
            backing.number = backing_number
            if shared:
                self._handles[number] = _Handle(node, backing, writes=False)
                self._kept.restore(Shared(node, backing, number, packed(number, backing)))
                continue
            backing.users += 1
            node.backing = backing
            node.writers += writes
            self._handles[number] = _Handle(node, backing, writes=writes)
            if request:
                self._taken[request] = number

    def _backing_again(self, node: Node) -> Backing:
        if node.stage is not None:
            return Backing(Device(-1, passthrough=False), self._staging.open(node.stage), self._cache, None).on(
                self._device
            )
        if node.content is None:
            raise OSError(errno.ESTALE, "no content")
        cached = self._cache.take(node.content)
        return Backing(Device(-1, passthrough=False), cached.fd, self._cache, cached).on(self._device)

    def stat(self, node: Node) -> os.stat_result:
        """Return what the disk says of a staged file; the lock is held."""
        if node.backing is not None:
            return os.fstat(node.backing.fd)
        assert node.stage is not None
        return os.stat(self._staging.path(node.stage))

    # Open

    def open(self, request: Request) -> bytes:
        """Open a file."""
        flags, _ = protocol.OPEN_IN.unpack_from(request.body)
        self.close_unanswered(request)
        with self._lock:
            node = self._tree.get(request.node)
        return self.open_node(request, node, flags)

    def open_kept(self, node: int, request: bytearray) -> bytes | None:
        """Open a file that is kept, None if it is not, or not to be read only."""
        if not reads_only(protocol.OPEN_IN.unpack_from(request, protocol.HEADER.size)[0]):
            return None
        with self._lock:
            return self._kept.open(node)

    def close_unanswered(self, request: Request) -> None:
        """Close what another daemon opened for this request, and could not say."""
        if request.resent:
            number = self._taken.pop(request.number, None)
            if number is not None:
                self._close(number)

    def open_node(self, request: Request, node: Node, flags: int) -> bytes:
        """Open a node for reading or writing."""
        if reads_only(flags):
            return self._open_to_read(request, node)
        return self._open_to_write(request, node, truncate=bool(flags & os.O_TRUNC))

    def _open_to_read(self, request: Request, node: Node) -> bytes:
        with self._lock:
            answer = self._open_again(request, node)
            if answer is not None:
                return answer
            if node.stage is not None:
                backing = Backing(self._device, self._staging.open(node.stage), self._cache, None)
                return self._hand_out(request, node, backing, writes=False)
            content = node.content
        if content is None:
            raise OSError(errno.ESTALE, "the file is no more")
        cached = self._cache.take(content)
        try:
            if content.size <= SMALL_BYTES:
                self._read_ahead(request, node, content, cached)
            if not cached.whole and content.size <= _FILLED_AT_OPEN:
                request.wait_here()
                cached.fill(self._source)
            with self._lock:
                if self._is_closed(node) and node.stage is None and node.content == content:
                    backing = Backing(self._device, cached.fd, self._cache, cached)
                    if self._kept.may_have(backing):
                        self._share(node, backing)
                        self.upcoming.opened(node)
                    return self._open_again(request, node) or self._hand_out(request, node, backing, writes=False)
        except BaseException:
            self._cache.drop(cached)
            raise
        self._cache.drop(cached)
        return self._open_to_read(request, node)

    def _open_again(self, request: Request, node: Node) -> bytes | None:
        """Open what somebody reads, or is kept, None if that is neither; the lock is held."""
        answer = self._kept.open(node.id)
        if answer is not None:
            handle = protocol.OPEN_OUT.unpack(answer)[0]
            request.undo = lambda: self._close(handle)
        elif node.backing is not None:
            answer = self._hand_out(request, node, node.backing, writes=False)
        return answer

    def _is_closed(self, node: Node) -> bool:
        return node.backing is None and node.id not in self._kept

    def _share(self, node: Node, backing: Backing) -> None:
        """Open a file for whoever reads it from now on; the lock is held."""
        handle = self._next
        self._next += 1
        self._handles[handle] = _Handle(node, backing, writes=False)
        self._kept.add(Shared(node, backing, handle, packed(handle, backing)))
        self._log.write(*_record(handle, self._handles[handle], 0, True))

    def _prepare(self, node: Node) -> bool:
        """Have a small file ready that may be opened next, if it is here; False if there is no room."""
        with self._lock:
            content = node.content
            known = node.lookups > 0 and not node.orphan and node.stage is None and self._is_closed(node)
            if not known or content is None or not 0 < content.size <= SMALL_BYTES:
                return True
            if not self._cache.has_whole(content):
                return True
            try:
                cached = self._cache.take(content)
            except OSError:
                return False
            backing = Backing(self._device, cached.fd, self._cache, cached)
            if self._kept.may_have(backing):
                self._share(node, backing)
                return True
            backing.close()
            return False

    def _let_go(self, file: Shared) -> None:
        """A file is kept no more; the lock is held."""
        self._log.write("r", file.handle)
        del self._handles[file.handle]
        file.backing.close()

    def _read_ahead(self, request: Request, node: Node, content: Content, cached: CachedFile) -> None:
        with self._lock:
            if cached.whole:
                self._ahead.opened(content)
            elif request.may_wait and not cached.is_busy():
                self._ahead.missed(node)

    def _hand_out(self, request: Request, node: Node, backing: Backing, *, writes: bool) -> bytes:
        """Return the answer to OPEN; the lock is held."""
        node.backing = backing
        backing.users += 1
        node.writers += writes
        handle = self._next
        self._next += 1
        self._handles[handle] = _Handle(node, backing, writes=writes)
        self._log.write(*_record(handle, self._handles[handle], request.unique, False))
        request.undo = lambda: self._close(handle)
        return packed(handle, backing)

    def _open_to_write(self, request: Request, node: Node, *, truncate: bool) -> bytes:
        with self._lock:
            if node.stage is None:
                node = self._make_writable(request, node, keep=not truncate)
            assert node.stage is not None
            backing = node.backing
            if backing is None:
                backing = Backing(self._device, self._staging.open(node.stage), self._cache, None)
            try:
                if truncate:
                    _empty(backing.fd)
                if not node.orphan:
                    path = self._tree.path(node)
                    intent = self._journal.get(path)
                    if intent is None or not intent.open or truncate:
                        self._journal.stage(path, node.stage, is_open=True)
            except BaseException:
                if backing.users == 0:
                    backing.close()
                raise
            return self._hand_out(request, node, backing, writes=True)

    def _make_writable(self, request: Request, node: Node, *, keep: bool) -> Node:
        """Give a node a staged file with the bytes that it has; the lock is held before and after."""
        if node.orphan or node.backing is not None:
            if not node.orphan:
                self._tree.renew(node)
            # The kernel looks the name up again and finds, or has us make, another node.
            raise OSError(errno.ESTALE, "this version is being read")
        content = node.content
        if not keep or content is None or content.size == 0:
            stage, fd = self._staging.create()
            os.close(fd)
        else:
            request.wait_here()
            self._lock.release()
            try:
                stage = self._stage_copy(content)
            finally:
                self._lock.acquire()
            if node.stage is not None or node.backing is not None or node.orphan or node.content != content:
                self._staging.delete(stage)  # somebody was faster
                return node if node.stage is not None else self._make_writable(request, node, keep=keep)
        self._kept.drop(node)
        node.stage, node.content = stage, None
        self._log.write("s", node.id, stage)
        return node

    def _stage_copy(self, content: Content) -> str:
        cached = self._cache.take(content)
        try:
            cached.fill(self._source)
            stage, fd = self._staging.create()
            try:
                copy(cached.fd, fd, content.size)
                os.utime(fd, ns=(content.mtime_ns, content.mtime_ns))
            except BaseException:
                self._staging.delete(stage)
                raise
            finally:
                os.close(fd)
            return stage
        finally:
            self._cache.drop(cached)

    # Bytes

    def read(self, request: Request) -> bytes:
        """Return bytes of an open file."""
        number, offset, size, *_ = protocol.READ_IN.unpack_from(request.body)
        backing = self._handle(number).backing
        cached = backing.cached
        if cached is not None and not cached.whole:
            cached.expect(offset, self._source)
            if not cached.has(offset, offset + size):
                request.wait_here()
                cached.fill(self._source, offset, offset + size)
        return os.pread(backing.fd, size, offset)

    def write(self, request: Request) -> bytes:
        """Write bytes to a staged file, where the kernel does not do that itself."""
        number, offset, size, *_ = protocol.READ_IN.unpack_from(request.body)
        backing = self._handle(number).backing
        data = memoryview(request.body)[protocol.READ_IN.size :][:size]
        done = 0
        while done < size:
            done += os.pwrite(backing.fd, data[done:], offset + done)
        return protocol.U32_PAIR.pack(size, 0)

    def fsync(self, request: Request) -> bytes:
        """Return when what was written survives a loss of power on this node."""
        request.wait_here()
        number, how, _ = protocol.FSYNC_IN.unpack_from(request.body)
        backing = self._handle(number).backing
        if backing.cached is None:
            (os.fdatasync if how & 1 else os.fsync)(backing.fd)
            self._journal.sync()
        return b""

    def fallocate(self, request: Request) -> bytes:
        """Reserve room; holes cannot be made."""
        number, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(request.body)
        if mode:
            raise OSError(errno.EOPNOTSUPP, "only plain reservation")
        os.posix_fallocate(self._handle(number).backing.fd, offset, length)
        return b""

    def truncate(self, request: Request, node: Node, size: int) -> None:
        """Give a file another size."""
        with self._lock:
            if node.stage is None:
                self._make_writable(request, node, keep=size > 0)
            assert node.stage is not None
            if node.backing is not None:
                os.ftruncate(node.backing.fd, size)
            else:
                os.truncate(self._staging.path(node.stage), size)
            if not node.orphan:
                self._journal.stage(self._tree.path(node), node.stage, is_open=node.writers > 0)
        self.wake()

    def set_mtime(self, node: Node, mtime_ns: int) -> None:
        """Set when a file was changed last; the lock is held."""
        if node.stage is not None:
            target = node.backing.fd if node.backing is not None else self._staging.path(node.stage)
            os.utime(target, ns=(mtime_ns, mtime_ns))
            if not node.orphan and node.writers == 0:
                self._journal.stage(self._tree.path(node), node.stage, is_open=False)
                self.wake()
        elif node.content is not None and not node.orphan:
            node.content = node.content._replace(mtime_ns=mtime_ns)
            self._journal.put(self._tree.path(node), node.content)
            self.wake()
        node.mtime_ns = mtime_ns

    def _handle(self, number: int) -> _Handle:
        found = self._handles.get(number)
        if found is None:
            raise OSError(errno.EBADF, "no such open file")
        return found

    # Close

    def release(self, request: Request) -> bytes:
        """Close an open file. The last one who wrote makes it a file for the bucket."""
        self._close(protocol.RELEASE_IN.unpack_from(request.body)[0])
        return b""

    def release_kept(self, node: int, request: bytearray) -> bytes | None:
        """Close a file that is kept, None if it is not."""
        number = protocol.U64.unpack_from(request, protocol.HEADER.size)[0]
        with self._lock:
            return b"" if self._kept.close(node, number) else None

    def forgotten(self, number: int) -> None:
        """The kernel has forgotten a node; the lock is held."""
        self._kept.forget(number)

    def end(self) -> None:
        """The mount is gone, and no request of it is served any more: let go of what only reads."""
        with self._lock, self._log.together():
            self._kept.drop_all()
            left = {handle.backing for handle in self._handles.values()}
            for backing in left:
                if backing.cached is not None and backing.cached.whole:
                    backing.close()
            self._handles.clear()

    def _close(self, number: int) -> None:
        with self._lock:
            handle = self._handles.get(number)
            if handle is None or self._kept.close(handle.node.id, number):
                return
            del self._handles[number]
            self._log.write("r", number)
            node, backing = handle.node, handle.backing
            backing.users -= 1
            node.writers -= handle.writes
            if handle.writes and node.writers == 0 and node.stage is not None and not node.orphan:
                self._journal.stage(self._tree.path(node), node.stage, is_open=False)
            if backing.users == 0:
                if node.backing is backing:
                    node.backing = None
                backing.close()
                if node.orphan:
                    self.discard(node)
                self._tree.drop_unused(node)
        if handle.writes:
            self.wake()

    def discard(self, node: Node) -> None:
        """Remove the staged file of a node without a name, unless it is open; the lock is held."""
        if node.stage is not None and node.backing is None and not self._journal.needs(node.stage):
            self._staging.delete(node.stage)
            self._tree.drop_unused(node)

    def uploaded(self, node: Node | None, stage: str, content: Content) -> None:
        """The bucket has what a staged file has: from now on the node's cache does. The lock is held."""
        if node is not None and node.stage == stage:
            node.stage, node.content, node.mtime_ns = None, content, content.mtime_ns
            self._log.write("u", node.id, tuple(content))
        if content.file_hash == EMPTY:
            self._staging.delete(stage)
        else:
            self._cache.adopt(self._staging.path(stage), content)


def _empty(fd: int) -> None:
    """Take the bytes of a file away. One without any is not told so: ext4 would write it out when it is closed."""
    if os.fstat(fd).st_size:
        os.ftruncate(fd, 0)
    else:
        os.utime(fd)


def _record(number: int, handle: _Handle, request: int, shared: bool) -> "tuple[object, ...]":
    unique = request & ~protocol.RESENT
    return "h", number, handle.node.id, handle.writes, handle.backing.number, unique, shared
