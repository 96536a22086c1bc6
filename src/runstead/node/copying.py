"""Copies what a job has written, while the job goes on writing: no link leads the copy out of it, nothing stops it.

    python -I -S -c "..." <descriptor of an open directory> <new directory> ...     (see executors/snapshots.py)

Every step goes from an open directory to an entry of it. What vanishes meanwhile is not in the copy; of a file that
grows there is what was there when it was opened.
"""

import errno
import os
import resource
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FICLONE = 0x40049409
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What is told of an entry that is something else, or nothing, by the time it is opened.
_CHANGED = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV})
_BLOCK_BYTES = 1 << 20
_PIECE_BYTES = 1 << 30
_SMALL_BYTES = 1 << 16
_DEPTH = 1000
_FLAT = 32
_LISTED_BYTES = 1 << 20  # of a directory itself, whose names are in memory at once
_MEMORY_BYTES = 1 << 30
_DESCRIPTORS = 4096


class TooMuch(Exception):
    """There is more than was to be copied."""


def copy_folder(source: int, target: str, most: int | None = None) -> None:
    """Make the new directory `target` a copy of an open one.

    Owners, modes, times, extended attributes, hard links, holes and special files are kept; devices are not, but for
    the mark by which an overlay says that something is gone. What another file system shows in it is left out. Raises
    OSError, with the path from `source` where something cannot be read; TooMuch when there are more than so many
    entries, or directories nested deeper than some.
    """
    os.mkdir(target, 0o700)
    _Copy(os.fstat(source).st_dev, target, most).tree(source)


def copy_missing(source: int, target: str, *without: str) -> None:
    """Copy what is in an open directory, in the same way, to one that exists: what is not there by that name."""
    _Copy(os.fstat(source).st_dev, target).tree(source, [*os.listdir(target), *without])


class _Level:
    """A directory that is being copied."""

    def __init__(self, source: int, target: int, path: str) -> None:
        self.source = source
        self.target = target
        self.path = path
        self.status = os.fstat(source)
        self.names = os.listdir(source)

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)


