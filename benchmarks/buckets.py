"""Measures a bucket with very many files, over HTTP: trees, paths-info, batches, a HEAD, and how soon a change is told.

    python benchmarks/buckets.py [--files 1000000] [--url postgresql://...]

Without a URL the server uses SQLite; a PostgreSQL database given as URL must be empty. Every file has other content;
the content itself is not there, nothing here reads it. Figures are milliseconds on the client's side, of the first
time and of the others, and the processor time that the server took on average; on a busy machine only that counts.
"""

import argparse
import asyncio
import hashlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from typing import Any

from server import Bench, bench_server

from runstead.model.buckets import Bucket, NewFile
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.content import SqlContentStore
from runstead.stores.interface import StoredFile
from runstead.stores.opening import open_database
from runstead.xet.hashes import hash_to_text
from runstead.xet.terms import Terms

NOW = datetime.now(UTC)
AT_ONCE = 5000
ROUNDS = 12


def file_hash(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def path(number: int) -> str:
    """A third in one flat folder, a third in a thousand folders, a third four folders deep."""
    match number % 3:
        case 0:
            return f"flat/{number:07d}.bin"
        case 1:
            return f"folders/{number % 1000:04d}/{number:07d}.bin"
        case _:
            return f"deep/{number % 10}/{number // 10 % 10}/{number // 100 % 100}/{number:07d}.bin"


async def fill(url: str, bucket: str, files: int, spare: int) -> None:
    """Put the files into the bucket, and content for as many more as will be added, as a server would."""
    database = await open_database(url)
    try:
        store, content = SqlBucketStore(database), SqlContentStore(database)
        namespace, _, name = bucket.partition("/")
        found = await store.find(namespace, name)
        assert isinstance(found, Bucket)
        for start in range(0, files + spare, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, files + spare))
            stored = [StoredFile(file_hash(n), n, Terms(bytes(48)), None) for n in numbers]
            await content.register(found.scope, stored, [], NOW)
            edits = {path(n): NewFile(file_hash(n), n, NOW) for n in numbers if n < files}
            await store.apply(found.seq, edits, NOW)
    finally:
        await database.close()


class Client:
    """One connection that waits for its answers."""

    def __init__(self, bench: Bench, bucket: str) -> None:
        self._connection = http.client.HTTPConnection(bench.host, bench.port, timeout=60)
        self._headers = {"Authorization": f"Bearer {bench.token}", "Content-Type": "application/json"}
        self._bucket = bucket
        self._pages: dict[str, str] = {}
        self._link = ""

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._connection.request(method, path.replace("BUCKET", self._bucket), body, self._headers)
        answer = self._connection.getresponse()
        data = answer.read()
        assert answer.status == 200, (answer.status, data[:300])
        self._link = answer.getheader("Link", "")
        return data

    def next_page(self, listing: str) -> None:
        """Read the page of a listing behind the one read before; after the last one the first again."""
        assert len(json.loads(self.call("GET", self._pages.get(listing, listing)))) == 1000
        self._pages[listing] = "/api" + self._link.partition("/api")[2].partition(">")[0] if self._link else listing

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._connection.close()

    def batch(self, operations: list[dict[str, Any]]) -> None:
        body = "\n".join(map(json.dumps, operations)).encode()
        assert not json.loads(self.call("POST", "/api/buckets/BUCKET/batch", body))["failed"]


def add(path: str, number: int) -> dict[str, Any]:
    return {"type": "addFile", "path": path, "xetHash": hash_to_text(file_hash(number)), "mtime": 1_700_000_000_000}


def timed(bench: Bench, name: str, action: Callable[[int], object]) -> None:
    times: list[float] = []
    cpu = bench.cpu_seconds()
    for number in range(ROUNDS):
        began = time.perf_counter()
        action(number)
        times.append((time.perf_counter() - began) * 1e3)
    cpu_ms = (bench.cpu_seconds() - cpu) / ROUNDS * 1e3
    print(
        f"{name:40}{times[0]:8.1f}{median(times[1:]):10.1f}{min(times[1:]):10.1f}{max(times[1:]):10.1f}{cpu_ms:12.1f}"
    )


