"""The supervisor's part: takes requests to make and remove compartments, one after the other."""

import os
import select
import signal
import socket

from runstead.node import framing, syscalls
from runstead.node.compartments.attempt import SOCKET, Attempt
from runstead.node.compartments.making import make_all
from runstead.node.compartments.removing import remove_all
from runstead.node.inside import imports
from runstead.node.inside.agent import listen
from runstead.node.inside.refusal import INVALID, UNAVAILABLE, Refusal, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HEX = frozenset("0123456789abcdef")


class Divider:
    """The supervisor's part: takes requests, one at a time."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._poll = select.poll()
        self._listener = listen(attempt.path, SOCKET)
        self._maker = 0
        self._line = -1  # at its end when the maker is gone

    def register(self, poll: select.poll) -> None:
        """Have requests waited for."""
        self._poll = poll
        poll.register(self._listener, select.POLLIN)

    def finish(self) -> None:
        """Wait for what we forked: it is one of the attempt's processes, which are all about to be gone."""
        if self._line >= 0:
            os.waitpid(self._maker, 0)

    def handle(self, fd: int) -> bool:
        """Do what has to be done about a file descriptor that became ready; False when it is none of ours."""
        if fd == self._line:
            self._poll.unregister(fd)
            os.close(fd)
            os.waitpid(self._maker, 0)
            self._line = -1
            self._poll.register(self._listener, select.POLLIN)
            return True
        if fd != self._listener.fileno():
            return False
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return True
        self._line, theirs = os.pipe()
        try:
            self._maker = os.fork()
        except OSError:  # the other side sees the end, and asks again
            connection.close()
            os.close(self._line)
            os.close(theirs)
            self._line = -1
            return True
        if self._maker == 0:
            _serve(connection, self._attempt)
        connection.close()
        os.close(theirs)
        self._poll.unregister(self._listener)
        self._poll.register(self._line, select.POLLIN)
        return True


def _serve(connection: socket.socket, attempt: Attempt) -> None:
    """Answer one request in a process of its own; does not return."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        connection.setblocking(True)
        imports.stop()
        message = framing.receive(connection) or {}
        try:
            answer = {"ok": _answer(message, attempt)}
        except (Refusal, OSError, ValueError) as error:
            answer = explain(error)
            if isinstance(error, OSError):
                answer["error"] = UNAVAILABLE
        framing.send(connection, answer)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _answer(message: "dict[str, Any]", attempt: Attempt) -> "dict[str, Any]":
    wanted = [str(one) for one in message.get("ids", [])]
    if any(len(one) != 16 or not _HEX.issuperset(one) for one in wanted):
        raise Refusal(INVALID, "the id of a compartment has 16 hexadecimal digits")
    if message.get("op") == "make":
        return {"made": make_all(dict.fromkeys(wanted), message, attempt)}
    if message.get("op") == "remove":
        return {"removed": remove_all(list(dict.fromkeys(wanted)), attempt)}
    raise Refusal(INVALID, "there is no such request")
