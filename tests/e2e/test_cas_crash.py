"""A store that ends suddenly, at every step: what it answered is whole, and nothing half is ever seen."""

import os
import random
import threading
import time
from http.client import HTTPException
from pathlib import Path

import pytest

from cas_client import Cas, CasServer
from runstead.xet.hashes import file_hash, hash_to_text, range_hash
from runstead.xet.shard import FileEntry, Shard, block_of, write_shard
from runstead.xet.terms import Term, terms_of
from runstead.xet.xorb import walk_xorb
from runstead.xet.xorb_builder import XorbBuilder


class Upload:
    """One file in one xorb, its shard, and how far the store has confirmed it."""

    def __init__(self, size: int) -> None:
        builder = XorbBuilder()
        self.content = os.urandom(size)
        for start in range(0, size, 60_000):
            builder.add(self.content[start : start + 60_000])
        built = builder.finish()
        facts, hashes = built.facts, built.facts.chunk_hashes or b""
        lengths = facts.layout.chunk_lengths()
        self.xorb, self.body = hash_to_text(facts.xorb_hash), built.body
        name = file_hash(hashes, lengths)
        terms = terms_of([Term(facts.xorb_hash, 0, len(lengths), size)])
        self.name = hash_to_text(name)
        self.shard = write_shard(Shard((FileEntry(name, terms, range_hash(hashes)),), (block_of(facts, hashes),)))
        self.xorb_answered = self.file_answered = False

    def send(self, cas: Cas) -> None:
        granted = cas.grant(self.xorb, self.body)
        if granted.status == 201:
            if cas.put(granted.json()["url"], self.body).status != 200:
                return
            committed = cas.call("POST", f"v1/xorb-commits/default/{self.xorb}/grant/{granted.json()['id']}")
            if committed.status != 200:
                return
        self.xorb_answered = True
        if cas.upload_shard(self.shard)["type"] == "result":
            self.file_answered = True


def check(store: CasServer, uploads: list[Upload]) -> None:
    """Look at everything after the store has come up again."""
    cas = Cas(store.url)
    folder = store.directory / "objects"
    assert not list((folder / "staging").iterdir())
    for path in (folder / "objects").rglob("*-*"):
        whole = {upload.xorb: upload.body for upload in uploads}[path.name.partition("-")[0]]
        assert path.read_bytes() == whole
        walk_xorb(whole)
    for upload in uploads:
        found = cas.call("HEAD", f"v1/xorbs/default/{upload.xorb}").status
        assert found == 200 or not upload.xorb_answered
        status = cas.reconstruction(upload.name).status
        assert status == 200 or not upload.file_answered
        if status == 200:
            assert cas.plain(upload.name) == upload.content
    for upload in uploads:
        upload.send(cas)
        assert upload.file_answered
        assert cas.plain(upload.name) == upload.content


@pytest.mark.parametrize("step", range(1, 26, 2))
def test_at_every_durable_step(tmp_path: Path, step: int) -> None:
    uploads = [Upload(300_000), Upload(5_000)]
    store = CasServer(tmp_path / "store", ("--die-at", str(step)))
    try:
        store.start()
        cas = Cas(store.url)
        for upload in uploads:
            upload.send(cas)
    except (OSError, HTTPException, AssertionError):
        pass
    died = store.process is not None and store.process.poll() is not None
    store.kill()
    store.flags, store.port = (), 0
    store.start()
    try:
        check(store, uploads)
    finally:
        store.stop()
    assert died or all(upload.file_answered for upload in uploads)


def test_at_any_moment_under_load(tmp_path: Path) -> None:
    store = CasServer(tmp_path / "store").start()
    uploads: list[Upload] = []
    seed = int.from_bytes(os.urandom(4), "little")
    chance = random.Random(seed)
    for _ in range(3):
        several = [[Upload(chance.choice([3_000, 200_000, 3_000_000])) for _ in range(5)] for _ in range(3)]
        uploads += [upload for some in several for upload in some]
        threads = [threading.Thread(target=send_all, args=(store.url, some)) for some in several]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.05, 0.5))
        store.kill()
        for thread in threads:
            thread.join()
        store.port = 0
        store.start()
        check(store, uploads)
    store.stop()


def send_all(url: str, uploads: list[Upload]) -> None:
    try:
        cas = Cas(url)
        for upload in uploads:
            upload.send(cas)
    except (OSError, HTTPException, ValueError):
        return
