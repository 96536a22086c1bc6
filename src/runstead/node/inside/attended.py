"""A program that the agent attends to itself, for want of anything else that it has to tell from it.

What a worker is for is that a program can be killed with all that it started, however far away: a worker adopts what
loses its parents. Process 1 of a compartment adopts all the same, and as long as nothing else can be among what it
adopts it needs no worker: that saves a fork, most of what a short command costs. Programs that were started meanwhile
have workers, which keep what they adopt until it ends (see `Worker.stay`).
"""

import resource

from runstead.node import framing, priority, processes
from runstead.node.inside import programs
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Container
    from typing import Any

    from runstead.node.inside.ground import Ground


class Attended:
    """One program and the connection that asked for it."""

    def __init__(self, connection: "socket.socket", order: "dict[str, Any]", ground: "Ground") -> None:
        """Start it and say so. Raises Refusal, OSError, ValueError when it cannot be; then nothing of it is left."""
        self.connection = connection
        self._incoming = framing.Incoming()
        try:
            self._program = priority.start_as_usual(lambda: programs.start(order, ground, background=False))
        except RuntimeError as error:  # not one more thread
            raise Refusal(UNAVAILABLE, "the job has as many processes as it may have") from error
        self.pid = self._program.pid
        if ground.processes is not None:
            self._limit(ground.processes)
        self.wait_millis = self._program.wait_millis
        self.is_late = self._program.is_late
        started = {"ok": {"pid": self.pid, "names": self._program.names}}
        self.is_cut = not self._say(started, self._program.fds)  # nobody is there any more
        self._program.let_go()

    def _limit(self, processes: int) -> None:
        """Leave room for the worker of another program, which would have its own share if we were one."""
        try:
            _, hard = resource.prlimit(self.pid, resource.RLIMIT_NPROC)
            resource.prlimit(self.pid, resource.RLIMIT_NPROC, (processes + 1, hard))  # and this one
        except (OSError, ValueError):
            return  # it has ended, or may have less than that

    def hear(self) -> None:
        """Take what the other side sends: signals, or its end."""
        try:
            piece = self.connection.recv(1 << 16)
            messages = self._incoming.feed(piece)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            piece, messages = b"", []
        for message in messages:
            self._program.signal(message.get("number"))
        self.is_cut = self.is_cut or not piece

    def end(self, spared: "Container[int]", note: "Callable[[int, int], None]") -> int:
        """Kill it with all that it started, and return its status; see `processes.end_all_but`."""
        return processes.end_all_but(self.pid, spared, note)

    def tell_end(self, status: int, *, timed_out: bool) -> bool:
        """Say how it ended; False when nobody is there any more."""
        return self._say({"ended": programs.ended(status, timed_out=timed_out), "again": True})

    def _say(self, message: "dict[str, Any]", fds: "list[int] | tuple[()]" = ()) -> bool:
        try:
            framing.send(self.connection, message, fds)
        except OSError:
            return False
        return True
