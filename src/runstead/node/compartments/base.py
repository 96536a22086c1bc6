"""The place inside of an attempt where the homes of its compartments are."""

import os

from runstead.node import removal, rundir, syscalls
from runstead.node.compartments.attempt import BASE, Attempt
from runstead.node.compartments.crossing import Crossing
from runstead.node.syscalls import MS_NODEV, MS_NOSUID


class Base:
    """That place, made if it is missing, and open: from here on nobody needs to enter the attempt's mounts for it."""

    def __init__(self, attempt: Attempt, crossing: Crossing) -> None:
        mark = os.path.join(attempt.folder, "base")
        made = os.path.exists(mark)
        tree = -1
        if not made:
            os.makedirs(attempt.folder, 0o700, exist_ok=True)
            attempt.group.divide()
            if attempt.request.container is None:  # whose root is in memory: homes are not to be
                tree = _copy_folder(attempt)
        crossing.visit()
        try:
            base = _open_base(tree)
            self._kinds = [_folder_in(base, name, 0o711) for name in ("homes", "tmp")]
            os.close(base)
        finally:
            crossing.come_back()
        if not made:
            with open(mark, "w"):
                pass

    def make(self, name: str, owner: int) -> None:
        """Make the home and the /tmp of a compartment, which lie beside those of the others but are shown to it alone.

        `owner` is the machine's id of its user.
        """
        for kind in self._kinds:
            try:
                os.mkdir(name, 0o700, dir_fd=kind)
            except FileExistsError:
                pass
            os.chown(name, owner, owner, dir_fd=kind, follow_symlinks=False)

    def delete(self, name: str) -> None:
        """Delete them with all that is in them."""
        for kind in self._kinds:
            try:
                os.rmdir(name, dir_fd=kind)  # nearly always is nothing in it, or nothing any more
            except FileNotFoundError:
                continue
            except OSError:
                removal.delete_in(kind, name)


def _copy_folder(attempt: Attempt) -> int:
    """Return a mount of a folder of the attempt's own."""
    folder = os.path.join(attempt.path, rundir.FILES, BASE[1:])
    os.makedirs(folder, 0o755, exist_ok=True)
    tree = syscalls.copy_tree(folder, recursive=False)
    syscalls.set_attributes(tree, MS_NOSUID | MS_NODEV, recursive=False)
    return tree


def _open_base(tree: int) -> int:
    """Open it, in the attempt's mounts; `tree` is mounted there first unless it is -1."""
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        base = _folder_in(root, BASE[1:], 0o755)
        if tree >= 0:
            syscalls.attach_at(tree, base)
            os.close(tree)
            os.close(base)
            base = _folder_in(root, BASE[1:], 0o755)
        return base
    finally:
        os.close(root)


def _folder_in(parent: int, name: str, mode: int) -> int:
    """Open a directory, made if it is missing; never through a link."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        pass
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
