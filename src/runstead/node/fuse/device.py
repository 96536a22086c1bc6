"""One file system as the kernel has it: `/dev/fuse`, its mount, its files that need no daemon."""

import errno
import fcntl
import os
import select

from runstead.node import syscalls
from runstead.node.fuse import protocol

DEVICE = "/dev/fuse"
_MNT_FORCE = 1  # requests that wait fail, whoever else has the mount


class Device:
    """The connection of one mount. Whoever holds the file descriptor keeps the mount alive."""

    def __init__(self, fd: int, *, passthrough: bool = True) -> None:
        self.fd = fd
        self.passthrough = passthrough  # whether it is wanted, and once the kernel has said what it can, is there

    @staticmethod
    def mount(path: str, *, read_only: bool, source: str, passthrough: bool = True) -> "Device":
        """Mount at a directory. Whatever user asks, the kernel judges by mode and owner. Raises OSError."""
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=1048576"
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | (syscalls.MS_RDONLY if read_only else 0)
        try:
            syscalls.mount(source, path, "fuse.runstead", flags, options)
        except BaseException:
            os.close(fd)
            raise
        return Device(fd, passthrough=passthrough)

    def read(self, buffer: bytearray) -> int:
        """Wait for a request; return its length, 0 when the mount is no more."""
        while True:
            try:
                return os.readv(self.fd, [buffer])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                if error.errno in (errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                    return 0
                raise

    def has_request(self) -> bool:
        """Whether a request waits, or the mount is no more."""
        fd = self.fd
        if fd < 0:
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def answer(self, unique: int, body: "bytes | memoryview" = b"") -> bool:
        """Answer a request; False when nobody waits for it any more."""
        head = protocol.ANSWER.pack(16 + len(body), 0, unique)
        return self._write([head, body] if body else [head])

    def refuse(self, unique: int, number: int) -> bool:
        """Answer a request with an error."""
        return self._write([protocol.ANSWER.pack(16, -number, unique)])

    def notify(self, code: int, body: bytes = b"") -> bool:
        """Tell the kernel something that it did not ask."""
        return self._write([protocol.ANSWER.pack(16 + len(body), code, 0), body])

    def _write(self, parts: "list[bytes | memoryview]") -> bool:
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                return False
            raise
        return True

    def open_backing(self, fd: int) -> int:
        """Have the kernel read and write this file itself; return the number by which OPEN names it, 0 if it cannot."""
        if not self.passthrough:
            return 0
        request = bytearray(protocol.BACKING_MAP.pack(fd, 0, 0))
        try:
            return fcntl.ioctl(self.fd, protocol.BACKING_OPEN, request, True)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ELOOP, errno.EOPNOTSUPP, errno.ENOTTY):
                self.passthrough = False
            return 0

    def close_backing(self, number: int) -> None:
        """Give a number of `open_backing` back; files that are open stay so."""
        if self.fd < 0:
            return  # they went with the mount
        try:
            fcntl.ioctl(self.fd, protocol.BACKING_CLOSE, bytearray(number.to_bytes(4, "little")), True)
        except OSError:
            pass  # the mount is gone, or another daemon has given it back before it died


def abort(path: str) -> None:
    """Take a mount away whatever its state; requests that wait fail. None there is no error."""
    for _ in range(8):  # mounts on top of each other, should there be any
        try:
            syscalls.unmount(path, _MNT_FORCE | syscalls.MNT_DETACH)
        except OSError:
            return


def read_ahead(path: str) -> None:
    """Have the kernel read a megabyte ahead at this mount, where it reads through the daemon."""
    fields = _mount_fields(path)
    if fields is None:
        return
    try:
        with open(f"/sys/class/bdi/{fields[2]}/read_ahead_kb", "w") as file:
            file.write(str(protocol.READAHEAD // 1024))
    except OSError:
        pass  # it reads 128 KiB ahead then


def is_mounted(path: str) -> bool:
    """Say whether a mount of ours is at this path, dead or alive."""
    return _mount_fields(path) is not None


def _mount_fields(path: str) -> list[str] | None:
    wanted = path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            if fields[4] == wanted and " - fuse.runstead " in line:
                return fields
    return None
