"""The root directory of a job that runs from an image: an overlay of its layers, with a top of the job's own.

The layers are strangers' files: a link in them may point anywhere. So everything of the machine's is opened first and
shown in the new root only once that is the root of this process, where no path leads out of it any more.
"""

import os
import signal
import time

from runstead.node import places, syscalls
from runstead.node.roots import parts
from runstead.node.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runstead.node.request import Container, Request
    from runstead.node.users import User

_LINKER_SECONDS = 20.0
_NOTHING_SPECIAL = MS_NOSUID | MS_NODEV | MS_NOEXEC
SHARED = places.SHARED
_GROUPS = "/sys/fs/cgroup"
HIDDEN = ("/sys/firmware", "/sys/devices/virtual/powercap")


class Tree:
    """Something of the machine's, open, that will be shown in the job's root."""

    __slots__ = ("fd", "is_folder", "target")

    def __init__(self, source: str, target: str, flags: int, *, recursive: bool = True) -> None:
        self.is_folder = os.path.isdir(source)
        self.target = target
        self.fd = syscalls.copy_tree(source, recursive=recursive)
        if flags:
            syscalls.set_attributes(self.fd, flags, recursive=recursive)


class Foundation:
    """What of the machine's a container is built on."""

    __slots__ = ("disk", "folder", "groups", "owner", "shared", "stage", "users")

    def __init__(
        self,
        folder: str,
        stage: str,
        shared: str,
        groups: list[list[str]],
        owner: int | None,
        users: int | None,
        disk: int | None,
    ) -> None:
        self.folder = folder  # where the job's own files go
        self.stage = stage  # any empty directory
        self.shared = shared  # what the jobs of one owner share
        self.groups = groups  # the job's control groups: kind and directory
        self.owner = owner  # the machine's id of the job's root user; None when ids are not shifted
        self.users = users  # an open user namespace that shifts them
        self.disk = disk  # an open mount to write to; None: `folder` will do


def build(request: "Request", container: "Container", base: Foundation) -> None:
    """Give this thread, whose mount namespace is new, the root of its job, but for `write_files` and /proc."""
    stage, owner = base.stage, base.owner
    lay(container, base)
    parts.devices(stage, [], owner, container.shared_memory_bytes)
    trees = [
        Tree(f"{stage}/dev", "/dev", 0),
        Tree(base.shared, places.SHARED, MS_NOSUID | MS_NODEV, recursive=False),
        *(Tree(source, target, MS_NOSUID | MS_NOEXEC) for source, target in container.devices),
        *(Tree(source, target, MS_NOSUID | MS_NODEV | MS_RDONLY) for source, target in container.binds),
        *(
            Tree(source, target, MS_NOSUID | MS_NODEV | (MS_RDONLY if access == "ro" else 0))
            for source, target, access in request.mounts
        ),
    ]
    groups = open_groups(base.groups)
    os.chdir(f"{stage}/root")
    syscalls.pivot_root_here()
    for tree in trees:
        _attach(tree, owner)
    _system(groups)


def link(container: "Container", owner: int | None) -> None:
    """Make the links that devices ask for, where the image has nothing."""
    for path, target in container.links:
        try:
            _make_folder(os.path.dirname(path), owner, owner)
            os.symlink(target, path)
        except OSError:
            continue


def equip(container: "Container") -> None:
    """Do what devices ask for beside their files; with the job's own rights, behind all that holds it."""
    link(container, None)
    if container.libraries:
        os.makedirs("/etc/ld.so.conf.d", exist_ok=True)
        with open("/etc/ld.so.conf.d/00-devices.conf", "w") as file:
            file.write("".join(f"{path}\n" for path in container.libraries))
        _run_linker()


