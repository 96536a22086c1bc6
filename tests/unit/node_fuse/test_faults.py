"""What holds when stores fail, disks are full and programs are killed."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import Server, eventually
from node_fuse import faults
from node_fuse.conftest import Bucket, Node
from runstead.model.errors import NotFound, Unavailable
from runstead.node import places, syscalls

MB = 1 << 20


def _bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def proxy(server: Server, node: Node) -> Iterator[faults.Proxy]:
    """Stands between the node and the server."""
    with faults.running(server.url) as (made, url):
        node.endpoint = url
        yield made


# Stores


def test_a_store_that_is_down_for_a_moment_is_waited_for(
    node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path
) -> None:
    bucket.put({"f": b"f", "d/g": _bytes(6 * MB)}, tmp_path / "up")
    root = node.mount(bucket, "moment")
    proxy.fail("503")
    threading.Timer(1, proxy.heal).start()
    began = time.monotonic()
    assert (root / "f").read_bytes() == b"f"
    assert time.monotonic() - began > 0.8
    proxy.fail("503", only="/data/")
    threading.Timer(1, proxy.heal).start()
    assert (root / "d/g").read_bytes() == _bytes(6 * MB)


@pytest.mark.parametrize("mode", ["503", "stall", "cut"])
def test_a_store_that_fails_is_an_error_after_a_while(
    node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path, mode: str
) -> None:
    bucket.put({"f": _bytes(100_000), "big": _bytes(20 * MB, 2), "d/g": b""}, tmp_path / "up")
    root = node.mount(bucket, "fails")
    assert sorted(os.listdir(root)) == ["big", "d", "f"]
    proxy.fail(mode, only="/data/")
    for name in ("f", "big"):
        began = time.monotonic()
        with pytest.raises(OSError) as raised:
            (root / name).read_bytes()
        assert raised.value.errno == errno.EIO
        assert time.monotonic() - began < 3 * node.patience + node.stall + 2
    proxy.heal()
    assert (root / "f").read_bytes() == _bytes(100_000)
    assert (root / "big").read_bytes() == _bytes(20 * MB, 2)


def test_wrong_bytes_are_not_read(node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path) -> None:
    bucket.put({"f": _bytes(300_000), "g": _bytes(200_000, 2)}, tmp_path / "up")
    root = node.mount(bucket, "wrong")
    proxy.fail("flip", only="/data/")
    with pytest.raises(OSError) as raised:
        (root / "f").read_bytes()
    assert raised.value.errno == errno.EIO
    proxy.heal()
    assert (root / "f").read_bytes() == _bytes(300_000)


def test_who_waits_for_a_store_can_be_killed(node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path) -> None:
    bucket.put({"f": _bytes(100_000)}, tmp_path / "up")
    root = node.mount(bucket, "killed")
    assert os.listdir(root) == ["f"]
    proxy.fail("stall", only="/data/")
    reader = subprocess.Popen(["cat", str(root / "f")], stdout=subprocess.DEVNULL)
    time.sleep(0.3)
    began = time.monotonic()
    reader.kill()
    reader.wait(5)
    assert time.monotonic() - began < 1


def test_writing_goes_on_without_a_store(node: Node, bucket: Bucket, proxy: faults.Proxy) -> None:
    root = node.mount(bucket, "down")
    (root / "before").write_bytes(b"1")
    node.flush(root)
    proxy.fail("503")
    (root / "f").write_bytes(_bytes(300_000))
    (root / "before").unlink()
    assert (root / "f").read_bytes() == _bytes(300_000)
    with pytest.raises(Unavailable, match=r"2 of the job's changes are not in its buckets.*unsaved"):
        node.flush(root, 1.5)
    proxy.heal()
    node.flush(root)
    assert bucket.files() == {"f": _bytes(300_000)}


def test_what_could_not_be_saved_is_kept_and_recovered(node: Node, bucket: Bucket, proxy: faults.Proxy) -> None:
    root = node.mount(bucket, "kept")
    (root / "a").write_bytes(b"a")
    node.flush(root)
    proxy.fail("503")
    (root / "b").write_bytes(_bytes(100_000))
    os.rename(root / "a", root / "c")
    with pytest.raises(Unavailable):
        node.flush(root, 1)
    node.release(root)
    assert node.owned() == []
    kept = node.data_dir / "node" / "unsaved" / root.parent.name
    assert kept.is_dir()
    assert not root.exists()
    proxy.heal()
    node.new_provider()
    assert node.flush(root).files == 2  # what is in the bucket because of it
    assert bucket.files() == {"b": _bytes(100_000), "c": b"a"}
    node.release(root)
    assert not kept.exists()


def test_a_bucket_that_is_not_there(node: Node, server: Server) -> None:
    with pytest.raises(NotFound):
        node.mount(Bucket(server, f"{server.owner}/no-such-bucket"), "absent")


def test_a_server_that_is_killed_and_started_again(tmp_path: Path) -> None:
    server = Server(tmp_path / "own").start()
    bucket = Bucket(server, f"{server.owner}/b").create()
    bucket.put({"f": b"f"}, tmp_path / "up")
    data_dir = tmp_path / "node-data"
    places.first_id(str(data_dir), "owner")
    node = Node(server, data_dir, patience=60)
    try:
        root = node.mount(bucket, "restart")
        assert os.listdir(root) == ["f"]
        server.kill()
        (root / "g").write_bytes(b"g")
        threading.Timer(1, server.start).start()
        assert (root / "f").read_bytes() == b"f"
        node.flush(root)
        assert bucket.files() == {"f": b"f", "g": b"g"}
    finally:
        node.stop()
        server.stop()


# Programs


def _keeper_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_daemon_that_is_killed_is_replaced(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"d/f": b"f", "big": _bytes(20 * MB)}, tmp_path / "up")
    root = node.mount(bucket, "replaced")
    (root / "closed").write_bytes(b"closed")
    reader = (root / "big").open("rb")
    assert reader.read(MB) == _bytes(20 * MB)[:MB]
    writer = (root / "open").open("wb", buffering=0)
    writer.write(b"before ")
    folder = os.open(root / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.mkdir(root / "empty")
    for _ in range(3):
        os.kill(node.told()["pid"], signal.SIGKILL)
        assert (root / "d/f").read_bytes() == b"f"
        assert sorted(os.listdir(root)) == ["big", "closed", "d", "empty", "open"]
    writer.write(b"after")
    assert os.fstat(writer.fileno()).st_size == 12
    assert os.stat("f", dir_fd=folder).st_size == 1
    writer.close()
    os.close(folder)
    assert reader.read() == _bytes(20 * MB)[MB:]
    reader.close()
    (root / "new").write_bytes(b"new")
    os.rmdir(root / "empty")
    node.flush(root)
    assert {k: v for k, v in bucket.files().items() if k != "big"} == {
        "closed": b"closed",
        "d/f": b"f",
        "new": b"new",
        "open": b"before after",
    }


def test_nothing_that_was_closed_is_lost(node: Node, bucket: Bucket) -> None:
    root = node.mount(bucket, "storm")
    code = """
