"""One process that is the supervisor of several attempts, with a thread for each: forks of one sandbox, made at once.

Little of what a supervisor costs is what it does; most is that it is a process, forked with an interpreter in it whose
pages are copied as they are touched. Attempts that share one also share its fate: what kills it ends them all.

The process 1 of each attempt that is expected is forked beforehand, one after the other: every fork has this process
copy again the pages that it goes on to write to, and here these are few.
"""

import _thread
import os
import select
import socket
import sys

from runstead.node import cgroups, syscalls
from runstead.node.seed import Seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def sow(isolation: str, places: list[list[str]], count: int) -> list[Seed]:
    """Fork so many processes 1, or as many as can be had."""
    seeds: list[Seed] = []
    try:
        for number in range(count):
            _come_back()
            seeds.append(Seed(isolation, places, f"{cgroups.SPARE}{os.getpid()}-{number}"))
    except OSError:
        pass
    return seeds


def host(line: socket.socket, serve: "Callable[[socket.socket, Seed | None], None]", seeds: list[Seed]) -> None:
    """Serve the connections that come over `line`, with a seed as long as there are some.

    Returns when the line is at its end and all are served.
    """
    _come_back()
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
                while seeds:
                    seeds.pop().discard()
                continue
            seed = seeds.pop() if seeds else None
            try:
                _thread.start_new_thread(_serve, (connection, seed, serve, end))
                running += 1
            except RuntimeError:  # not one more thread; the other side sees the end, and asks for a supervisor alone
                connection.close()
                if seed is not None:
                    seed.discard()


def _come_back() -> None:
    """Let children be in our own process namespace again, after a seed was made here.

    While they are to be in another one, no thread can begin, and none be made for another process 1.
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


def _serve(
    connection: socket.socket, seed: Seed | None, serve: "Callable[[socket.socket, Seed | None], None]", end: int
) -> None:
    try:
        with connection:
            serve(connection, seed)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os.write(end, b".")