def measure(bench: Bench, client: Client, files: int) -> None:
    pick = random.Random(1)
    new = iter(range(files, files + ROUNDS * 2000))
    step = files // ROUNDS
    timed(bench, "tree, recursive, page of 1000", lambda _: client.next_page("/api/buckets/BUCKET/tree"))
    timed(
        bench,
        "tree, one level: 1000 of many files",
        lambda _: client.next_page("/api/buckets/BUCKET/tree/flat?recursive=false"),
    )
    timed(
        bench,
        "tree, one level: 1000 folders",
        lambda _: client.next_page("/api/buckets/BUCKET/tree/folders?recursive=false"),
    )
    timed(bench, "tree, one level: the top", lambda _: client.call("GET", "/api/buckets/BUCKET/tree?recursive=false"))
    timed(
        bench,
        "paths-info of 1000",
        lambda _: client.call(
            "POST",
            "/api/buckets/BUCKET/paths-info",
            json.dumps({"paths": [path(pick.randrange(files)) for _ in range(1000)]}).encode(),
        ),
    )
    timed(bench, "batch: add 1000", lambda n: client.batch([add(f"new/{n}/{i}", next(new)) for i in range(1000)]))
    timed(
        bench,
        "batch: overwrite 1000 anywhere",
        lambda _: client.batch([add(path(pick.randrange(files)), next(new)) for _ in range(1000)]),
    )
    timed(
        bench,
        "batch: delete 1000",
        lambda n: client.batch([{"type": "deleteFile", "path": f"new/{n}/{i}"} for i in range(1000)]),
    )
    timed(bench, "batch: add 1", lambda n: client.batch([add(f"one/{n}", n)]))
    timed(bench, "info", lambda _: client.call("GET", "/api/buckets/BUCKET"))
    timed(bench, "HEAD of a file", lambda n: client.call("HEAD", f"/buckets/BUCKET/resolve/{path(n * step)}"))


def told_after(bench: Bench, bucket: str, client: Client) -> None:
    """How long after a batch is sent its change arrives at somebody who follows."""
    connection = http.client.HTTPConnection(bench.host, bench.port, timeout=30)
    connection.request("GET", f"/api/buckets/{bucket}/events", headers={"Authorization": f"Bearer {bench.token}"})
    stream = connection.getresponse()

    def next_event() -> str:
        while not (line := stream.readline()).startswith(b"event: "):
            assert line
        return line.decode().strip().removeprefix("event: ")

    assert next_event() == "ready"

    def change(number: int) -> None:
        thread = threading.Thread(target=client.batch, args=([add("told", number)],))
        thread.start()
        assert next_event() == "changes"
        thread.join()

    timed(bench, "a change told to a follower", change)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--files", type=int, default=100_000)
    wanted = parser.parse_args()
    with bench_server(**({"RUNSTEAD_DATABASE_URL": wanted.url} if wanted.url else {})) as bench:
        bucket = f"{bench.owner}/large"
        client = Client(bench, bucket)
        client.call("POST", "/api/buckets/BUCKET", b"{}")
        began = time.perf_counter()
        url = wanted.url or f"sqlite:///{bench.data_dir}/runstead.db"
        asyncio.run(fill(url, bucket, wanted.files, ROUNDS * 2000))
        client.close()
        print(f"{wanted.files:,} files in one bucket, put there in {time.perf_counter() - began:.1f} s")
        print(f"{'milliseconds':40}{'first':>8}{'median':>10}{'least':>10}{'largest':>10}{'server CPU':>12}")
        measure(bench, client, wanted.files)
        told_after(bench, bucket, client)
        print(f"{'resident memory of the server':44} {bench.resident_bytes() / 1e6:7.0f} MB")


if __name__ == "__main__":
    main()
