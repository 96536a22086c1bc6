"""Containers: how soon a job from an image says its first word, how many there are a second, what idle ones cost.

    .venv/bin/python benchmarks/containers.py [--quick] [first life idle]

Needs root. The same image, beside podman, runc and crun where they are installed, in the same run on the same machine.
Medians; latencies in ms. The image is this machine's busybox, so that nothing but the container is measured.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from statistics import median

from server import Bench, Connection, bench_server

QUICK = "--quick" in sys.argv
IMAGE = "localhost/bench:latest"
IDLE = 50 if QUICK else 300


def say(what: str, value: str, target: str = "", peer: str = "") -> None:
    print(f"| {what} | {value} | {target} | {peer} |", flush=True)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def spec(*command: str) -> dict[str, object]:
    return {"command": list(command), "flavor": "tiny", "dockerImage": IMAGE}


# ---- Runstead ----


@contextlib.contextmanager
def container_server(archive: Path) -> Generator[Bench]:
    """A server that runs containers, with the image in its store."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "runstead.toml")
        settings.write_text(
            '[executor]\nkind = "oci"\ncpu_overcommit = 1000\n[flavors.tiny]\ncpu = 1\nmemory = "32MB"\ndisk = "1GB"\n'
        )
        with bench_server(RUNSTEAD_EXECUTOR_KIND="oci", RUNSTEAD_CONFIG=str(settings)) as bench:
            load = [sys.executable, "-m", "runstead.cli", "image", "load", str(archive), "--name", IMAGE]
            subprocess.run([*load, "--data-dir", str(bench.data_dir)], check=True, capture_output=True)
            yield bench


async def create_to_first(bench: Bench, count: int) -> tuple[list[float], list[float]]:
    """Submission over HTTP until a follower has the first line; and until the job is over."""
    connection = Connection(bench)
    first: list[float] = []
    whole: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        job = await connection.request("POST", f"/api/jobs/{bench.owner}", spec("echo", "first"))
        follower = Connection(bench)
        reader = await follower.stream(f"/api/jobs/{bench.owner}/{job['id']}/logs")
        await reader.readuntil(b'"data":"first"')
        first.append(time.perf_counter() - began)
        await reader.read()  # the stream ends with the job
        whole.append(time.perf_counter() - began)
        follower.close()
        await asyncio.sleep(0.05)
    return first, whole


async def whole_lives(bench: Bench, count: int) -> float:
    connection = Connection(bench)
    path = f"/api/jobs/{bench.owner}/count?stage=COMPLETED"
    before = (await connection.request("GET", path))["count"]

    async def client(share: int) -> None:
        mine = Connection(bench)
        for _ in range(share):
            await mine.request("POST", f"/api/jobs/{bench.owner}", spec("true"))
        mine.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(count // 8) for _ in range(8)))
    connection = Connection(bench)  # the other one was idle for long
    while (await connection.request("GET", path))["count"] < before + count // 8 * 8:
        await asyncio.sleep(0.02)
    return count // 8 * 8 / (time.perf_counter() - began)


async def idle(bench: Bench) -> None:
    """Containers that do nothing, all alive at once: what they and all beside them take."""
    connection = Connection(bench)
    base = _proportional(bench)
    for _ in range(IDLE):
        await connection.request("POST", f"/api/jobs/{bench.owner}", spec("sleep", "3600"))
    path = f"/api/jobs/{bench.owner}/count?stage=RUNNING"
    async with asyncio.timeout(300):
        while (await connection.request("GET", path))["count"] < IDLE:
            await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    total = _proportional(bench)
    each = (total - base) / IDLE
    say(f"{IDLE} idle containers alive", f"{total / 1e6:.0f} MB in all, {each / 1e6:.2f} MB each", "300: < 3 GB")


def _proportional(bench: Bench) -> int:
    """Memory of the server and of everything below it or its launcher, shared pages divided among those who share."""
    parents: dict[int, int] = {}
    roots = {bench.pid}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.name)
            parents[pid] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if str(bench.data_dir).encode() in (path / "cmdline").read_bytes():
                roots.add(pid)
    total = 0
    for pid in parents:
        above = pid
        while above not in roots and above in parents:
            above = parents[above]
        if above in roots:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


# ---- peers ----


def timed(command: list[str], count: int) -> tuple[float, float] | None:
    """Time to the first byte and to the end of a command, medians; None when it fails."""
    first: list[float] = []
    whole: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            if process.stdout.read(1) == b"":
                return None
            first.append(time.perf_counter() - began)
            process.wait()
        whole.append(time.perf_counter() - began)
    return median(first), median(whole)


def rate(command: Callable[[int], list[str]], count: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: subprocess.run(command(n), capture_output=True, check=False), range(count)))
    return count / (time.perf_counter() - began)


@contextlib.contextmanager
def podman(archive: Path) -> Generator[list[str] | None]:
    """The beginning of a command that runs something in the image, with a network, limits and a filter of its own."""
    if shutil.which("podman") is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="runstead-podman-") as folder:
        own = ["podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--log-level", "error"]
        # What this machine may set lower is not asked for.
        limits = ["--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096"]
        run = [*own, "run", "--rm", *limits, "--memory", "32m", "--cpus", "1"]
        loaded = subprocess.run([*own, "load", "-q", "-i", str(archive)], capture_output=True, text=True, check=False)
        found = None
        for more in ([], ["--runtime", "runc"], ["--runtime", "runc", "--cgroups", "disabled"]):
            command = [run[0], *run[1:], IMAGE]
            if more:
                place = command.index("run")
                command = [*command[:place], *more[:2], *command[place:]]
                command[command.index("--rm") : command.index("--rm")] = more[2:]
            if loaded.returncode == 0 and timed([*command, "echo", "x"], 1) is not None:
                found = command
                break
        yield found
        subprocess.run([*own, "rm", "-afi"], capture_output=True, check=False)
        subprocess.run(["umount", "-l", f"{folder}/root/overlay"], capture_output=True, check=False)


