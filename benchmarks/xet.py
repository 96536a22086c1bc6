"""The content store under the real client, beside its peers in the same run.

    python benchmarks/xet.py [--mb 1000] [--rounds 3] [--only upload,download,small,plain,s3]

Peers: a stub that writes bytes down, unchecked (`xet_stub.py`), the same dropping them ("sink"), and an S3 server
(moto's) with S3's own client. Prints medians and, where there is a peer, the ratio. Client and server share this
machine.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / ".venvs" / "client-2.4.0" / "bin" / "python"
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="upload,download,small,plain,s3")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    folder = Path(tempfile.mkdtemp(prefix="xet-bench-"))
    try:
        for name in ("upload", "download", "small", "plain", "s3"):
            if name in chosen:
                print(f"-- {name}", flush=True)
                globals()[name](folder, arguments.mb, arguments.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Peer:
    """A server process, its URL, and what it has used."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.url = process, f"http://127.0.0.1:{port}"

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak_mb(self) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


@contextmanager
def ours(folder: Path) -> Iterator[Peer]:
    with running([sys.executable, str(ROOT / "tests" / "cas_server.py"), tempfile.mkdtemp(dir=folder)]) as peer:
        yield peer


@contextmanager
def stub(folder: Path) -> Iterator[Peer]:
    program = str(ROOT / "benchmarks" / "xet_stub.py")
    with running([sys.executable, program, tempfile.mkdtemp(dir=folder)]) as peer:
        yield peer


@contextmanager
def sink(_: Path) -> Iterator[Peer]:
    with running([sys.executable, str(ROOT / "benchmarks" / "xet_stub.py")]) as peer:
        yield peer


@contextmanager
def running(command: list[str]) -> Iterator[Peer]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield Peer(process, int(process.stdout.readline().split()[1]))
    finally:
        process.terminate()
        process.wait(30)


