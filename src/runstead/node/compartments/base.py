"""The place inside of an attempt where the homes of its compartments are."""

import os

from runstead.node import rundir, syscalls
from runstead.node.compartments.aside import in_child
from runstead.node.compartments.attempt import BASE, FOLDER, Attempt
from runstead.node.syscalls import MS_NODEV, MS_NOSUID


def prepare_base(attempt: Attempt) -> None:
    """Make the place for the homes, the first time."""
    mark = os.path.join(attempt.path, FOLDER, "base")
    if os.path.exists(mark):
        return
    os.makedirs(os.path.dirname(mark), 0o700, exist_ok=True)
    attempt.group.divide()
    tree = -1
    if attempt.request.container is None:  # whose root is in memory: homes are not to be
        folder = os.path.join(attempt.path, rundir.FILES, "sbx")
        os.makedirs(folder, 0o755, exist_ok=True)
        tree = syscalls.copy_tree(folder, recursive=False)
        syscalls.set_attributes(tree, MS_NOSUID | MS_NODEV, recursive=False)
    mount = attempt.namespace("mnt")
    in_child(lambda: _make_base(mount, tree))
    with open(mark, "w"):
        pass


def _make_base(mount: int, tree: int) -> None:
    syscalls.enter(mount, syscalls.CLONE_NEWNS)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    base = folder_in(root, BASE[1:], 0o755)
    if tree >= 0:
        syscalls.attach_at(tree, base)
        base = folder_in(root, BASE[1:], 0o755)
    for name in ("homes", "tmp"):
        folder_in(base, name, 0o711)


def folder_in(parent: int, name: str, mode: int) -> int:
    """Open a directory, made if it is missing; never through a link."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        pass
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
