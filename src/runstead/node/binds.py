"""Shows folders of the machine inside of a job's root: its volumes.

The root is still being built and the job does not run yet, so nobody moves what is looked at. A mount path may lead
over links of the machine's own trees; they are followed as the job will see them, never out of its root.
"""

import errno
import os
import stat

from runstead.node import syscalls
from runstead.node.syscalls import MS_BIND, MS_NODEV, MS_NOSUID, MS_RDONLY, MS_REC

_MOST_LINKS = 40
_MOST_ENTRIES = 4000


def show(root: str, mounts: list[list[str]], owner: int | None) -> None:
    """Mount each [directory of the machine, path in the job, "ro" or "rw"]; missing directories are made."""
    for source, target, access in mounts:
        place = _place(root, target, owner)
        syscalls.mount(source, place, None, MS_BIND | MS_REC)
        flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if access == "ro" else 0)
        syscalls.restrict(place, flags, recursive=True)


def _place(root: str, target: str, owner: int | None) -> str:
    """Return where a path of the job is now; what is missing of it is made."""
    waiting = target.split("/")[::-1]
    path, links = "", 0
    while waiting:
        name = waiting.pop()
        if name in ("", "."):
            continue
        if name == "..":
            path = path.rpartition("/")[0]
            continue
        here = f"{path}/{name}"
        try:
            mode = os.lstat(root + here).st_mode
        except FileNotFoundError:
            _make(root + path, name, owner)
            mode = stat.S_IFDIR
        if stat.S_ISLNK(mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, "its mount path goes round in links", target)
            text = os.readlink(root + here)
            waiting.extend(text.split("/")[::-1])
            path = "" if text.startswith("/") else path
        elif stat.S_ISDIR(mode):
            path = here
        else:
            raise NotADirectoryError(errno.ENOTDIR, "a file of the machine is in the way of a volume", here)
    return root + path


def _make(parent: str, name: str, owner: int | None) -> None:
    path = os.path.join(parent, name)
    try:
        os.mkdir(path, 0o755)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        _cover(parent)
        os.mkdir(path, 0o755)
        return
    if owner is not None:
        os.chown(path, owner, owner)


def _cover(path: str) -> None:
    """Lay a directory with the same entries over one that cannot have new ones: a tree of the machine."""
    below = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    names = os.listdir(below)
    if len(names) > _MOST_ENTRIES:
        raise OSError(errno.E2BIG, "a volume cannot be mounted in a directory with so many entries", path)
    syscalls.mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=4m")
    for name in names:
        source, target = f"/proc/self/fd/{below}/{name}", os.path.join(path, name)
        mode = os.lstat(source).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)
            continue
        if stat.S_ISDIR(mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        syscalls.mount(source, target, None, MS_BIND | MS_REC)
        syscalls.restrict(target, MS_RDONLY | MS_NOSUID | MS_NODEV, recursive=True)
    os.close(below)
