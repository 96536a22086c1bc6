"""What every root directory of a job is furnished with: devices, /proc, directories and single files shown in it."""

import os

from runstead.node import syscalls
from runstead.node.syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC

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
_PROC_EMPTY = ("acpi", "asound", "scsi")
_PROC_READ_ONLY = ("sys", "irq", "bus", "fs")


def folder(path: str) -> None:
    """Make a directory and what is missing above it."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    except FileNotFoundError:
        os.makedirs(path, 0o755, exist_ok=True)


def file(path: str) -> None:
    """Make an empty file and what is missing above it; one that is there stays."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))


def show(source: str, target: str) -> None:
    """Show a directory read-only with all below it."""
    syscalls.mount(source, target, None, MS_BIND | MS_REC)
    syscalls.restrict(target, MS_RDONLY | MS_NOSUID | MS_NODEV, recursive=True)


def hide(path: str) -> None:
    """Cover a directory with an empty one."""
    syscalls.mount("tmpfs", path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=4k")


def devices(root: str, more: list[str], owner: int | None, shared_memory_bytes: int) -> None:
    """Mount a /dev below `root`: the harmless devices, those in `more`, terminals and shared memory.

    `owner` is the machine's id of the job's root user; None when that is our own.
    """
    dev = root + "/dev"
    folder(dev)
    syscalls.mount("tmpfs", dev, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=1m")
    for path in [f"/dev/{name}" for name in _DEVICES] + more:
        file(root + path)
        syscalls.mount(path, root + path, None, MS_BIND)
    for name, target in _DEVICE_LINKS:
        os.symlink(target, f"{dev}/{name}")
    os.mkdir(dev + "/shm")
    limit = f"mode=1777,size={shared_memory_bytes}"
    syscalls.mount("tmpfs", dev + "/shm", "tmpfs", MS_NOSUID | MS_NODEV, limit)
    os.mkdir(dev + "/pts")
    options = "newinstance,ptmxmode=0666,mode=0620"
    if owner is not None:
        options += f",gid={owner + 5}"
    syscalls.mount("devpts", dev + "/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)


def open_to_all(proc: str) -> list[str]:
    """Return what of this kernel's /proc tells everybody about the machine."""
    found: list[str] = []
    own = os.stat(proc).st_dev
    for name in _PROC_HIDDEN:
        try:
            known = os.stat(f"{proc}/{name}")
        except OSError:
            continue
        if known.st_mode & 0o004 or known.st_dev != own:  # something else is shown there: what is below cannot be told
            found.append(name)
    return found


def processes_for_nobody(proc: str, hidden: list[str]) -> None:
    """Do as `processes` does, for one who has neither capabilities nor files there of his own, in fewer steps.

    `hidden` is what `open_to_all` says of the machine's.
    """
    syscalls.mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in hidden:
        syscalls.mount("/dev/null", f"{proc}/{name}", None, MS_BIND)


def processes(proc: str) -> None:
    """Mount a /proc that shows this process namespace, without what is the machine's alone."""
    folder(proc)
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
            hide(f"{proc}/{name}")
