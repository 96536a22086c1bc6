"""Writing to a bucket through a mount: as on a disk, and in the bucket soon after."""

import errno
import fcntl
import mmap
import os
import random
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clients import eventually
from node_fuse.conftest import Bucket, Node

MB = 1 << 20


def _bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_what_is_closed_is_in_the_bucket_within_two_seconds(node: Node, bucket: Bucket) -> None:
    root = node.mount(bucket, "soon")
    other = node.mount(bucket, "beside")
    node.told()
    for round_ in range(3):
        data = _bytes(50_000, round_)
        began = time.monotonic()
        (root / "f").write_bytes(data)
        assert eventually(lambda: "f" in bucket.names() and bucket.read("f") == data, 5)  # noqa: B023
        in_bucket = time.monotonic() - began
        assert eventually(lambda: (other / "f").exists() and (other / "f").read_bytes() == data, 5)  # noqa: B023
        assert time.monotonic() - began < 3.5, in_bucket
        if round_:  # the first time a program is started
            assert in_bucket < 2


def test_everything_a_program_does_to_files(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"old": b"0123456789", "d/kept": b"kept", "d/gone": b"gone", "long": _bytes(9 * MB)}, tmp_path / "up")
    root = node.mount(bucket, "all")
    (root / "new").write_bytes(b"new")
    with (root / "old").open("ab") as file:
        file.write(b"abc")
    with (root / "long").open("r+b") as file:
        file.seek(5 * MB)
        file.write(b"patch")
    os.truncate(root / "d/kept", 2)
    (root / "d/gone").unlink()
    (root / "x/y/z").mkdir(parents=True)
    (root / "x/y/z/deep").write_bytes(b"deep")
    (root / "empty folder").mkdir()
    (root / "tmp").write_bytes(b"final")
    os.replace(root / "tmp", root / "new2")
    os.replace(root / "new2", root / "new")
    (root / "empty").touch()
    long = bytearray(_bytes(9 * MB))
    long[5 * MB : 5 * MB + 5] = b"patch"
    wanted = {
        "new": b"final",
        "old": b"0123456789abc",
        "d/kept": b"ke",
        "long": bytes(long),
        "x/y/z/deep": b"deep",
        "empty": b"",
    }
    assert {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()} == wanted
    assert (root / "empty folder").is_dir()
    flushed = node.flush(root)
    assert bucket.files() == wanted
    assert flushed.files >= len(wanted) - 1
    assert node.flush(root) == flushed
    # Nothing of it is fetched again: what was written here is in the cache.
    moved = node.told()["fetched_bytes"]
    assert (node.mount(bucket, "again") / "long").read_bytes() == bytes(long)
    assert node.told()["fetched_bytes"] == moved


def test_folders_are_renamed_with_all_that_is_in_them(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    files = {f"a/{i}": b"%d" % i for i in range(5)} | {"a/sub/x": b"x", "b/y": b"y"}
    bucket.put(files, tmp_path / "up")
    root = node.mount(bucket, "folders")
    (root / "a/new").write_bytes(b"new")
    with pytest.raises(OSError) as raised:
        os.rename(root / "a", root / "b")
    assert raised.value.errno == errno.ENOTEMPTY
    with pytest.raises(OSError) as raised:
        (root / "a").rmdir()
    assert raised.value.errno == errno.ENOTEMPTY
    os.rename(root / "a", root / "c")
    assert not (root / "a").exists()
    assert (root / "c/sub/x").read_bytes() == b"x"
    (root / "c/3").unlink()
    node.flush(root)
    wanted = {"c" + k[1:] if k.startswith("a/") else k: v for k, v in files.items()} | {"c/new": b"new"}
    del wanted["c/3"]
    assert bucket.files() == wanted
    assert {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()} == wanted
    (root / "b/y").unlink()
    (root / "b").rmdir()
    assert sorted(os.listdir(root)) == ["c"]
    node.flush(root)
    assert sorted(os.listdir(root)) == ["c"]


def test_what_a_bucket_cannot_have_is_refused(node: Node, bucket: Bucket) -> None:
    root = node.mount(bucket, "refused")
    (root / "f").write_bytes(b"f")
    for change in (
        lambda: os.symlink("f", root / "link"),
        lambda: os.link(root / "f", root / "hard"),
        lambda: os.mkfifo(root / "fifo"),
        lambda: os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    ):
        with pytest.raises(OSError) as raised:
            change()
        assert raised.value.errno in (errno.EPERM, errno.EOPNOTSUPP)
    with pytest.raises(OSError) as raised:
        (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"")
    assert raised.value.errno == errno.EILSEQ
    with pytest.raises(OSError) as raised:
        os.setxattr(root / "f", "user.x", b"1")
    assert raised.value.errno == errno.EOPNOTSUPP
    assert sorted(os.listdir(root)) == ["f"]
    os.chmod(root / "f", 0o755)
    assert (root / "f").stat().st_mode & 0o777 == 0o755


def test_open_files_outlive_their_names(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"f": b"was there"}, tmp_path / "up")
    root = node.mount(bucket, "unlinked")
    with (root / "f").open("rb") as old, (root / "new").open("w+b") as new:
        (root / "f").unlink()
        (root / "new").unlink()
        new.write(b"still here")
        new.seek(0)
        assert (old.read(), new.read()) == (b"was there", b"still here")
        assert os.listdir(root) == []
    node.flush(root)
    assert bucket.files() == {}


