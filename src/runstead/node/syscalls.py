"""The Linux system calls that Python 3.11 has no function for, by way of libc.

Importing this works anywhere; calling anything in it needs Linux. Every function raises OSError as the
functions of `os` do.
"""

import ctypes
import mmap
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

LINUX = sys.platform == "linux"

_CLONE_VM = 0x00000100
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_PLACEHOLDER_SECONDS = 30
_STACK_BYTES = 65536

# Since these numbers were unified (Linux 5.0) they are the same on every architecture but alpha.
_NR_MOUNT_SETATTR = 442
_NR_CLOSE_RANGE = 436
_NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT = 430, 431, 432
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_AT_RECURSIVE = 0x8000
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_MOUNT_ATTR_IDMAP = 0x100000
_MOUNT_ATTR = {MS_RDONLY: 0x1, MS_NOSUID: 0x2, MS_NODEV: 0x4, MS_NOEXEC: 0x8}

_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None


def _check(result: int, what: str, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", path)
    return result


def _call() -> ctypes.CDLL:
    if _libc is None:
        raise OSError(38, "this needs Linux")
    return _libc


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    result = _call().mount(_bytes(source), os.fsencode(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(data))
    _check(result, f"mount of {kind or source or 'flags'}", target)


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_call().umount2(os.fsencode(target), flags), "umount", target)


def restrict(target: str, flags: int, *, recursive: bool) -> None:
    """Add MS_RDONLY, MS_NOSUID, ... to a mount and, when asked, to all below it."""
    # struct mount_attr: what to set, what to clear, propagation, user namespace
    wanted = (ctypes.c_uint64 * 4)(sum(value for flag, value in _MOUNT_ATTR.items() if flags & flag), 0, 0, 0)
    result = _call().syscall(
        ctypes.c_long(_NR_MOUNT_SETATTR),
        ctypes.c_int(-100),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )
    if result == 0:
        return
    number = ctypes.get_errno()
    if number != 38:  # ENOSYS: before Linux 5.12
        raise OSError(number, f"mount_setattr: {os.strerror(number)}", target)
    for path, kept in _mounts_at(target, recursive):
        mount(None, path, None, MS_BIND | MS_REMOUNT | kept | flags)


def copy_tree(path: str, *, recursive: bool) -> int:
    """open_tree(2): return a mount of what is at `path`, with all mounts below it if wanted, attached nowhere yet."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    result = _call().syscall(ctypes.c_long(_NR_OPEN_TREE), ctypes.c_int(-100), os.fsencode(path), ctypes.c_uint(flags))
    return _check(result, "open_tree", path)


def set_attributes(tree: int, flags: int, *, recursive: bool, ids_of: int | None = None) -> None:
    """mount_setattr(2) on an open mount: add MS_RDONLY, ..., and show its ids as a user namespace maps them.

    Linux 5.12; what is shown by overlayfs needs 5.19.
    """
    added = sum(value for flag, value in _MOUNT_ATTR.items() if flags & flag)
    mapped = 0 if ids_of is None else _MOUNT_ATTR_IDMAP
    wanted = (ctypes.c_uint64 * 4)(added | mapped, 0, 0, ids_of or 0)
    result = _call().syscall(
        ctypes.c_long(_NR_MOUNT_SETATTR),
        ctypes.c_int(tree),
        b"",
        ctypes.c_uint(_AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)),
        ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )
    _check(result, "mount_setattr")


def new_mount(kind: str, flags: int, *options: str) -> int:
    """fsopen(2) and the like: return a new mount of a file system, attached nowhere yet. Options as of mount(8)."""
    context = _call().syscall(ctypes.c_long(_NR_FSOPEN), os.fsencode(kind), ctypes.c_uint(1))
    _check(context, f"fsopen of {kind}")
    try:
        for option in options:
            key, is_text, value = option.partition("=")
            _configure(context, _SET_STRING if is_text else _SET_FLAG, key, value if is_text else None)
        _configure(context, _CREATE, None, None)
        attributes = sum(value for flag, value in _MOUNT_ATTR.items() if flags & flag)
        wanted = ctypes.c_long(_NR_FSMOUNT), ctypes.c_int(context), ctypes.c_uint(1), ctypes.c_uint(attributes)
        return _check(_call().syscall(*wanted), f"fsmount of {kind}")
    finally:
        os.close(context)


def _configure(context: int, command: int, key: str | None, value: str | None) -> None:
    result = _call().syscall(
        ctypes.c_long(_NR_FSCONFIG),
        ctypes.c_int(context),
        ctypes.c_uint(command),
        _bytes(key),
        _bytes(value),
        ctypes.c_int(0),
    )
    _check(result, f"fsconfig of {key or 'a file system'}")


def attach(tree: int, target: str) -> None:
    """move_mount(2): show an open mount at a path."""
    result = _call().syscall(
        ctypes.c_long(_NR_MOVE_MOUNT),
        ctypes.c_int(tree),
        b"",
        ctypes.c_int(-100),
        os.fsencode(target),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )
    _check(result, "move_mount", target)


def attach_at(tree: int, place: int) -> None:
    """move_mount(2): show an open mount at an open directory."""
    result = _call().syscall(
        ctypes.c_long(_NR_MOVE_MOUNT),
        ctypes.c_int(tree),
        b"",
        ctypes.c_int(place),
        b"",
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH),
    )
    _check(result, "move_mount")


def _mounts_at(target: str, recursive: bool) -> list[tuple[str, int]]:
    """Return the mounts at and below a path with the flags they have, as mountinfo tells them."""
    names = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
    names |= {"noatime": 0x400, "nodiratime": 0x800, "relatime": 0x200000}
    found: list[tuple[str, int]] = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            path = fields[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
            if path == target or (recursive and path.startswith(target + "/")):
                found.append((path, sum(names.get(word, 0) for word in fields[5].split(","))))
    return found


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_call().unshare(flags), "unshare")


class Placeholder:
    """A child in new namespaces that does nothing, by clone(2): `pid`.

    It shares our memory and runs nothing of Python's, which costs a fraction of a fork. Nobody has to end it: it does
    that itself, in half a minute.
    """

    def __init__(self, flags: int) -> None:
        libc = _call()
        self._stack = mmap.mmap(-1, _STACK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._base = ctypes.c_char.from_buffer(self._stack)
        top = ctypes.c_void_p(ctypes.addressof(self._base) + _STACK_BYTES)
        work, argument = ctypes.cast(libc.sleep, ctypes.c_void_p), ctypes.c_void_p(_PLACEHOLDER_SECONDS)
        self.pid = _check(libc.clone(work, top, ctypes.c_int(_CLONE_VM | flags | signal.SIGCHLD), argument), "clone")

    def end(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        del self._base  # its stack may go now
        self._stack.close()


def enter(fd: int, kind: int) -> None:
    """setns(2)."""
    _check(_call().setns(fd, kind), "setns")


def pivot_root_here() -> None:
    """Make the working directory, which is a mount point, the root, and detach the old one."""
    _check(_call().syscall(ctypes.c_long(_PIVOT_ROOT), b".", b"."), "pivot_root")
    unmount(".", MNT_DETACH)
    os.chdir("/")


_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}.get(os.uname().machine, 41)


def prctl(option: int, value: int = 0, more: int = 0) -> int:
    """prctl(2) with one argument or two."""
    zero = ctypes.c_ulong(0)
    return _check(_call().prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(more), zero, zero), "prctl")


def keep_capabilities(numbers: frozenset[int]) -> None:
    """capset(2): leave this process no other capabilities than these, if it has them."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    _check(_call().capget(header, data), "capget")
    for half in (0, 1):
        kept = sum(1 << (number - 32 * half) for number in numbers if number // 32 == half)
        effective, permitted = data[3 * half] & kept, data[3 * half + 1] & kept
        data[3 * half : 3 * half + 3] = [effective, permitted, 0]
    _check(_call().capset(header, data), "capset")


def leave_keyring() -> None:
    """keyctl(2): take a session keyring of our own, empty, in the place of the one that we were started with."""
    number = {"x86_64": 250, "aarch64": 219, "riscv64": 219}.get(os.uname().machine)
    if number is not None:
        _check(_call().syscall(ctypes.c_long(number), ctypes.c_int(1), None), "keyctl")


def close_all_but(kept: "Collection[int]") -> None:
    """Close every file descriptor from 3 on that is not among these."""
    lowest = 3
    for fd in sorted(kept):
        if fd > lowest:
            _close_range(lowest, fd - 1)
        lowest = max(lowest, fd + 1)
    close_from(lowest)


def _close_range(first: int, last: int) -> None:
    if _libc is None or _libc.syscall(
        ctypes.c_long(_NR_CLOSE_RANGE), ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0)
    ):
        os.closerange(first, last + 1)


def close_from(lowest: int) -> None:
    """Close every file descriptor from `lowest` on."""
    if _libc is not None:
        last = ctypes.c_uint(0xFFFFFFFF)
        if _libc.syscall(ctypes.c_long(_NR_CLOSE_RANGE), ctypes.c_uint(lowest), last, ctypes.c_uint(0)) == 0:
            return
    try:
        limit = os.sysconf("SC_OPEN_MAX")
    except (ValueError, OSError):
        limit = 65536
    os.closerange(lowest, limit if 0 < limit < 1 << 20 else 1 << 20)
