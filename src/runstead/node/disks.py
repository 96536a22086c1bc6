"""Room of a fixed size for what one job writes: a file system in a sparse file without a name.

A full one is ENOSPC for its job alone, whatever file system the machine itself has. An empty one of the wanted size is
made once; a job gets a copy, which takes a millisecond. All of it goes with whoever holds it, however that ends.
"""

import errno
import fcntl
import os
import struct

from runstead.node import syscalls

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_AUTOCLEAR = 4  # the kernel lets go of the file with the last user
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_FLUSH = 2
_ATTEMPTS = 64
_MAKE_SECONDS = 60.0
_MINIMUM_BYTES = 4 << 20


def make(path: str, size_bytes: int) -> None:
    """Make an empty file system in a sparse file. Raises OSError where that is not possible."""
    import subprocess  # only where there is no disk of that size yet: it is heavy

    fresh = f"{path}.{os.getpid()}"
    with open(fresh, "wb") as file:
        file.truncate(max(size_bytes, _MINIMUM_BYTES))
    # No journal: nothing has to survive a crash. The rest keeps what is not empty, hence copied, below a megabyte.
    features = ["-O", "^has_journal,^resize_inode,sparse_super2", "-G", "1024", "-i", "32768", "-m", "0"]
    options = [*features, "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"]
    try:
        command = ["mkfs.ext4", "-q", "-F", *options, fresh]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAKE_SECONDS, check=False)
        if done.returncode:
            raise OSError(errno.EIO, done.stderr.strip() or "mkfs.ext4 failed", path)
        os.rename(fresh, path)
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.EIO, "mkfs.ext4 did not end", path) from error
    finally:
        if os.path.exists(fresh):
            os.unlink(fresh)


class Disk:
    """A copy of an empty file system, mounted but shown nowhere yet: `fd` is the mount. Raises OSError."""

    def __init__(self, source: str) -> None:
        backing = _copy(source)
        try:
            device, path = _attach(backing)
        finally:
            os.close(backing)
        try:
            # What is deleted inside is given back to the machine (discard).
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
            self.fd = syscalls.new_mount("ext4", flags, f"source={path}", "discard", "nobarrier")
        finally:
            os.close(device)

    def discard(self) -> None:
        """Let go of it without writing anything out: nobody will read it. Whoever used it is dead."""
        try:
            folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                fcntl.ioctl(folder, _EXT4_IOC_SHUTDOWN, struct.pack("=I", _NO_FLUSH))
            finally:
                os.close(folder)
        except OSError:
            pass  # then it takes longer
        os.close(self.fd)


def _copy(source: str) -> int:
    """Return an open file without a name that has what is not a hole in the source."""
    there = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        here = os.open(os.path.dirname(source), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.ftruncate(here, os.fstat(there).st_size)
        place = 0
        while True:
            try:
                place = os.lseek(there, place, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return here
            end = os.lseek(there, place, os.SEEK_HOLE)
            while place < end:
                place += os.copy_file_range(there, here, end - place, place, place)
    finally:
        os.close(there)


def _attach(backing: int) -> tuple[int, str]:
    """Return an open loop device over a file, and its path."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            information = struct.pack("=5Q4I", *[0] * 8, _AUTOCLEAR) + bytes(176)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, struct.pack("=II", backing, 0) + information + bytes(64))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # another job was faster
                    raise
                continue
            return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device is free")