def test_a_reader_sees_what_is_written_to_a_file_of_this_job(node: Node, bucket: Bucket) -> None:
    root = node.mount(bucket, "log")
    with (root / "log").open("ab", buffering=0) as writer, (root / "log").open("rb", buffering=0) as reader:
        for number in range(5):
            writer.write(b"line %d\n" % number)
            assert reader.read() == b"line %d\n" % number
            assert (root / "log").stat().st_size == 7 * (number + 1)


def test_a_file_that_is_read_can_be_replaced_and_changed(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"f": b"first version", "big": _bytes(9 * MB)}, tmp_path / "up")
    root = node.mount(bucket, "both")
    with (root / "f").open("rb") as reader, (root / "big").open("rb") as other:
        other.read(10)
        with (root / "f").open("r+b") as writer:
            writer.write(b"FIRST")
        with (root / "big").open("ab") as writer:
            writer.write(b"end")
        assert reader.read() == b"first version"
        assert (root / "f").read_bytes() == b"FIRST version"
    assert (root / "big").read_bytes() == _bytes(9 * MB) + b"end"
    node.flush(root)
    assert bucket.read("f") == b"FIRST version"
    assert bucket.read("big") == _bytes(9 * MB) + b"end"


def test_databases_and_checkpoints(node: Node, bucket: Bucket) -> None:
    root = node.mount(bucket, "programs")
    database = sqlite3.connect(root / "db.sqlite")
    database.execute("pragma journal_mode=wal")
    database.execute("create table t (a integer, b blob)")
    with database:
        database.executemany("insert into t values (?, ?)", [(i, b"x" * 200) for i in range(2000)])
    other = sqlite3.connect(root / "db.sqlite")
    assert other.execute("select count(*) from t").fetchone() == (2000,)
    other.close()
    database.close()
    for step in range(3):
        with (root / "ckpt.tmp").open("wb") as file:
            file.write(_bytes(3 * MB, step))
            file.flush()
            os.fsync(file.fileno())
        os.replace(root / "ckpt.tmp", root / "ckpt")
    with (root / "mapped").open("w+b") as file:
        file.truncate(MB)
        with mmap.mmap(file.fileno(), MB) as mapped:
            mapped[1000:1005] = b"hello"
    fd = os.open(root / "reserved", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, 5000)
    os.close(fd)
    node.flush(root)
    files = bucket.files()
    assert sorted(files) == ["ckpt", "db.sqlite", "mapped", "reserved"]
    assert files["ckpt"] == _bytes(3 * MB, 2)
    assert files["mapped"][1000:1005] == b"hello"
    assert files["reserved"] == bytes(5000)


def test_locks_hold_between_the_processes_of_a_job(node: Node, bucket: Bucket) -> None:
    root = node.mount(bucket, "locks")
    code = "import fcntl,sys; f=open(sys.argv[1],'a'); fcntl.flock(f, fcntl.LOCK_EX|fcntl.LOCK_NB)"
    with (root / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert subprocess.run([sys.executable, "-c", code, root / "lock"], capture_output=True).returncode != 0
    assert subprocess.run([sys.executable, "-c", code, root / "lock"]).returncode == 0


def test_times_are_kept(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"there": b"1"}, tmp_path / "up")
    root = node.mount(bucket, "times")
    (root / "f").write_bytes(b"f")
    for name in ("f", "there"):
        os.utime(root / name, (1_600_000_000, 1_600_000_000.125))
        assert (root / name).stat().st_mtime == 1_600_000_000.125
    node.flush(root)
    assert {entry["mtime"] for entry in bucket.names().values()} == {"2020-09-13T12:26:40.125Z"}
    assert (root / "f").stat().st_mtime == 1_600_000_000.125


def test_a_large_file_takes_little_memory(node: Node, bucket: Bucket) -> None:
    """`RUNSTEAD_FUSE_LARGE_MB` makes it larger, and all of it then has to be sent and fetched."""
    root = node.mount(bucket, "large")
    blocks = int(os.environ.get("RUNSTEAD_FUSE_LARGE_MB", "400")) // 4
    size = blocks * (4 * MB + 8)
    with (root / "large").open("wb", buffering=0) as file:
        for number in range(blocks):
            file.write(number.to_bytes(8, "big") + _block(number))
    node.flush(root, 1200)
    assert bucket.names()["large"]["size"] == size
    for path in _cached(node, size):  # unless it is larger than the cache may be
        path.unlink()
    again = node.mount(bucket, "again")
    with (again / "large").open("rb", buffering=0) as file:
        for number in range(blocks):
            assert file.read(4 * MB + 8) == number.to_bytes(8, "big") + _block(number)
    status = Path(f"/proc/{node.told()['pid']}/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak < 100_000, f"{peak} KiB"


def _block(number: int) -> bytes:
    return _bytes(4 * MB, number if "RUNSTEAD_FUSE_LARGE_MB" in os.environ else 1)


def _cached(node: Node, size: int) -> list[Path]:
    files = node.data_dir / "node" / "cache" / "files"
    return [path for path in files.rglob("*") if path.is_file() and path.stat().st_size == size]
