"""Where things of a job are: under the server's data directory, and as the job sees them.

An owner ("HF namespace": a user or an organisation) has a private range of 65,536 user ids and one directory
that all its jobs share. Caches and virtual environments lie in it together, because hard links, by which uv
installs, do not cross mounts.
"""

import fcntl
import os
import re
import zlib

# Inside of a job.
WORK = "/workspace"
HOME = "/root"
SHARED = "/runstead/env"
PROGRAMS = "/runstead/bin"
PIP = "/runstead/pip"

IDS = 65536
# Above the ranges that distributions hand out (/etc/subuid, systemd-nspawn, DynamicUser), below systemd's
# own foreign range.
_FIRST_RANGE = 0x70000000 // IDS
_RANGES = 0x7FFE0000 // IDS - _FIRST_RANGE

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def owner_path(data_dir: str, owner: str) -> str:
    """Return the directory of an owner. Raises ValueError for a name that must not become a path."""
    if _OWNER.fullmatch(owner) is None:
        raise ValueError(f"a namespace has letters, digits, '.', '_' and '-' and starts with neither: {owner!r}")
    return os.path.join(data_dir, "node", "namespaces", owner)


def first_id(data_dir: str, owner: str) -> int:
    """Return the first id of the owner's range, choosing one when the owner is new."""
    path = os.path.join(owner_path(data_dir, owner), "ids")
    try:
        with open(path, encoding="utf-8") as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        pass
    parent = os.path.dirname(os.path.dirname(path))
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    lock = os.open(os.path.join(parent, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _choose(parent, path, zlib.crc32(os.fsencode(f"{os.path.realpath(data_dir)}\0{owner}")))
    finally:
        os.close(lock)


def _choose(parent: str, path: str, wish: int) -> int:
    taken: set[int] = set()
    for name in os.listdir(parent):
        try:
            with open(os.path.join(parent, name, "ids"), encoding="utf-8") as file:
                taken.add(int(file.read()))
        except (OSError, ValueError):
            continue
        if os.path.join(parent, name, "ids") == path:  # somebody else was faster
            with open(path, encoding="utf-8") as file:
                return int(file.read())
    for step in range(_RANGES):
        chosen = (_FIRST_RANGE + (wish + step) % _RANGES) * IDS
        if chosen not in taken:
            with open(path + ".tmp", "w", encoding="utf-8") as file:
                file.write(str(chosen))
            os.rename(path + ".tmp", path)
            return chosen
    raise OSError(28, f"all {_RANGES} ranges of user ids are taken; remove namespaces that are not used", parent)


def prepare_shared(data_dir: str, owner: str, user: int | None) -> str:
    """Return the directory that an owner's jobs share, made at first use; `user` is who owns it."""
    path = os.path.join(owner_path(data_dir, owner), "env")
    if not os.path.isdir(path):
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fresh = f"{path}.{os.getpid()}"
        for folder in (fresh, f"{fresh}/venvs", f"{fresh}/cache"):
            os.mkdir(folder, 0o755)
            if user is not None:
                os.chown(folder, user, user)
        try:
            os.rename(fresh, path)
        except OSError:  # another job of this owner was faster
            for folder in (f"{fresh}/venvs", f"{fresh}/cache", fresh):
                os.rmdir(folder)
    return path


def cache_environment(shared: str) -> dict[str, str]:
    """Return what points programs to the caches in `shared`. What a Hub client keeps stays private: it holds tokens."""
    return {
        "UV_CACHE_DIR": f"{shared}/cache/uv",
        "UV_PYTHON_INSTALL_DIR": f"{shared}/cache/uv-python",
        "PIP_CACHE_DIR": f"{shared}/cache/pip",
        "XDG_CACHE_HOME": f"{shared}/cache/xdg",
    }
