"""One process that is the supervisor of several attempts, with a thread for each: forks of one sandbox, made at once.

Little of what a supervisor costs is what it does; most is that it is a process, forked with an interpreter in it whose
pages are copied as they are touched. Attempts that share one also share its fate: what kills it ends them all.
"""

import _thread
import os
import select
import socket
import sys

from runstead.node import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def host(line: socket.socket, serve: "Callable[[socket.socket], None]") -> None:
    """Serve the connections that come over `line`; return when it is at its end and all are served."""
    _allow_threads()
    ended, end = os.pipe()
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(ended, select.POLLIN)
    is_open, running = True, 0
    while is_open or running:
        for fd, _ in poll.poll():
            if fd == ended:
                running -= len(os.read(ended, 4096))
                continue
            connection = _next(line)
            if connection is None:
                is_open = False
                poll.unregister(line)
                continue
            try:
                _thread.start_new_thread(_serve, (connection, serve, end))
                running += 1
            except RuntimeError:  # not one more thread; the other side sees the end, and asks for a supervisor alone
                connection.close()


def _allow_threads() -> None:
    """Let children be in our own process namespace: while they are to be in another one no thread can begin.

    That is so where a process 1 was forked ahead, which is of no use now.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.enter(own, syscalls.CLONE_NEWPID)
    os.close(own)


def _next(line: socket.socket) -> socket.socket | None:
    try:
        word, fds, _, _ = socket.recv_fds(line, 1, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    return socket.socket(fileno=fds[0]) if word and fds else None


def _serve(connection: socket.socket, serve: "Callable[[socket.socket], None]", end: int) -> None:
    try:
        with connection:
            serve(connection)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:  # process 1 of the attempt, if it is there, does not survive this thread
        os.write(end, b".")
