"""Keeps directories that come and go apart from each other on the disk."""

import errno
import fcntl
import os
import struct

from runstead.node import syscalls

_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_TOP = 0x00020000  # FS_TOPDIR_FL, chattr +T
_NOT_THERE = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS})


def spread(folder: str) -> None:
    """Have ext4 place each directory made in `folder` with other files than those of its neighbours.

    Without a journal, ext4 does not give out again for minutes what was deleted (recently_deleted in fs/ext4/ialloc.c),
    and looks at each on its way to a free one: where many attempts have ended, a new file would take ten times as long.
    Nothing happens where there is no such flag. Raises OSError when the folder cannot be opened.
    """
    if not syscalls.LINUX:
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags, _ = struct.unpack("=ii", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))  # an int, whatever they call it
        if not flags & _TOP:
            fcntl.ioctl(fd, _SET_FLAGS, struct.pack("=ii", flags | _TOP, 0))
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
    finally:
        os.close(fd)
