"""The last steps before a job's command runs, in the process that becomes it."""

import errno
import json
import os
import signal

from runstead.node import syscalls

EXIT_NOT_FOUND = 127
EXIT_NOT_EXECUTABLE = 126


def execute(
    argv: list[str], environment: dict[str, str], folder: str, output: int, status: int, enter: list[int]
) -> None:
    """Become the command; does not return. On failure the reason goes to `status` as JSON.

    `enter` are open files that take this process into its control groups. A successful exec closes `status`.
    """
    try:
        for fd in enter:
            os.write(fd, b"0")
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
            _forget_score()
        os.chdir(folder)
        _exec(argv, environment)
    except BaseException as error:
        os.write(status, json.dumps(explain(argv, environment, folder, error)).encode())
    os._exit(EXIT_NOT_FOUND)


def explain(argv: list[str], environment: dict[str, str], folder: str, error: BaseException) -> dict[str, object]:
    """Say why a command could not be executed, and with which code a shell would have ended."""
    name = argv[0] if argv else ""
    if not isinstance(error, OSError):
        return {"message": f"the command could not be executed: {error!r}", "code": EXIT_NOT_EXECUTABLE}
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and error.filename != folder:
        where = "" if "/" in name else f" in PATH ({environment.get('PATH', os.defpath)})"
        if "/" in name and os.path.exists(name):
            where = " (the interpreter in its first line is missing)"
        return {"message": f"command not found{where}: {name}", "code": EXIT_NOT_FOUND}
    if error.errno == errno.ENOEXEC:
        reason = "it is neither a program of this machine nor a script with a first line like '#!/bin/sh'"
        return {"message": f"exec format error: {reason}: {name}", "code": EXIT_NOT_EXECUTABLE}
    if error.errno == errno.E2BIG:
        reason = "arguments and environment together are too long for the kernel"
        return {"message": f"{reason}: {name}", "code": EXIT_NOT_EXECUTABLE}
    return {"message": f"the command could not be executed: {error.strerror}: {name}", "code": EXIT_NOT_EXECUTABLE}


def _exec(argv: list[str], environment: dict[str, str]) -> None:
    if not argv or not argv[0]:
        raise FileNotFoundError(errno.ENOENT, "no such file or directory", "")
    if "/" in argv[0]:
        os.execve(argv[0], argv, environment)
    refused: OSError | None = None
    for folder in environment.get("PATH", os.defpath).split(os.pathsep):
        try:
            os.execve(os.path.join(folder, argv[0]), argv, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            refused = error
    raise refused or FileNotFoundError(errno.ENOENT, "no such file or directory", argv[0])


def _reset_signals() -> None:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _forget_score() -> None:
    """Take back the protection from the kernel's out-of-memory killer that our own processes have."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # else the file belongs to the machine's root; exec does the same
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
    except OSError:
        pass