@contextlib.contextmanager
def runtime(program: str, archive: Path) -> Generator[Callable[[int], list[str]] | None]:
    """The command of a bare runtime, with namespaces, limits and a filter as Docker's, over an unpacked root."""
    if shutil.which(program) is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix=f"runstead-{program}-") as folder:
        root = Path(folder, "rootfs")
        _unpack(archive, root)
        subprocess.run([program, "spec"], cwd=folder, check=True)
        config = json.loads(Path(folder, "config.json").read_text())
        config["process"]["terminal"] = False
        config["process"]["args"] = ["echo", "x"]
        config["process"].pop("rlimits", None)
        config["linux"]["resources"] = {"memory": {"limit": 32 << 20}, "cpu": {"quota": 100000, "period": 100000}}
        for profile in ("/usr/share/containers/seccomp.json", "/etc/containers/seccomp.json"):
            if program == "runc" and Path(profile).exists():
                config["linux"]["seccomp"] = _flat(json.loads(Path(profile).read_text()))
        Path(folder, "config.json").write_text(json.dumps(config))
        name = f"bench-{os.getpid()}"
        # crun gives up where both versions of control groups are mounted, so it does not see the empty one.
        hybrid = program == "crun" and Path("/sys/fs/cgroup/unified").is_mount()
        alone = ["unshare", "-m", "sh", "-c", 'umount /sys/fs/cgroup/unified; exec "$@"', "-"] if hybrid else []
        yield lambda n: [*alone, program, "run", "-b", folder, f"{name}-{n}-{time.monotonic_ns()}"]


def _flat(profile: dict[str, object]) -> dict[str, object]:
    """Return a profile as runtimes want it: the rules that hold for everybody."""
    here = {"amd64", "x32"}
    rules = [
        {"names": rule["names"], "action": rule["action"], **({"args": rule["args"]} if rule.get("args") else {})}
        for rule in profile["syscalls"]
        if "caps" not in (rule.get("includes") or {})
        and set((rule.get("includes") or {}).get("arches", ["amd64"])) & here
    ]
    return {"defaultAction": profile["defaultAction"], "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules}


def _unpack(archive: Path, root: Path) -> None:
    with tarfile.open(archive) as outer:
        manifest = json.load(outer.extractfile("manifest.json"))
        with tarfile.open(fileobj=outer.extractfile(manifest[0]["Layers"][0])) as layer:
            layer.extractall(root, filter="fully_trusted")


# ---- the image ----


def make_archive(path: Path) -> None:
    """Write an image of nothing but busybox, as `docker save` would."""
    from hashlib import sha256

    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("this needs busybox (Debian: busybox-static)")
    layer = BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for name in ("echo", "true", "sleep", "sh", "cat"):
            tar.add(busybox, f"bin/{name}", filter=_root)
    data = layer.getvalue()
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(data).hexdigest()}"]},
        }
    ).encode()
    name = f"{sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as tar:
        for member, content in ((name, config), ("layer.tar", data), ("manifest.json", manifest)):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))


def _root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.mode = 0o755
    return info


def main() -> None:
    asked = [word for word in sys.argv[1:] if not word.startswith("-")] or ["first", "life", "idle"]
    count = 15 if QUICK else 40
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "image.tar")
        make_archive(archive)
        with container_server(archive) as bench:
            if "first" in asked:
                first, whole = asyncio.run(create_to_first(bench, count))
                say("create to first output at a follower", ms(median(first)), "≤ 40 ms")
                say("create to the end of the job", ms(median(whole)), "8 times faster than podman run")
                with podman(archive) as command:
                    seen = timed([*command, "echo", "x"], 10) if command else None
                    text = f"{ms(seen[0])} to first output, {ms(seen[1])} in all" if seen else "not here"
                    say("podman run", text, "", f"{seen[1] / median(whole):.1f} times our time in all" if seen else "")
                for program in ("runc", "crun"):
                    with runtime(program, archive) as make:
                        seen = timed(make(0), 1) and _repeated(make, 10) if make else None
                        text = f"{ms(seen[0])} to first output, {ms(seen[1])} in all" if seen else "not here"
                        say(f"bare {program} run", text)
            if "life" in asked:
                ours = asyncio.run(whole_lives(bench, 80 if QUICK else 400))
                with podman(archive) as command:
                    peer = rate(lambda _n: [*command, "true"], 16) if command else 0.0
                with runtime("runc", archive) as make:
                    bare = rate(make, 64) if make else 0.0
                peers = f"podman run, 8 at once, {peer:.1f}/s; bare runc, 8 at once, {bare:.0f}/s"
                say("container jobs through their whole life", f"{ours:.0f}/s", "≥ 40/s", peers)
            if "idle" in asked:
                asyncio.run(idle(bench))


def _repeated(make: Callable[[int], list[str]], count: int) -> tuple[float, float] | None:
    found = [timed(make(n), 1) for n in range(count)]
    seen = [one for one in found if one is not None]
    return (median(one[0] for one in seen), median(one[1] for one in seen)) if seen else None


if __name__ == "__main__":
    main()
