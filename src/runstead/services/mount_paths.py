"""Where in a job a volume may appear: the rules for mount paths."""

from collections.abc import Sequence
from posixpath import normpath

from runstead.model.errors import Invalid

MAX_VOLUMES = 32
_MAX_BYTES = 1024
_MAX_NAME_BYTES = 255

# Not to be covered, nor anything below them: the system that the command itself needs.
_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr")
_OURS = "runstead"
# Not to be covered whole, while everything below may be.
_SHARED_BY_ALL = {
    "/root": "it is the home directory, where programs keep what is nobody else's business",
    "/tmp": "programs put what is not to be kept there",  # noqa: S108
    "/var": "it is a part of the system",
    "/var/tmp": "programs put what is not to be kept there",  # noqa: S108
    "/var/run": "it is a part of the system",
}


def check_mount_paths(paths: Sequence[str]) -> None:
    """Refuse what cannot be a mount path, two that are equal, and one inside of another. Raises Invalid."""
    if len(paths) > MAX_VOLUMES:
        raise Invalid(f"a job has at most {MAX_VOLUMES} volumes, not {len(paths)}", "volumes")
    for index, path in enumerate(paths):
        problem = _problem(path) or _clash(path, paths[:index])
        if problem is not None:
            raise Invalid(f"{problem}: {path[:200]!r}", f"volumes[{index}].mountPath")


def _problem(path: str) -> str | None:
    if not path.startswith("/"):
        return "a mount path is absolute"
    if not path.isprintable():
        return "a mount path has no control characters"
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "a mount path is valid Unicode"
    if size > _MAX_BYTES or any(len(name.encode()) > _MAX_NAME_BYTES for name in path.split("/")):
        return f"a mount path has at most {_MAX_BYTES} bytes, and {_MAX_NAME_BYTES} in each of its names"
    if path == "/":
        return "the root directory is the job's own; name a directory in it"
    if path.startswith("//") or normpath(path) != path:
        return "a mount path is written without '.', '..', doubled slashes and a slash at its end"
    first = path.split("/")[1]
    if first in _SYSTEM:
        return f"/{first} belongs to the system that the command needs; choose another, like /data"
    if first == _OURS:
        return f"/{_OURS} is where programs and caches for jobs are; choose another, like /data"
    if path in _SHARED_BY_ALL:
        return f"{_SHARED_BY_ALL[path]}; name a directory in it, or another like /data"
    return None


def _clash(path: str, others: Sequence[str]) -> str | None:
    for other in others:
        if path == other:
            return "another volume has this mount path"
        if path.startswith(other + "/") or other.startswith(path + "/"):
            return f"one volume cannot be mounted inside of another, here {other[:200]!r}"
    return None
