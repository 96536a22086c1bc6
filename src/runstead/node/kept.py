"""Folders of an attempt that wait ready-made, and wait again if the attempt left them as they were.

To make a virtual environment and a job's own folders takes longer than many a job, and to delete them as long again.
Those of one owner never become another's. Whether anything was changed is seen from the inodes' times of change, which
no program can set, and, for kernels that know these times to a few milliseconds only, from names and sizes.
"""

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MOST = 8  # of a kind, for one owner
_State = tuple[object, ...]


class Kept:
    """One folder of an attempt."""

    def __init__(self, pool: str, folder: str, name: str, make: "Callable[[str], None]") -> None:
        """It appears as `name` in `folder`. In `pool`, which no job reaches, others of its kind wait; `make` makes one.

        In `folder` other jobs may write.
        """
        self._pool = pool
        self._folder = folder
        self._name = name
        self._make = make
        self._seen: dict[str, _State] = {}  # relative path: how it was before the job could change it

    def take(self) -> None:
        """Put one in its place. Raises OSError."""
        os.makedirs(self._pool, 0o700, exist_ok=True)
        for name in os.listdir(self._pool):
            if not name.startswith(".") and self._place(name):
                return
        fresh = f".{_new_name()}"
        self._make(os.path.join(self._pool, fresh))
        self._place(fresh)

    def _place(self, name: str) -> bool:
        """Put this one in its place; False when another attempt was faster."""
        path = os.path.join(self._pool, name)
        seen = _look(path)
        folder = _open(self._folder)
        try:
            os.rename(path, self._name, dst_dir_fd=folder)
        except FileNotFoundError:
            return False
        finally:
            os.close(folder)
        self._seen = seen
        return True

    def give_back(self) -> None:
        """Let it wait for the next attempt if it is as it was; no process of this one is left. Raises OSError."""
        path = os.path.join(self._folder, self._name)
        if not self._seen or any(_state(path, below) != state for below, state in self._seen.items()):
            return
        if len(os.listdir(self._pool)) >= _MOST:
            return
        folder = _open(self._folder)
        try:
            os.rename(self._name, os.path.join(self._pool, _new_name()), src_dir_fd=folder)
        finally:
            os.close(folder)


def _new_name() -> str:
    return f"{os.getpid()}-{os.urandom(4).hex()}"


def _open(folder: str) -> int:
    """Open a folder, and surely not what a link in its place leads to."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _look(path: str) -> dict[str, _State]:
    """Return the state of a folder and of all below it."""
    found: dict[str, _State] = {}
    waiting = [""]
    while waiting:
        below = waiting.pop()
        found[below] = _state(path, below)
        if found[below] and stat.S_ISDIR(os.lstat(os.path.join(path, below)).st_mode):
            waiting += [os.path.join(below, name) for name in os.listdir(os.path.join(path, below))]
    return found


def _state(path: str, below: str) -> _State:
    """Return all that tells of a change; empty for what is not there. That it was moved is none."""
    one = f"{path}/{below}" if below else path
    try:
        status = os.lstat(one)
        names = sorted(os.listdir(one)) if stat.S_ISDIR(status.st_mode) else ()
    except OSError:
        return ()
    changed = status.st_ctime_ns if below else status.st_mtime_ns
    return status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size, changed, *names
