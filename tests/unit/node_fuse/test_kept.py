"""Small files that were read stay ready: within limits, and only while they are what the name stands for."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from clients import eventually
from node_fuse.conftest import Bucket, Node
from runstead.node.fuse.backing import Backing
from runstead.node.fuse.cache import Cache
from runstead.node.fuse.device import Device
from runstead.node.fuse.kept import Kept, Shared
from runstead.node.fuse.source import Content
from runstead.node.fuse.tree import Node as TreeNode

KB = 1 << 10


class Files:
    """Contents in a cache, and who keeps them."""

    def __init__(self, folder: Path, limit: int, most_kept: int = 100) -> None:
        self.folder = folder
        self.cache = Cache(str(folder / "cache"), limit, 1.0, most_kept)
        self.cache.open()
        self.let_go: list[int] = []
        self.kept = Kept(self.cache, self._let_go)

    def _let_go(self, file: Shared) -> None:
        self.let_go.append(file.handle)
        file.backing.close()

    def content(self, number: int, size: int) -> Content:
        content = Content(number.to_bytes(32, "big"), size, 0)
        (self.folder / "new").write_bytes(bytes(size))
        self.cache.adopt(str(self.folder / "new"), content)
        return content

    def shared(self, number: int, size: int = 40 * KB) -> Shared:
        cached = self.cache.take(self.content(number, size))
        node = TreeNode(number, None, "name", is_folder=False, mode=0o444, uid=0, gid=0)
        node.lookups = 1
        return Shared(
            node, Backing(Device(-1, passthrough=False), cached.fd, self.cache, cached), 100 + number, b"%d" % number
        )

    def read(self, file: Shared) -> Shared:
        """Have a file that is kept, and that nobody reads."""
        assert self.kept.may_have(file.backing)
        self.kept.add(file)
        return file


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, 800 * KB)  # of which an eighth, two files, may be kept


def test_all_readers_have_the_same(files: Files) -> None:
    file = files.read(files.shared(1))
    assert file.node.backing is None
    assert files.kept.open(1) == files.kept.open(1) == b"1"
    assert file.node.backing is file.backing  # others see that it is in use
    assert files.kept.close(1, 101)
    assert file.node.backing is file.backing
    assert files.kept.close(1, 101)
    assert file.node.backing is None
    assert files.let_go == []
    assert not files.kept.close(1, 5)  # opened before it was kept
    assert files.kept.open(2) is None


def test_the_one_read_longest_ago_makes_room(files: Files) -> None:
    for number in (1, 2):
        files.read(files.shared(number))
    files.kept.open(1)
    files.kept.close(1, 101)
    files.read(files.shared(3))
    assert files.let_go == [102]
    files.kept.open(1)
    files.kept.open(3)
    other = files.shared(4)
    assert not files.kept.may_have(other.backing)  # both are being read
    assert files.let_go == [102]


def test_who_comes_first_leaves_half_to_others(tmp_path: Path) -> None:
    files = Files(tmp_path, 800 * KB, most_kept=4)
    for number in (1, 2):
        files.read(files.shared(number, 0))
    files.read(files.shared(3, 0))
    assert files.let_go == [101]
    other = Kept(files.cache, lambda _: None)
    assert other.may_have(files.shared(4, 0).backing)


def test_large_files_are_not_kept(files: Files) -> None:
    assert not files.kept.may_have(files.shared(1, (1 << 20) + 1).backing)


def test_what_is_kept_is_not_thrown_out_and_what_was_kept_is(files: Files) -> None:
    file = files.read(files.shared(1))
    for number in range(10, 40):
        files.content(number, 40 * KB)
    assert files.cache.has_whole(file.backing.cached.content if file.backing.cached else Content(b"", 1, 0))
    assert files.cache.used_bytes <= 800 * KB
    files.kept.drop_all()
    assert files.let_go == [101]
    content = Content((1).to_bytes(32, "big"), 40 * KB, 0)
    assert files.cache.has_whole(content)
    for number in range(40, 70):
        files.content(number, 40 * KB)
    assert not files.cache.has_whole(content)


def test_a_node_that_is_forgotten_or_has_no_name_is_not_kept(files: Files) -> None:
    first, second = files.read(files.shared(1)), files.read(files.shared(2))
    files.kept.forget(1)
    assert files.let_go == []  # told of again meanwhile
    first.node.lookups = 0
    files.kept.forget(1)
    assert files.let_go == [101]
    files.kept.open(2)
    second.node.orphan = True
    files.kept.close(2, 102)
    assert files.let_go == [101, 102]
    assert files.read(files.shared(3)) and files.read(files.shared(4))  # the room of both was given back
    assert files.let_go == [101, 102]


def test_what_another_daemon_opened_stays(files: Files) -> None:
    file = files.shared(1)
    files.kept.restore(file)
    for _ in range(3):
        assert files.kept.close(1, 101)
    files.kept.drop(file.node)
    assert files.kept.open(1) == b"1"
    assert files.let_go == []
    assert file.node.backing is file.backing
    files.kept.drop_all()
    assert files.let_go == [101]
    assert files.read(files.shared(2)) and files.read(files.shared(3))  # it took the room of none
    assert files.let_go == [101]


def test_a_file_that_was_read_changes_like_any_other(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    names = "appended", "replaced", "cut", "renamed", "removed", "others"
    bucket.put({name: name.encode() for name in names}, tmp_path / "up")
    root, beside = node.mount(bucket, "kept"), node.mount(bucket, "beside", read_only=True)
    for _ in range(2):
        assert [(root / name).read_text() for name in names] == list(names)
        assert [(beside / name).read_text() for name in names] == list(names)
    with (root / "appended").open("a") as file:
        file.write(" to")
    (root / "new").write_text("by this")
    os.replace(root / "new", root / "replaced")
    os.truncate(root / "cut", 1)
    os.rename(root / "renamed", root / "moved")
    os.unlink(root / "removed")
    bucket.put({"others": b"of others"}, tmp_path / "up")
    now = {
        "appended": "appended to",
        "replaced": "by this",
        "cut": "c",
        "moved": "renamed",
    }
    assert {name: (root / name).read_text() for name in now} == now
    node.flush(root)
    now["others"] = "of others"
    for place in (root, beside):
        assert eventually(lambda place=place: _texts(place) == now, 30), _texts(place)


def _texts(folder: Path) -> dict[str, str]:
    try:
        return {path.name: path.read_text() for path in folder.iterdir()}
    except OSError:
        return {}  # a name that goes while it is listed


def test_a_daemon_that_is_killed_leaves_what_it_kept(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(8)]
    bucket.put({name: name.encode() for name in names}, tmp_path / "up")
    root = node.mount(bucket, "killed")
    for _ in range(2):
        assert [(root / name).read_text() for name in names] == names
    with (root / "f0").open() as held:
        os.kill(node.told()["pid"], signal.SIGKILL)
        assert [(root / name).read_text() for name in names] == names
        (root / "f0").write_text("new")
        (root / "f1").write_text("new")
        assert held.read() == "f0"
        os.kill(node.told()["pid"], signal.SIGKILL)
        assert [(root / name).read_text() for name in names] == ["new", "new", *names[2:]]
    assert [(root / name).read_text() for name in names] == ["new", "new", *names[2:]]
    node.flush(root)
    assert bucket.read("f0") == bucket.read("f1") == b"new"


def test_what_a_mount_kept_goes_with_it(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({f"f{number}": b"%d" % number for number in range(20)}, tmp_path / "up")
    keeping = node.mount(bucket, "stays")
    before = _open_contents(node)
    root = node.mount(bucket, "goes", read_only=True)
    for path in root.iterdir():
        path.read_bytes()
    assert _open_contents(node) == before + 20
    node.release(root)
    assert eventually(lambda: _open_contents(node) == before, 30)
    assert keeping.is_dir()


def test_a_mount_that_keeps_many_files_saves_what_is_written(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(1100)]
    for part in (names[:550], names[550:]):
        bucket.put({f"d/{name}": name.encode() for name in part}, tmp_path / "up")
    root = node.mount(bucket, "many")
    assert [(root / "d" / name).read_text() for name in names] == names
    (root / "written").write_bytes(b"w")
    assert node.flush(root, 60).files == 1
    assert bucket.read("written") == b"w"


def test_what_follows_is_ready_for_who_reads_on(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    names = [f"f{number:02}" for number in range(30)]
    bucket.put({f"d/{name}": name.encode() for name in names}, tmp_path / "up")
    first = node.mount(bucket, "first", read_only=True)
    assert [(first / "d" / name).read_text() for name in names] == names
    node.release(first)
    assert eventually(lambda: _open_contents(node) == 0, 30)
    folder = node.mount(bucket, "reader", read_only=True) / "d"
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == names
    assert (folder / names[0]).read_text() == names[0]
    assert _open_contents(node) == 1  # who reads one file may want no other
    assert (folder / names[1]).read_text() == names[1]
    assert eventually(lambda: _open_contents(node) == 10, 30)
    assert [(folder / name).read_text() for name in names[2:11]] == names[2:11]
    assert eventually(lambda: _open_contents(node) == 30, 30)
    assert [(folder / name).read_text() for name in names] == names


def _open_contents(node: Node) -> int:
    """Count the files of the cache that the daemon has open."""
    found = 0
    for path in Path(f"/proc/{node.told()['pid']}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += "/cache/files/" in os.readlink(path)
    return found