import os, sys
root = sys.argv[1]
for number in range(300):
    with open(f"{root}/t{number % 7}", "w") as file:
        file.write(str(number) * 100)
    os.replace(f"{root}/t{number % 7}", f"{root}/f{number}")
    if number % 5 == 0:
        os.unlink(f"{root}/f{number}")
"""
    program = subprocess.Popen([sys.executable, "-c", code, str(root)], stderr=subprocess.PIPE)
    deaths = 0
    while program.poll() is None and deaths < 25:  # with more of them in a minute the keeper gives the mount up
        time.sleep(0.3)
        os.kill(node.told()["pid"], signal.SIGKILL)
        deaths += 1
    assert program.wait(100) == 0, program.stderr.read().decode() if program.stderr else ""
    node.flush(root)
    assert bucket.files() == {f"f{n}": str(n).encode() * 100 for n in range(300) if n % 5}


def test_a_keeper_that_is_killed_is_not_needed_by_its_daemon(node: Node, bucket: Bucket) -> None:
    root = node.mount(bucket, "alone")
    os.kill(_keeper_of(node.told()["pid"]), signal.SIGKILL)
    (root / "f").write_bytes(b"f")
    node.flush(root)
    assert bucket.files() == {"f": b"f"}


def test_when_all_are_killed_reads_fail_and_what_was_closed_is_kept(
    node: Node, bucket: Bucket, proxy: faults.Proxy
) -> None:
    root = node.mount(bucket, "dead")
    proxy.fail("503", only="xet-write-token")
    (root / "f").write_bytes(_bytes(50_000))
    (root / "d").mkdir()
    os.replace(root / "f", root / "d/g")
    unfinished = (root / "open").open("wb", buffering=0)
    unfinished.write(b"written")
    pid = node.told()["pid"]
    os.kill(_keeper_of(pid), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text())
    with pytest.raises(OSError) as raised:
        os.listdir(root)
    assert raised.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    unfinished.close()
    proxy.heal()
    node.new_provider()
    assert len(node.owned()) == 1
    node.flush(root)
    assert bucket.files() == {"d/g": _bytes(50_000), "open": b"written"}
    node.release(root)
    assert node.owned() == []


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    syscalls.mount("tmpfs", str(path), "tmpfs", 0, "size=48m")
    yield path
    syscalls.unmount(str(path), syscalls.MNT_DETACH)


def test_a_full_disk_is_an_error_and_loses_nothing(
    server: Server, bucket: Bucket, small_disk: Path, tmp_path: Path
) -> None:
    places.first_id(str(small_disk), "owner")
    bucket.put({"there": _bytes(10 * MB, 9), "large": _bytes(60 * MB, 8)}, tmp_path / "up")
    node = Node(server, small_disk, cache_bytes=20 * MB)
    try:
        root = node.mount(bucket, "full")
        assert (root / "there").read_bytes() == _bytes(10 * MB, 9)
        (root / "good").write_bytes(_bytes(5 * MB))
        with pytest.raises(OSError) as raised:
            (root / "too large").write_bytes(_bytes(60 * MB))
        assert raised.value.errno == errno.ENOSPC
        (root / "too large").unlink()
        (root / "good too").write_bytes(_bytes(5 * MB, 2))
        node.flush(root)
        assert sorted(bucket.names()) == ["good", "good too", "large", "there"]
        assert bucket.read("good") == _bytes(5 * MB)
        assert bucket.read("good too") == _bytes(5 * MB, 2)
        began = time.monotonic()
        try:
            assert (root / "large").read_bytes() == _bytes(60 * MB, 8)
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.EIO)
        assert time.monotonic() - began < 30
        assert (root / "good").read_bytes() == _bytes(5 * MB)
    finally:
        node.stop()


def test_folders_stay_while_files_below_them_are_removed(
    node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path
) -> None:
    bucket.put({"a/b/1": b"1", "a/b/2": b"2", "a/c/3": b"3", "x/b/4": b"4"}, tmp_path / "up")
    root = node.mount(bucket, "stay")
    proxy.fail("503", only="/batch")  # so the bucket still lists what is removed here
    (root / "a/b/1").unlink()
    (root / "a/b/2").unlink()
    for _ in range(2):
        time.sleep(1.1)  # the kernel asks again
        assert sorted(os.listdir(root)) == ["a", "x"]
        assert sorted(os.listdir(root / "a")) == ["b", "c"]
        assert (root / "a/c/3").read_bytes() == b"3"
        os.kill(node.told()["pid"], signal.SIGKILL)
    (root / "a/b").rmdir()
    os.rename(root / "a/c/3", root / "3")
    (root / "a/c").rmdir()
    (root / "a").rmdir()
    os.rename(root / "x", root / "a")
    time.sleep(1.1)
    assert sorted(os.listdir(root / "a")) == ["b"]
    assert (root / "a/b/4").read_bytes() == b"4"
    proxy.heal()
    node.flush(root)
    assert bucket.files() == {"a/b/4": b"4", "3": b"3"}
    assert sorted(os.listdir(root)) == ["3", "a"]
