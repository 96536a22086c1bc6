"""Measures a bucket with very many files, over HTTP: trees, paths-info, batches, a HEAD, and how soon a change is told.

    python benchmarks/buckets.py [--files 1000000] [--url postgresql://...]

Without a URL the server uses SQLite; a PostgreSQL database given as URL must be empty. Every file has other content;
that of the files that are there from the start is not there, nothing here reads it, and that of batches is uploaded
right before, as clients do it. Figures are milliseconds on the client's side, of the first time and of the others, and
the processor time that the server and the database's processes took, as the median; on a busy machine only that counts.
"""

import argparse
import asyncio
import hashlib
import http.client
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from server import Bench, bench_server

from runstead.model.buckets import Bucket, NewFile
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.content import SqlContentStore
from runstead.stores.interface import StoredFile
from runstead.stores.opening import open_database
from runstead.xet.compression import Scheme
from runstead.xet.hashes import file_hash as hash_of_file
from runstead.xet.hashes import hash_to_text, range_hash
from runstead.xet.shard import FileEntry, Shard, block_of, write_shard
from runstead.xet.terms import Term, Terms, terms_of
from runstead.xet.xorb_builder import XorbBuilder

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

    def upload(self, count: int) -> list[bytes]:
        """Upload that many small files that nobody has, and return their hashes in no order."""
        builder, salt = XorbBuilder(), os.urandom(8)
        chunks = [builder.add(b"%d %s" % (number, salt), Scheme.NONE) for number in range(count)]
        xorb = builder.finish()
        files = [
            FileEntry(hash_of_file(chunk, [length]), terms_of([Term(xorb.facts.xorb_hash, at, at + 1, length)]))
            for at, (chunk, length) in enumerate(zip(chunks, xorb.facts.layout.chunk_lengths(), strict=True))
        ]
        proven = [FileEntry(f.file_hash, f.terms, range_hash(chunk)) for f, chunk in zip(files, chunks, strict=True)]
        shard = Shard(
            tuple(sorted(proven, key=lambda f: f.file_hash)), (block_of(xorb.facts, xorb.facts.chunk_hashes),)
        )
        token = json.loads(self.call("GET", "/api/buckets/BUCKET/xet-write-token"))
        cas = "/xet/" + token["casUrl"].partition("/xet/")[2]
        headers = {"Authorization": f"Bearer {token['accessToken']}"}
        for where, body in (
            (f"xorbs/default/{hash_to_text(xorb.facts.xorb_hash)}", xorb.body),
            ("shards", write_shard(shard)),
        ):
            self._connection.request("POST", f"{cas}/v1/{where}", body, headers)
            answer = self._connection.getresponse()
            answer.read()
            assert answer.status == 200
        hashes = [f.file_hash for f in files]
        random.shuffle(hashes)
        return hashes

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._connection.close()

    def batch(self, operations: list[dict[str, Any]]) -> None:
        body = "\n".join(map(json.dumps, operations)).encode()
        assert not json.loads(self.call("POST", "/api/buckets/BUCKET/batch", body))["failed"]


def add(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "addFile", "path": path, "xetHash": hash_to_text(content), "mtime": 1_700_000_000_000}


class Processors:
    """What the server and the processes of its database have used of the processors."""

    def __init__(self, bench: Bench, url: str | None) -> None:
        self._pid = bench.pid
        self._postmaster = None if url is None else _postmaster(url)

    def milliseconds(self) -> float:
        return sum(self._used(pid) for pid in (self._pid, *self._of_database()))

    def _of_database(self) -> Iterator[int]:
        if self._postmaster is not None:
            for path in Path("/proc").glob("[0-9]*/stat"):
                try:
                    if int(path.read_text().rpartition(")")[2].split()[1]) == self._postmaster:
                        yield int(path.parent.name)
                except OSError:
                    continue  # it ended meanwhile

    def _used(self, pid: int) -> float:
        try:
            tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        except OSError:
            return 0
        return sum(int(text.split()[0]) for text in tasks) / 1e6


