"""Files of an attempt, asked for from outside: what is done is done by a process inside, so links cannot lead out.

An open file is handed to the server, which reads and writes it by itself. It is always a regular one, and none of
/proc: what those do depends on who holds them open.
"""

import errno
import heapq
import os
import stat

from runstead.node import removal
from runstead.node.inside.refusal import CONFLICT, INVALID, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runstead.node.inside.ground import Ground

_KINDS = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "dir"), (stat.S_ISLNK, "symlink"))


def serve(op: str, message: "dict[str, Any]", ground: "Ground") -> "tuple[dict[str, Any], list[int]]":
    """Do one thing and return the answer with open files. Raises Refusal, OSError."""
    asked = str(message.get("path", ""))
    if "\0" in asked:
        raise Refusal(INVALID, "a path has no zero bytes")
    path = _path_from_home(asked, ground.folder, op) if ground.rooted else os.path.join(ground.folder, asked)
    hidden = len(ground.folder) if ground.rooted else 0  # of paths that are told of
    with _As(ground):
        if op == "open":
            return {}, [_open(path, message)]
        if op == "stat":
            return _describe(path, hidden), []
        if op == "list":
            return _list(path, message.get("after"), int(message["limit"]), hidden), []
        if op == "make":
            _make_folder(path)
            return {}, []
        if op == "delete":
            _delete(path, recursive=bool(message.get("recursive")))
            return {}, []
    raise Refusal(INVALID, f"there is no such request: {op}")


def _path_from_home(asked: str, home: str, op: str) -> str:
    """Return where a path leads that begins at a home and cannot leave it. Raises Refusal for links in it.

    Who puts one in the way at this moment sends us to what he may reach himself.
    """
    names: list[str] = []
    for name in asked.split("/"):
        if name == "..":
            names = names[:-1]
        elif name not in ("", "."):
            names.append(name)
    path = home
    for number, name in enumerate(names, 1):
        path = f"{path}/{name}"
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except OSError:
            continue
        if is_link and (number < len(names) or op not in ("stat", "delete")):
            raise Refusal(INVALID, f"a link is in the way: /{'/'.join(names[:number])}")
    if op == "delete" and not names:
        raise Refusal(INVALID, "the home itself cannot be deleted")
    return "/".join([home, *names])


class _As:
    """Files belong to the user that programs are run as."""

    def __init__(self, ground: "Ground") -> None:
        self._user = ground.user

    def __enter__(self) -> None:
        if self._user is not None:
            os.setgroups(self._user.groups)
            os.setegid(self._user.gid)
            os.seteuid(self._user.uid)

    def __exit__(self, *_: object) -> None:
        if self._user is not None:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([])


def _open(path: str, message: "dict[str, Any]") -> int:
    write = bool(message.get("write"))
    mode = message.get("mode")
    if write and message.get("parents"):
        _make_folder(os.path.dirname(path))
    try:
        _check(os.stat(path), path)  # before: to open a pipe or a device is an event for whoever is at its other end
    except FileNotFoundError:
        if not write:
            raise
    flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    flags |= os.O_WRONLY | os.O_CREAT if write else os.O_RDONLY
    if write and message.get("replace"):
        flags |= os.O_TRUNC
    fd = os.open(path, flags, 0o666)
    try:
        _check(os.fstat(fd), path)
        if write and mode is not None:
            os.fchmod(fd, int(mode) & 0o7777)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(found: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise Refusal(CONFLICT, f"this is a folder: {path}")
    if not stat.S_ISREG(found.st_mode):
        raise Refusal(INVALID, f"this is no regular file: {path}")
    if found.st_dev == _proc_device():
        raise Refusal(INVALID, f"files of /proc are only read by programs: {path}")


def _proc_device() -> int | None:
    try:
        return os.stat("/proc/self/").st_dev
    except OSError:
        return None


def _describe(path: str, hidden: int) -> "dict[str, Any]":
    found = os.lstat(path)
    kind = next((name for test, name in _KINDS if test(found.st_mode)), "other")
    shown = _tidy(path)[hidden:] or "/"
    return {
        "name": shown.rpartition("/")[2],
        "path": shown,
        "kind": kind,
        "size": found.st_size,
        "modified": found.st_mtime,
        "mode": stat.S_IMODE(found.st_mode),
    }


def _tidy(path: str) -> str:
    """Return an absolute path without what says nothing; ".." stays, it may follow a link."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _list(path: str, after: str | None, limit: int, hidden: int) -> "dict[str, Any]":
    """Return a page of entries, and the name to go on after: none when there are no more."""
    try:
        with os.scandir(path) as scan:
            names = heapq.nsmallest(limit, (entry.name for entry in scan if after is None or entry.name > after))
    except NotADirectoryError as error:
        raise Refusal(INVALID, f"this is no folder: {path}") from error
    found: list[dict[str, Any]] = []
    for name in names:
        try:
            found.append(_describe(os.path.join(path, name), hidden))
        except FileNotFoundError:  # deleted meanwhile
            continue
    return {"entries": found, "last": names[-1] if len(names) == limit else None}


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, 0o777, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Refusal(INVALID, f"something that is no folder is in the way: {path}") from error
    except FileNotFoundError as error:
        raise Refusal(INVALID, f"a link that leads nowhere is in the way: {path}") from error


def _delete(path: str, *, recursive: bool) -> None:
    found = os.lstat(path)
    parent, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise Refusal(INVALID, f"this cannot be deleted: {path}")
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(path.rstrip("/"))
    elif recursive:
        removal.delete_tree(os.path.join(os.path.realpath(parent or "/"), name))
    else:
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise Refusal(INVALID, f"the folder is not empty: {path}") from error
            raise
