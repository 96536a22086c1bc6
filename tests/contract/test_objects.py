"""What every object store must do, on a directory and on a real S3-speaking server process."""

import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runstead.model.errors import BackendFailure, Invalid, NotFound, Unavailable
from runstead.objects.disk import DiskObjectStore
from runstead.objects.interface import ObjectStore
from runstead.objects.s3 import S3ObjectStore
from s3_server import s3_server

Open = Callable[[], ObjectStore]

BIG = 20 * 1024 * 1024


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    pytest.importorskip("moto")
    with s3_server("objects") as endpoint:
        yield endpoint


@pytest.fixture(params=["disk", "s3"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    if request.param == "disk":
        return lambda: DiskObjectStore(tmp_path / "store")
    endpoint = request.getfixturevalue("s3_endpoint")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    url = f"s3://objects/{tmp_path.name}"
    return lambda: S3ObjectStore(url, tmp_path / "staging", endpoint=endpoint, region="us-east-1")


@pytest.fixture
def store(open_store: Open) -> ObjectStore:
    return open_store()


def put(store: ObjectStore, key: str, data: bytes) -> None:
    staged = store.new_staged()
    staged.write_bytes(data)
    store.put(key, staged)
    assert not staged.exists()


def test_what_was_put_is_there_after_a_restart(open_store: Open) -> None:
    put(open_store(), "xorbs/ab/one", b"content")
    again = open_store()
    assert again.read("xorbs/ab/one", 0, 7) == b"content"
    assert again.size("xorbs/ab/one") == 7


@pytest.mark.parametrize("size", [0, 1, 8 * 1024 * 1024, BIG])
def test_any_size_comes_back_the_same(store: ObjectStore, size: int) -> None:
    data = os.urandom(size)
    put(store, "xorbs/big", data)
    assert store.size("xorbs/big") == size
    assert store.read("xorbs/big", 0, size) == data


def test_a_range_is_exactly_those_bytes(store: ObjectStore) -> None:
    put(store, "k", bytes(range(256)))
    assert store.read("k", 10, 20) == bytes(range(10, 20))
    assert store.read("k", 5, 5) == b""


def test_a_range_past_the_end_is_a_failure(store: ObjectStore) -> None:
    put(store, "k", b"12345")
    with pytest.raises((BackendFailure, Unavailable)):
        store.read("k", 3, 9)


def test_the_first_of_two_puts_stays(store: ObjectStore) -> None:
    put(store, "k", b"first")
    put(store, "k", b"second")
    assert store.read("k", 0, 5) == b"first"


def test_two_at_once_leave_one_whole_object(store: ObjectStore) -> None:
    bodies = [bytes([n]) * 300_000 for n in range(8)]
    threads = [threading.Thread(target=put, args=(store, "same/key", body)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("same/key", 0, 300_000) in bodies
    assert len(list(store.list("same"))) == 1


def test_what_is_not_there(store: ObjectStore) -> None:
    assert store.size("no/such") is None
    with pytest.raises(NotFound):
        store.read("no/such", 0, 1)
    store.delete("no/such")
    assert list(store.list("no")) == []


def test_delete(store: ObjectStore) -> None:
    put(store, "a/k", b"x")
    store.delete("a/k")
    store.delete("a/k")
    assert store.size("a/k") is None
    assert list(store.list("")) == []


def test_list_shows_what_is_below_a_prefix(store: ObjectStore) -> None:
    for key in ("a/1", "a/b/2", "ab/3", "c"):
        put(store, key, key.encode())
    assert {found.key: found.size for found in store.list("a")} == {"a/1": 3, "a/b/2": 5}
    assert {found.key for found in store.list("")} == {"a/1", "a/b/2", "ab/3", "c"}
    assert all(abs(found.modified_at.timestamp() - time.time()) < 120 for found in store.list(""))


def test_staged_files_are_never_seen_and_cleared(store: ObjectStore) -> None:
    staged = store.new_staged()
    staged.write_bytes(b"half")
    assert list(store.list("")) == []
    store.clear_staged()
    assert not staged.exists()


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a/", ".hidden", "A", "a\0b", "a b", "é", "x" * 600, "a\n"]
)
def test_keys_that_are_none(store: ObjectStore, key: str, tmp_path: Path) -> None:
    staged = store.new_staged()
    with pytest.raises(BackendFailure):
        store.put(key, staged)
    for call in (store.size, store.delete, lambda k: store.read(k, 0, 1), lambda k: store.url(k, 1) or check(k)):
        with pytest.raises(BackendFailure):
            call(key)


def check(key: str) -> None:
    from runstead.objects.interface import check_key

    check_key(key)


def test_a_url_reads_ranges_or_there_is_none(store: ObjectStore) -> None:
    put(store, "xorbs/one", b"0123456789")
    url = store.url("xorbs/one", 60)
    if url is None:
        return
    request = urllib.request.Request(url, headers={"Range": "bytes=2-4"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert (answer.status, answer.read()) == (206, b"234")


def test_disk_full_is_unavailable_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskObjectStore(tmp_path)
    staged = store.new_staged()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable):
        store.put("k", staged)
    assert store.size("k") is None


def test_an_unreachable_s3_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(Invalid):
        S3ObjectStore("http://bucket", tmp_path)
    store = S3ObjectStore("s3://objects", tmp_path, endpoint="http://127.0.0.1:9", region="us-east-1", retries=0)
    with pytest.raises(Unavailable):
        store.read("k", 0, 1)
