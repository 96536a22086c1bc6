"""Starts programs inside of an attempt on request: with pipes or a terminal, as any user that the attempt knows."""

import fcntl
import os
import signal
import struct
import termios
import time

from runstead.node import command
from runstead.node.inside import identity
from runstead.node.inside.refusal import INVALID, UNAVAILABLE, UNSUPPORTED, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runstead.node.inside.ground import Ground
    from runstead.node.inside.identity import Identity

_PIPE_BYTES = 1 << 18
_LONGEST_WAIT_MILLIS = 1 << 30  # poll(2) takes no more than twice that
_DEFAULT_TERMINAL = "xterm-256color"


class Program:
    """A program that was started."""

    def __init__(self, pid: int, names: list[str], fds: list[int], timeout: float | None) -> None:
        self.pid = pid
        self.names = names  # of the file descriptors: "stdin", "stdout", "stderr", "terminal"
        self.fds = fds  # the far ends of what the program reads and writes
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def let_go(self) -> None:
        """Close our ends: somebody else has them now."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def wait_millis(self) -> int | None:
        """Return how long there is nothing to do but to wait for something to happen; None: for ever."""
        if self._deadline is None:
            return None
        return min(max(int((self._deadline - time.monotonic()) * 1000) + 1, 0), _LONGEST_WAIT_MILLIS)

    def is_late(self) -> bool:
        """Say whether it should have ended by now."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def signal(self, number: object) -> None:
        """Send a signal to its process group."""
        if not isinstance(number, int) or number not in signal.valid_signals():
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def ended(status: int, *, timed_out: bool) -> "dict[str, Any]":
    """Return what the other side is told of how a program ended."""
    killed = os.WIFSIGNALED(status)
    return {
        "exit_code": None if killed else os.WEXITSTATUS(status),
        "signal": os.WTERMSIG(status) if killed else None,
        "timed_out": timed_out,
    }


def start(order: "dict[str, Any]", ground: "Ground", *, background: bool) -> Program:
    """Start a program. Raises Refusal when it cannot be executed."""
    argv = [str(word) for word in order["argv"]]
    who = identity.find(order.get("user"), ground)
    environment = {**ground.environment, **who.environment, **order.get("environment", {})}
    size = order.get("terminal")
    folder = os.path.join(ground.folder, order["folder"]) if order.get("folder") else ground.folder
    ends = _Ends()
    try:
        if background:
            ends.nothing()
        elif size is not None:
            environment.setdefault("TERM", _DEFAULT_TERMINAL)
            ends.terminal(size, who)
        else:
            ends.pipes(who, with_input=bool(order.get("input")))
        pid = _start(argv, environment, folder, ends, who)
    except BaseException:
        ends.close_far()
        raise
    finally:
        ends.close_near()
    return Program(pid, ends.names, ends.far, order.get("timeout"))


class _Ends:
    """Both ends of what a program reads and writes."""

    def __init__(self) -> None:
        self.near: list[int] = []  # the program's, ours until it is started
        self.far: list[int] = []
        self.names: list[str] = []
        self.tty: str | None = None
        self.targets: dict[int, int] = {}  # 0, 1, 2: which of ours; what is missing is /dev/null

    def nothing(self) -> None:
        """Read nothing, write to nowhere."""

    def pipes(self, who: "Identity", *, with_input: bool) -> None:
        """Make a pipe for each of its streams."""
        for name, target in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            if target == 0 and not with_input:
                continue
            reader, writer = os.pipe()
            near, far = (reader, writer) if target == 0 else (writer, reader)
            self.near.append(near)
            self.far.append(far)
            self.names.append(name)
            self.targets[target] = near
            who.own(near)  # so that it can open /dev/stdout by name
            if target == 1:
                _widen(near)

    def terminal(self, size: "list[int]", who: "Identity") -> None:
        """Make a terminal."""
        try:
            far, near = os.openpty()
        except OSError as error:
            raise Refusal(UNSUPPORTED, f"there are no terminals here: {error.strerror}") from error
        self.near.append(near)
        self.far.append(far)
        self.names.append("terminal")
        fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))
        self.tty = os.ttyname(near)
        who.own(near)

    def close_near(self) -> None:
        """The program has them, or will never."""
        for fd in self.near:
            os.close(fd)

    def close_far(self) -> None:
        """There is no program."""
        for fd in self.far:
            os.close(fd)

    def actions(self) -> "list[Any]":
        """Return what posix_spawn is to do about them."""
        if self.tty is not None:  # opened by a session leader that has none, it becomes the controlling one
            return [
                (os.POSIX_SPAWN_OPEN, 0, self.tty, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
            ]
        found: list[Any] = []
        for target, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
            if target in self.targets:
                found.append((os.POSIX_SPAWN_DUP2, self.targets[target], target))
            else:
                found.append((os.POSIX_SPAWN_OPEN, target, "/dev/null", flags, 0))
        return found

    def take(self) -> None:
        """Do the same in a process that is about to become the program and leads a session."""
        if self.tty is not None:
            found = [os.open(self.tty, os.O_RDWR)] * 3
            if hasattr(termios, "TIOCSCTTY"):
                fcntl.ioctl(found[0], termios.TIOCSCTTY, 0)
        else:
            null = os.open("/dev/null", os.O_RDWR)
            found = [self.targets.get(target, null) for target in range(3)]
        for target, fd in enumerate(found):
            os.dup2(fd, target)


def _widen(fd: int) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # the user's share of pipe memory is used up: the usual size will do


def _start(argv: list[str], environment: dict[str, str], folder: str, ends: _Ends, who: "Identity") -> int:
    try:
        if who.changes:
            return _fork(argv, environment, folder, ends, who)
        os.chdir(folder)
        try:
            return command.spawn_with(argv, environment, ends.actions())
        except BlockingIOError as error:
            raise Refusal(UNAVAILABLE, "the job has as many processes as it may have") from error
    except (OSError, ValueError) as error:
        raise Refusal(INVALID, _why(argv, environment, folder, error)) from error


def _why(argv: list[str], environment: dict[str, str], folder: str, error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename == folder:
        return f"the command cannot begin in its folder: {os.strerror(error.errno or 0).lower()}: {folder}"
    if isinstance(error, ValueError):
        return f"the command cannot be executed: {error}"
    return str(command.explain(argv, environment, folder, error)["message"])


def _fork(argv: list[str], environment: dict[str, str], folder: str, ends: _Ends, who: "Identity") -> int:
    """Start a program as somebody else, which needs steps that posix_spawn does not know."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            ends.take()
            who.become()
            command.become(argv, environment, folder)
        except BaseException as error:
            os.write(writer, _why(argv, environment, folder, error).encode("utf-8", "replace"))
        os._exit(1)
    os.close(writer)
    with open(reader, "rb") as report:
        reason = report.read()
    if reason:
        os.waitpid(pid, 0)
        raise Refusal(INVALID, reason.decode("utf-8", "replace"))
    return pid
