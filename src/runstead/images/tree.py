"""Names inside of one directory that nothing leads out of, however hostile the names and links are.

A path is resolved by the kernel as if the directory were the root (`openat2`), so links inside lead where they would
in a container. The descriptors of the directories used last are kept: archives come sorted by directory.
"""

import contextlib
import ctypes
import errno
import os
import stat

from runstead.images.archive import Damaged

_NR_OPENAT2 = 437  # the same on every architecture
_IN_ROOT, _NO_MAGIC_LINKS, _NO_XDEV = 0x10, 0x02, 0x01
_RESOLVE = _IN_ROOT | _NO_MAGIC_LINKS | _NO_XDEV
_PATH_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KEPT = 256
_DEEPEST = 512


class Tree:
    """A directory that is being filled."""

    def __init__(self, root: str) -> None:
        self._root = os.open(root, _PATH_FLAGS)
        self._folders: dict[bytes, int] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)

    def close(self) -> None:
        """Let go of all descriptors."""
        self.forget()
        os.close(self._root)

    def forget(self) -> None:
        """After a directory or a link was replaced: what paths lead to may have changed."""
        for fd in self._folders.values():
            os.close(fd)
        self._folders.clear()

    def place(self, path: bytes) -> tuple[int, bytes]:
        """Return the descriptor of the directory that a path's last part is in, made if need be, and that part.

        `path` is one that `clean` returned, and not empty. The descriptor is good until the next call.
        """
        parent, _, name = path.rpartition(b"/")
        return self.folder(parent), name

    def folder(self, path: bytes) -> int:
        """Return the descriptor of a directory inside, which is made if nothing has its name."""
        if not path:
            return self._root
        fd = self._folders.get(path)
        if fd is not None:
            return fd
        try:
            fd = self._open(path)
        except FileNotFoundError:
            fd = self._make(path)
        if len(self._folders) >= _KEPT:
            self.forget()
        self._folders[path] = fd
        return fd

    def _make(self, path: bytes) -> int:
        parent, _, name = path.rpartition(b"/")
        try:
            os.mkdir(name, 0o755, dir_fd=self.folder(parent))
        except FileExistsError:
            raise Damaged(f"the archive has a path through a link that leads to nothing: {path[:200]!r}") from None
        return self._open(path)

    def _open(self, path: bytes) -> int:
        how = (ctypes.c_uint64 * 3)(_PATH_FLAGS, 0, _RESOLVE)
        fd = self._libc.syscall(
            ctypes.c_long(_NR_OPENAT2),
            ctypes.c_int(self._root),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EPERM):  # before Linux 5.6, or behind an old filter
            return self._walk(path)
        raise OSError(number, os.strerror(number), os.fsdecode(path))

    def _walk(self, path: bytes) -> int:
        """Go through directories alone; a link in the way is an error."""
        fd = os.dup(self._root)
        for part in path.split(b"/"):
            try:
                below = os.open(part, _PATH_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


def clean(name: bytes) -> bytes:
    """Return a name of an archive as a relative path of plain parts; empty for the root. Raises Damaged."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in name:
        raise Damaged(f"the archive has a path that leads out of it: {name[:200]!r}")
    if len(parts) > _DEEPEST:
        raise Damaged(f"the archive has a path of more than {_DEEPEST} parts: {name[:200]!r}")
    return b"/".join(parts)


def remove(parent: int, name: bytes) -> bool:
    """Remove whatever has the name; whether that was a directory or a link. Follows no link."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        os.unlink(name, dir_fd=parent)
        return stat.S_ISLNK(mode)
    fd = os.open(name, _PATH_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
    try:
        for below in os.listdir(fd):  # noqa: PTH208 - a descriptor, not a path
            remove(fd, os.fsencode(below))
    finally:
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)
    return True
