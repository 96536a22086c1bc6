"""The root directory of a job that runs on the machine's own system: its trees, read-only, and private places.

What a job writes goes to directories of its own, `files/tmp`, `files/root` and so on, and to its Python's environment,
which lies beside those of other jobs. A job that begins with snapshots has all of that in one directory, by the same
names: the top of an overlay over the snapshots (`files/upper`), or a copy of the last of them where it may mount no
overlay (`files/whole`). In it are also

    pythons/<attempt>     the environment of the attempt that was the first, and links to it by the names of those after
    first                 a link that says which attempt that was
    memory/               what was in the root directory itself; that is in memory, and copied there for each

What is in snapshots is a stranger's: nothing of the machine's may be made or shown where a link in them leads.
"""

import os
import stat
import zlib

from runstead.node import binds, copying, places, rundir, syscalls
from runstead.node.request import Request, View
from runstead.node.roots import parts
from runstead.node.syscalls import MNT_DETACH, MS_BIND, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

_OWN_FOLDERS = (("/tmp", 0o1777), ("/var/tmp", 0o1777), (places.HOME, 0o700), (places.WORK, 0o755))
FOLDERS = tuple(path[1:].replace("/", "-") for path, _mode in _OWN_FOLDERS)
UPPER, WHOLE = "upper", "whole"
PYTHONS, FIRST, MEMORY = "pythons", "first", "memory"
_VENVS = "venvs"  # in what the jobs of an owner share
_STAGE = "/.stage"


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
    pythons = _show_folders(request, root, view, folder, owner)
    for source, target in view.binds:
        if view.snapshots:
            _clear(root, target)
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
    if pythons is not None:
        _show_pythons(pythons, root + places.SHARED, owner)
    binds.show(root, request.mounts, owner)
    if view.snapshots:
        _fill(root, f"{view.snapshots[-1]}/{MEMORY}")
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


def _show_folders(request: Request, root: str, view: View, folder: str, owner: int | None) -> int | None:
    """Show the job's directories, made if it was not given any; return that of its Pythons if it has one of its own."""
    if not os.path.isdir(folder):
        make_folders(folder, view, owner)
    top = _lay(root + _STAGE, view, folder, owner) if view.snapshots else folder
    for path, _mode in _OWN_FOLDERS:
        if not os.path.isdir(root + path):
            if path == "/var/tmp":
                continue
            os.mkdir(root + path)
        syscalls.mount(_own_folder(top, path), root + path, None, MS_BIND)
        syscalls.restrict(root + path, MS_NOSUID | MS_NODEV, recursive=False)
    os.mkdir(root + "/home")
    os.mkdir(root + "/run")
    if owner is not None:
        os.chown(root + "/run", owner, owner)
    if not view.snapshots:
        return None
    _name_python(top, rundir.attempt_name(request.job_id, request.attempt), owner)
    pythons = syscalls.copy_tree(f"{top}/{PYTHONS}", recursive=False)
    syscalls.set_attributes(pythons, MS_NOSUID | MS_NODEV, recursive=False)
    _unlay(root + _STAGE)
    return pythons


def _lay(stage: str, view: View, folder: str, owner: int | None) -> str:
    """Return a directory with what is in the snapshots, to be written to."""
    if owner is None:  # our own user may mount overlays only where the kernel lets him, and not all there is in them
        whole = f"{folder}/{WHOLE}"
        last = os.open(view.snapshots[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.mkdir(whole, 0o755)
        copying.copy_missing(last, whole, MEMORY)
        os.close(last)
        return whole
    for name in ("", "/own", "/layers"):
        os.mkdir(stage + name)
    for name in (UPPER, "work"):
        os.mkdir(f"{folder}/{name}", 0o755)
    here = os.getcwd()
    os.chdir(f"{stage}/layers")  # short names: all of them must fit into one page
    names: list[str] = []
    for number, snapshot in enumerate(reversed(view.snapshots)):
        name = f"{number:x}"
        os.mkdir(name)
        tree = syscalls.copy_tree(snapshot, recursive=False)
        syscalls.set_attributes(tree, MS_RDONLY | MS_NODEV, recursive=False)
        syscalls.attach(tree, name)
        os.close(tree)
        names.append(name)
    # As with images: nothing is worth keeping, so nothing is written out in order (volatile).
    options = f"lowerdir={':'.join(names)},upperdir={folder}/{UPPER},workdir={folder}/work,volatile"
    syscalls.mount("overlay", f"{stage}/own", "overlay", MS_NODEV, options)
    os.chdir(here)
    return f"{stage}/own"


def _unlay(stage: str) -> None:
    """Leave nothing of the stage; what is shown of it elsewhere stays."""
    if not os.path.isdir(stage):
        return
    syscalls.unmount(f"{stage}/own", MNT_DETACH)
    for name in os.listdir(f"{stage}/layers"):
        syscalls.unmount(f"{stage}/layers/{name}", MNT_DETACH)
        os.rmdir(f"{stage}/layers/{name}")
    for name in ("/own", "/layers", ""):
        os.rmdir(stage + name)


def _name_python(top: str, name: str, owner: int | None) -> None:
    """Let the environment of the first attempt be found as this one's: its programs know it by its own name."""
    first = os.readlink(f"{top}/{FIRST}")
    if rundir.parse_name(first) is None:
        raise ValueError("what the job was to begin with was not made by this executor")
    link = f"{top}/{PYTHONS}/{name}"
    try:
        there = stat.S_ISDIR(os.lstat(f"{top}/{PYTHONS}/{first}").st_mode)
    except FileNotFoundError:
        there = False  # it was deleted, and a new one is made, of this one's own
    if not there or os.path.lexists(link):
        return
    os.symlink(first, link)
    if owner is not None:
        os.chown(link, owner, owner, follow_symlinks=False)


def _show_pythons(pythons: int, shared: str, owner: int | None) -> None:
    """Cover the environments of the owner's other jobs; these may put anything in the way just now."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    above = os.open(shared, flags)
    try:
        os.mkdir(_VENVS, 0o755, dir_fd=above)
        if owner is not None:
            os.chown(_VENVS, owner, owner, dir_fd=above, follow_symlinks=False)
    except FileExistsError:
        pass
    place = os.open(_VENVS, flags, dir_fd=above)
    syscalls.attach_at(pythons, place)
    for fd in (pythons, place, above):
        os.close(fd)


def _clear(root: str, target: str) -> None:
    """Take what is no directory out of the way to a place in the job's directories: a link above all."""
    own = next((path for path, _mode in _OWN_FOLDERS if target.startswith(f"{path}/")), None)
    if own is None:
        return
    path = root + own
    for name in target.removeprefix(own).split("/")[1:]:
        path = f"{path}/{name}"
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            os.unlink(path)
            return


def _fill(root: str, memory: str) -> None:
    """Copy what others had in the root directory where nothing of that name is."""
    if os.path.isdir(memory):
        source = os.open(memory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        copying.copy_missing(source, root)
        os.close(source)


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
