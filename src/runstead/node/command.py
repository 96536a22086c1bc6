"""The last steps before a job's command runs, in the process that becomes it."""

import errno
import json
import os
import signal

from runstead.node import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from runstead.node.users import User

EXIT_NOT_FOUND = 127
EXIT_NOT_EXECUTABLE = 126
# Signals that can be handled. As numbers, and once: to find out which there are takes as long as a start.
_ORDINARY = tuple(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def spawn(argv: list[str], environment: dict[str, str], output: int, user: "User | None" = None) -> int:
    """Start the command as a child and return its process id; raises OSError when it cannot be executed.

    The child shares our memory until it is executed: nothing is copied, which halves the price of a start. It
    inherits our working directory and umask; all other file descriptors of ours close on exec. To start it as
    another user than ourselves costs a real fork.
    """
    if user is not None:
        return _spawn_as(user, argv, environment, output)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    return spawn_with(argv, environment, actions)


def spawn_with(argv: list[str], environment: dict[str, str], actions: "Sequence[tuple[Any, ...]]") -> int:
    """Do the same with file actions for posix_spawn."""

    def start(path: str) -> int:
        return os.posix_spawn(
            path, argv, environment, file_actions=actions, setsid=True, setsigmask=[], setsigdef=_ORDINARY
        )

    return _search(argv, environment, start)


def _spawn_as(user: "User", argv: list[str], environment: dict[str, str], output: int) -> int:
    status, report = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            os.setsid()
            for target, source in enumerate((os.open("/dev/null", os.O_RDONLY), output, output)):
                os.dup2(source, target)
            _reset_signals()
            _search(argv, environment, lambda path: os.execve(path, argv, environment))
        except OSError as error:
            os.write(report, json.dumps([error.errno, error.strerror, error.filename]).encode())
        finally:
            os._exit(EXIT_NOT_FOUND)
    os.close(report)
    text = b""
    while part := os.read(status, 65536):
        text += part
    os.close(status)
    if text:
        os.waitpid(child, 0)
        raise OSError(*json.loads(text))
    return child


def execute(argv: list[str], environment: dict[str, str], folder: str, output: int, status: int) -> None:
    """Become the command; does not return. On failure the reason goes to `status` as JSON.

    A successful exec closes `status`.
    """
    try:
        os.setsid()
        os.umask(0o022)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if status != 3:
            os.dup2(status, 3, inheritable=False)
        syscalls.close_from(4)
        status = 3
        _reset_signals()
        if syscalls.LINUX:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            forget_score()
        os.chdir(folder)
        _search(argv, environment, lambda path: os.execve(path, argv, environment))
    except BaseException as error:
        os.write(status, json.dumps(explain(argv, environment, folder, error)).encode())
    os._exit(EXIT_NOT_FOUND)


def become(argv: list[str], environment: dict[str, str], folder: str) -> "NoReturn":
    """Become the command; raises OSError. All but the first three open files must close on exec."""
    _reset_signals()
    os.chdir(folder)
    _search(argv, environment, lambda path: os.execve(path, argv, environment))
    raise AssertionError("exec came back")


def explain(argv: list[str], environment: dict[str, str], folder: str, error: BaseException) -> dict[str, object]:
    """Say why a command could not be executed, and with which code a shell would have ended."""
    name = argv[0] if argv else ""
    if not isinstance(error, OSError):
        return {"message": f"the command could not be executed: {error!r}", "code": EXIT_NOT_EXECUTABLE}
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and error.filename != folder:
        if error.filename and os.path.exists(error.filename):
            reason = "the interpreter that its first line names is missing"
        elif "/" in name:
            reason = "no such file"
        else:
            reason = f"no such program in PATH ({environment.get('PATH', os.defpath)})"
        return {"message": f"command not found: {reason}: {name}", "code": EXIT_NOT_FOUND}
    if error.errno == errno.ENOEXEC:
        reason = "it is neither a program of this machine nor a script with a first line like '#!/bin/sh'"
        return {"message": f"exec format error: {reason}: {name}", "code": EXIT_NOT_EXECUTABLE}
    if error.errno == errno.E2BIG:
        reason = "arguments and environment together are too long for the kernel"
        return {"message": f"{reason}: {name}", "code": EXIT_NOT_EXECUTABLE}
    return {"message": f"the command could not be executed: {error.strerror}: {name}", "code": EXIT_NOT_EXECUTABLE}


def find(argv: list[str], environment: dict[str, str]) -> str:
    """Return the path of the program that would be executed. Raises OSError when there is none."""
    found: list[str] = []

    def look(path: str) -> int:
        if not os.path.isfile(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not os.access(path, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        found.append(path)
        return 0

    _search(argv, environment, look)
    return found[0]


def _search(argv: list[str], environment: dict[str, str], start: "Callable[[str], int]") -> int:
    """Call `start` with the path of the program that the environment's PATH leads to."""
    if not argv or not argv[0]:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "")
    if "/" in argv[0]:
        return start(argv[0])
    refused: OSError | None = None
    for folder in environment.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, argv[0])
        if not os.path.exists(path):
            continue
        try:
            return start(path)
        except FileNotFoundError as error:  # the interpreter that a script names
            raise FileNotFoundError(error.errno, error.strerror, path) from error
        except PermissionError as error:
            refused = error
    raise refused or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])


def _reset_signals() -> None:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def forget_score() -> None:
    """Take back the protection from the kernel's out-of-memory killer that our own processes have."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # else the file belongs to the machine's root; exec does the same
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
    except OSError:
        pass
