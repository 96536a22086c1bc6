"""Reading a bucket through a mount: lazily, from one cache, and no longer than a moment behind other writers."""

import concurrent.futures
import hashlib
import mmap
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clients import eventually
from node_fuse.conftest import Bucket, Node
from runstead.node import places

MB = 1 << 20


def _bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_tree_is_as_the_bucket_has_it(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    files = {"a.txt": b"hello", "empty": b"", "d/e/f": _bytes(100_000), "d/ü ñ%#?.bin": b"x" * 70_000}
    bucket.put(files, tmp_path / "up")
    root = node.mount(bucket, "tree")
    assert sorted(os.listdir(root)) == ["a.txt", "d", "empty"]
    assert {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()} == files
    stat = (root / "a.txt").stat()
    assert (stat.st_size, stat.st_nlink, stat.st_uid) == (5, 1, os.geteuid())
    assert abs(stat.st_mtime - time.time()) < 60
    with pytest.raises(FileNotFoundError):
        (root / "nothing").read_bytes()
    with pytest.raises(NotADirectoryError):
        (root / "a.txt" / "x").read_bytes()


def test_files_belong_to_the_namespace_of_the_job(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"d/f": b"f"}, tmp_path / "up")
    node.private_ids = True
    node.new_provider()
    root = node.mount(bucket, "owner")
    user = places.first_id(str(node.data_dir), "owner")
    for path in (root, root / "d", root / "d/f"):
        assert (path.stat().st_uid, path.stat().st_gid) == (user, user)
    code = "import os,sys; os.chdir(sys.argv[1]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]));"
    code += "open('new','w').write('x'); os.mkdir('sub'); os.remove('d/f'); print(open('new').read())"
    done = subprocess.run([sys.executable, "-c", code, root, str(user)], capture_output=True, text=True)
    assert done.stdout == "x\n", done.stderr
    node.flush(root)
    assert bucket.files() == {"new": b"x"}


def test_a_folder_of_a_bucket_read_only(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"in/a": b"1", "in/b/c": b"2", "inner": b"3", "out": b"4"}, tmp_path / "up")
    root = node.mount(bucket, "folder", "in", read_only=True)
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*")) == ["a", "b", "b/c"]
    for change in (lambda: (root / "new").write_bytes(b""), (root / "a").unlink, (root / "x").mkdir):
        with pytest.raises(OSError, match="Read-only"):
            change()


def test_only_what_is_read_is_moved(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    data = _bytes(60 * MB)
    bucket.put({"big": data, "other": _bytes(20 * MB, 2)}, tmp_path / "up")
    root = node.mount(bucket, "lazy")
    with (root / "big").open("rb", buffering=0) as file:
        for offset in (0, 30 * MB + 12345, 60 * MB - 10):
            file.seek(offset)
            assert file.read(4096) == data[offset : offset + 4096]
    assert node.told()["fetched_bytes"] <= 8 * MB


def test_a_second_job_moves_nothing(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    data = _bytes(20 * MB)
    bucket.put({"big": data, "small": b"s"}, tmp_path / "up")
    first, second = node.mount(bucket, "one"), node.mount(bucket, "two")
    assert (first / "big").read_bytes() == data
    assert (first / "small").read_bytes() == b"s"
    moved = node.told()["fetched_bytes"]
    assert moved == 20 * MB + 1
    assert (second / "big").read_bytes() == data
    assert (second / "small").read_bytes() == b"s"
    assert node.told()["fetched_bytes"] == moved


@pytest.mark.parametrize("warm", [False, True])
def test_mmap_and_sendfile(node: Node, bucket: Bucket, tmp_path: Path, warm: bool) -> None:
    data = _bytes(12 * MB)
    bucket.put({"f": data}, tmp_path / "up")
    root = node.mount(bucket, "map")
    if warm:
        assert (root / "f").read_bytes() == data
    with (root / "f").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert mapped[5 * MB : 5 * MB + 100] == data[5 * MB : 5 * MB + 100]
            assert hashlib.sha256(mapped).digest() == hashlib.sha256(data).digest()
        target = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
        sent = 0
        while sent < len(data):
            sent += os.sendfile(target, file.fileno(), sent, len(data) - sent)
        os.close(target)
    assert (tmp_path / "copy").read_bytes() == data


def test_many_readers_of_one_cold_file(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    data = _bytes(40 * MB)
    bucket.put({"f": data}, tmp_path / "up")
    root = node.mount(bucket, "many")
    dice = random.Random(3)
    places = [dice.randrange(40 * MB - 5000) for _ in range(256)]

    def read(place: int) -> bool:
        fd = os.open(root / "f", os.O_RDONLY)
        try:
            return os.pread(fd, 5000, place) == data[place : place + 5000]
        finally:
            os.close(fd)

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        assert all(pool.map(read, places))
    assert node.told()["fetched_bytes"] <= 40 * MB
    assert (root / "f").read_bytes() == data


def test_repeated_content_and_odd_sizes(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    files = {
        "zeros": bytes(30 * MB),
        "repeated": _bytes(MB) * 9 + b"end",
        "exact": _bytes(8 * MB, 5),
        "text": b"the same line again and again\n" * 300_000,
    }
    bucket.put(files, tmp_path / "up")
    root = node.mount(bucket, "odd")
    for name, data in files.items():
        assert (root / name).read_bytes() == data, name


def test_what_others_do_is_seen_within_two_seconds(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"d/old": b"old", "d/gone": b"x"}, tmp_path / "up")
    root = node.mount(bucket, "others")
    assert (root / "d/old").read_bytes() == b"old"
    assert sorted(os.listdir(root / "d")) == ["gone", "old"]
    held = (root / "d/old").open("rb", buffering=0)
    bucket.put({"d/old": b"newer", "d/new/deep": b"deep"}, tmp_path / "up")
    bucket.delete("d/gone")
    began = time.monotonic()
    assert eventually(lambda: (root / "d/old").read_bytes() == b"newer", 5)
    assert eventually(lambda: sorted(os.listdir(root / "d")) == ["new", "old"], 5)
    assert (root / "d/new/deep").read_bytes() == b"deep"
    assert not (root / "d/gone").exists()
    assert time.monotonic() - began < 2.5
    assert held.read() == b"old"  # who had it open keeps the version that was there
    held.close()


def test_the_cache_stays_within_its_limit(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    node.cache_bytes = 24 * MB
    node.new_provider()
    files = {f"f{i}": _bytes(6 * MB, i) for i in range(8)}
    bucket.put(files, tmp_path / "up")
    root = node.mount(bucket, "limit", read_only=True)
    for name, data in files.items():
        assert (root / name).read_bytes() == data
    size = int(subprocess.check_output(["du", "-sb", str(node.data_dir / "node" / "cache")]).split()[0])
    assert size < 32 * MB
    moved = node.told()["fetched_bytes"]
    assert (root / "f7").read_bytes() == files["f7"]
    assert node.told()["fetched_bytes"] == moved


def test_a_thousand_names(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    files = {f"d/{i:04}": b"%d" % i for i in range(1200)}
    bucket.put(dict(list(files.items())[:1000]), tmp_path / "up")
    bucket.put(dict(list(files.items())[1000:]), tmp_path / "up")
    root = node.mount(bucket, "names")
    assert sorted(os.listdir(root / "d")) == sorted(name[2:] for name in files)
    assert all((root / name).stat().st_size == len(data) for name, data in files.items())