def _postmaster(url: str) -> int | None:
    """Return the server's process if it runs on this machine."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    try:
        return int(Path(row[0] if row else "", "postmaster.pid").read_text().split()[0])
    except OSError:
        return None


def timed(used: Processors, name: str, action: Callable[[Any], object], prepare: Callable[[int], Any] = int) -> None:
    times: list[float] = []
    cpu: list[float] = []
    for number in range(ROUNDS):
        prepared = prepare(number)
        time.sleep(0.05)  # until what was prepared is settled
        before, began = used.milliseconds(), time.perf_counter()
        action(prepared)
        times.append((time.perf_counter() - began) * 1e3)
        time.sleep(0.05)
        cpu.append(used.milliseconds() - before)
    print(
        f"{name:40}{times[0]:8.1f}{median(times[1:]):10.1f}{min(times[1:]):10.1f}{max(times[1:]):10.1f}"
        f"{median(cpu):12.1f}"
    )


def measure(bench: Processors, client: Client, files: int) -> None:
    pick = random.Random(1)
    known = iter(range(files, files + ROUNDS * 2000))
    step = files // ROUNDS

    def anywhere() -> list[str]:
        return [path(number) for number in pick.sample(range(files), 1000)]

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
    timed(bench, "HEAD of a file", lambda n: client.call("HEAD", f"/buckets/BUCKET/resolve/{path(n * step)}"))
    timed(
        bench,
        "batch: add 1000",
        client.batch,
        lambda n: [add(f"new/{n}/{i}", content) for i, content in enumerate(client.upload(1000))],
    )
    timed(
        bench,
        "batch: overwrite 1000 anywhere",
        client.batch,
        lambda _: [add(*each) for each in zip(anywhere(), client.upload(1000), strict=True)],
    )
    timed(
        bench,
        "the same, uploaded to another server",
        client.batch,
        lambda _: [add(path, file_hash(next(known))) for path in anywhere()],
    )
    timed(
        bench,
        "batch: delete 1000",
        client.batch,
        lambda n: [{"type": "deleteFile", "path": f"new/{n}/{i}"} for i in range(1000)],
    )
    timed(
        bench,
        "batch: delete 1000 anywhere",
        client.batch,
        lambda _: [{"type": "deleteFile", "path": path} for path in anywhere()],
    )
    timed(bench, "batch: add 1", client.batch, lambda n: [add(f"one/{n}", content) for content in client.upload(1)])
    timed(bench, "info", lambda _: client.call("GET", "/api/buckets/BUCKET"))


def told_after(bench: Bench, used: Processors, bucket: str, client: Client) -> None:
    """How long after a batch is sent its change arrives at somebody who follows."""
    connection = http.client.HTTPConnection(bench.host, bench.port, timeout=30)
    connection.request("GET", f"/api/buckets/{bucket}/events", headers={"Authorization": f"Bearer {bench.token}"})
    stream = connection.getresponse()

    def next_event() -> str:
        while not (line := stream.readline()).startswith(b"event: "):
            assert line
        return line.decode().strip().removeprefix("event: ")

    assert next_event() == "ready"

    def change(content: bytes) -> None:
        thread = threading.Thread(target=client.batch, args=([add("told", content)],))
        thread.start()
        assert next_event() == "changes"
        thread.join()

    timed(used, "a change told to a follower", change, lambda _: client.upload(1)[0])


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
        print(f"{'milliseconds':40}{'first':>8}{'median':>10}{'least':>10}{'largest':>10}{'CPU':>12}")
        used = Processors(bench, wanted.url)
        measure(used, client, wanted.files)
        told_after(bench, used, bucket, client)
        print(f"{'resident memory of the server':44} {bench.resident_bytes() / 1e6:7.0f} MB")


if __name__ == "__main__":
    main()
