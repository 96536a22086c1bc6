"""Does what the server asks for inside of an attempt: a process forked for one connection, gone when that ends.

    {"op": "execute", ...}   a program, attended to: see `programs.py`. Answered when it was started, with its pipes;
                             {"ended": ...} follows. Meanwhile {"op": "signal", "number": n} is taken. The end of the
                             connection kills the program with all it started.
    {"op": "spawn", ...}     a program in the background. Answered when it was started; the connection is over then.
    {"op": "ready"}          nothing: the next request finds a worker
    {"op": "socket", ...}    see `ports.py`
    any other                see `entries.py`

An answer is {"ok": ...} or {"error": kind, "message": text}, a kind being a word of `refusal.py`. Requests follow each
other on one connection: the server keeps some that have nothing to do, which saves the fork.
"""

import os
import select
import signal
import socket
import struct
import time

from runstead.node import framing, priority, processes, syscalls
from runstead.node.inside import entries, ports, programs
from runstead.node.inside.ground import Ground
from runstead.node.inside.refusal import UNAVAILABLE, Refusal, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from typing import Any, NoReturn

_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run(
    connection: socket.socket,
    line: socket.socket,
    program: "mmap.mmap",
    first: "dict[str, Any]",
    ground: Ground,
    *,
    stays: bool = False,
) -> "NoReturn":
    """Serve a connection, beginning with a message that was read from it; does not return.

    With `stays` this process does not end before all that it adopted: nobody else is to adopt it.
    """
    try:
        if ground.entrance is not None:
            _enter(ground, connection)
        worker = Worker(*_settle(connection, line), program, ground)
        if ground.limits is not None:
            ground.limits.enter(os.getpid())
        message: dict[str, Any] | None = first
        while message is not None and worker.serve(message):
            message = worker.await_request()
        if stays:
            worker.stay()
    except BaseException:  # a signal, or an error of ours: nobody is told here, the other side sees the end
        os._exit(1)
    os._exit(0)


def _enter(ground: Ground, connection: socket.socket) -> None:
    assert ground.entrance is not None
    try:
        user = ground.entrance.enter()
    except OSError as error:
        reason = f"the container cannot be entered: {error.strerror}: {error.filename or 'its namespaces'}"
        framing.send(connection, {"error": UNAVAILABLE, "message": reason})
        raise
    ground.environment.setdefault("HOME", user.home)
    if user.uid or user.gid or user.groups:
        ground.user = user


def _settle(connection: socket.socket, line: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Leave behind what belongs to the process that forked us; return the two that are ours."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    mine = [os.dup(null), os.dup(connection.fileno()), os.dup(line.fileno())]  # none of them below 3
    for target, fd in enumerate((null, null, null, *mine[1:])):
        os.dup2(fd, target, inheritable=target < 3)
    connection.detach()
    line.detach()
    syscalls.close_from(5)
    if syscalls.LINUX:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    priority.keep_to_myself()
    found = socket.socket(fileno=3), socket.socket(fileno=4)
    for one in found:
        one.setblocking(True)
    return found


class Worker:
    """One connection."""

    def __init__(self, connection: socket.socket, line: socket.socket, program: "mmap.mmap", ground: Ground) -> None:
        self._connection = connection
        self._line = line
        self._program = program
        self._ground = ground
        self._children = processes.watch_children()
        self._finishing = False
        self._waiting = select.poll()
        self._waiting.register(connection, select.POLLIN)
        self._waiting.register(line, select.POLLIN)

    def await_request(self) -> "dict[str, Any] | None":
        """Return the next request; None when there will be none, or the attempt is about to end."""
        ready = [] if self._finishing else [fd for fd, _ in self._waiting.poll()]
        return framing.receive(self._connection) if ready == [self._connection.fileno()] else None

    def stay(self) -> None:
        """Return when there is nothing any more that would be somebody else's child after our end."""
        self._connection.close()
        self._line.close()
        poll = select.poll()
        poll.register(self._children, select.POLLIN)
        while not processes.is_childless():
            poll.poll()
            os.read(self._children, 512)

    def serve(self, message: "dict[str, Any]") -> bool:
        """Do what is asked for; return whether the connection can be used again."""
        op = message.pop("op", None)
        try:
            if op == "signal":  # too late
                return True
            if op == "ready":
                framing.send(self._connection, {"ok": {}})
                return True
            if op in ("execute", "spawn"):
                started = programs.start(message, self._ground, background=op == "spawn")
                struct.pack_into("i", self._program, 0, started.pid)
                again = self._attend(started) if op == "execute" else self._leave_running(started, message)
                struct.pack_into("i", self._program, 0, 0)
                return again
            if op == "socket":
                answer, fds = ports.make_sockets(message, self._ground)
            else:
                answer, fds = entries.serve(str(op), message, self._ground)
        except (Refusal, OSError, ValueError) as error:
            framing.send(self._connection, explain(error))
            return True
        framing.send(self._connection, {"ok": answer}, fds)
        for fd in fds:
            os.close(fd)
        return True

    def _attend(self, program: "programs.Program") -> bool:
        framing.send(self._connection, {"ok": {"pid": program.pid, "names": program.names}}, program.fds)
        program.let_go()
        ended = self._await_end(program, self._connection)
        if ended is None:
            return False
        alone = processes.is_childless()
        framing.send(self._connection, {"ended": ended, "again": alone})
        return alone  # else what it left behind becomes process 1's with our end, and lives on

    def _leave_running(self, program: "programs.Program", message: "dict[str, Any]") -> bool:
        facts = {"pid": program.pid, "argv": message["argv"], "tag": message.get("tag"), "started_at": time.time()}
        framing.send(self._line, {"background": facts})
        answer = framing.receive(self._line)
        if answer is None:
            return False
        try:
            framing.send(self._connection, {"ok": {"id": answer["id"], **facts}})
        except OSError:
            pass  # whoever asked is gone; the program is in the list
        self._connection.close()
        ended = self._await_end(program, None)
        framing.send(self._line, {"ended": ended})
        return False

    def _await_end(self, program: "programs.Program", connection: socket.socket | None) -> "dict[str, Any] | None":
        """Return how the program ended; None when it was killed because the connection was cut."""
        poll = select.poll()
        poll.register(self._children, select.POLLIN)
        poll.register(self._line, select.POLLIN)
        if connection is not None:
            poll.register(connection, select.POLLIN)
        line = self._line.fileno()
        timed_out = False
        status = processes.reap(program.pid)
        while status is None:
            for fd, _ in poll.poll(program.wait_millis()):
                if fd == self._children:
                    os.read(fd, 512)
                elif fd == line:
                    message = framing.receive(self._line)
                    self._finishing = True
                    if message is None:
                        poll.unregister(line)
                    elif message.get("op") == "kill":
                        status = processes.end_all_below(program.pid)
                elif connection is not None:
                    message = framing.receive(connection)
                    if message is None:
                        processes.end_all_below(program.pid)
                        return None
                    program.signal(message.get("number"))
            if status is None:
                status = processes.reap(program.pid)
            if status is None and program.is_late():
                timed_out = True
                status = processes.end_all_below(program.pid)
        return programs.ended(status, timed_out=timed_out)
