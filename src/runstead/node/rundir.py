"""The directory of one attempt: how it is made, who is alive in it, what it says at the end.

    <data_dir>/node/attempts/<job_id>-<attempt>/
        lock          flock'ed by the supervisor and the job's first process: held means alive
        attempt.json  what the attempt holds on this machine, so that anybody can give it back
        started.json  when the command was executed
        exit.json     the last word of the supervisor
        control       datagram socket of the supervisor
        files/        the job's own files

A kernel lock dies with its holders, so that a process id that is used again cannot be taken for a
supervisor. The directory appears by a rename with the lock already held: of two starters one wins, and
nobody ever sees a directory without an owner that is not dead.
"""

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOCK = "lock"
ATTEMPT = "attempt.json"
STARTED = "started.json"
EXIT = "exit.json"
CONTROL = "control"
FILES = "files"

_READ_BYTES = 1 << 16
_SETTLE_SECONDS = 30.0  # how long a starter may take, for another one who waits for it

_JOB_ID = re.compile(r"[0-9a-f]{24}")
_NAME = re.compile(r"([0-9a-f]{24})-([1-9][0-9]{0,8})")


def attempt_name(job_id: str, attempt: int) -> str:
    """Return the name of the directory. Raises ValueError for what could not be one."""
    if _JOB_ID.fullmatch(job_id) is None:
        raise ValueError(f"a job id has 24 hexadecimal characters: {job_id!r}")
    if not 0 < attempt < 1_000_000_000:
        raise ValueError(f"an attempt is counted from 1: {attempt!r}")
    return f"{job_id}-{attempt}"


def parse_name(name: str) -> tuple[str, int] | None:
    """Return (job_id, attempt) of a directory's name; None for anything else that lies there."""
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def attempts_path(data_dir: str) -> str:
    """Return where the directories of all attempts are."""
    return os.path.join(data_dir, "node", "attempts")


def create(parent: str, name: str, facts: Mapping[str, object]) -> int | None:
    """Make the directory and return the locked file descriptor; None when it exists already."""
    temporary = os.path.join(parent, f".{name}.{os.getpid()}")
    os.mkdir(temporary, 0o700)
    lock = os.open(os.path.join(temporary, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    write_json(os.path.join(temporary, ATTEMPT), facts)
    try:
        os.rename(temporary, os.path.join(parent, name))  # refused where there is one: it is not empty
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        os.unlink(os.path.join(temporary, ATTEMPT))
        os.unlink(os.path.join(temporary, LOCK))
        os.rmdir(temporary)
        os.close(lock)
        return None
    return lock


def is_alive(path: str) -> bool:
    """Say whether the supervisor, or the first process of its job, still lives."""
    try:
        lock = os.open(os.path.join(path, LOCK), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def await_settled(path: str) -> None:
    """Return when the command of an attempt was executed, or was not; its supervisor is at it."""
    until = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < until and is_alive(path):
        if os.path.exists(f"{path}/{STARTED}") or os.path.exists(f"{path}/{EXIT}"):
            return
        time.sleep(0.002)


def read_json(path: str) -> "dict[str, Any] | None":
    """Return the object in a file; None when there is none, or half of one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a third of what open() takes, several times in each job's life
    except OSError:
        return None
    try:
        data = b""
        while part := os.read(fd, _READ_BYTES):
            data += part
            if len(part) < _READ_BYTES:
                break
        return json.loads(data)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def write_json(path: str, value: Mapping[str, object], *, durable: bool = False) -> None:
    """Write a file so that readers see all of it or nothing; `durable` survives a loss of power."""
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        data = json.dumps(value).encode()
        while data:
            data = data[os.write(fd, data) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if durable:
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
