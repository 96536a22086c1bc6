"""A maker: makes and removes the compartments of one attempt, and goes when nothing was asked for a while.

It takes connections; on each come requests, one after the other, {"op": "make", ...} and {"op": "remove", ...} as
below. To stay saves the next request a fork, which costs more than what most of them ask for.
"""

import os
import select
import socket

from runstead.node import command, framing, syscalls
from runstead.node.compartments.attempt import Attempt
from runstead.node.compartments.entry import is_id
from runstead.node.compartments.making import make_all
from runstead.node.compartments.removing import remove_all
from runstead.node.compartments.workshop import Workshop
from runstead.node.inside import imports
from runstead.node.inside.refusal import INVALID, UNAVAILABLE, Refusal, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_IDLE_MILLIS = 1000


def serve(listener: socket.socket, line: int, attempt: Attempt) -> "NoReturn":
    """Be a maker; does not return. `line` stays open for as long as we live."""
    try:
        syscalls.close_all_but({listener.fileno(), line})
        imports.stop()
        command.forget_score()  # compartments are to begin without it
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        _Maker(listener, attempt).run()
    except BaseException:
        os._exit(1)
    os._exit(0)


class _Maker:
    def __init__(self, listener: socket.socket, attempt: Attempt) -> None:
        self._listener = listener
        self._shop = Workshop(attempt)
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._callers: dict[int, tuple[socket.socket, framing.Incoming]] = {}

    def run(self) -> None:
        """Do what is asked for until nothing is."""
        while ready := self._poll.poll(_IDLE_MILLIS):
            for fd, _ in ready:
                if fd in self._callers:
                    self._hear(fd)
                else:
                    self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(True)
        self._callers[connection.fileno()] = connection, framing.Incoming()
        self._poll.register(connection, select.POLLIN)

    def _hear(self, fd: int) -> None:
        connection, incoming = self._callers[fd]
        try:
            piece = connection.recv(1 << 18)
            for message in incoming.feed(piece):
                framing.send(connection, self._answered(message))
        except (OSError, ValueError):
            piece = b""
        if not piece:
            del self._callers[fd]
            self._poll.unregister(fd)
            connection.close()

    def _answered(self, message: "dict[str, Any]") -> "dict[str, Any]":
        try:
            return {"ok": _answer(message, self._shop)}
        except (Refusal, OSError, ValueError) as error:
            answer = explain(error)
            if isinstance(error, OSError):
                answer["error"] = UNAVAILABLE
            return answer


def _answer(message: "dict[str, Any]", shop: Workshop) -> "dict[str, Any]":
    wanted = [str(one) for one in message.get("ids", [])]
    if not all(is_id(one) for one in wanted):
        raise Refusal(INVALID, "the id of a compartment has 16 hexadecimal digits")
    if message.get("op") == "make":
        return {"made": make_all(dict.fromkeys(wanted), message, shop)}
    if message.get("op") == "remove":
        return {"removed": remove_all(list(dict.fromkeys(wanted)), shop)}
    raise Refusal(INVALID, "there is no such request")
