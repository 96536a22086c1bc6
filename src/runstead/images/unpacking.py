"""Makes the files of one layer, as overlayfs wants them.

Whatever an archive says, files appear in the layer's directory and nowhere else, and nothing in it is a device or
steers the overlay: devices are left out, and of extended attributes only those that programs see are kept.
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from runstead.images import archive
from runstead.images.archive import Damaged, Entry, TarReader
from runstead.images.tree import Tree, clean, remove

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_OPAQUE_XATTR = "trusted.overlay.opaque"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HIGHEST_ID = (1 << 32) - 2
_LINK_MAX = 4095
_FARTHEST_NS = 1 << 62
_CAPABILITY = b"security.capability"


class TooBig(Exception):
    """The layer is larger than is allowed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one layer."""

    bytes: int
    entries: int


@dataclass(slots=True)
class Unpacked:
    """What there was to unpack, counted up as it is done."""

    entries: int = 0
    bytes: int = 0
    devices: int = 0  # left out


def unpack(reader: TarReader, root: str, limits: Limits, look: Callable[[Unpacked], None]) -> Unpacked:
    """Unpack an archive into an empty directory of ours.

    `look` is called once in a while. The process's umask must be 0. Raises Damaged, TooBig, OSError.
    """
    tree = Tree(root)
    done = Unpacked()
    layer = _Layer(tree, done)
    try:
        while (entry := reader.next()) is not None:
            done.entries += 1
            if done.entries > limits.entries:
                raise TooBig(f"it has more than {limits.entries:,} files")
            if entry.kind == archive.REGULAR and done.bytes + entry.size > limits.bytes:
                raise TooBig(f"it is larger than {limits.bytes:,} bytes")
            layer.add(entry, reader)
            if not done.entries & 63:
                look(done)
        layer.finish()
    finally:
        tree.close()
    return done


class _Layer:
    """The layer that is being made."""

    def __init__(self, tree: Tree, done: Unpacked) -> None:
        self._tree = tree
        self._done = done
        self._hidden: set[bytes] = set()  # whiteouts that are there
        self._folders: dict[bytes, Entry] = {}

    def add(self, entry: Entry, reader: TarReader) -> None:
        path = clean(entry.name)
        if not path:
            if entry.kind == archive.FOLDER:
                self._folders[b""] = entry
            return
        parent, name = self._tree.place(path)
        if name.startswith(_WHITEOUT):
            self._whiteout(path, parent, name)
            return
        match entry.kind:
            case archive.REGULAR:
                self._file(entry, path, parent, name, reader)
            case archive.FOLDER:
                self._folder(entry, path, parent, name)
            case archive.SYMBOLIC_LINK:
                self._symbolic_link(entry, path, parent, name)
            case archive.HARD_LINK:
                self._hard_link(entry, path)
            case archive.FIFO:
                self._clear(path, parent, name)
                parent, name = self._tree.place(path)
                os.mkfifo(name, entry.mode & 0o777, dir_fd=parent)
                self._belong(entry, parent, name)
            case archive.CHARACTER_DEVICE | archive.BLOCK_DEVICE:
                # The overlay would take some for whiteouts, and no job may open any.
                self._done.devices += 1
            case _:
                raise Damaged(f"the archive has a member of an unknown kind ({entry.kind!r}): {path[:200]!r}")

    def finish(self) -> None:
        """Give the directories what the archive says of them, now that nothing in them changes any more."""
        for path in sorted(self._folders, reverse=True):
            self._settle_folder(path, self._folders[path])

    def _file(self, entry: Entry, path: bytes, parent: int, name: bytes, reader: TarReader) -> None:
        try:
            fd = os.open(name, _NEW_FILE, entry.mode & 0o777, dir_fd=parent)
        except FileExistsError:
            self._clear(path, parent, name)
            parent, name = self._tree.place(path)
            fd = os.open(name, _NEW_FILE, entry.mode & 0o777, dir_fd=parent)
        try:
            for part in reader.content():
                at = os.write(fd, part)
                while at < len(part):
                    at += os.write(fd, part[at:])
                self._done.bytes += len(part)
            if entry.uid or entry.gid:
                os.fchown(fd, _id(entry.uid), _id(entry.gid))
            if entry.mode & 0o7000:
                os.fchmod(fd, entry.mode)
            for key, value in entry.xattrs.items():
                _set_xattr(fd, key, value)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)

    def _folder(self, entry: Entry, path: bytes, parent: int, name: bytes) -> None:
        try:
            # Closed until it is whole; above all without a bit that would hand its group to what is made in it.
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                hid = path in self._hidden
                self._clear(path, parent, name)
                parent, name = self._tree.place(path)
                os.mkdir(name, 0o700, dir_fd=parent)
                if hid:
                    self._make_opaque(path)
        self._folders[path] = entry

    def _symbolic_link(self, entry: Entry, path: bytes, parent: int, name: bytes) -> None:
        if not entry.link or len(entry.link) > _LINK_MAX or b"\0" in entry.link:
            raise Damaged(f"the archive has a link that leads nowhere: {path[:200]!r}")
        try:
            os.symlink(entry.link, name, dir_fd=parent)
        except FileExistsError:
            self._clear(path, parent, name)
            parent, name = self._tree.place(path)
            os.symlink(entry.link, name, dir_fd=parent)
        if entry.uid or entry.gid:
            os.chown(name, _id(entry.uid), _id(entry.gid), dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=_times(entry), dir_fd=parent, follow_symlinks=False)

    def _hard_link(self, entry: Entry, path: bytes) -> None:
        target = clean(entry.link)
        if not target:
            raise Damaged(f"the archive has a hard link that leads nowhere: {path[:200]!r}")
        if target == path:
            return
        parent, name = self._tree.place(path)
        self._clear(path, parent, name)
        source, of_name = self._tree.place(target)
        kept = os.dup(source)  # asking for the other directory may let go of it
        try:
            parent, name = self._tree.place(path)
            mode = os.stat(of_name, dir_fd=kept, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) or stat.S_ISCHR(mode):
                raise Damaged(f"the archive has a hard link to what is no file: {path[:200]!r}")
            os.link(of_name, name, src_dir_fd=kept, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise Damaged(f"the archive has a hard link to a file that it does not have: {path[:200]!r}") from None
        finally:
            os.close(kept)

    def _whiteout(self, path: bytes, parent: int, name: bytes) -> None:
        folder = path.rpartition(b"/")[0]
        if name == _OPAQUE:
            if folder:  # below the root of a layer there is nothing that could be hidden otherwise
                self._make_opaque(folder)
            else:
                os.setxattr(parent, _OPAQUE_XATTR, b"y")
            return
        hidden = name.removeprefix(_WHITEOUT)
        if hidden.startswith(_WHITEOUT):  # aufs's own books
            return
        if hidden in (b"", b".", b".."):
            raise Damaged(f"the archive hides what has no name: {path[:200]!r}")
        of_path = folder + b"/" + hidden if folder else hidden
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
            self._hidden.add(of_path)
        except FileExistsError:
            # It hides what is below, and what this layer has of that name hides the same; a directory would not.
            mode = os.stat(hidden, dir_fd=parent, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                self._make_opaque(of_path)

    def _make_opaque(self, path: bytes) -> None:
        os.setxattr(self._tree.folder(path), _OPAQUE_XATTR, b"y")

    def _clear(self, path: bytes, parent: int, name: bytes) -> None:
        """Remove what has the name. The descriptors of directories are new after it."""
        self._hidden.discard(path)
        if remove(parent, name):
            self._tree.forget()
            below = path + b"/"
            for gone in [one for one in self._folders if one == path or one.startswith(below)]:
                del self._folders[gone]

    def _belong(self, entry: Entry, parent: int, name: bytes) -> None:
        if entry.uid or entry.gid:
            os.chown(name, _id(entry.uid), _id(entry.gid), dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=_times(entry), dir_fd=parent, follow_symlinks=False)

    def _settle_folder(self, path: bytes, entry: Entry) -> None:
        if path:
            parent, name = self._tree.place(path)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        else:
            fd = os.dup(self._tree.folder(b""))
        try:
            if entry.uid or entry.gid:
                os.fchown(fd, _id(entry.uid), _id(entry.gid))
            os.fchmod(fd, entry.mode)
            for key, value in entry.xattrs.items():
                _set_xattr(fd, key, value)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)


def _set_xattr(fd: int, key: bytes, value: bytes) -> None:
    if key != _CAPABILITY and not key.startswith(b"user."):
        return
    try:
        os.setxattr(fd, key, value)
    except OSError as error:
        # A file system without attributes, or a value that this kernel does not know: the file is good without it.
        if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.E2BIG):
            raise


def _id(number: int) -> int:
    if number > _HIGHEST_ID:
        raise Damaged(f"the archive has a file of an owner that no system has: {number}")
    return number


def _times(entry: Entry) -> tuple[int, int]:
    # Beyond what the kernel takes: some tools write the end of time.
    when = max(-_FARTHEST_NS, min(entry.mtime_ns, _FARTHEST_NS))
    return when, when
