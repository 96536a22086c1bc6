"""Builds what a job sees: its root directory, devices, /proc, names and ids.

Runs in the job's first process, which is process 1 of a new process namespace already. There are two ways to
the same place. A privileged server ("root") builds the mounts with its own rights and enters the user
namespace last: the job owns neither its mounts nor its network and cannot change them. Any other server
("user") enters a user namespace first, in which it is root for nothing but its own user id.
"""

import os
import socket

from runstead.node import places, syscalls
from runstead.node.request import Request
from runstead.node.syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
# What of /proc tells about, or acts on, the machine. Most is closed to the job's user id anyway.
_PROC_HIDDEN = ("kcore", "keys", "key-users", "timer_list", "sched_debug", "latency_stats", "sysrq-trigger")
_PROC_EMPTY = ("acpi", "scsi")
_PROC_READ_ONLY = ("sys", "irq", "bus", "fs")

# Capabilities of a job inside its user namespace: what container engines leave, by number.
_KEPT = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})
_LAST_CAPABILITY = 40


def build(request: Request, folder: str, shared: str, empty: str, owner: int | None) -> None:
    """Make `folder`/root the root directory of this process, whose mount namespace is new.

    `owner` is the machine's id of the job's root user; None when that is our own.
    """
    view = request.view
    root = os.path.join(folder, "root")
    syscalls.mount(None, "/", None, MS_REC | MS_PRIVATE)
    syscalls.mount(root, root, None, MS_BIND)
    syscalls.restrict(root, MS_NOSUID | MS_NODEV, recursive=False)
    _own_folders(root, owner)
    for path, target in view.links:
        os.symlink(target, root + path)
    for tree in view.trees:
        _folder(root + tree)
        _show(tree, root + tree)
    for path in view.hidden:
        _show(empty, root + path)
    if os.path.isdir(root + "/var/tmp"):
        syscalls.mount(os.path.join(folder, "vartmp"), root + "/var/tmp", None, MS_BIND)
    for source, target in view.binds:
        _bind(source, root + target)
    for number, (target, text) in enumerate(view.files):
        text = text.replace("@hostname@", request.job_id).replace("@address@", request.address or "127.0.1.1")
        _place(root, target, text, os.path.join(folder, f"file-{number}"))
    _devices(root, request.devices, owner, request.memory_bytes)
    _processes(root + "/proc", empty)
    for path in view.sys:
        _folder(root + path)
        _show(path, root + path)
    _folder(root + places.SHARED)
    syscalls.mount(shared, root + places.SHARED, None, MS_BIND)
    syscalls.restrict(root + places.SHARED, MS_NOSUID | MS_NODEV, recursive=False)
    os.chdir(root)
    syscalls.pivot_root_here()


def name_host(name: str) -> None:
    """Set the host name of this namespace."""
    socket.sethostname(name)


def become_root_inside() -> None:
    """Take the ids of the job's root user, which the user namespace maps to an unprivileged one outside."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def drop_capabilities() -> None:
    """Give up, for all that is executed from here on, the capabilities that a job has no use for."""
    for number in range(_LAST_CAPABILITY + 1):
        if number not in _KEPT:
            try:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
            except OSError:  # unknown to this kernel
                continue


def _own_folders(root: str, owner: int | None) -> None:
    folders = (("", 0o755), ("/tmp", 0o1777), ("/run", 0o755), (places.HOME, 0o700), (places.WORK, 0o755))
    for path, mode in folders:
        if path:
            os.mkdir(root + path)
        os.chmod(root + path, mode)
        if owner is not None:
            os.chown(root + path, owner, owner)


def _folder(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    except FileNotFoundError:
        os.makedirs(path, 0o755, exist_ok=True)


def _file(path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))


def _show(source: str, target: str) -> None:
    """Show a directory read-only with all below it."""
    syscalls.mount(source, target, None, MS_BIND | MS_REC)
    syscalls.restrict(target, MS_RDONLY | MS_NOSUID | MS_NODEV, recursive=True)


def _bind(source: str, target: str) -> None:
    """Show one file or directory read-only, making its place where the tree around it does not have one."""
    if not os.path.lexists(target):
        (_folder if os.path.isdir(source) else _file)(target)
    _show(source, target)


def _place(root: str, target: str, text: str, spare: str) -> None:
    """Put a small file in its place: over one that the tree around shows read-only, or as a new one."""
    if target.startswith("/etc/"):
        with open(spare, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(spare, 0o644)
        syscalls.mount(spare, root + target, None, MS_BIND)
        return
    os.makedirs(os.path.dirname(root + target), 0o755, exist_ok=True)
    with open(root + target, "w", encoding="utf-8") as file:
        file.write(text)


def _devices(root: str, more: list[str], owner: int | None, memory_bytes: int) -> None:
    dev = root + "/dev"
    _folder(dev)
    syscalls.mount("tmpfs", dev, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=1m")
    for path in [f"/dev/{name}" for name in _DEVICES] + more:
        _file(root + path)
        syscalls.mount(path, root + path, None, MS_BIND)
    for name, target in _DEVICE_LINKS:
        os.symlink(target, f"{dev}/{name}")
    os.mkdir(dev + "/shm")
    limit = f",size={memory_bytes // 2}" if memory_bytes else ""
    syscalls.mount("tmpfs", dev + "/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777" + limit)
    os.mkdir(dev + "/pts")
    options = "newinstance,ptmxmode=0666,mode=0620"
    if owner is not None:
        options += f",gid={owner + 5}"
    syscalls.mount("devpts", dev + "/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)


def _processes(proc: str, empty: str) -> None:
    _folder(proc)
    syscalls.mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in _PROC_READ_ONLY:
        path = f"{proc}/{name}"
        if os.path.isdir(path):
            syscalls.mount(path, path, None, MS_BIND)
            syscalls.restrict(path, MS_RDONLY, recursive=False)
    for name in _PROC_HIDDEN:
        if os.path.exists(f"{proc}/{name}"):
            syscalls.mount("/dev/null", f"{proc}/{name}", None, MS_BIND)
    for name in _PROC_EMPTY:
        if os.path.exists(f"{proc}/{name}"):
            _show(empty, f"{proc}/{name}")
