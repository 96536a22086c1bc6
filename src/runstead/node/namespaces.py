"""Builds what a job sees: its root directory, devices, /proc, names and ids.

Runs in the job's first process, which is process 1 of a new process namespace already. There are two ways to
the same place. A privileged server ("root") builds the mounts with its own rights and enters the user
namespace last: the job owns neither its mounts nor its network and cannot change them. Any other server
("user") enters a user namespace first, in which it is root for nothing but its own user id.
"""

import os
import socket
import sys

from runstead.node import binds, places, syscalls
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


def build(request: Request, folder: str, mount_point: str, shared: str, empty: str, owner: int | None) -> None:
    """Give this process, whose mount namespace is new, the root directory of its job.

    `folder` is where the job's own files go, `mount_point` any empty directory. `owner` is the machine's id of
    the job's root user; None when that is our own.
    """
    view, root = request.view, mount_point
    syscalls.mount(None, "/", None, MS_REC | MS_PRIVATE)
    limit = request.memory_bytes // 2 or 1 << 30
    user = "" if owner is None else f",uid={owner},gid={owner}"
    syscalls.mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=755,size={limit}{user}")
    for path, target in view.links:
        os.symlink(target, root + path)
    for tree in view.trees:
        os.mkdir(root + tree)
        _show(tree, root + tree)
    for path in view.hidden:
        _show(empty, root + path)
    _own_folders(root, folder, owner)
    for source, target in view.binds:
        _bind(source, root + target)
    names = {"@hostname@": request.job_id, "@address@": request.address or "127.0.1.1"}
    for target, text in view.files:
        for name, value in names.items():
            text = text.replace(name, value)
        _place(root, target, text)
    _devices(root, request.devices, owner, limit)
    _processes(root + "/proc", empty)
    for path in view.sys:
        _folder(root + path)
        _show(path, root + path)
    _folder(root + places.SHARED)
    syscalls.mount(shared, root + places.SHARED, None, MS_BIND)
    syscalls.restrict(root + places.SHARED, MS_NOSUID | MS_NODEV, recursive=False)
    binds.show(root, request.mounts, owner)
    os.chdir(root)
    syscalls.pivot_root_here()


def name_host(name: str) -> None:
    """Set the host name of this namespace."""
    socket.sethostname(name)


def raise_loopback() -> None:
    """Bring up the loopback of a new network namespace."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = b"lo".ljust(16, b"\0") + (1).to_bytes(2, sys.byteorder).ljust(24, b"\0")
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS, IFF_UP


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


def _own_folders(root: str, folder: str, owner: int | None) -> None:
    """Make the job's directories: on disk, not in memory as the root itself."""
    os.mkdir(folder, 0o755)
    for path, mode in (("/tmp", 0o1777), ("/var/tmp", 0o1777), (places.HOME, 0o700), (places.WORK, 0o755)):
        own = os.path.join(folder, path[1:].replace("/", "-"))
        os.mkdir(own)
        os.chmod(own, mode)
        if owner is not None:
            os.chown(own, owner, owner)
        if not os.path.isdir(root + path):
            if path == "/var/tmp":
                continue
            os.mkdir(root + path)
        syscalls.mount(own, root + path, None, MS_BIND)
        syscalls.restrict(root + path, MS_NOSUID | MS_NODEV, recursive=False)
    os.mkdir(root + "/home")
    os.mkdir(root + "/run")
    if owner is not None:
        os.chown(root + "/run", owner, owner)


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
        _show(path, root + target)
        os.unlink(path)


def _devices(root: str, more: list[str], owner: int | None, limit: int) -> None:
    dev = root + "/dev"
    _folder(dev)
    syscalls.mount("tmpfs", dev, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=1m")
    for path in [f"/dev/{name}" for name in _DEVICES] + more:
        _file(root + path)
        syscalls.mount(path, root + path, None, MS_BIND)
    for name, target in _DEVICE_LINKS:
        os.symlink(target, f"{dev}/{name}")
    os.mkdir(dev + "/shm")
    syscalls.mount("tmpfs", dev + "/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={limit}")
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
