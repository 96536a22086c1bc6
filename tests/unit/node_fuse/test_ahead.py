"""Small files of a folder come together, for who reads more than one of them."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import Server, eventually
from node_fuse import faults
from node_fuse.conftest import Bucket, Node

COUNT = 120
FILES = {f"d/{number:03}": random.Random(number).randbytes(2000 + 100 * number) for number in range(COUNT)}


@pytest.fixture
def proxy(server: Server, node: Node) -> Iterator[faults.Proxy]:
    """Stands between the node and the server."""
    with faults.running(server.url) as (made, url):
        node.endpoint = url
        yield made


def _moved(proxy: faults.Proxy) -> list[str]:
    return [request for request in proxy.requests if "/reconstructions" in request or "/data/" in request]


def test_a_folder_of_small_files_takes_few_requests(
    node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path
) -> None:
    bucket.put(FILES, tmp_path / "up")
    root = node.mount(bucket, "ahead", read_only=True)
    assert {name: (root / name).read_bytes() for name in sorted(FILES)} == FILES
    assert len(_moved(proxy)) < COUNT // 2
    assert eventually(lambda: node.told()["fetched_bytes"] == sum(map(len, FILES.values())))
    seen = len(_moved(proxy))
    assert {name: (root / name).read_bytes() for name in sorted(FILES)} == FILES
    assert len(_moved(proxy)) == seen


def test_one_file_comes_alone(node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path) -> None:
    bucket.put(FILES, tmp_path / "up")
    root = node.mount(bucket, "alone", read_only=True)
    assert (root / "d/007").read_bytes() == FILES["d/007"]
    assert node.told()["fetched_bytes"] == len(FILES["d/007"])
    assert len(_moved(proxy)) == 2


@pytest.mark.parametrize("mode", ["404", "503", "cut", "flip"])
def test_a_store_that_cannot_give_many_gives_each(
    node: Node, bucket: Bucket, proxy: faults.Proxy, tmp_path: Path, mode: str
) -> None:
    bucket.put(FILES, tmp_path / "up")
    root = node.mount(bucket, "each", read_only=True)
    proxy.mode = lambda method, path: mode if method == "POST" and "/reconstructions" in path else "pass"
    assert {name: (root / name).read_bytes() for name in sorted(FILES)[:30]} == dict(sorted(FILES.items())[:30])


def test_many_readers_in_any_order(node: Node, bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(FILES, tmp_path / "up")
    root = node.mount(bucket, "readers", read_only=True)
    wrong: list[str] = []

    def read(seed: int) -> None:
        names = random.Random(seed).sample(sorted(FILES), COUNT)
        wrong.extend(name for name in names if (root / name).read_bytes() != FILES[name])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert node.told()["fetched_bytes"] == sum(map(len, FILES.values()))
