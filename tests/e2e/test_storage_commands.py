"""`runstead gc` and `runstead fsck` on a server's data, while it runs and while it does not."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from calls import Api
from clients import Client, Server, eventually, make_client

LONG_AGO = 60 * 86400


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[Server]:
    """A server that keeps no history: what is deleted is referred to by nobody once its duty has come by."""
    started = Server(tmp_path / "data", environment={"RUNSTEAD_STORAGE_HISTORY_DAYS": "0"}).start()
    yield started
    started.stop()


@pytest.fixture
def filled(forgetful: Server, tmp_path: Path) -> tuple[Client, dict[str, bytes]]:
    """A client, and a bucket `b` of two files without a byte in common, `kept` and `dropped`."""
    client = make_client("2.4.0", forgetful, tmp_path)
    client.hf("buckets", "create", "b", "--quiet")
    contents = {name: os.urandom(300_000) for name in ("kept", "dropped")}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        client.hf("buckets", "cp", str(tmp_path / name), f"hf://buckets/{forgetful.owner}/b/{name}")
    return client, contents


def objects(server: Server) -> dict[Path, int]:
    """The stored xorbs and their sizes."""
    folder = server.data_dir / "content" / "objects"
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def let_time_pass(server: Server) -> None:
    """Make what happened have happened long ago: the grace period is weeks."""
    with closing(sqlite3.connect(server.data_dir / "runstead.db", timeout=20)) as database, database:
        for table, column in (("files", "confirmed_at"), ("xorbs", "confirmed_at"), ("store_ids", "since")):
            database.execute(f"UPDATE {table} SET {column} = {column} - {LONG_AGO * 1_000_000}")


def download(client: Client, name: str, folder: Path) -> bytes:
    target = folder / f"{name}.again"
    client.hf("buckets", "cp", f"hf://buckets/{client.server.owner}/b/{name}", str(target))
    return target.read_bytes()


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_gc_removes_what_nobody_refers_to_and_nothing_else(
    forgetful: Server, filled: tuple[Client, dict[str, bytes]], tmp_path: Path, running: bool
) -> None:
    client, contents = filled
    before = objects(forgetful)
    client.hf("buckets", "rm", f"{forgetful.owner}/b/dropped", "--yes")
    forgetful.terminate()
    forgetful.start()  # its duty comes by at the start
    assert eventually(
        lambda: forgetful.run("bucket", "history", f"{forgetful.owner}/b", "--json").stdout.strip() == "[]", 30
    )
    if not running:
        forgetful.terminate()

    early = json.loads(forgetful.run("gc", "--json").stdout)
    assert early == {"files": 0, "xorbs": 0, "objects": 0, "bytes": 0}  # clients may still count on it
    let_time_pass(forgetful)
    would = json.loads(forgetful.run("gc", "--dry-run", "--json").stdout)
    assert (would["files"], would["xorbs"]) == (1, 1)
    assert objects(forgetful) == before
    assert "Would remove 1 files, 1 xorbs" in forgetful.run("gc", "--dry-run").stdout
    assert json.loads(forgetful.run("gc", "--json").stdout) == would
    after = objects(forgetful)
    assert len(after) == len(before) - 1
    assert sum(before.values()) - sum(after.values()) == would["bytes"] >= 300_000
    assert "Removed 0 files, 0 xorbs" in forgetful.run("gc").stdout

    if not running:
        forgetful.start()
    assert download(client, "kept", tmp_path) == contents["kept"]
    # The client remembers no less than before: it believes that what it sent is here. It is told, and sends it again.
    words = ("buckets", "cp", str(tmp_path / "dropped"), f"hf://buckets/{forgetful.owner}/b/dropped")
    told = client.hf(*words, check=False)
    assert "run the command again" in told.stderr + told.stdout
    client.hf(*words)
    assert download(client, "dropped", tmp_path) == contents["dropped"]


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_fsck_finds_a_flipped_bit_and_a_new_upload_puts_it_right(
    forgetful: Server, filled: tuple[Client, dict[str, bytes]], tmp_path: Path, running: bool
) -> None:
    client, contents = filled
    if not running:
        forgetful.terminate()
    whole = forgetful.run("fsck")
    assert whole.stdout.endswith("all is well.\n")
    assert json.loads(forgetful.run("fsck", "--json").stdout)["damages"] == []

    broken = _object_of(forgetful, contents["kept"])
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.chmod(0o600)
    broken.write_bytes(data)
    told = forgetful.run("fsck", "--report-only", "--json", check=False)
    assert told.returncode == 1
    damages = json.loads(told.stdout)["damages"]
    assert [one["what"] for one in damages] == ["xorb"]  # nothing was changed, so the file has its xorb still
    found = forgetful.run("fsck", check=False)
    assert found.returncode == 1
    assert damages[0]["name"] in found.stdout
    assert "2 things are wrong" in found.stdout  # the xorb, and the file that needs it

    if not running:
        forgetful.start()
    lost = Api(forgetful).get(f"/buckets/{forgetful.owner}/b/resolve/kept")
    assert lost.status == 410  # a client believes it; after a 500 it asks again for minutes
    assert damages[0]["name"] in lost.error
    refused = client.hf("buckets", "cp", f"hf://buckets/{forgetful.owner}/b/kept", str(tmp_path / "lost"), check=False)
    assert refused.returncode != 0
    assert not (tmp_path / "lost").exists() or (tmp_path / "lost").stat().st_size == 0
    assert download(client, "dropped", tmp_path) == contents["dropped"]
    other = make_client("2.4.0", forgetful, tmp_path / "elsewhere")
    other.hf("buckets", "cp", str(tmp_path / "kept"), f"hf://buckets/{forgetful.owner}/b/kept")
    assert download(other, "kept", tmp_path) == contents["kept"]
    assert forgetful.run("fsck").stdout.endswith("all is well.\n")


def test_fsck_finds_an_object_that_is_gone(forgetful: Server, filled: tuple[Client, dict[str, bytes]]) -> None:
    _, contents = filled
    _object_of(forgetful, contents["kept"]).unlink()
    found = forgetful.run("fsck", check=False)
    assert found.returncode == 1
    assert "its object is missing" in found.stdout


def test_gc_takes_away_what_a_crash_left(forgetful: Server, filled: tuple[Client, dict[str, bytes]]) -> None:
    del filled
    some = next(iter(objects(forgetful)))
    orphan = some.with_name("f" * len(some.name))
    orphan.write_bytes(b"half an upload")
    assert json.loads(forgetful.run("gc", "--json").stdout)["objects"] == 0  # it may be an upload that goes on
    os.utime(orphan, (1, 1))
    assert json.loads(forgetful.run("gc", "--json").stdout)["objects"] == 1
    assert not orphan.exists()


def _object_of(server: Server, content: bytes) -> Path:
    """The object that holds this content: random bytes are stored as they are."""
    return next(path for path in objects(server) if content[1000:2000] in path.read_bytes())
