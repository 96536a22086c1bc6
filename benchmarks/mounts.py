"""A mounted bucket beside a bind mount of the same files, and beside the store's own plain GET and client.

    sudo python benchmarks/mounts.py [--mb 1000] [--files 2000] [--rounds 3] [--only warm,cold,write,flush,start,cost]

Prints medians and ratios. Server, mount and reader share this machine; cold reads move bytes over the loopback.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runstead.model.volumes import MountRequest, Volume, VolumeKind
from runstead.node import syscalls
from runstead.volumes import fuse

BLOCK = 1 << 20
PREADS = 50_000


class Site:
    """A server with a bucket, and a node that mounts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        reader, writer = os.pipe()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RUNSTEAD_", "HF_"))}
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "runstead.cli", "serve", "--port", "0"),
                    *("--data-dir", str(folder / "server"), "--ready-fd", str(writer)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[writer],
            )
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = json.loads(pipe.read())
        self.url, self.token = said["url"], said["token"]
        self.bucket = f"{said['owner']}/bench"
        self.call("POST", f"/api/buckets/{self.bucket}", b"{}")
        self.requests: dict[tuple[str, int], list[MountRequest]] = {}
        self.jobs = 0
        self.provider = fuse.FuseVolumes(
            folder / "node", self.again, private_ids=False, cache_bytes=50 << 30, patience_seconds=30
        )

    async def again(self, job_id: str, attempt: int) -> list[MountRequest]:
        return self.requests[job_id, attempt]

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.read()

    async def mount(self, *, read_only: bool = False) -> Path:
        self.jobs += 1
        job_id = f"{self.jobs:024x}"
        volume = Volume(VolumeKind.BUCKET, self.bucket, "/data", "", None, read_only)
        expires = datetime.now(UTC) + timedelta(days=1)
        request = MountRequest(job_id, 1, "bench", 0, volume, self.url, self.token, expires)
        self.requests[job_id, 1] = [request]
        return (await self.provider.prepare([request]))[0].source

    async def flush(self, path: Path) -> None:
        await self.provider.flush(path.parent.name.partition("-")[0], 1, 600)

    async def empty_cache(self) -> None:
        """Drop what the node has, by way of another daemon: this one knows what it has."""
        for job_id, attempt in await self.provider.owned():
            await self.provider.release(job_id, attempt, keep_unflushed=False)
        await self.provider._ask_if_there(self.provider._name, {"op": "leave"}, 10)
        await asyncio.sleep(1)
        shutil.rmtree(self.folder / "node" / "node" / "cache", ignore_errors=True)
        drop_pages()
        await self.provider._ask(self.provider._name, {"op": "hello"}, 10)

    async def end(self) -> None:
        for job_id, attempt in await self.provider.owned():
            await self.provider.release(job_id, attempt, keep_unflushed=False)
        await self.provider._ask_if_there(self.provider._name, {"op": "leave"}, 10)
        self.process.terminate()
        self.process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="warm,cold,write,flush,start,cost")
    arguments = parser.parse_args()
    missing = fuse.problem()
    if missing is not None:
        print(f"not measured: {missing}")
        return
    folder = Path(tempfile.mkdtemp(prefix="mounts-bench-"))
    try:
        asyncio.run(measure(folder, arguments))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def measure(folder: Path, arguments: argparse.Namespace) -> None:
    site = Site(folder)
    await site.provider.open()
    plain, bound = folder / "plain", folder / "bound"
    for path in (plain, bound):
        path.mkdir()
    syscalls.mount(str(plain), str(bound), None, syscalls.MS_BIND)
    try:
        root = await site.mount()
        make_files(plain, arguments.mb, arguments.files)
        await asyncio.to_thread(lambda: shutil.copytree(plain, root, dirs_exist_ok=True))
        await site.flush(root)
        chosen = arguments.only.split(",")
        if "warm" in chosen:
            await warm(site, bound, arguments.rounds)
        if "cold" in chosen:
            await cold(site, arguments.rounds)
        if "write" in chosen:
            await write(site, bound, arguments.mb, arguments.files, arguments.rounds)
        if "flush" in chosen:
            await flush(site, folder, arguments.mb, arguments.rounds)
        if "start" in chosen:
            await start(site)
        if "cost" in chosen:
            await cost(site, arguments.files)
        await memory(site)
    finally:
        syscalls.unmount(str(bound), syscalls.MNT_DETACH)
        await site.end()


