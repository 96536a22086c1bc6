"""Cases of a file system's system calls, after the list of pjdfstest: a mount does and says what a local disk does.

Each case is done in both, in an empty folder that is the working directory, and what it saw must be the same. What a
bucket cannot hold (links, special files) is left out: docs/storage.md.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_fuse.conftest import Bucket, Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="who may what is tried as several users")

SOMEBODY, SOMEBODY_ELSE = 65534, 65533
LONGEST = "n" * 255
TOO_LONG = "n" * 256
Seen = list[Any]
Case = Callable[[Seen], None]


def did(act: Callable[..., object], *given: Any, **named: Any) -> Any:
    """Return what a call returned, or the name of its error."""
    try:
        result = act(*given, **named)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok" if isinstance(result, os.stat_result) else result


@contextlib.contextmanager
def user(uid: int, *groups: int) -> Iterator[None]:
    """Be somebody else for a while."""
    before = os.getgroups()
    os.setgroups(groups or [uid])
    os.setegid(groups[0] if groups else uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def make(name: str, data: bytes = b"", mode: int = 0o644) -> None:
    fd = os.open(name, os.O_CREAT | os.O_WRONLY, mode)
    os.write(fd, data)
    os.close(fd)


def opened(name: str, flags: int, mode: int = 0o644) -> str:
    """Open and close a file; return what came of it."""
    fd = did(os.open, name, flags, mode)
    if isinstance(fd, int):
        os.close(fd)
        return "ok"
    return fd


def shape(name: str) -> Any:
    """Return what a name is: kind, permissions, owner, and size and links of files."""
    found = did(os.lstat, name)
    if isinstance(found, str):
        return found
    more = (found.st_size, found.st_nlink) if stat.S_ISREG(found.st_mode) else ()
    return oct(found.st_mode), found.st_uid, found.st_gid, *more


def names_and_paths(seen: Seen) -> None:
    for name in (LONGEST, TOO_LONG, "x" * 4096, "n" * 1024, "n" * 1025, "none/x", "", "a b\nc", "ü" * 127, "ü" * 128):
        seen += [did(os.mkdir, name), did(os.rmdir, name), opened(name, os.O_CREAT | os.O_EXCL), did(os.unlink, name)]
        seen += [did(os.stat, name) == "ok", did(os.chmod, name, 0o600), did(os.truncate, name, 0)]
        make("f")
        seen += [did(os.rename, "f", name), did(os.rename, name, "f"), did(os.chown, name, 1, 1)]
    make("f")
    for act in (os.stat, os.unlink, os.rmdir, os.listdir, os.mkdir):
        seen += [did(act, "f/x"), did(act, "none"), did(act, "none/x/y")]
    seen += [opened("f/x", os.O_CREAT), did(os.rename, "f/x", "g"), did(os.rename, "f", "f/x"), did(os.chmod, "f/x", 0)]


def kinds(seen: Seen) -> None:
    os.mkdir("d")
    make("f")
    seen += [did(os.mkdir, "d"), did(os.mkdir, "f"), did(os.rmdir, "f"), did(os.unlink, "d"), did(os.listdir, "f")]
    seen += [opened("d", os.O_WRONLY), opened("d", os.O_RDWR), opened("d", os.O_RDONLY), opened("d", os.O_CREAT)]
    seen += [opened("d", os.O_RDONLY | os.O_TRUNC), did(os.truncate, "d", 0), opened("f", os.O_DIRECTORY)]
    seen += [opened("f", os.O_CREAT | os.O_EXCL), opened("d", os.O_CREAT | os.O_EXCL), opened("d/", os.O_CREAT)]
    make("d/f")
    seen += [did(os.rmdir, "d"), did(os.unlink, "d/f"), did(os.rmdir, "d/."), did(os.rmdir, "d/.."), did(os.rmdir, "d")]
    seen += [did(os.mkdir, "."), did(os.mkdir, ".."), did(os.rmdir, "."), did(os.unlink, ".")]
    seen.append(opened("new/", os.O_CREAT))


def renames(seen: Seen) -> None:
    """Every kind of thing onto every kind of thing."""

    def lay(name: str, kind: str) -> None:
        if kind == "file":
            make(name, name.encode())
        elif kind != "nothing":
            os.mkdir(name)
            if kind == "full folder":
                make(f"{name}/in", b"in")

    every = ("nothing", "file", "folder", "full folder")
    for number, (one, other) in enumerate((a, b) for a in every for b in every):
        a, b = f"a{number}", f"b{number}"
        lay(a, one)
        lay(b, other)
        seen += [one, other, did(os.rename, a, b), shape(a), shape(b), did(lambda b=b: sorted(os.listdir(b)))]
    os.makedirs("t/u/v")
    seen += [
        did(os.rename, "t", "t/u/x"),
        did(os.rename, "t", "t/x"),
        did(os.rename, "t", "t"),
        did(os.rename, ".", "z"),
    ]
    seen += [did(os.rename, "t/u/..", "z"), did(os.rename, "t/u/v", "t/u"), did(os.rename, "t/u/v", "t/u/v/.")]
    make("same", b"1")
    seen += [did(os.rename, "same", "same"), shape("same"), did(os.rename, "same", "./same"), shape("same")]


def inodes(seen: Seen) -> None:
    make("f", b"f")
    os.makedirs("d/e")
    file, folder = os.stat("f").st_ino, os.stat("d").st_ino
    os.rename("f", "d/g")
    os.rename("d", "c")
    seen += [os.stat("c/g").st_ino == file, os.stat("c").st_ino == folder, sorted(os.listdir("c"))]
    fd = os.open("c/g", os.O_RDWR)
    os.unlink("c/g")
    seen += [os.fstat(fd).st_ino == file, os.fstat(fd).st_nlink, os.pread(fd, 9, 0), os.pwrite(fd, b"xyz", 5)]
    seen += [os.pread(fd, 9, 0), did(os.ftruncate, fd, 2), os.fstat(fd).st_size, did(os.fchmod, fd, 0o600)]
    seen += [oct(os.fstat(fd).st_mode), did(os.fsync, fd), did(os.stat, "c/g")]
    os.close(fd)


def permissions(seen: Seen) -> None:
    for mode in (0o000, 0o111, 0o222, 0o444, 0o555, 0o600, 0o700, 0o007, 0o070, 0o755):
        make("f", b"1234")
        os.mkdir("d")
        make("d/in", b"5")
        for name in ("f", "d"):
            os.chown(name, SOMEBODY, SOMEBODY)
            os.chmod(name, mode)
        for who in ((SOMEBODY, SOMEBODY), (SOMEBODY_ELSE, SOMEBODY), (SOMEBODY_ELSE, SOMEBODY_ELSE)):
            with user(*who):
                seen += [mode, who, [opened("f", flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)]]
                seen += [did(os.listdir, "d"), did(os.stat, "d/in") == "ok", opened("d/in", os.O_RDONLY)]
                seen += [opened("d/new", os.O_CREAT | os.O_WRONLY), did(os.mkdir, "d/sub"), did(os.unlink, "d/in")]
                seen += [did(os.rename, "d/new", "d/other"), did(os.truncate, "f", 3), did(os.rmdir, "d/sub")]
                seen += [did(os.utime, "f", (5, 5)), did(os.utime, "f"), did(os.access, "f", os.X_OK)]
            for path in ("d/in", "d/new", "d/other"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            make("d/in", b"5")
        os.unlink("f")
        os.unlink("d/in")
        os.rmdir("d")


def owners(seen: Seen) -> None:
    make("f", b"1")
    os.mkdir("d")
    for name in ("f", "d"):
        seen += [
            did(os.chown, name, SOMEBODY, SOMEBODY_ELSE),
            shape(name),
            did(os.chown, name, -1, SOMEBODY),
            shape(name),
        ]
        with user(SOMEBODY, SOMEBODY, SOMEBODY_ELSE):
            seen += [did(os.chown, name, -1, SOMEBODY_ELSE), did(os.chown, name, 0, -1), did(os.chown, name, -1, 7)]
            seen += [did(os.chmod, name, 0o751), shape(name), did(os.chown, name, SOMEBODY, SOMEBODY), shape(name)]
        with user(SOMEBODY_ELSE):
            seen += [did(os.chmod, name, 0o777), did(os.chown, name, SOMEBODY_ELSE, -1), did(os.utime, name, (1, 1))]
    os.mkdir("mine")
    os.chmod("mine", 0o777)
    with user(SOMEBODY):
        make("mine/f", b"x", 0o600)
        os.mkdir("mine/d", 0o750)
        seen += [
            shape("mine/f"),
            shape("mine/d"),
            opened("mine/f", os.O_RDWR),
            opened("mine/f", os.O_APPEND | os.O_WRONLY),
        ]
    with user(SOMEBODY_ELSE):
        seen += [opened("mine/f", os.O_RDONLY), did(os.unlink, "mine/f")]


def special_bits(seen: Seen) -> None:
    make("f")
    for mode in (0o4755, 0o2755, 0o6777, 0o1644, 0o7777):
        os.chmod("f", mode)
        os.chown("f", SOMEBODY, SOMEBODY)
        seen.append(shape("f"))
        os.chmod("f", mode)
        with user(SOMEBODY):
            seen += [did(os.chown, "f", SOMEBODY, SOMEBODY), shape("f")]
        os.chown("f", 0, 0)
        os.chmod("f", mode)
        with user(SOMEBODY):
            fd = did(os.open, "f", os.O_WRONLY)
            if isinstance(fd, int):
                os.write(fd, b"x")
                os.close(fd)
        seen.append(shape("f"))
    os.mkdir("group")
    os.chown("group", 0, SOMEBODY)
    os.chmod("group", 0o2777)
    make("group/f")
    os.mkdir("group/d")
    seen += [shape("group/f"), shape("group/d")]
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    with user(SOMEBODY):
        make("sticky/f")
        os.mkdir("sticky/d")
    with user(SOMEBODY_ELSE):
        make("sticky/own")
        seen += [did(os.unlink, "sticky/f"), did(os.rename, "sticky/f", "sticky/g"), did(os.rmdir, "sticky/d")]
        seen += [did(os.rename, "sticky/own", "sticky/f"), did(os.unlink, "sticky/own")]
    with user(SOMEBODY):
        seen += [did(os.unlink, "sticky/f"), did(os.rmdir, "sticky/d")]


def masks(seen: Seen) -> None:
    for mask in (0, 0o022, 0o077, 0o777):
        before = os.umask(mask)
        for mode in (0o777, 0o666, 0o151, 0):
            make("f", b"", mode)
            os.mkdir("d", mode)
            seen += [shape("f"), shape("d")]
            os.unlink("f")
            os.rmdir("d")
        os.umask(before)


def times(seen: Seen) -> None:
    old = (1_000_000_000, 1_100_000_000)

    def changes(name: str, act: Callable[[], object]) -> tuple[bool, bool]:
        """Say whether the last change of its content, and of anything, became another."""
        before = os.stat(name)
        act()
        after = os.stat(name)
        return after.st_mtime_ns != before.st_mtime_ns, after.st_ctime_ns != before.st_ctime_ns

    for name in ("f", "d"):
        make("f", b"1234") if name == "f" else os.mkdir("d")
        os.utime(name, old)
        found = os.stat(name)
        seen += [found.st_atime, found.st_mtime, changes(name, lambda name=name: os.chmod(name, 0o700))]
        os.utime(name, ns=(5_000_000_000_123, 6_000_000_000_456_789))
        seen += [os.stat(name).st_atime_ns // 1000, os.stat(name).st_mtime_ns // 1000]
        seen.append(changes(name, lambda name=name: os.utime(name)))
        seen.append(changes(name, lambda name=name: os.chown(name, 1, 1)))
        os.utime(name, (-5, -7))
        seen += [os.stat(name).st_atime, os.stat(name).st_mtime]
        os.utime(name, old)
    seen.append(changes("f", lambda: os.truncate("f", 9)))
    os.utime("f", old)
    seen.append(changes("f", lambda: opened("f", os.O_WRONLY | os.O_TRUNC)))
    os.utime("d", old)
    seen.append(changes("d", lambda: make("d/new")))
    os.utime("d", old)
    seen.append(changes("d", lambda: os.rename("d/new", "d/other")))
    os.utime("d", old)
    seen.append(changes("d", lambda: os.unlink("d/other")))
    os.utime("d", old)
    seen.append(changes("d", lambda: os.mkdir("d/sub")))
    os.utime("d", old)
    seen.append(changes("d", lambda: os.rmdir("d/sub")))
    seen.append(changes("d", lambda: did(os.rmdir, "d/none")))


def contents(seen: Seen) -> None:
    make("f", b"0123456789")
    for size in (4, 20, 0, 100_000, 3):
        seen += [did(os.truncate, "f", size), Path("f").read_bytes()[:40], shape("f")]
    seen += [did(os.truncate, "f", -1), did(os.truncate, "none", 1)]
    fd = os.open("f", os.O_RDONLY)
    seen += [
        did(os.ftruncate, fd, 1),
        did(os.write, fd, b"x"),
        did(os.pread, fd, 10, 99),
        did(os.lseek, fd, 2, os.SEEK_END),
    ]
    os.close(fd)
    fd = os.open("f", os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    seen += [os.write(fd, b"end"), os.pread(fd, 99, 0)[-3:], did(os.posix_fallocate, fd, 0, 50), os.fstat(fd).st_size]
    os.close(fd)
    fd = os.open("f", os.O_WRONLY)
    seen += [did(os.read, fd, 1), os.pwrite(fd, b"far", 1 << 21), os.fstat(fd).st_size]
    os.close(fd)
    with open("f", "rb") as file:
        seen += [len(file.read()), did(os.copy_file_range, file.fileno(), file.fileno(), 0)]
    first, second = os.open("f", os.O_RDWR), os.open("f", os.O_RDWR)
    seen += [os.pwrite(first, b"one", 0), os.pread(second, 3, 0), os.ftruncate(second, 2), os.pread(first, 9, 0)]
    os.close(first)
    os.close(second)


def folders(seen: Seen) -> None:
    os.makedirs("a/b/c")
    for number in range(300):
        make(f"a/{number:03}")
    seen += [sorted(os.listdir("a")), len(list(os.scandir("a/b")))]
    with os.scandir("a") as entries:
        for entry in entries:
            if entry.is_file():
                os.unlink(entry.path)
    seen += [os.listdir("a"), did(os.removedirs, "a/b/c"), os.listdir(".")]
    os.mkdir("gone")
    fd = os.open("gone", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir("gone")
    seen += [did(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd), did(os.mkdir, "x", dir_fd=fd), did(os.listdir, fd)]
    os.close(fd)


CASES: tuple[Case, ...] = (
    names_and_paths,
    kinds,
    renames,
    inodes,
    permissions,
    owners,
    special_bits,
    masks,
    times,
    contents,
    folders,
)


@pytest.mark.parametrize("case", CASES, ids=[case.__name__ for case in CASES])
def test_a_mount_does_what_a_disk_does(node: Node, bucket: Bucket, tmp_path: Path, case: Case) -> None:
    local, before, seen = tmp_path / "local", os.getcwd(), [[], []]
    local.mkdir()
    roots = (local, node.mount(bucket, case.__name__))
    for root, saw in zip(roots, seen, strict=True):
        os.chmod(root, 0o777)
        os.chdir(root)
        mask = os.umask(0o022)
        try:
            case(saw)
        finally:
            os.umask(mask)
            os.chdir(before)
    for place, (on_disk, on_mount) in enumerate(zip(*seen, strict=True)):
        assert on_mount == on_disk, (place, seen[0][max(0, place - 8) : place])
