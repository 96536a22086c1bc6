"""What a job's first process does to itself: names, ids, capabilities.

It is process 1 of a new process namespace already. There are two ways to the same place. A privileged server ("root")
builds the mounts with its own rights and enters the user namespace last: the job owns neither its mounts nor its
network and cannot change them. Any other server ("user") enters a user namespace first, in which it is root for
nothing but its own user id.
"""

import os
import socket
import sys

from runstead.node import syscalls

# What container engines leave to a job, by number.
KEPT = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})
_LAST_CAPABILITY = 40


class UserNamespace:
    """A user namespace that nobody is in. Raises OSError where none can be made."""

    def __init__(self) -> None:
        first = syscalls.Placeholder(syscalls.CLONE_NEWUSER)
        try:
            self._maps = [
                os.open(f"/proc/{first.pid}/{name}", os.O_WRONLY | os.O_CLOEXEC) for name in ("uid_map", "gid_map")
            ]
            self._fd = os.open(f"/proc/{first.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            first.end()

    def map(self, first: int, count: int) -> None:
        """Let ids 0 to count - 1 inside be first, first + 1, ... outside. Once."""
        for fd in self._maps:
            os.write(fd, f"0 {first} {count}".encode())
        self._close_maps()

    def take(self) -> int:
        """Return the open namespace, which is the caller's from now on."""
        taken, self._fd = self._fd, -1
        return taken

    def close(self) -> None:
        """Let go of what nobody took. Idempotent."""
        self._close_maps()
        if self._fd >= 0:
            os.close(self.take())

    def _close_maps(self) -> None:
        for fd in self._maps:
            os.close(fd)
        self._maps = []


def name_host(name: str) -> None:
    """Set the host name of this namespace."""
    socket.sethostname(name)


def raise_loopback() -> None:
    """Bring up the loopback of a new network namespace."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = b"lo".ljust(16, b"\0") + (1).to_bytes(2, sys.byteorder).ljust(24, b"\0")
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS, IFF_UP


def become_root_inside() -> None:
    """Take the ids of the job's root user, which the user namespace maps to an unprivileged one outside."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def drop_all_capabilities() -> None:
    """Give up every capability for all that is executed from here on."""
    for number in range(_LAST_CAPABILITY + 1):
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
        except OSError:  # unknown to this kernel
            break


def drop_capabilities(*, here: bool, kept: frozenset[int] = KEPT) -> None:
    """Give up, for all that is executed from here on, the capabilities that a job has no use for; also `here`."""
    for number in range(_LAST_CAPABILITY + 1):
        if number not in kept:
            try:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
            except OSError:  # unknown to this kernel
                continue
    if here:
        syscalls.keep_capabilities(kept)