async def warm(site: Site, bound: Path, rounds: int) -> None:
    """What is in the cache already."""
    for read_only in (True, False):
        kind = "read-only" if read_only else "read-write"
        seen: dict[str, list[float]] = {"bind mount": [], "mount": []}
        for _ in range(rounds):
            root = await site.mount(read_only=read_only)
            seen["bind mount"].append(await asyncio.to_thread(small_files, bound / "small"))
            seen["mount"].append(await asyncio.to_thread(small_files, root / "small"))
        show(f"small files/s, first pass of a mount ({kind})", seen, "bind mount", "mount")
        root = await site.mount(read_only=read_only)
        with rclone(bound) as other:
            for what, measure in (
                ("warm 1 file, sequential, MB/s", lambda p: rate(p / "large")),
                ("4 KB preads/s", lambda p: preads(p / "large")),
                ("small files/s", lambda p: small_files(p / "small")),
            ):
                if other is not None:
                    measure(other)  # into its cache
                compare(f"{what} ({kind})", rounds, bound, root, measure, other)


async def cold(site: Site, rounds: int) -> None:
    """What has to come from the store first."""
    seen: dict[str, list[float]] = {"plain GET": [], "mount": [], "mount, small files/s": []}
    for _ in range(rounds):
        seen["plain GET"].append(await asyncio.to_thread(get, site))
        await site.empty_cache()
        root = await site.mount(read_only=True)
        seen["mount"].append(await asyncio.to_thread(rate, root / "large"))
        seen["mount, small files/s"].append(await asyncio.to_thread(small_files, root / "small"))
    show("cold 1 file, MB/s", seen, "plain GET", "mount")


async def write(site: Site, bound: Path, mb: int, files: int, rounds: int) -> None:
    """Until the last close."""
    data = bytearray(random.Random(2).randbytes(8 << 20))

    def large(path: Path) -> float:
        target = path / f"written-{random.random()}"
        began = time.perf_counter()
        with target.open("wb", buffering=0) as file:
            for number in range(mb // 8):
                data[:8] = number.to_bytes(8, "big")
                file.write(data)
        took = time.perf_counter() - began
        target.unlink()
        return mb // 8 * 8 * 1.048576 / took

    def small(path: Path) -> float:
        folder = path / f"small-{random.random()}"
        folder.mkdir()
        began = time.perf_counter()
        for number in range(files):
            (folder / str(number)).write_bytes(data[number : number + 20_000])
        took = time.perf_counter() - began
        shutil.rmtree(folder)
        return files / took

    root = await site.mount()
    compare("write 1 file until close, MB/s", rounds, bound, root, large)
    compare("small files written/s", rounds, bound, root, small)
    await site.flush(root)


async def flush(site: Site, folder: Path, mb: int, rounds: int) -> None:
    """From the last close until it is in the bucket, beside the client's library on the same bytes."""
    import hf_xet

    seen: dict[str, list[float]] = {"hf_xet": [], "mount": []}
    root = await site.mount()
    for round_ in range(rounds):
        for way in ("hf_xet", "mount"):
            source = folder / "upload"
            random_file(source, mb, 100 + round_ * 10 + (way == "mount"))
            if way == "hf_xet":
                token = json.loads(site.call("GET", f"/api/buckets/{site.bucket}/xet-write-token"))
                began = time.perf_counter()
                commit = hf_xet.XetSession().new_upload_commit(
                    endpoint=token["casUrl"], token=token["accessToken"], token_expiry_unix_secs=token["exp"]
                )
                commit.start_upload_file(str(source), sha256=hf_xet.SKIP_SHA256)
                await asyncio.to_thread(commit.wait_to_finish)
            else:
                shutil.copyfile(source, root / "checkpoint")
                began = time.perf_counter()
                await site.flush(root)
            seen[way].append(mb * 1.048576 / (time.perf_counter() - began))
    show("flush 1 file, MB/s", seen, "hf_xet", "mount")


async def start(site: Site) -> None:
    """What a volume adds to a job's start."""
    took: list[float] = []
    for _ in range(20):
        began = time.perf_counter()
        await site.mount()
        took.append((time.perf_counter() - began) * 1000)
    print(f"prepare one volume, ms: {statistics.median(took):.1f} (worst {max(took):.1f})", flush=True)


async def cost(site: Site, files: int) -> None:
    """Processor time of small files, which says something on a busy machine too."""
    data = random.Random(5).randbytes(8 << 20)
    root = await site.mount()
    (root / "cost").mkdir()

    def write_all() -> None:
        for number in range(files):
            (root / "cost" / str(number)).write_bytes(data[number : number + 20_000])

    spent = await programs(site)
    await asyncio.to_thread(write_all)
    await site.flush(root)
    show_cost("written, until all are in the bucket", spent, await programs(site), files)
    await site.empty_cache()
    again = await site.mount(read_only=True)
    for what in ("read cold", "read warm"):
        spent = await programs(site)
        await asyncio.to_thread(small_files, again / "cost")
        show_cost(what, spent, await programs(site), files)


async def programs(site: Site) -> dict[str, float]:
    """Return the seconds of processor time that each of our programs has had, with those it started."""
    daemon = await pid_of_daemon(site)
    ours = os.times()
    return {
        "daemon": processor_seconds(daemon),
        "uploader": sum(processor_seconds(child) for child in children(daemon)),
        "server": processor_seconds(site.process.pid) + sum(map(processor_seconds, children(site.process.pid))),
        "reader or writer": ours.user + ours.system,
    }


def show_cost(what: str, before: dict[str, float], after: dict[str, float], files: int) -> None:
    each = {name: (after[name] - before[name]) / files * 1000 for name in before}
    print(f"small files {what}, ms of processor each: {sum(each.values()):.2f} (", end="")
    print(", ".join(f"{name} {value:.2f}" for name, value in each.items()) + ")", flush=True)


def processor_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def children(pid: int) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found = [other for other in pids if (fields := _stat(other)) and int(fields[1]) == pid]
    return found + [below for child in found for below in children(child)]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


async def pid_of_daemon(site: Site) -> int:
    return int((await site.provider._ask(site.provider._name, {"op": "hello"}, 10))["pid"])


async def memory(site: Site) -> None:
    pid = await pid_of_daemon(site)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith(("VmHWM", "VmRSS"))}
    print(f"daemon, MiB: {found['VmRSS']} now, {found['VmHWM']} at most", flush=True)


