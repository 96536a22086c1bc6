"""Users as a root directory knows them: /etc/passwd and /etc/group, read as any stranger's files."""

import errno
import os
import stat

_MOST_BYTES = 1 << 20
_HIGHEST = 65535


class User:
    """Who a command runs as."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups  # beside `gid`
        self.home = home


def find(text: str) -> User:
    """Return the user that `name`, `uid`, `name:group` ... means in our root directory; empty means root.

    A number need not be listed. Raises OSError that says what is missing.
    """
    name, _, group = text.partition(":")
    rows = _rows("/etc/passwd", 7)
    row = _find(rows, name or "0", 2)
    if row is None and not (name.isdecimal() or name == ""):
        raise OSError(errno.EINVAL, "the image has no such user in /etc/passwd", name)
    uid = _number(row[2] if row else name or "0")
    gid = _number(row[3]) if row else 0
    home = row[5] if row and row[5].startswith("/") else "/"
    groups = _rows("/etc/group", 4)
    if group:
        found = _find(groups, group, 2)
        if found is None and not group.isdecimal():
            raise OSError(errno.EINVAL, "the image has no such group in /etc/group", group)
        return User(uid, _number(found[2] if found else group), [], home)
    login = row[0] if row else None
    more = {_number(one[2]) for one in groups if login and login in one[3].split(",")} - {gid}
    return User(uid, gid, sorted(more), home)


def _find(rows: list[list[str]], name: str, number: int) -> list[str] | None:
    named = [row for row in rows if row[0] == name]
    return next(iter(named or [row for row in rows if row[number] == name]), None)


def _number(text: str) -> int:
    number = int(text) if text.isdecimal() and text.isascii() else -1
    if not 0 <= number <= _HIGHEST:
        raise OSError(errno.EINVAL, f"ids of users and groups go from 0 to {_HIGHEST} here", text)
    return number


def _rows(path: str, width: int) -> list[list[str]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        text = os.read(fd, _MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    finally:
        os.close(fd)
    rows = [line.split(":") for line in text.splitlines() if not line.startswith("#")]
    return [row for row in rows if len(row) == width]
