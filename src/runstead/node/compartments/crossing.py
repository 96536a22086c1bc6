"""The way of a maker into the namespaces of its attempt, into new ones, and back to those of the machine."""

import os

from runstead.node import namespaces, syscalls
from runstead.node.compartments.attempt import Attempt

_OWN = (
    ("mnt", syscalls.CLONE_NEWNS),
    ("net", syscalls.CLONE_NEWNET),
    ("ipc", syscalls.CLONE_NEWIPC),
    ("uts", syscalls.CLONE_NEWUTS),
    ("cgroup", syscalls.CLONE_NEWCGROUP),
    ("pid", syscalls.CLONE_NEWPID),
)
_THEIRS = (
    ("uts", syscalls.CLONE_NEWUTS),
    ("cgroup", syscalls.CLONE_NEWCGROUP),
    ("mnt", syscalls.CLONE_NEWNS),
)


class Crossing:
    """Goes there and back, for a process with one thread. Ways there raise OSError."""

    def __init__(self, attempt: Attempt) -> None:
        self._own = [(os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC), flag) for kind, flag in _OWN]
        self._theirs = [(attempt.namespace(kind), flag) for kind, flag in _THEIRS]
        # Where compartments are in the end; nobody comes back from it.
        self.users = attempt.namespace("user") if attempt.owner is not None else None

    def visit(self) -> None:
        """Enter the attempt's mounts."""
        fd, flag = self._theirs[-1]
        syscalls.enter(fd, flag)

    def become_separate(self, network: int | None) -> None:
        """Enter namespaces for a compartment, as its first process is to begin in them.

        `network` is an open one; None: a new one, without a way out.
        """
        syscalls.unshare(syscalls.CLONE_NEWPID)
        if network is not None:
            syscalls.enter(network, syscalls.CLONE_NEWNET)
        else:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            namespaces.raise_loopback()
        for fd, flag in self._theirs:
            syscalls.enter(fd, flag)
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC)

    def come_back(self) -> None:
        """Enter those of the machine again; who cannot must not go on, with the machine's rights among strangers."""
        try:
            for fd, flag in self._own:
                syscalls.enter(fd, flag)
        except BaseException:
            os._exit(1)