def make_files(folder: Path, mb: int, files: int) -> None:
    random_file(folder / "large", mb, 1)
    dice = random.Random(7)
    for number in range(files):
        path = folder / "small" / f"{number % 20:02}" / f"{number:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(dice.randrange(8 << 10, 64 << 10)))


def random_file(path: Path, mb: int, seed: int) -> None:
    dice = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(mb):
            file.write(dice.randbytes(BLOCK))


def rate(path: Path) -> float:
    """Read a file from front to back, MB/s."""
    buffer = bytearray(BLOCK)
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        total = 0
        while count := file.readinto(buffer):
            total += count
    return total / 1e6 / (time.perf_counter() - began)


def preads(path: Path) -> float:
    """Read 4 KB at random places, per second."""
    size, dice = path.stat().st_size, random.Random(3)
    places = [dice.randrange(size - 4096) for _ in range(PREADS)]
    fd = os.open(path, os.O_RDONLY)
    began = time.perf_counter()
    for place in places:
        os.pread(fd, 4096, place)
    took = time.perf_counter() - began
    os.close(fd)
    return PREADS / took


def small_files(folder: Path) -> float:
    """Read every file below, per second."""
    names = [path for path in folder.rglob("*") if path.is_file()]
    began = time.perf_counter()
    for name in names:
        fd = os.open(name, os.O_RDONLY)
        while os.read(fd, 1 << 17):
            pass
        os.close(fd)
    return len(names) / (time.perf_counter() - began)


def get(site: Site) -> float:
    headers = {"Authorization": f"Bearer {site.token}"}
    request = urllib.request.Request(f"{site.url}/buckets/{site.bucket}/resolve/large", headers=headers)
    buffer = bytearray(BLOCK)
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=300) as answer:
        total = 0
        while count := answer.readinto(buffer):
            total += count
    return total / 1e6 / (time.perf_counter() - began)


@contextlib.contextmanager
def rclone(source: Path) -> Iterator[Path | None]:
    """Mount a folder of this machine by rclone with a full cache: the best a store can do for it. None without it."""
    program = shutil.which("rclone")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="rclone-") as folder:
        target, cache = Path(folder) / "mount", Path(folder) / "cache"
        target.mkdir()
        running = subprocess.Popen(
            [program, "mount", str(source), str(target), "--vfs-cache-mode", "full", "--cache-dir", str(cache)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not target.is_mount():
                time.sleep(0.05)
            yield target
        finally:
            subprocess.run(["umount", "-l", str(target)], check=False)
            running.terminate()
            running.wait(20)


def compare(
    what: str, rounds: int, bound: Path, root: Path, measure: Callable[[Path], float], other: Path | None = None
) -> None:
    ways = {"bind mount": bound, "mount": root} | ({"rclone": other} if other is not None else {})
    seen: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, path in ways.items():
            seen[way].append(measure(path))
    show(what, seen, "bind mount", "mount")


def show(what: str, seen: dict[str, list[float]], peer: str, ours: str) -> None:
    middle = {way: statistics.median(values) for way, values in seen.items()}
    print(f"{what}: " + ", ".join(f"{way} {value:,.0f}" for way, value in middle.items()), end="")
    print(f"; ratio {middle[ours] / middle[peer]:.2f}", flush=True)


def drop_pages() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


if __name__ == "__main__":
    main()