class _Copy:
    def __init__(self, device: int, top: str, most: int | None = None) -> None:
        self._device = device
        self._top = top
        self._left = most
        # Of files with several names: which one (an inode may be another's by the time it is met again), where it is.
        self._linked: dict[tuple[int, int, int], str] = {}
        self._clone: Callable[[int, int, int], object] | None = _find_clone()

    def tree(self, source: int, there: "list[str] | None" = None) -> None:
        """Copy a directory; with names of what is `there`, only what is in it and not among these."""
        self._check(os.fstat(source))
        levels = [_Level(os.dup(source), os.open(self._top, _FOLDER), "")]
        try:
            if there is not None:
                levels[0].names = [name for name in levels[0].names if name not in there]
            while levels:
                here = levels[-1]
                if here.names:
                    self._count(len(levels))
                    below = self._entry(here, here.names.pop())
                    if below is not None:
                        levels.append(below)
                        if len(levels) > _DEPTH:
                            raise OSError(
                                errno.ENAMETOOLONG, f"directories are nested deeper than {_DEPTH}", below.path
                            )
                    continue
                if there is None or len(levels) > 1:
                    _finish(here.source, here.target, here.status)
                levels.pop().close()
        finally:
            for level in levels:
                level.close()

    def _count(self, depth: int) -> None:
        if self._left is None:
            return
        self._left -= 1
        if self._left < 0 or depth > _FLAT:
            raise TooMuch

    def _check(self, status: os.stat_result) -> None:
        if self._left is not None and status.st_size > _LISTED_BYTES:
            raise TooMuch

    def _entry(self, here: _Level, name: str) -> "_Level | None":
        """Copy an entry, or return the directory that it is."""
        path = f"{here.path}/{name}" if here.path else name
        try:
            status = os.stat(name, dir_fd=here.source, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                return self._folder(here, name, path, status)
            if status.st_dev != self._device:
                return None
            if stat.S_ISREG(status.st_mode):
                self._file(here, name, path, status)
            elif stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(name, dir_fd=here.source), name, dir_fd=here.target)
                _own(name, here.target, status)
            elif not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)) or status.st_rdev == 0:
                os.mknod(name, status.st_mode, status.st_rdev, dir_fd=here.target)
                _own(name, here.target, status)
                if not stat.S_ISCHR(status.st_mode):
                    os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=here.target)
        except OSError as error:
            if error.errno in _CHANGED:
                return None
            raise OSError(error.errno, error.strerror, path) from error
        return None

    def _folder(self, here: _Level, name: str, path: str, status: os.stat_result) -> "_Level | None":
        self._check(status)
        source = os.open(name, _FOLDER, dir_fd=here.source)
        try:
            os.mkdir(name, 0o700, dir_fd=here.target)
            target = os.open(name, _FOLDER, dir_fd=here.target)
        except BaseException:
            os.close(source)
            raise
        if status.st_dev == self._device:
            return _Level(source, target, path)
        _finish(source, target, status)
        os.close(source)
        os.close(target)
        return None

    def _file(self, here: _Level, name: str, path: str, status: os.stat_result) -> None:
        if status.st_nlink > 1 and (other := self._linked.get(_identity(status))) is not None:
            try:
                os.link(f"{self._top}/{other}", name, dst_dir_fd=here.target, follow_symlinks=False)
                return
            except OSError:  # its path is too long, or it has too many names
                pass
        source = os.open(name, _FILE, dir_fd=here.source)
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode):
                return  # it changed meanwhile
            target = os.open(name, _NEW, 0o600, dir_fd=here.target)
            try:
                self._content(source, target, status.st_size)
                _finish(source, target, status)
            finally:
                os.close(target)
        finally:
            os.close(source)
        if status.st_nlink > 1:
            self._linked[_identity(status)] = path

    def _content(self, source: int, target: int, size: int) -> None:
        if size <= _SMALL_BYTES:
            data = os.read(source, size)
            while data:
                data = data[os.write(target, data) :]
            return
        if self._clone is not None:
            try:
                self._clone(target, _FICLONE, source)
                return
            except OSError:
                self._clone = None  # not on this file system
        at = 0
        while at < size:
            try:
                begin = os.lseek(source, at, os.SEEK_DATA)
                end = min(os.lseek(source, begin, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno != errno.ENXIO:  # there is nothing but a hole
                    raise
                break
            _copy_range(source, target, begin, end)
            at = end
        os.ftruncate(target, size)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _find_clone() -> "Callable[[int, int, int], object] | None":
    try:
        import fcntl
    except ImportError:
        return None
    return fcntl.ioctl


def _copy_range(source: int, target: int, begin: int, end: int) -> None:
    at = begin
    try:
        while at < end:
            count = os.copy_file_range(source, target, min(end - at, _PIECE_BYTES), at, at)
            if not count:
                return  # it was cut off meanwhile
            at += count
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        while at < end and (data := os.pread(source, min(end - at, _BLOCK_BYTES), at)):
            at += os.pwrite(target, data, at)


def _finish(source: int, target: int, status: os.stat_result) -> None:
    """Give a copy what the original has beside its content."""
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM) or name.startswith("trusted.overlay."):
                raise
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _own(name: str, folder: int, status: os.stat_result) -> None:
    """The same for what cannot be opened."""
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(name, status.st_uid, status.st_gid, dir_fd=folder, follow_symlinks=False)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=folder, follow_symlinks=False)


def main(*pairs: str) -> None:
    """Copy each open directory to the path that follows it; ends with the reason on the error output."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    os.umask(0)
    try:
        for source, target in zip(pairs[::2], pairs[1::2], strict=True):
            copy_folder(int(source), target)
    except OSError as error:
        sys.exit(f"{error.strerror}: {error.filename}" if error.filename else str(error))
