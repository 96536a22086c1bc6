"""What a mounted tree answers to the kernel: names, attributes, folders. Files that are open are `files`'s subject.

Every operation either has what it needs in memory, or asks with `wait_here` to be run where it may wait; until then
it has changed nothing.
"""

import errno
import os
import stat
import threading
import time
from typing import NoReturn

from runstead.node.fuse import protocol
from runstead.node.fuse.files import Files
from runstead.node.fuse.journal import Journal
from runstead.node.fuse.refusals import Refusals
from runstead.node.fuse.session import Operation, Quick, Request
from runstead.node.fuse.source import Content, Source
from runstead.node.fuse.staging import Staging
from runstead.node.fuse.tree import Node, Tree, empty_content, folders_of

_VALID_MS = 1000  # what the kernel may remember: others' changes are to be seen within two seconds
_DT_DIR, _DT_REG = 4, 8
_NOTHING = protocol.pack_entry(0, protocol.NO_ATTR, 0)  # of a name whose node is not told
_RENAME_NOREPLACE = 1
_NAME_MAX = 255
_REFRESHES = 8  # of a folder that is moved about meanwhile


class FileSystem:
    """One mount."""

    def __init__(
        self,
        source: Source,
        tree: Tree,
        journal: Journal,
        staging: Staging,
        files: Files,
        lock: "threading.RLock",
        refusals: Refusals,
    ) -> None:
        self._source = source
        self._tree = tree
        self._journal = journal
        self._staging = staging
        self._files = files
        self._lock = lock
        self._refusals = refusals
        self._folders: dict[int, list[tuple[str, bool]]] = {}  # open folders: what they have
        self._next_folder = 1
        self._refreshing: dict[int, threading.Event] = {}

    def operations(self, *, read_only: bool) -> dict[int, Operation]:
        """Return what is done for which request."""
        found: dict[int, Operation] = {
            protocol.LOOKUP: self.lookup,
            protocol.FORGET: self.forget,
            protocol.BATCH_FORGET: self.batch_forget,
            protocol.GETATTR: self.getattr,
            protocol.OPENDIR: self.opendir,
            protocol.READDIR: self.readdir,
            protocol.READDIRPLUS: self.readdirplus,
            protocol.RELEASEDIR: self.releasedir,
            protocol.STATFS: self.statfs,
            protocol.OPEN: self._files.open,
            protocol.READ: self._files.read,
            protocol.RELEASE: self._files.release,
        }
        if not read_only:
            found |= {
                protocol.WRITE: self._files.write,
                protocol.FSYNC: self._files.fsync,
                protocol.FALLOCATE: self._files.fallocate,
                protocol.FSYNCDIR: self.fsyncdir,
                protocol.SETATTR: self.setattr,
                protocol.CREATE: self.create,
                protocol.MKNOD: self.mknod,
                protocol.MKDIR: self.mkdir,
                protocol.UNLINK: self.unlink,
                protocol.RMDIR: self.rmdir,
                protocol.RENAME2: self.rename,
                protocol.RENAME: self.rename_plainly,
                protocol.SYMLINK: self.symlink,
                protocol.LINK: self.link,
            }
        return found

    def quick(self) -> dict[int, Quick]:
        """Return what is tried first, for that it takes the least time."""
        return {protocol.OPEN: self._files.open_kept, protocol.RELEASE: self._files.release_kept}

    # Names

    def lookup(self, request: Request) -> bytes:
        """Return what a name stands for."""
        name = _name(protocol.first_name(request.body))
        for _ in range(_REFRESHES):
            with self._lock:
                folder = self._tree.folder(request.node)
                child = self._tree.find_here(folder, name)
                if child is None and self._tree.is_fresh(folder, request.began):
                    child = self._tree.find(folder, name)
                    if child is None:
                        return protocol.pack_entry(0, protocol.NO_ATTR, _VALID_MS)
                if child is not None:
                    return self._entry(child)
            self.refresh(request, folder)
        raise OSError(errno.EIO, "the folder changes faster than it can be listed")

    def forget(self, request: Request) -> None:
        """Forget a node; nobody waits for an answer."""
        with self._lock:
            self._forget(request.node, protocol.U64.unpack_from(request.body)[0])

    def batch_forget(self, request: Request) -> None:
        """Forget many."""
        count = protocol.U32_PAIR.unpack_from(request.body)[0]
        with self._lock:
            for index in range(count):
                self._forget(*protocol.FORGET_ONE.unpack_from(request.body, 8 + 16 * index))

    def _forget(self, number: int, times: int) -> None:
        self._tree.forget(number, times)
        self._files.forgotten(number)

    def refresh(self, request: Request, folder: Node) -> None:
        """List a folder anew; of several who want that, one does it."""
        request.wait_here()
        with self._lock:
            if self._tree.is_fresh(folder, request.began):
                return
            event = self._refreshing.get(folder.id)
            mine = event is None
            if event is None:
                event = self._refreshing[folder.id] = threading.Event()
            begun = self._tree.begin_listing(folder) if mine else None
        if begun is None:
            event.wait()
            return
        try:
            listing = self._source.level(begun.path, hurry=folder.known)
            with self._lock:
                self._tree.set_listing(begun, listing)
        except OSError as error:
            with self._lock:
                if error.errno != errno.EIO or not self._tree.make_do(folder):
                    raise
        finally:
            with self._lock:
                self._tree.end_listing(begun)
                del self._refreshing[folder.id]
            event.set()

    def _fresh(self, request: Request, number: int) -> Node:
        """Return a folder whose listing is fresh, with the lock held by the caller after the return."""
        for _ in range(_REFRESHES):
            folder = self._tree.folder(number)
            if self._tree.is_fresh(folder, request.began):
                return folder
            request.wait_here()
            self._lock.release()
            try:
                self.refresh(request, folder)
            finally:
                self._lock.acquire()
        raise OSError(errno.EIO, "the folder changes faster than it can be listed")

    # Attributes

    def getattr(self, request: Request) -> bytes:
        """Return the attributes of a node."""
        with self._lock:
            return protocol.pack_attr_answer(self._attr(self._tree.get(request.node)), _VALID_MS)

    def setattr(self, request: Request) -> bytes:
        """Change size, times, mode or owner. The kernel has judged who may; a bucket keeps none but the size."""
        valid, _, _handle, size, _, atime, mtime, _, atime_rest, mtime_rest, _, mode, _, uid, gid, _ = (
            protocol.SETATTR_IN.unpack_from(request.body)
        )
        with self._lock:
            node = self._tree.get(request.node)
        if valid & protocol.SET_SIZE:
            if node.is_folder:
                raise OSError(errno.EISDIR, "a folder has no size")
            self._files.truncate(request, node, size)
        with self._lock:
            if valid & (protocol.SET_MODE | protocol.SET_UID | protocol.SET_GID):
                node.mode = mode & 0o7777 if valid & protocol.SET_MODE else node.mode
                node.uid = uid if valid & protocol.SET_UID else node.uid
                node.gid = gid if valid & protocol.SET_GID else node.gid
                self._tree.mark(node)
            node.changed_ns = time.time_ns()
            if valid & (protocol.SET_ATIME | protocol.SET_ATIME_NOW):
                now = valid & protocol.SET_ATIME_NOW
                node.atime_ns = node.changed_ns if now else _nanoseconds(atime, atime_rest)
            if valid & (protocol.SET_MTIME | protocol.SET_MTIME_NOW):
                now = valid & protocol.SET_MTIME_NOW
                self._files.set_mtime(node, node.changed_ns if now else _nanoseconds(mtime, mtime_rest))
            return protocol.pack_attr_answer(self._attr(node), _VALID_MS)

    def _entry(self, node: Node) -> bytes:
        self._tree.tell(node)
        return protocol.pack_entry(node.id, self._attr(node), _VALID_MS)

    def _attr(self, node: Node) -> bytes:
        kind, links, written, changed = stat.S_IFREG, 1, node.mtime_ns, node.changed_ns
        if node.is_folder:
            kind, size, blocks = stat.S_IFDIR, 4096, 8  # with one link: how many folders are in it is not counted
        elif node.stage is not None:
            found = self._files.stat(node)
            size, blocks, written = found.st_size, found.st_blocks, found.st_mtime_ns
            changed = max(found.st_ctime_ns, changed)
        else:
            size = node.content.size if node.content is not None else 0
            blocks = -(-size // 512)
        times = (written if node.atime_ns is None else node.atime_ns, written, changed)
        links = 0 if node.orphan else links
        return protocol.pack_attr(node.id, size, blocks, times, kind | node.mode, links, node.uid, node.gid)

    def statfs(self, _request: Request) -> bytes:
        """Return the room there is for files that are being written."""
        found = os.statvfs(self._staging.directory)
        return protocol.pack_statfs(
            (
                found.f_blocks,
                found.f_bfree,
                found.f_bavail,
                found.f_files,
                found.f_ffree,
                found.f_frsize,
                _NAME_MAX,
            )
        )

    # Reading folders

    def opendir(self, request: Request) -> bytes:
        """Open a folder."""
        with self._lock:
            self._fresh(request, request.node)
            handle = self._next_folder
            self._next_folder += 1
            self._folders[handle] = []
        return protocol.OPEN_OUT.pack(handle, 0, 0)

    def releasedir(self, request: Request) -> bytes:
        """Close a folder."""
        with self._lock:
            self._folders.pop(protocol.RELEASE_IN.unpack_from(request.body)[0], None)
        return b""

    def readdir(self, request: Request) -> bytes:
        """Return names."""
        return self._read_folder(request, plus=False)

    def readdirplus(self, request: Request) -> bytes:
        """Return names and what they stand for."""
        return self._read_folder(request, plus=True)

    def _read_folder(self, request: Request, *, plus: bool) -> bytes:
        handle, offset, room, *_ = protocol.READ_IN.unpack_from(request.body)
        with self._lock:
            if offset == 0 or handle not in self._folders:
                folder = self._fresh(request, request.node)
                self._folders[handle] = [(".", True), ("..", True), *sorted(self._tree.names(folder).items())]
            folder = self._tree.folder(request.node)
            names = self._folders.get(handle, [])
            parts: list[bytes] = []
            with self._tree.log.together():
                for index in range(offset, len(names)):
                    part = self._dirent(folder, names[index], index + 1, room, plus=plus)
                    if part is None:
                        break
                    room -= len(part)
                    parts.append(part)
        return b"".join(parts)

    def _dirent(self, folder: Node, entry: "tuple[str, bool]", offset: int, room: int, *, plus: bool) -> bytes | None:
        name, is_folder = entry
        kind = _DT_DIR if is_folder else _DT_REG
        child = None if name in (".", "..") else folder.children.get(name)
        number = child.id if child is not None else folder.id if name == "." else 0xFFFFFFFF
        data = protocol.pack_dirent(number, offset, os.fsencode(name), kind)
        if len(data) + (128 if plus else 0) > room:
            return None
        if not plus:
            return data
        if name in (".", ".."):
            return _NOTHING + data
        found = self._tree.find(folder, name)
        return _NOTHING + data if found is None else self._entry(found) + data

    # Changing names

    def create(self, request: Request) -> bytes:
        """Make a file and open it, or open the one that somebody else made meanwhile."""
        flags, mode, _, _ = protocol.CREATE_IN.unpack_from(request.body)
        name = _new_name(protocol.first_name(request.body, protocol.CREATE_IN.size))
        with self._lock:
            folder = self._fresh(request, request.node)
            node = self._tree.find(folder, name)
            if node is not None and flags & os.O_EXCL and not _made(request, node):
                raise OSError(errno.EEXIST, "there is such a file")
            if node is not None and node.is_folder:
                raise OSError(errno.EISDIR, "there is a folder of that name")
            if node is None:
                node = self._new_file(request, folder, name, mode)
        self._files.close_unanswered(request)
        opened = self._files.open_node(request, node, flags)
        with self._lock:
            return self._entry(node) + opened

    def mknod(self, request: Request) -> bytes:
        """Make a file without opening it; devices, pipes and sockets cannot be."""
        mode, _, _, _ = protocol.MKNOD_IN.unpack_from(request.body)
        name = _new_name(protocol.first_name(request.body, protocol.MKNOD_IN.size))
        if not stat.S_ISREG(mode):
            self._refuse(request, name, "special file")
        with self._lock:
            folder = self._fresh(request, request.node)
            there = self._already(request, folder, name, is_folder=False)
            return self._entry(there or self._new_file(request, folder, name, mode))

    def _new_file(self, request: Request, folder: Node, name: str, mode: int) -> Node:
        """Make an empty file; the lock is held."""
        self._must_have_name(folder)
        stage, fd = self._staging.create()
        os.close(fd)
        try:
            self._journal.stage(self._tree.child_path(folder, name), stage, is_open=False)
        except BaseException:
            self._staging.delete(stage)
            raise
        node = self._tree.add(folder, name, is_folder=False, mode=mode & 0o7777, uid=request.uid, gid=request.gid)
        node.stage, node.made_by = stage, request.number
        self._files.wake()
        return node

    def mkdir(self, request: Request) -> bytes:
        """Make a folder. The bucket knows of it when there is a file in it."""
        mode, _ = protocol.MKDIR_IN.unpack_from(request.body)
        name = _new_name(protocol.first_name(request.body, protocol.MKDIR_IN.size))
        with self._lock:
            folder = self._fresh(request, request.node)
            self._must_have_name(folder)
            there = self._already(request, folder, name, is_folder=True)
            uid, gid = request.uid, request.gid
            made = there or self._tree.add(folder, name, is_folder=True, mode=mode & 0o7777, uid=uid, gid=gid)
            made.made_by = request.number
            return self._entry(made)

    def _already(self, request: Request, folder: Node, name: str, *, is_folder: bool) -> Node | None:
        """Return None for a free name, or the node that a daemon made before it could say so. Raises EEXIST."""
        there = self._tree.find(folder, name)
        if there is not None and not (_made(request, there) and there.is_folder == is_folder):
            raise OSError(errno.EEXIST, "there is such a name")
        return there

    def _must_have_name(self, folder: Node) -> None:
        if folder.orphan:
            raise OSError(errno.ENOENT, "the folder was removed")

    def unlink(self, request: Request) -> bytes:
        """Remove a file; who has it open keeps it."""
        name = _name(protocol.first_name(request.body))
        with self._lock:
            folder = self._fresh(request, request.node)
            node = self._tree.find(folder, name)
            if node is None and request.resent:
                return b""  # done before the daemon that did it could say so
            if node is None:
                raise OSError(errno.ENOENT, "no such name")
            if node.is_folder:
                raise OSError(errno.EISDIR, "a folder")
            path = self._tree.path(node)
            self._take_away(node, path)
            self._tree.touch(folder)
        self._files.wake()
        return b""

    def _take_away(self, node: Node, path: str) -> None:
        """Take a file's name from it, here and in the bucket; the lock is held."""
        intent = self._journal.get(path)
        listed = node.parent is not None and node.parent.listing.get(node.name) is not None
        if listed or (intent is not None and intent.tried):
            self._journal.remove(path)
        elif intent is not None:
            self._journal.forget(path)
        self._tree.detach(node)
        self._files.discard(node)

    def rmdir(self, request: Request) -> bytes:
        """Remove an empty folder."""
        name = _name(protocol.first_name(request.body))
        with self._lock:
            folder = self._fresh(request, request.node)
            node = self._tree.find(folder, name)
            if node is None and request.resent:
                return b""
            if node is None:
                raise OSError(errno.ENOENT, "no such name")
            if not node.is_folder:
                raise OSError(errno.ENOTDIR, "not a folder")
            self._fresh(request, node.id)
            if self._tree.names(node):
                raise OSError(errno.ENOTEMPTY, "not empty")
            path = self._tree.path(node)
            if name in folder.listing or self._journal.intends_below(path):
                self._tree.hide(path)  # before it goes: a daemon that dies in between removes it once more
            self._tree.detach(node)
            self._tree.touch(folder)
        return b""

    def _both_fresh(self, request: Request, one: int, other: int) -> tuple[Node, Node]:
        for _ in range(_REFRESHES):
            first, second = self._fresh(request, one), self._fresh(request, other)
            if self._tree.is_fresh(first, request.began):
                return first, second
        raise OSError(errno.EIO, "the folder changes faster than it can be listed")

    def _must_be_there(self, folder: Node, name: str) -> Node:
        node = self._tree.find(folder, name)
        if node is None:
            raise OSError(errno.ENOENT, "no such name")
        return node

    def rename_plainly(self, request: Request) -> bytes:
        """Rename without flags."""
        target = protocol.U64.unpack_from(request.body)[0]
        return self._rename(request, target, 0, *protocol.two_names(request.body, 8))

    def rename(self, request: Request) -> bytes:
        """Rename; what has the new name is replaced."""
        target, flags, _ = protocol.RENAME2_IN.unpack_from(request.body)
        return self._rename(request, target, flags, *protocol.two_names(request.body, protocol.RENAME2_IN.size))

    def _rename(self, request: Request, target: int, flags: int, old: bytes, new: bytes) -> bytes:
        if flags & ~_RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "names cannot be exchanged")
        old_name, new_name = _name(old), _new_name(new)
        with self._lock:
            source, target_folder = self._both_fresh(request, request.node, target)
            missing = self._tree.find(source, old_name) is None
            if missing and request.resent and self._tree.find(target_folder, new_name) is not None:
                return b""  # done before the daemon that did it could say so
            node = self._must_be_there(source, old_name)
            path = self._tree.path(node)
            below = self._tree.listed_below(node) if node.is_folder else {}
            if below is None:
                request.wait_here()
            # What the bucket is told while the store lists, the list may lack.
            told = self._tree.watch()
        try:
            if below is None:
                below = dict(self._source.all_below(path))
            return self._rename_now(request, target, flags, (old_name, new_name), below, told)
        finally:
            with self._lock:
                self._tree.unwatch(told)

    def _rename_now(
        self,
        request: Request,
        target: int,
        flags: int,
        names: tuple[str, str],
        below: "dict[str, Content]",
        told: "dict[str, Content | None]",
    ) -> bytes:
        """Rename; `below` is what the store has in the folder, but for what it was told since."""
        old_name, new_name = names
        with self._lock:
            source, folder = self._both_fresh(request, request.node, target)
            node = self._must_be_there(source, old_name)
            there = self._tree.find(folder, new_name)
            if there is node:
                return b""
            self._must_have_name(folder)
            if there is not None:
                if flags & _RENAME_NOREPLACE:
                    raise OSError(errno.EEXIST, "there is such a name")
                self._check_replaceable(request, node, there)
                there = self._tree.find(folder, new_name)  # the lock may have been released
            if there is not None and there.is_folder:
                self._tree.detach(there)
            elif there is not None:
                self._tree.detach(there)
                self._files.discard(there)
            if node.is_folder:
                prefix = self._tree.path(node) + "/"
                below |= {p: content for p, content in told.items() if content is not None and p.startswith(prefix)}
                gone = {p for p, content in told.items() if content is None}
                self._move_folder(node, folder, new_name, {p: c for p, c in below.items() if p not in gone})
            else:
                self._move_file(node, folder, new_name)
            self._tree.touch(source)
            self._tree.touch(folder)
        self._files.wake()
        return b""

    def _check_replaceable(self, request: Request, node: Node, there: Node) -> None:
        if there.is_folder and not node.is_folder:
            raise OSError(errno.EISDIR, "a folder is there")
        if node.is_folder and not there.is_folder:
            raise OSError(errno.ENOTDIR, "a file is there")
        if there.is_folder:
            self._fresh(request, there.id)
            half_done = request.resent and self._tree.moving == (self._tree.path(node), self._tree.path(there))
            if self._tree.names(there) and not half_done:
                raise OSError(errno.ENOTEMPTY, "the folder there is not empty")

    def _move_file(self, node: Node, folder: Node, name: str) -> None:
        old, new = self._tree.path(node), self._tree.child_path(folder, name)
        listed = node.parent is not None and node.parent.listing.get(node.name) is not None
        self._move_intent(old, new, node.content, listed=listed)
        self._tree.move(node, folder, name)

    def _move_intent(self, old: str, new: str, content: Content | None, *, listed: bool) -> None:
        """Intend for the new path what the old one has, and nothing for the old."""
        intent = self._journal.get(old)
        if intent is not None and intent.stage is not None:
            self._journal.stage(new, intent.stage, is_open=intent.open)
        else:
            self._journal.put(new, content or empty_content(time.time_ns()))
        if listed or (intent is not None and intent.tried):
            self._journal.remove(old)
        else:
            self._journal.forget(old)

    def _move_folder(self, node: Node, folder: Node, name: str, below: "dict[str, Content]") -> None:
        old, new = self._tree.path(node), self._tree.child_path(folder, name)
        self._tree.begin_move(old, new)
        for intent in self._journal.below(old):
            listed = below.pop(intent.path, None) is not None
            if not intent.is_absence:
                self._move_intent(intent.path, new + intent.path[len(old) :], intent.content, listed=listed)
        for path, content in below.items():
            self._move_intent(path, new + path[len(old) :], content, listed=True)
        gone = {old, *below} | {intent.path for intent in self._journal.below(old)}
        for hidden in {up for path in gone for up in folders_of(path) if up.startswith(old + "/")} | {old}:
            self._tree.hide(hidden)
        self._tree.move(node, folder, name)

    def symlink(self, request: Request) -> bytes:
        """A bucket has no links."""
        self._refuse(request, _name(protocol.first_name(request.body)), "symbolic link")

    def link(self, request: Request) -> bytes:
        """A bucket has no second names of one file."""
        self._refuse(request, _name(protocol.first_name(request.body, 8)), "hard link")

    def _refuse(self, request: Request, name: str, kind: str) -> NoReturn:
        with self._lock:
            path = self._tree.child_path(self._tree.folder(request.node), name)
            self._refusals.add(path.encode("utf-8", "replace").decode(), kind)
        raise OSError(errno.EPERM, "a volume has files and folders only")

    def fsyncdir(self, request: Request) -> bytes:
        """Return when names that were changed survive a loss of power."""
        request.wait_here()
        with self._lock:
            self._journal.sync()
        return b""


def _made(request: Request, node: Node) -> bool:
    """Say whether another daemon has made the node for this very request, and could not say so any more."""
    return request.resent and node.made_by == request.number


def _nanoseconds(seconds: int, rest: int) -> int:
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * 1_000_000_000 + rest


def _name(data: bytes) -> str:
    """Return a name, as it may be asked for. Raises ENAMETOOLONG: the kernel lets four times as many bytes pass."""
    if len(data) > _NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "the name is too long")
    return os.fsdecode(data)


def _new_name(data: bytes) -> str:
    """Return a name that a bucket can have. Raises EILSEQ, ENAMETOOLONG."""
    _name(data)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, "names in a bucket are UTF-8") from error
