"""What every provider of volumes promises, against a real server over HTTP."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from calls import Api
from clients import Client, Server, eventually, make_client
from runstead.model.errors import BackendFailure, NotFound, Unavailable
from runstead.model.volumes import Mount, MountRequest, Volume, VolumeKind
from runstead.volumes.filled import FilledVolumes
from runstead.volumes.fuse import FuseVolumes, problem
from runstead.volumes.interface import VolumeProvider

FILES = {
    "in/a.txt": b"aaa",
    "in/deep/er/b.bin": random.Random(7).randbytes(300_000),
    "in/empty": b"",
    "in/of two words/ü.txt": b"u",
    "in/same.txt": b"first",
    "elsewhere/c.txt": b"ccc",
}
PROVIDERS = ("filled", "fuse")
# What follows from volumes being plain folders: mounts refuse at once what no bucket can hold, read what is asked for
# and nothing before, and are gone on with by another program (tests/unit/node_fuse).
plain_folders = pytest.mark.parametrize("bench", ["filled"], indirect=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("volumes") / "data").start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return make_client("2.4.0", server, tmp_path_factory.mktemp("home"))


@dataclass
class Bench:
    """One provider on one machine, and one bucket of the server."""

    provider: VolumeProvider
    data_dir: Path
    server: Server
    bucket: str
    kind: str = "filled"
    job_id: str = "a" * 24
    volumes: list[Volume] = field(default_factory=list)

    def mounts(self, *volumes: Volume) -> None:
        self.volumes = list(volumes)

    async def requests(self, job_id: str, attempt: int) -> list[MountRequest]:
        later = datetime.now(UTC) + timedelta(hours=1)
        return [
            MountRequest(job_id, attempt, "alice", i, one, self.server.url, self.server.token, later)
            for i, one in enumerate(self.volumes)
        ]

    async def prepare(self, attempt: int = 1) -> list[Mount]:
        return await self.provider.prepare(await self.requests(self.job_id, attempt))

    async def prepared(self) -> Path:
        """Prepare one writable volume of the folder `in`."""
        self.mounts(Volume(VolumeKind.BUCKET, self.bucket, "/data", "in"))
        return (await self.prepare())[0].source

    def files(self, folder: str = "") -> dict[str, bytes]:
        """Return the files of the bucket, over plain HTTP."""
        api = Api(self.server)
        listed = api.get(f"/api/buckets/{self.bucket}/tree/{folder}?recursive=true").json
        return {e["path"]: api.get(f"/buckets/{self.bucket}/resolve/{quoted(e['path'])}").body for e in listed}


def quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path)


@pytest.fixture(params=PROVIDERS)
async def bench(
    request: pytest.FixtureRequest, server: Server, client: Client, tmp_path: Path
) -> AsyncGenerator[Bench]:
    if request.param == "fuse" and problem() is not None:
        pytest.skip(str(problem()))
    name = f"b{os.urandom(4).hex()}"
    bucket = f"{server.owner}/{name}"
    client.python(
        f"from huggingface_hub import HfApi; api = HfApi(); api.create_bucket({bucket!r}, private=True)\n"
        "import random\n"
        f"files = { ({path: data for path, data in FILES.items() if len(data) < 1000})!r}\n"
        "files['in/deep/er/b.bin'] = random.Random(7).randbytes(300_000)\n"
        f"api.batch_bucket_files({bucket!r}, add=[(data, path) for path, data in files.items()])"
    )
    made = Bench(None, tmp_path / "data", server, bucket, request.param)  # type: ignore[arg-type]
    made.provider = make_provider(request.param, made)
    await made.provider.open()
    yield made
    await made.provider.release(made.job_id, 1, keep_unflushed=False)
    await made.provider.close()


def make_provider(kind: str, bench: Bench) -> VolumeProvider:
    (bench.data_dir / "node").mkdir(parents=True, exist_ok=True)
    if kind == "fuse":
        return FuseVolumes(bench.data_dir, bench.requests, private_ids=False, cache_bytes=1 << 30)
    return FilledVolumes(bench.data_dir, bench.requests, private_ids=False, cache_bytes=1 << 30)


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


async def test_a_volume_has_the_files_of_its_folder(bench: Bench) -> None:
    bench.mounts(
        Volume(VolumeKind.BUCKET, bench.bucket, "/data", "in"),
        Volume(VolumeKind.BUCKET, bench.bucket, "/all", read_only=True),
    )
    first, second = await bench.prepare()
    assert (first.target, first.read_only, second.target, second.read_only) == ("/data", False, "/all", True)
    assert tree(first.source) == {p.removeprefix("in/"): d for p, d in FILES.items() if p.startswith("in/")}
    assert tree(second.source) == FILES
    assert stat.S_IMODE((first.source / "a.txt").stat().st_mode) & 0o444 == 0o444


async def test_preparing_again_changes_nothing(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "new").write_bytes(b"n")
    assert (await bench.prepare())[0].source == root
    assert (root / "new").exists()


async def test_what_was_written_changed_moved_and_deleted_is_in_the_bucket(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "new" / "folder").mkdir(parents=True)
    (root / "new" / "folder" / "x").write_bytes(b"x" * 100_000)
    (root / "nothing").write_bytes(b"")
    (root / "a.txt").rename(root / "moved.txt")
    (root / "empty").unlink()
    with (root / "deep/er/b.bin").open("ab") as file:
        file.write(b"more")
    before = (root / "same.txt").stat()
    (root / "same.txt").write_bytes(b"other")  # of the same length,
    os.utime(root / "same.txt", ns=(before.st_atime_ns, before.st_mtime_ns))  # and it says it is as old
    flushed = await bench.provider.flush(bench.job_id, 1, 60)
    assert (flushed.files, flushed.bytes) == (5, 100_000 + 0 + 3 + 300_004 + 5)
    assert bench.files() == {
        "in/new/folder/x": b"x" * 100_000,
        "in/nothing": b"",
        "in/moved.txt": b"aaa",
        "in/deep/er/b.bin": FILES["in/deep/er/b.bin"] + b"more",
        "in/of two words/ü.txt": b"u",
        "in/same.txt": b"other",
        "elsewhere/c.txt": b"ccc",
    }


async def test_nothing_is_sent_that_did_not_change(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "a.txt").write_bytes(b"aaa")  # written anew, and the same
    (root / "same.txt").chmod(0o600)
    assert (await bench.provider.flush(bench.job_id, 1, 60)).files == 0


async def test_flushing_again_says_the_same(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "new").write_bytes(b"n")
    first = await bench.provider.flush(bench.job_id, 1, 60)
    another = make_provider(bench.kind, bench)
    await another.open()
    assert first == await another.flush(bench.job_id, 1, 60)
    await another.close()
    assert first.files == 1


@plain_folders
async def test_links_and_special_files_are_left_out_and_named(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "link").symlink_to("/etc/passwd")
    (root / "folder-link").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    flushed = await bench.provider.flush(bench.job_id, 1, 60)
    assert flushed.files == 0
    assert sorted(note.split("'")[1] for note in flushed.notes) == ["folder-link", "link", "pipe"]
    assert set(bench.files()) == set(FILES)


@plain_folders
async def test_a_file_that_no_bucket_can_hold_fails_after_all_others_were_saved(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "good").write_bytes(b"g")
    with open(os.fsencode(root) + b"/not-\xff-text", "wb") as file:
        file.write(b"b")
    with pytest.raises(Unavailable, match="no bucket can hold"):
        await bench.provider.flush(bench.job_id, 1, 60)
    assert "in/good" in bench.files()
    await bench.provider.release(bench.job_id, 1, keep_unflushed=True)
    assert await bench.provider.owned() == []
    kept = bench.data_dir / "node" / "unsaved" / f"{bench.job_id}-1" / "0"
    assert (os.fsencode(kept) + b"/not-\xff-text") in [os.fsencode(p) for p in kept.iterdir()]


async def test_closed_files_and_folders_are_saved_all_the_same(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "shut").mkdir()
    (root / "shut" / "secret").write_bytes(b"s")
    (root / "shut" / "secret").chmod(0)
    (root / "shut").chmod(0)
    await bench.provider.flush(bench.job_id, 1, 60)
    assert bench.files("in/shut") == {"in/shut/secret": b"s"}


async def test_what_an_attempt_holds_is_known_and_given_back(bench: Bench) -> None:
    root = await bench.prepared()
    assert await bench.provider.owned() == [(bench.job_id, 1)]
    await bench.provider.release(bench.job_id, 1, keep_unflushed=True)  # nothing was written
    assert await bench.provider.owned() == []
    assert not root.exists()
    await bench.provider.release(bench.job_id, 1, keep_unflushed=True)
    assert list((bench.data_dir / "node" / "unsaved").iterdir()) == []


async def test_what_is_in_no_bucket_outlives_its_release_and_can_be_saved_later(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "precious").write_bytes(b"p" * 1000)
    await bench.provider.release(bench.job_id, 1, keep_unflushed=True)
    assert await bench.provider.owned() == []
    assert (await bench.provider.flush(bench.job_id, 1, 60)).files == 1
    assert bench.files()["in/precious"] == b"p" * 1000
    await bench.provider.release(bench.job_id, 1, keep_unflushed=True)
    with pytest.raises(NotFound):
        await bench.provider.flush(bench.job_id, 1, 60)


async def test_a_second_attempt_sees_what_the_first_saved(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "checkpoint").write_bytes(b"1")
    await bench.provider.flush(bench.job_id, 1, 60)
    await bench.provider.release(bench.job_id, 1, keep_unflushed=True)
    again = (await bench.prepare(attempt=2))[0].source
    assert (again / "checkpoint").read_bytes() == b"1"
    await bench.provider.release(bench.job_id, 2, keep_unflushed=True)


async def test_a_bucket_that_is_not_there_is_not_found(bench: Bench) -> None:
    bench.mounts(Volume(VolumeKind.BUCKET, f"{bench.server.owner}/none", "/data"))
    with pytest.raises(NotFound):
        await bench.prepare()


@plain_folders
async def test_the_second_reader_moves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.mounts(Volume(VolumeKind.BUCKET, bench.bucket, "/data", "in", read_only=True))
    await bench.prepare()
    objects = bench.server.data_dir / "content"
    away = objects.with_name("content-away")
    objects.rename(away)
    try:
        again = (await bench.prepare(attempt=2))[0].source
        assert (again / "deep/er/b.bin").read_bytes() == FILES["in/deep/er/b.bin"]
    finally:
        away.rename(objects)
    await bench.provider.release(bench.job_id, 2, keep_unflushed=True)


@plain_folders
async def test_damaged_content_is_never_shown(bench: Bench) -> None:
    bench.mounts(Volume(VolumeKind.BUCKET, bench.bucket, "/data", "in", read_only=True))
    objects = bench.server.data_dir / "content"
    away = objects.with_name("content-away")
    shutil.copytree(objects, away)
    for path in objects.rglob("*"):
        if path.is_file() and path.stat().st_size > 100_000:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    try:
        with pytest.raises((Unavailable, BackendFailure)):
            await bench.prepare()
    finally:
        shutil.rmtree(objects)
        away.rename(objects)
    assert tree((await bench.prepare())[0].source)["deep/er/b.bin"] == FILES["in/deep/er/b.bin"]


async def test_saving_goes_on_when_the_server_comes_back(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "late").write_bytes(b"l")
    bench.server.kill()
    saving = asyncio.create_task(bench.provider.flush(bench.job_id, 1, 60))
    await asyncio.sleep(2)
    assert not saving.done()
    bench.server.start()
    assert (await saving).files == 1
    assert bench.files()["in/late"] == b"l"


async def test_saving_ends_in_time_when_the_server_stays_away_and_nothing_is_lost(bench: Bench) -> None:
    root = await bench.prepared()
    (root / "late").write_bytes(b"l")
    bench.server.kill()
    try:
        with pytest.raises(Unavailable, match="is kept in"):
            await bench.provider.flush(bench.job_id, 1, 3)
    finally:
        bench.server.start()
    assert (await bench.provider.flush(bench.job_id, 1, 60)).files == 1


@plain_folders
async def test_a_program_that_is_killed_is_no_end(bench: Bench) -> None:
    root = await bench.prepared()
    for i in range(20):
        (root / f"file{i}").write_bytes(os.urandom(2_000_000))
    saving = asyncio.create_task(bench.provider.flush(bench.job_id, 1, 60))
    pids = await asyncio.to_thread(eventually, lambda: programs(bench))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match="killed"):
        await saving
    flushed = await bench.provider.flush(bench.job_id, 1, 60)
    assert flushed.files <= 20
    assert {p for p in bench.files() if p.startswith("in/file")} == {f"in/file{i}" for i in range(20)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
async def test_what_a_job_wrote_until_the_disk_was_full_is_saved(bench: Bench) -> None:
    node = bench.data_dir / "node"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(node)], check=True)
    try:
        await bench.provider.open()
        root = await bench.prepared()
        written = 0
        with contextlib.suppress(OSError), (root / "full").open("wb", buffering=0) as file:
            while True:
                written += file.write(os.urandom(100_000))
        assert shutil.disk_usage(node).free < 100_000
        flushed = await bench.provider.flush(bench.job_id, 1, 60)
        assert (flushed.files, flushed.bytes) == (1, written)
        assert len(bench.files()["in/full"]) == written
        await bench.provider.release(bench.job_id, 1, keep_unflushed=True)
        assert await bench.provider.owned() == []
    finally:
        subprocess.run(["umount", "-l", str(node)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
async def test_a_disk_that_is_too_small_is_said_and_leaves_nothing(bench: Bench) -> None:
    node = bench.data_dir / "node"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(node)], check=True)
    try:
        await bench.provider.open()
        with pytest.raises(Unavailable):
            await bench.prepared()
        await bench.provider.release(bench.job_id, 1, keep_unflushed=True)
        assert await bench.provider.owned() == []
    finally:
        subprocess.run(["umount", "-l", str(node)], check=True)


def programs(bench: Bench) -> list[int]:
    """Return the processes that hold a file of the attempt open."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                links = [os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")]
            except OSError:
                continue
            if any(link.startswith(f"{bench.data_dir}/node/volumes/") for link in links):
                found.append(int(name))
    return found
