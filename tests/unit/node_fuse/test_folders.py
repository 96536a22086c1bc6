"""Folders are what a program made of them, however far their files are on the way into the bucket."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import Server, eventually
from node_fuse import faults
from node_fuse.conftest import Bucket, Node
from runstead.node.fuse.journal import Journal
from runstead.node.fuse.nodelog import NodeLog
from runstead.node.fuse.reserve import Reserve
from runstead.node.fuse.source import Content
from runstead.node.fuse.tree import Tree


@pytest.fixture
def proxy(server: Server, node: Node) -> Iterator[faults.Proxy]:
    """Stands between the node and the server, and lets no change of the bucket through by itself."""
    with faults.running(server.url) as (made, url):
        node.endpoint = url
        node.patience = 60
        node.stall = 30
        node.new_provider()
        yield made


def test_a_folder_that_is_removed_while_its_file_is_on_the_way_stays_so(
    node: Node, bucket: Bucket, proxy: faults.Proxy
) -> None:
    root = node.mount(bucket, "gone")
    proxy.fail("hold", only="/batch")
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"1")
    first = proxy.held.get(timeout=30)
    (root / "a/b/file").unlink()
    (root / "a/b").rmdir()
    first.set()
    second = proxy.held.get(timeout=30)  # the bucket has the file now, and is about to be told that it is no more
    assert "a/b/file" in bucket.names()
    assert os.listdir(root / "a") == []
    assert not (root / "a/b").exists()
    (root / "a/b").write_bytes(b"2")
    proxy.heal()
    second.set()
    node.flush(root)
    assert bucket.files() == {"a/b": b"2"}


def test_a_folder_that_is_renamed_while_its_file_is_on_the_way_has_left(
    node: Node, bucket: Bucket, proxy: faults.Proxy
) -> None:
    root = node.mount(bucket, "left")
    proxy.fail("hold", only="/batch")
    (root / "a").mkdir()
    (root / "a/file").write_bytes(b"1")
    first = proxy.held.get(timeout=30)
    os.rename(root / "a", root / "b")
    first.set()
    second = proxy.held.get(timeout=30)
    assert os.listdir(root) == ["b"]
    assert (root / "b/file").read_bytes() == b"1"
    proxy.heal()
    second.set()
    node.flush(root)
    assert bucket.files() == {"b/file": b"1"}


def test_a_list_that_lacks_what_is_on_the_way_shows_no_removed_folder(
    node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path
) -> None:
    root = node.mount(bucket, "list")
    proxy.fail("hold", only="/batch")
    (root / "a").mkdir()
    (root / "a/file").write_bytes(b"1")
    first = proxy.held.get(timeout=30)
    (root / "a/file").unlink()
    (root / "a").rmdir()
    bucket.put({"other": b"2"}, tmp_path / "up")  # so it is listed again, without the folder
    assert eventually(lambda: sorted(os.listdir(root)) == ["other"])
    first.set()
    second = proxy.held.get(timeout=30)
    bucket.put({"another": b"3"}, tmp_path / "up")  # and again, with it
    assert eventually(lambda: len(os.listdir(root)) > 1)
    assert sorted(os.listdir(root)) == ["another", "other"]
    proxy.heal()
    second.set()
    node.flush(root)
    assert bucket.files() == {"other": b"2", "another": b"3"}


def test_a_file_in_the_place_of_a_folder_that_left_does_not_bring_it_back(
    node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path
) -> None:
    bucket.put({"a/x/file": b"1"}, tmp_path / "up")
    root = node.mount(bucket, "place")
    proxy.fail("hold", only="/batch")
    os.rename(root / "a", root / "moved")
    (root / "b").mkdir()
    (root / "b/x").write_bytes(b"2")
    os.rename(root / "b", root / "a")
    (root / "a/x").unlink()
    os.kill(node.told()["pid"], signal.SIGKILL)  # another daemon lists anew
    assert eventually(lambda: os.listdir(root / "a") == [])
    time.sleep(1.1)  # the kernel asks again
    assert os.listdir(root / "a") == []
    proxy.heal()
    node.flush(root)
    assert bucket.files() == {"moved/x/file": b"1"}
    assert sorted(os.listdir(root)) == ["a", "moved"]


def test_what_others_have_below_a_removed_folder_is_shown(
    node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path
) -> None:
    bucket.put({"a/file": b"1"}, tmp_path / "up")
    root = node.mount(bucket, "again")
    (root / "a/file").unlink()
    (root / "a").rmdir()
    node.flush(root)
    assert os.listdir(root) == []
    bucket.put({"a/theirs": b"2"}, tmp_path / "up")
    assert eventually(lambda: os.listdir(root) == ["a"])
    assert (root / "a/theirs").read_bytes() == b"2"


def test_a_folder_stays_when_what_is_in_it_is_removed_further_down(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"a/b/c/file": b"1"}, tmp_path / "up")
    root = node.mount(bucket, "deep")
    (root / "a/b/c/file").unlink()
    node.flush(root)
    bucket.put({"other": b"2"}, tmp_path / "up")
    assert eventually(lambda: "other" in os.listdir(root))
    assert sorted(os.listdir(root)) == ["a", "other"]
    assert os.listdir(root / "a/b") == ["c"]


def test_a_list_during_which_others_change_the_folder_serves_who_asked_before(tmp_path: Path) -> None:
    tree = Tree(Journal(str(tmp_path / "journal"), Reserve("")), NodeLog(None), 2, owner=0, read_only=False)
    asked = time.monotonic()
    listing = tree.begin_listing(tree.root)
    tree.changed("theirs", b"1" * 32)
    tree.settled("ours", Content(b"2" * 32, 1, 0))
    tree.set_listing(listing, {"first": Content(b"3" * 32, 1, 0)})
    assert sorted(tree.names(tree.root)) == ["first", "ours"]
    assert tree.is_fresh(tree.root, asked)
    assert not tree.is_fresh(tree.root, time.monotonic())
    younger = tree.begin_listing(tree.root)
    tree.set_listing(younger, {"theirs": Content(b"1" * 32, 1, 0)})
    tree.set_listing(listing, {})
    assert sorted(tree.names(tree.root)) == ["theirs"]
    assert tree.is_fresh(tree.root)
