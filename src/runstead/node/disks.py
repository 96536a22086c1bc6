"""Room of a fixed size for what one job writes: a file system in a sparse file.

A full one is ENOSPC for its job alone, whatever file system the machine itself has, and removing one file removes all.
A file system of the wanted size is made once; a job gets a copy of it, which takes a few milliseconds.
"""

import errno
import fcntl
import os
import struct

from runstead.node import syscalls

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_AUTOCLEAR = 4  # the kernel lets go of the file with the last mount
_ATTEMPTS = 64
_MAKE_SECONDS = 60.0
_MINIMUM_BYTES = 4 << 20


def make(path: str, size_bytes: int) -> None:
    """Make an empty file system in a sparse file. Raises OSError where that is not possible."""
    import subprocess  # only where there is no disk of that size yet: it is heavy

    fresh = f"{path}.{os.getpid()}"
    with open(fresh, "wb") as file:
        file.truncate(max(size_bytes, _MINIMUM_BYTES))
    # No journal: nothing survives a crash anyway.
    options = ["-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-m", "0", "-i", "32768"]
    try:
        done = subprocess.run(
            ["mkfs.ext4", "-q", "-F", *options, fresh],
            capture_output=True,
            text=True,
            timeout=_MAKE_SECONDS,
            check=False,
        )
        if done.returncode:
            raise OSError(errno.EIO, done.stderr.strip() or "mkfs.ext4 failed", path)
        os.rename(fresh, path)
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.EIO, "mkfs.ext4 did not end", path) from error
    finally:
        if os.path.exists(fresh):
            os.unlink(fresh)


def mount_copy(source: str, copy: str, target: str) -> None:
    """Copy a file system and mount the copy; both go with the mount and the file."""
    backing = _copy(source, copy)
    try:
        device = _attach(backing)
    finally:
        os.close(backing)
    try:
        # What is deleted inside is given back to the machine (discard).
        syscalls.mount(device[1], target, "ext4", syscalls.MS_NOSUID | syscalls.MS_NODEV, "discard,nobarrier")
    finally:
        os.close(device[0])
    lost = f"{target}/lost+found"
    if os.path.isdir(lost):
        os.rmdir(lost)


def _copy(source: str, target: str) -> int:
    """Copy what is not a hole; return the open copy."""
    there = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(there).st_size
        here = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(here, size)
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
