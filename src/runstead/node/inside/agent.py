"""Lets the server into a running attempt: listens on a socket in its directory, inside of its namespaces.

Part of process 1 of a job, or in plain mode of its supervisor, and never in the way of what that has to do: it takes
connections and forks a worker for each (`worker.py`), which does what is asked for. What must not depend on whether
one more process can be had is done here: the list of the programs in the background, and ending them.

Messages are those of `framing.py`. The first on a connection says what it is for:

    {"op": "list"}, {"op": "kill", "id": n}     answered here
    {"op": "execute", ...}, {"op": "ready"}     answered here where we may: see `attended.py`
    any other                                   a worker's: see there

A worker talks to us over its line:

    to us    {"background": {...}}, {"ended": {...}}      a program in the background
    to it    {"id": n}, {"op": "kill"}, {"op": "finish"}  the first is the answer to "background"
"""

import mmap
import os
import select
import signal
import socket
import struct

from runstead.node import framing, processes
from runstead.node.inside import worker
from runstead.node.inside.attended import Attended
from runstead.node.inside.refusal import Refusal, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runstead.node.inside.ground import Ground

VERSION = 1  # of what is spoken on the socket; in the facts of an attempt
SOCKET = "inside"  # its name in the directory of an attempt

_ENDED_KEPT = 256
_BACKLOG = 1024


def listen(path: str, name: str = SOCKET) -> socket.socket:
    """Make a socket in the directory of an attempt and listen on it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(framing.socket_address(folder, path, name))
    finally:
        os.close(folder)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


class _Caller:
    """A connection whose purpose is not known yet, or that is answered here."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.incoming = framing.Incoming()
        self.unsent = b""


class _Worker:
    """A worker and what we know of what it does."""

    def __init__(self, pid: int, line: socket.socket, program: mmap.mmap) -> None:
        self.pid = pid
        self.line = line
        self.incoming = framing.Incoming()
        self.program = program  # shared with it: the process that it attends to, 0 for none
        self.background: _Background | None = None


class _Background:
    """A program in the background."""

    def __init__(self, number: int, owner: _Worker, facts: "dict[str, Any]") -> None:
        self.owner = owner
        self.facts = {"id": number, **facts, "ended": None}
        self.killer: _Caller | None = None  # who waits for its end


