"""How a program becomes a daemon of a data directory: one of each name, found by its socket, gone with its folder."""

import fcntl
import os
import socket

from runstead.node import framing, syscalls


def become(node: str, name: str, backlog: int) -> "tuple[socket.socket, int, int] | None":
    """Go on as a daemon that listens on `name` in the node directory; None when there is one of that name.

    Returns the listener, the open directory and the lock that says that there is one. Who started us is told by our
    first process's end that there is a listener.
    """
    lock = os.open(os.path.join(node, name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    folder = os.open(node, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    os.umask(0o077)
    listener.bind(framing.socket_address(folder, node, name))
    listener.listen(backlog)
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    return listener, folder, lock


def protect() -> None:
    """Ask the kernel to kill others first when the machine is out of memory; only the privileged may."""
    if syscalls.LINUX:
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("-900")
        except OSError:
            pass


def is_same(path: str, identity: os.stat_result) -> bool:
    """Say whether what is at a path is what it was."""
    try:
        now = os.stat(path)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (identity.st_dev, identity.st_ino)