def _run_linker() -> None:
    """Have the image's own program look at the libraries; without one programs have to know where these are."""
    path = next((path for path in ("/sbin/ldconfig", "/usr/sbin/ldconfig") if os.access(path, os.X_OK)), None)
    if path is None:
        return
    try:
        null = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)
        streams = [null, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
        child = os.posix_spawn(path, [path], {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, file_actions=streams)
    except OSError:
        return
    until = time.monotonic() + _LINKER_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def enter_folder(path: str, user: "User") -> None:
    """Make the working directory if it is missing, and go there; with the job's own rights."""
    if not os.path.isdir(path):
        _make_folder(path, user.uid, user.gid)
    os.chdir(path)


def write_files(request: "Request", container: "Container", owner: int | None) -> None:
    """Write the small files of our own, in the places of whatever the image has there."""
    for target, text in container.files:
        _write(target, request.fill(text), owner)


def lay(container: "Container", base: Foundation) -> None:
    """Mount the layers, and a directory for what the job writes, at `root` on the stage."""
    syscalls.mount(None, "/", None, MS_REC | MS_PRIVATE)
    syscalls.mount("tmpfs", base.stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m")
    folder, stage, owner = base.folder, base.stage, base.owner
    users = None if owner is None else base.users
    top = folder
    os.mkdir(folder, 0o755)
    if base.disk is not None:
        top = f"{stage}/disk"
        os.mkdir(top)
        syscalls.attach(base.disk, top)
        os.close(base.disk)
    for name in ("upper", "work"):
        os.mkdir(f"{top}/{name}", 0o755)
    if owner is not None:
        os.chown(f"{top}/upper", owner, owner)
    os.mkdir(f"{stage}/layers")
    os.chdir(f"{stage}/layers")  # short names: all of them must fit into one page
    names: list[str] = []
    lower = [(layer, users) for layer in reversed(container.layers)]
    # What attempts with the same range of ids wrote over the same layers.
    lower[:0] = [(snapshot, None) for snapshot in reversed(container.snapshots)]
    for number, (layer, shift) in enumerate(lower):
        name = f"{number:x}"
        os.mkdir(name)
        tree = syscalls.copy_tree(layer, recursive=False)
        syscalls.set_attributes(tree, MS_RDONLY | MS_NODEV, recursive=False, ids_of=shift)
        syscalls.attach(tree, name)
        os.close(tree)
        names.append(name)
    os.mkdir(f"{stage}/root")
    # Nothing is worth keeping, so nothing is written out in order (volatile).
    options = f"lowerdir={':'.join(names)},upperdir={top}/upper,workdir={top}/work,volatile"
    syscalls.mount("overlay", f"{stage}/root", "overlay", MS_NODEV, options)


def _attach(tree: Tree, owner: int | None) -> None:
    if not os.path.exists(tree.target):
        parent = tree.target if tree.is_folder else os.path.dirname(tree.target)
        _make_folder(parent, owner, owner)
        if not tree.is_folder:
            os.close(os.open(tree.target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    elif os.path.isdir(tree.target) != tree.is_folder:
        kind = "directory" if tree.is_folder else "file"
        raise NotADirectoryError(20, f"the image has something that is no {kind} in the way", tree.target)
    syscalls.attach(tree.fd, tree.target)
    os.close(tree.fd)


def _make_folder(path: str, uid: int | None, gid: int | None) -> None:
    """Make a directory and all that is missing above it, theirs."""
    missing: list[str] = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for one in reversed(missing):
        os.mkdir(one, 0o755)
        if uid is not None and gid is not None:
            os.chown(one, uid, gid)


def _write(path: str, text: str, owner: int | None) -> None:
    """Write a small file, in the place of whatever the image has there."""
    _make_folder(os.path.dirname(path), owner, owner)
    if os.path.lexists(path):
        os.unlink(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, text.encode())
        if owner is not None:
            os.fchown(fd, owner, owner)
    finally:
        os.close(fd)


def _group_place(kind: str) -> str:
    return _GROUPS if kind == "v2" else f"{_GROUPS}/{kind}"


def _system(groups: list[Tree]) -> None:
    """Mount a /sys that shows this network namespace and these control groups, without what would tell too much."""
    parts.folder("/sys")
    syscalls.mount("sysfs", "/sys", "sysfs", MS_RDONLY | _NOTHING_SPECIAL)
    for path in HIDDEN:
        if os.path.isdir(path):
            parts.hide(path)
    show_groups("", groups)


def open_groups(groups: list[list[str]]) -> list[Tree]:
    """Open the job's control groups, to be shown read-only."""
    return [Tree(path, _group_place(kind), _NOTHING_SPECIAL | MS_RDONLY) for kind, path in groups]


def show_groups(root: str, groups: list[Tree]) -> None:
    """Show control groups where a /sys is mounted below `root`."""
    if any(tree.target != _GROUPS for tree in groups):  # version 1: a directory for each kind
        syscalls.mount("tmpfs", root + _GROUPS, "tmpfs", _NOTHING_SPECIAL, "mode=755,size=64k")
        for tree in groups:
            os.mkdir(root + tree.target)
    for tree in groups:
        syscalls.attach(tree.fd, root + tree.target)
        os.close(tree.fd)
