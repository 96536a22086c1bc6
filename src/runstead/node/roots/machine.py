"""The root directory of a job that runs on the machine's own system: its trees, read-only, and private places."""

import os
import zlib

from runstead.node import binds, places, syscalls
from runstead.node.request import Request, View
from runstead.node.roots import parts
from runstead.node.syscalls import MS_BIND, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_REC

_OWN_FOLDERS = (("/tmp", 0o1777), ("/var/tmp", 0o1777), (places.HOME, 0o700), (places.WORK, 0o755))


def build(
    request: Request, view: View, folder: str, mount_point: str, shared: str, empty: str, owner: int | None
) -> None:
    """Give this process, whose mount namespace is new, the root directory of its job.

    `folder` is where the job's own files go, `mount_point` any empty directory. `owner` is the machine's id of
    the job's root user; None when that is our own.
    """
    root = mount_point
    syscalls.mount(None, "/", None, MS_REC | MS_PRIVATE)
    limit = request.memory_bytes // 2 or 1 << 30
    user = "" if owner is None else f",uid={owner},gid={owner}"
    syscalls.mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=755,size={limit}{user}")
    for path, target in view.links:
        os.symlink(target, root + path)
    for tree in view.trees:
        os.mkdir(root + tree)
        parts.show(tree, root + tree)
    for path in view.hidden:
        parts.show(empty, root + path)
    _show_folders(root, view, folder, owner)
    for source, target in view.binds:
        _bind(source, root + target)
    for target, text in view.files:
        _place(root, target, request.fill(text))
    parts.devices(root, request.devices, owner, limit)
    parts.processes(root + "/proc")
    for path in view.sys:
        parts.folder(root + path)
        parts.show(path, root + path)
    parts.folder(root + places.SHARED)
    syscalls.mount(shared, root + places.SHARED, None, MS_BIND)
    syscalls.restrict(root + places.SHARED, MS_NOSUID | MS_NODEV, recursive=False)
    binds.show(root, request.mounts, owner)
    os.chdir(root)
    syscalls.pivot_root_here()


def folders_kind(view: View) -> str:
    """Return a short name of what is the same in all that `make_folders` makes of this."""
    return f"{zlib.crc32(repr([path for _, path in view.binds]).encode()):08x}"


def make_folders(folder: str, view: View, owner: int | None) -> None:
    """Make the job's directories: on disk, not in memory as the root itself."""
    os.mkdir(folder, 0o755)
    for path, mode in _OWN_FOLDERS:
        own = _own_folder(folder, path)
        os.mkdir(own)
        os.chmod(own, mode)
        if owner is not None:
            os.chown(own, owner, owner)
        for source, target in view.binds:  # what is shown in them has its places there
            if target.startswith(f"{path}/"):
                (parts.folder if os.path.isdir(source) else parts.file)(own + target.removeprefix(path))


def _own_folder(folder: str, path: str) -> str:
    return os.path.join(folder, path[1:].replace("/", "-"))


def _show_folders(root: str, view: View, folder: str, owner: int | None) -> None:
    """Show the job's directories, made if it was not given any."""
    if not os.path.isdir(folder):
        make_folders(folder, view, owner)
    for path, _mode in _OWN_FOLDERS:
        if not os.path.isdir(root + path):
            if path == "/var/tmp":
                continue
            os.mkdir(root + path)
        syscalls.mount(_own_folder(folder, path), root + path, None, MS_BIND)
        syscalls.restrict(root + path, MS_NOSUID | MS_NODEV, recursive=False)
    os.mkdir(root + "/home")
    os.mkdir(root + "/run")
    if owner is not None:
        os.chown(root + "/run", owner, owner)


def _bind(source: str, target: str) -> None:
    """Show one file or directory read-only, making its place where the tree around it does not have one."""
    if not os.path.lexists(target):
        (parts.folder if os.path.isdir(source) else parts.file)(target)
    parts.show(source, target)


def _place(root: str, target: str, text: str) -> None:
    """Put a small file in its place: over one that the tree around shows read-only, or as a new one."""
    path = root + target
    if target.startswith("/etc/"):
        path = f"{root}/run/.{target[5:].replace('/', '-')}"
    else:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    if target.startswith("/etc/"):
        parts.show(path, root + target)
        os.unlink(path)