def drive(program: str, url: str, home: Path, *arguments: str) -> tuple[dict, float]:
    """Run the client; return what it says, and the CPU seconds it used."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))}
    command = [str(CLIENT), str(ROOT / "tests" / "xet_programs.py"), program, url, "bucket:bench", *arguments]
    before = os.times()
    done = subprocess.run(
        command, env=inherited | {"HF_HOME": str(home)}, capture_output=True, text=True, timeout=600, check=False
    )
    after = os.times()
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout.splitlines()[-1]), cpu


def random_file(path: Path, mb: int) -> Path:
    with path.open("wb") as file:
        for _ in range(mb):
            file.write(os.urandom(1_000_000))
    return path


def text_file(path: Path, mb: int) -> Path:
    words = [os.urandom(4).hex().encode() + b" " for _ in range(3000)]
    state = int.from_bytes(os.urandom(8), "little") | 1
    with path.open("wb") as file:
        while file.tell() < mb * 1_000_000:
            line = bytearray()
            while len(line) < 100_000:
                state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
                line += words[state >> 40 & 2047]
            file.write(line)
    return path


def floats_file(path: Path, mb: int) -> Path:
    import numpy as np

    generator = np.random.default_rng()
    with path.open("wb") as file:
        for _ in range(mb):
            file.write(generator.normal(0, 0.02, 250_000).astype("<f4").tobytes())
    return path


def upload(folder: Path, mb: int, rounds: int) -> None:
    seen: dict[str, list[float]] = {}
    for number in range(rounds):
        path = random_file(folder / "random", mb)
        for name, make in (("ours", ours), ("stub", stub), ("sink", sink)):
            with make(folder) as peer:
                began = peer.cpu()
                said, client = drive("upload", peer.url, folder / f"home-{name}-{number}", str(path))
                server = peer.cpu() - began
                seen.setdefault(f"{name} MB/s", []).append(mb / said["seconds"])
                seen.setdefault(f"{name} client CPU s/GB", []).append(client / mb * 1000)
                seen.setdefault(f"{name} server CPU s/GB", []).append(server / mb * 1000)
                if name == "ours":
                    seen.setdefault("ours peak MB", []).append(peer.peak_mb())
                    again, _ = drive("upload", peer.url, folder / f"home-{name}-{number}", str(path))
                    seen.setdefault("ours again MB/s", []).append(mb / again["seconds"])
                    with ours_objects(folder) as stored:
                        seen.setdefault("stored bytes / content", []).append(stored / mb / 1e6)
            shutil.rmtree(folder / f"home-{name}-{number}", ignore_errors=True)
            clean(folder)
    report(seen)
    ratio("upload rate, ours / stub", seen["ours MB/s"], seen["stub MB/s"])
    ratio("upload rate, ours / sink", seen["ours MB/s"], seen["sink MB/s"])
    ratio("CPU, our server / the client", seen["ours server CPU s/GB"], seen["ours client CPU s/GB"])


@contextmanager
def ours_objects(folder: Path) -> Iterator[int]:
    yield sum(path.stat().st_size for path in folder.rglob("objects/objects/**/*") if path.is_file())


def download(folder: Path, mb: int, rounds: int) -> None:
    seen: dict[str, list[float]] = {}
    path = random_file(folder / "random", mb)
    with ours(folder) as peer:
        said, _ = drive("upload", peer.url, folder / "home", str(path))
        name, size = said["files"][0]
        for number in range(rounds):
            began = peer.cpu()
            out = folder / "out"
            said, client = drive("download", peer.url, folder / f"home-{number}", f"{name}:{size}:{out}")
            seen.setdefault("MB/s", []).append(mb / said["seconds"])
            seen.setdefault("client CPU s/GB", []).append(client / mb * 1000)
            seen.setdefault("server CPU s/GB", []).append((peer.cpu() - began) / mb * 1000)
            assert subprocess.run(["cmp", str(path), str(out)], check=False).returncode == 0
            out.unlink()
        seen["peak MB"] = [peer.peak_mb()]
    report(seen)


def small(folder: Path, _: int, rounds: int) -> None:
    seen: dict[str, list[float]] = {}
    count = 5000
    for number in range(rounds):
        paths = []
        (folder / "small").mkdir(exist_ok=True)
        for index in range(count):
            paths.append(folder / "small" / str(index))
            paths[-1].write_bytes(os.urandom(2000))
        for name, make in (("ours", ours), ("stub", stub)):
            with make(folder) as peer:
                began = peer.cpu()
                said, client = drive("upload", peer.url, folder / f"home-{name}-{number}", *map(str, paths))
                seen.setdefault(f"{name} up files/s", []).append(count / said["seconds"])
                seen.setdefault(f"{name} server CPU ms/file", []).append((peer.cpu() - began) / count * 1000)
                if name == "ours":
                    wanted = [f"{f[0]}:{f[1]}:{folder}/out/{n}" for n, f in enumerate(said["files"])]
                    began = peer.cpu()
                    said, client = drive("download", peer.url, folder / "home-down", *wanted)
                    seen.setdefault("ours down files/s", []).append(count / said["seconds"])
                    seen.setdefault("ours down server CPU ms/file", []).append((peer.cpu() - began) / count * 1000)
                    seen.setdefault("client down CPU ms/file", []).append(client / count * 1000)
    report(seen)


def plain(folder: Path, mb: int, rounds: int) -> None:
    for kind, make in (("random", random_file), ("text", text_file), ("floats", floats_file)):
        seen: dict[str, list[float]] = {}
        size_mb = min(mb, 400)
        path = make(folder / kind, size_mb)
        with ours(folder) as peer:
            said, _ = drive("upload", peer.url, folder / f"home-{kind}", str(path))
            name, size = said["files"][0]
            for _ in range(rounds):
                began, cpu = time.perf_counter(), peer.cpu()
                got = swallow(peer.url, f"/plain/{name}")
                seen.setdefault(f"{kind} GET MB/s", []).append(got / (time.perf_counter() - began) / 1e6)
                seen.setdefault(f"{kind} server CPU s/GB", []).append((peer.cpu() - cpu) / size * 1e9)
            for step in range(200):
                first = step * 7919 * 4096 % (size - 65_536)
                began = time.perf_counter()
                request = urllib.request.Request(
                    f"{peer.url}/plain/{name}", headers={"Range": f"bytes={first}-{first + 65_535}"}
                )
                with urllib.request.urlopen(request) as answer:
                    answer.read()
                seen.setdefault(f"{kind} 64 KB range ms", []).append((time.perf_counter() - began) * 1000)
        report(seen)


def swallow(url: str, path: str) -> int:
    """Read an answer as fast as it comes; return how many bytes it had."""
    address = url.removeprefix("http://").split(":")
    buffer = bytearray(1 << 20)
    total = 0
    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {url[7:]}\r\nConnection: close\r\n\r\n".encode())
        while count := connection.recv_into(buffer):
            total += count
    return total


def s3(folder: Path, mb: int, rounds: int) -> None:
    """The same bytes to an S3 server by S3's own client, and to us by ours."""
    import obstore
    from obstore.store import S3Store

    seen: dict[str, list[float]] = {}
    path = random_file(folder / "random", mb)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        wait_for(endpoint)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bench", method="PUT")).close()
        bucket = S3Store(
            "bench",
            endpoint=endpoint,
            region="us-east-1",
            access_key_id="test",
            secret_access_key="test",
            client_options={"allow_http": True},
        )
        for number in range(rounds):
            began = time.perf_counter()
            obstore.put(bucket, f"random-{number}", path)
            seen.setdefault("S3 server MB/s", []).append(mb / (time.perf_counter() - began))
            with ours(folder) as peer:
                said, _ = drive("upload", peer.url, folder / f"home-{number}", str(path))
                seen.setdefault("ours MB/s", []).append(mb / said["seconds"])
            clean(folder)
    finally:
        server.terminate()
        server.wait(10)
    report(seen)
    ratio("upload rate, ours / S3", seen["ours MB/s"], seen["S3 server MB/s"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing answers at {url}")


def clean(folder: Path) -> None:
    for path in folder.glob("tmp*"):
        shutil.rmtree(path, ignore_errors=True)


def report(seen: dict[str, list[float]]) -> None:
    for name, values in seen.items():
        print(f"{name:34} {statistics.median(values):10.2f}   ({min(values):.2f} to {max(values):.2f})", flush=True)


def ratio(name: str, above: list[float], below: list[float]) -> None:
    print(f"{name:34} {statistics.median(above) / statistics.median(below):10.2f}", flush=True)


if __name__ == "__main__":
    main()