class Agent:
    """The server's way in. Everything it does is short; nothing waits."""

    def __init__(self, listener: socket.socket, ground: "Ground", poll: select.poll, *, attends: bool = False) -> None:
        """`attends`: it may attend to a program itself, and is told the status of each child that ended."""
        self._attends = attends and processes.can_tell_children()
        self._attended: Attended | None = None
        self._listener = listener
        self._ground = ground
        self._poll = poll
        self._callers: dict[int, _Caller] = {}
        self._workers: dict[int, _Worker] = {}  # by the file descriptor of the line
        self._by_pid: dict[int, _Worker] = {}
        self._background: dict[int, _Background] = {}
        self._next = 0
        poll.register(listener, select.POLLIN)

    def handle(self, fd: int, event: int) -> None:
        """Do what has to be done about a file descriptor that became ready; those of others are ignored."""
        if fd == self._listener.fileno():
            self._accept()
        elif fd in self._callers:
            self._serve(fd, event)
        elif fd in self._workers:
            self._hear(fd)
        elif self._attended is not None and fd == self._attended.connection.fileno():
            self._attended.hear()

    def wait_millis(self) -> int | None:
        """Return how long there is nothing to do but to wait for something to happen; None: for ever."""
        return None if self._attended is None else self._attended.wait_millis()

    def look(self) -> None:
        """End the program that we attend to if it is time, or nobody is there any more."""
        attended = self._attended
        if attended is not None and (attended.is_cut or attended.is_late()):
            late = not attended.is_cut
            self._leave(attended.end(self._by_pid, self.reaped), timed_out=late)

    def reaped(self, pid: int, status: int = 0) -> None:
        """Take note that a child of this process has ended and was waited for."""
        if self._attended is not None and pid == self._attended.pid:
            self._leave(status, timed_out=False)
            return
        mine = self._by_pid.pop(pid, None)
        if mine is None:
            return
        self._hear(mine.line.fileno())  # its last words
        if mine.line.fileno() >= 0:
            self._drop(mine)
        (program,) = struct.unpack_from("i", mine.program)
        mine.program.close()
        if program:  # killed from inside: what it attended to would never end
            self._kill_group(program)
        if mine.background is not None:
            self._note_end(mine.background, {"exit_code": None, "signal": int(signal.SIGKILL), "timed_out": False})

    def finish(self) -> None:
        """Let workers go as soon as what they attend to has ended; no more are made."""
        if self._listener.fileno() >= 0:
            self._poll.unregister(self._listener)
            self._listener.close()
        for mine in list(self._workers.values()):
            self._tell(mine, {"op": "finish"})

    def close(self) -> None:
        """Let go of everything, in a process that does not serve."""
        self._listener.close()
        for caller in self._callers.values():
            caller.connection.close()
        for mine in self._workers.values():
            mine.line.close()

    # Connections

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._callers[connection.fileno()] = _Caller(connection)
        self._poll.register(connection, select.POLLIN)
        self._serve(connection.fileno(), select.POLLIN)  # what is asked for is usually there already

    def _serve(self, fd: int, event: int) -> None:
        caller = self._callers[fd]
        if event & select.POLLOUT:
            self._flush(caller)
            return
        try:
            piece = caller.connection.recv(1 << 18)
            messages = caller.incoming.feed(piece)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            piece, messages = b"", []
        if not piece:
            self._forget(caller)
        for message in messages:
            if message.get("op") == "list" and "path" not in message:  # of a folder it is a worker's
                facts = [entry.facts for entry in self._background.values()]
                self._answer(caller, {"ok": {"background": facts}})
            elif message.get("op") == "kill":
                self._kill(caller, message.get("id"))
            elif message.get("op") == "signal":
                continue  # too late
            elif message.get("op") == "execute" and self._has_nothing_else():
                self._attend(caller, message)
            elif message.get("op") == "ready" and self._has_nothing_else():
                self._answer(caller, {"ok": {}})
            else:
                self._fork(caller, message)

    def _forget(self, caller: _Caller) -> None:
        self._callers.pop(caller.connection.fileno(), None)
        self._poll.unregister(caller.connection)
        caller.connection.close()
        for entry in self._background.values():
            if entry.killer is caller:
                entry.killer = None

    def _answer(self, caller: _Caller, message: "dict[str, Any]") -> None:
        caller.unsent += framing.encode(message)
        self._flush(caller)

    def _flush(self, caller: _Caller) -> None:
        try:
            sent = caller.connection.send(caller.unsent) if caller.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._forget(caller)
            return
        caller.unsent = caller.unsent[sent:]
        self._poll.modify(caller.connection, select.POLLIN | (select.POLLOUT if caller.unsent else 0))

    # The program that we attend to

    def _has_nothing_else(self) -> bool:
        """Say whether we may attend to a program: all that we could adopt is then what it started."""
        return self._attends and self._attended is None and not self._by_pid and processes.is_childless()

    def _attend(self, caller: _Caller, message: "dict[str, Any]") -> None:
        try:
            self._attended = Attended(caller.connection, message, self._ground)
        except (Refusal, OSError, ValueError) as error:
            self._answer(caller, explain(error))
            return
        del self._callers[caller.connection.fileno()]

    def _leave(self, status: int, *, timed_out: bool) -> None:
        """Let go of the program, which has ended; who asked for it may ask for something else."""
        attended, self._attended = self._attended, None
        assert attended is not None
        if not attended.is_cut and attended.tell_end(status, timed_out=timed_out):
            self._callers[attended.connection.fileno()] = _Caller(attended.connection)
        else:
            self._poll.unregister(attended.connection)
            attended.connection.close()

    # Workers

    def _fork(self, caller: _Caller, message: "dict[str, Any]") -> None:
        line, theirs = socket.socketpair()
        program = mmap.mmap(-1, 4)
        try:
            pid = self._ground.entrance.fork() if self._ground.entrance is not None else os.fork()
        except OSError as error:
            line.close()
            theirs.close()
            program.close()
            reason = f"the job has as many processes as it may have, or no memory: {error.strerror}"
            self._answer(caller, {"error": "unavailable", "message": reason})
            return
        if pid == 0:
            stays = self._attended is not None
            worker.run(caller.connection, theirs, program, message, self._ground, stays=stays)
        theirs.close()
        line.setblocking(False)
        mine = _Worker(pid, line, program)
        self._workers[line.fileno()] = self._by_pid[pid] = mine
        self._poll.register(line, select.POLLIN)
        self._forget(caller)

    def _hear(self, fd: int) -> None:
        mine = self._workers.get(fd)
        if mine is None:
            return
        while True:
            try:
                piece = mine.line.recv(1 << 18)
                messages = mine.incoming.feed(piece)
            except BlockingIOError:
                return
            except (OSError, ValueError):
                piece, messages = b"", []
            for message in messages:
                if "background" in message:
                    self._note_start(mine, message["background"])
                elif "ended" in message and mine.background is not None:
                    self._note_end(mine.background, message["ended"])
            if not piece:
                self._drop(mine)
                return

    def _drop(self, mine: _Worker) -> None:
        self._workers.pop(mine.line.fileno(), None)
        self._poll.unregister(mine.line)
        mine.line.close()

    def _tell(self, mine: _Worker, message: "dict[str, Any]") -> bool:
        try:
            mine.line.send(framing.encode(message))
        except (OSError, ValueError):
            return False
        return True

    # Programs in the background

    def _note_start(self, mine: _Worker, facts: "dict[str, Any]") -> None:
        entry = mine.background = _Background(self._next, mine, facts)
        self._background[self._next] = entry
        self._next += 1
        self._tell(mine, {"id": entry.facts["id"]})

    def _note_end(self, entry: _Background, ended: "dict[str, Any]") -> None:
        if entry.facts["ended"] is not None:
            return
        entry.facts["ended"] = ended
        if entry.killer is not None:
            self._answer(entry.killer, {"ok": {"killed": True}})
            entry.killer = None
        over = [number for number, other in self._background.items() if other.facts["ended"] is not None]
        for number in over[: max(len(over) - _ENDED_KEPT, 0)]:
            del self._background[number]

    def _kill(self, caller: _Caller, number: object) -> None:
        entry = self._background.get(number) if isinstance(number, int) else None
        if entry is None or entry.facts["ended"] is not None or entry.killer is not None:
            self._answer(caller, {"ok": {"killed": False}})
        elif self._tell(entry.owner, {"op": "kill"}):
            entry.killer = caller  # answered when it is over
        else:
            self._answer(caller, {"ok": {"killed": False}})

    def _kill_group(self, group: int) -> None:
        if self._ground.entrance is not None:
            self._ground.entrance.signal_group(group, signal.SIGKILL)
            return
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
