"""Sandboxes: how fast they come, run commands and move files; how many fit a minute. Peer: podman run and podman exec.

    .venv/bin/python benchmarks/sandboxes.py [--quick] [--raw FILE] [create warm run files pool fork podman]

Each server's images are local before anything is measured. Times in ms: p50, p95, p99; `--raw` keeps every single one.
Pools and forks also say what processor time one of them costs: the client's, the server's, and that of everything
beside where control groups count it. On a busy machine only that means something.
The peer does the same work on the same machine in the same run: a container of the same files, a command in it.
"""

import http.client
import json
import os
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from server import Bench, bench_server  # noqa: E402

import registry  # noqa: E402
from container_images import debian_root  # noqa: E402

CLIENT = ROOT / ".venvs" / "client-2.4.0" / "bin" / "python"
QUICK = "--quick" in sys.argv
RAW = Path(sys.argv[sys.argv.index("--raw") + 1]) if "--raw" in sys.argv else None
TIMES = 30 if QUICK else 100
MEBIBYTE = 2**20
PREPARED = "oci, prepared"  # the server that has containers waiting

raw: dict[str, list[float]] = {}


def say(what: str, times: list[float], target: str = "") -> None:
    """Print a row; times are seconds."""
    raw[what] = times
    ordered = sorted(times)
    shown = [f"{ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1000:.1f}" for part in (0.5, 0.95, 0.99)]
    print(f"| {what} | {' | '.join(shown)} | {len(times)} | {target} |", flush=True)


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Processor:
    """Processor time of this process, of a server, and of all that either started, in ms for each of so many."""

    def __init__(self, bench: Bench, count: int) -> None:
        self._bench = bench
        self._count = count
        self._before = self._now()

    def __str__(self) -> str:
        spent = [(now - before) * 1000 / self._count for now, before in zip(self._now(), self._before, strict=True)]
        if GROUP is None:
            return f"client {spent[1]:.1f}, server {spent[2]:.1f} ms of processor"
        beside = spent[0] - spent[1] - spent[2]
        return f"client {spent[1]:.1f}, server {spent[2]:.1f}, beside {beside:.1f} ms of processor"

    def _now(self) -> tuple[float, float, float]:
        mine = resource.getrusage(resource.RUSAGE_SELF)
        all_of_it = int((GROUP / "cpuacct.usage").read_text()) / 1e9 if GROUP is not None else 0.0
        return all_of_it, mine.ru_utime + mine.ru_stime, self._bench.cpu_seconds()


def counted() -> Path | None:
    """Enter a control group that counts processor time, and return it; None where that is not possible."""
    group = Path(f"/sys/fs/cgroup/cpuacct/runstead-bench-{os.getpid()}")
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return None
    return group


GROUP = counted()


class Box:
    """A sandbox over one connection, with as little client as possible."""

    def __init__(self, bench: Bench, mode: str = "dedicated", **environment: str) -> None:
        self.bench = bench
        self.token = secrets.token_hex(32)
        self.connection = http.client.HTTPConnection(bench.host, bench.port, timeout=60)
        self.prefix = "/v1"
        labels = {"hf-sandbox": "1", "hf-sandbox-mode": mode, "hf-sandbox-nonce": secrets.token_hex(16)}
        job = {
            "command": ["/bin/sh", "-c", "exit 1"],
            "flavor": "cpu-basic",
            "dockerImage": "python:3.12",
            "labels": labels,
            "environment": {"SBX_PORT": "49983", **environment},
            "secrets": {"SBX_TOKEN": self.token},
            "expose": {"ports": [49983]},
        }
        self.job = json.loads(self.send("POST", f"/api/jobs/{bench.owner}", json.dumps(job).encode()))
        self.id = self.job["id"]
        path = self.job["status"]["exposeUrls"][0].partition("://")[2].partition("/")[2]
        self.base = f"/{path}" if path else ""
        while self.send("GET", self.base + "/health", status=None) != 200:
            time.sleep(0.005)

    def send(self, method: str, path: str, body: bytes | None = None, status: int | None = 200) -> Any:
        headers = {"Authorization": f"Bearer {self.bench.token}", "X-Sandbox-Token": self.token}
        if body is not None:
            headers["Content-Type"] = "application/json"
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        data = answer.read()
        if status is None:
            return answer.status
        assert answer.status == status, (answer.status, data[:500])
        return data

    def run(self, command: Any) -> bytes:
        return self.send("POST", f"{self.base}{self.prefix}/exec", json.dumps({"cmd": command}).encode())

    def end(self) -> None:
        self.send("POST", f"/api/jobs/{self.bench.owner}/{self.id}/cancel", b"")
        self.connection.close()


def create(name: str, bench: Bench, target: str = "150, p99 500") -> None:
    """From nothing to the result of the first command, with the real client."""
    code = f"""
import json, time
from huggingface_hub import Sandbox
times = []
for n in range({TIMES + 3}):
    began = time.perf_counter()
    box = Sandbox.create(namespace={bench.owner!r})
    assert box.run("echo x").stdout == "x\\n"
    times.append(time.perf_counter() - began)
    box.kill()
    time.sleep({1.0 if name == PREPARED else 0.0})  # for another container to be prepared
print(json.dumps(times[3:]))
"""
    say(f"{name}: Sandbox.create() to the first result", python(bench, code), target)


def warm(name: str, bench: Bench) -> None:
    """The same with containers that wait."""
    create(name, bench, "80")


def run(name: str, bench: Bench) -> None:
    """Commands in a sandbox that is there, without the client library and with it."""
    box = Box(bench)
    for _ in range(20):
        box.run("true")
    say(f'{name}: run("true"), a bare connection', [timed(lambda: box.run("true")) for _ in range(TIMES * 5)], "6")
    say(f'{name}: run(["true"]), a bare connection', [timed(lambda: box.run(["true"])) for _ in range(TIMES * 5)])
    box.end()
    code = f"""
import json, time
from huggingface_hub import Sandbox
times = []
with Sandbox.create(namespace={bench.owner!r}) as box:
    for n in range({TIMES * 3}):
        began = time.perf_counter()
        box.run("true")
        times.append(time.perf_counter() - began)
print(json.dumps(times[20:]))
"""
    say(f'{name}: run("true"), the client library', python(bench, code))


def files(name: str, bench: Bench) -> None:
    """A large file, there and back."""
    box = Box(bench)
    data = os.urandom(MEBIBYTE) * 256
    path = f"{box.base}/v1/files"
    writing = [timed(lambda: box.send("PUT", f"{path}/write?path=/tmp/f", data)) for _ in range(6)][1:]
    reading = [timed(lambda: box.send("GET", f"{path}/read?path=/tmp/f")) for _ in range(6)][1:]
    for what, times in (("write", writing), ("read", reading)):
        speed = len(data) / sorted(times)[len(times) // 2] / 1e6
        say(f"{name}: {what} 256 MiB, one request ({speed:.0f} MB/s)", times, "500 MB/s")
    box.end()


def pool(name: str, bench: Bench) -> None:
    """Many sandboxes on one host: created, one command each, deleted."""
    count = 100 if QUICK else 1000
    host = Box(bench, "pool", SBX_HOST_MODE="1", SBX_CAPACITY=str(count))

    def life(_: int) -> float:
        began = time.perf_counter()
        box = object.__new__(Box)
        box.__dict__ |= host.__dict__
        box.connection = http.client.HTTPConnection(bench.host, bench.port, timeout=60)
        made = json.loads(box.send("POST", host.base + "/v1/sandboxes", b'{"count": 1}'))["sandboxes"][0]
        box.prefix, box.token = f"/v1/sandboxes/{made['id']}", made["token"]
        assert b'"exit_code":0' in box.run(["true"])
        box.send("DELETE", host.base + box.prefix)
        box.connection.close()
        return time.perf_counter() - began

    began, spent = time.perf_counter(), Processor(bench, count)
    with ThreadPoolExecutor(16) as threads:
        times = list(threads.map(life, range(count)))
    took = f"{time.perf_counter() - began:.1f} s; for each {spent}"
    say(f"{name}: {count} pooled, one command each, deleted: {took}", times, "10 s")
    host.connection.close()
    host.end()


def fork(name: str, bench: Bench) -> None:
    """Forks of a prepared sandbox, until the last of them runs a command."""
    count = 10 if QUICK else 100
    box = Box(bench)
    box.run("head -c 30000000 /dev/urandom > /var/tmp/data")

    def first(job: dict[str, Any]) -> None:
        one = object.__new__(Box)
        one.__dict__ |= box.__dict__
        one.connection = http.client.HTTPConnection(bench.host, bench.port, timeout=60)
        one.base = "/" + job["status"]["exposeUrls"][0].partition("://")[2].partition("/")[2]
        assert b'"exit_code":0' in one.run("test -s /var/tmp/data")  # answered once the fork runs
        one.connection.close()

    attempts = bench.data_dir / "node" / "attempts"
    times: list[float] = []
    costs: list[str] = []
    for _ in range(5):
        began, spent = time.perf_counter(), Processor(bench, count)
        body = json.dumps({"count": count}).encode()
        made = json.loads(box.send("POST", f"/api/jobs/{bench.owner}/{box.id}/fork", body))["jobs"]
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(first, made))
        times.append(time.perf_counter() - began)
        costs.append(str(spent))
        for job in made:
            box.send("POST", f"/api/jobs/{bench.owner}/{job['id']}/cancel", b"")
        while len(list(attempts.iterdir())) > 1:  # their end is not what is measured
            time.sleep(0.05)
        time.sleep(2.0)  # nor what the kernel has to do then: namespaces and control groups go later
    say(f"{name}: {count} forks with 30 MB of files, a command in each; for each {costs[-1]}", times, "100 in 1000")
    box.end()


def podman() -> None:
    """The peer."""
    if shutil.which("podman") is None:
        print("| podman is not here | | | | | |")
        return
    image = "localhost/runstead-bench"
    pack = subprocess.Popen(["tar", "-C", str(debian_root()), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(["podman", "import", "-q", "-", image], stdin=pack.stdout, check=True, capture_output=True)

    def call(*words: str) -> None:
        subprocess.run(["podman", *words], check=True, capture_output=True)

    options: list[str] = []
    runtime: list[str] = []

    def life() -> None:
        call(*runtime, "run", "-d", *options, "--name", "runstead-bench", image, "sleep", "1000")
        call(*runtime, "exec", "runstead-bench", "sh", "-c", "echo x")

    times: list[float] = []
    for _ in range(max(TIMES // 5, 10)):
        call("rm", "-f", "-i", "-t", "0", "runstead-bench")
        try:
            times.append(timed(life))
        except subprocess.CalledProcessError:  # not every machine lets it do all of it: then it has less to do
            if runtime:
                raise
            runtime, options = ["--runtime", "runc"], ["--network", "none", "--ulimit", "nofile=1024:1024"]
            options += ["--ulimit", "nproc=1024:1024"]
    how = ", no network of its own" if options else ""
    say(f"podman run -d, podman exec sh -c 'echo x'{how}", times)
    commands = [timed(lambda: call(*runtime, "exec", "runstead-bench", "true")) for _ in range(max(TIMES // 2, 20))]
    say("podman exec true", commands)
    call("rm", "-f", "-t", "0", "runstead-bench")


def python(bench: Bench, code: str) -> list[float]:
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"HF_ENDPOINT": bench.url, "HF_TOKEN": bench.token, "HF_HOME": home}
        done = subprocess.run([CLIENT, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def kinds() -> Iterator[dict[str, dict[str, str]]]:
    """Return the settings of a server of each executor that is possible here."""
    from runstead.executors.oci import problem

    with ExitStack() as stack:
        room = {"RUNSTEAD_EXECUTOR_CPUS": "512", "RUNSTEAD_EXECUTOR_MEMORY": "4 TB"}  # as many at once as there are
        found = {"process": room}
        if problem() is None:
            images = stack.enter_context(registry.registry(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
            images.push("library/python", registry.build([registry.archive_of(debian_root())]), "3.12")
            mirror = room | {"RUNSTEAD_EXECUTOR_KIND": "oci", "RUNSTEAD_IMAGES_MIRRORS": f"docker.io={images.host}"}
            found["oci"] = mirror
            found[PREPARED] = {**mirror, "RUNSTEAD_SANDBOX_WARM": "python:3.12=2"}
        yield found


PARTS = {"create": create, "warm": warm, "run": run, "files": files, "pool": pool, "fork": fork}


def main() -> None:
    known = [*PARTS, "podman"]
    wanted = [word for word in sys.argv[1:] if word in known] or known
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
    print("| what | p50 | p95 | p99 | times | target |\n|---|---|---|---|---|---|")
    with kinds() as found:
        for name, settings in found.items():
            parts = [part for part in wanted if part != "podman" and (part == "warm") == (name == PREPARED)]
            if not parts:
                continue
            with bench_server(**settings) as bench:  # one at a time: the others would not be idle altogether
                Box(bench).end()  # its image is here then
                for part in parts:
                    try:
                        PARTS[part](name, bench)
                    except AssertionError as error:
                        print(f"| {name}: {part} | not possible: {str(error)[:200]} | | | | |", flush=True)
    if "podman" in wanted:
        podman()
    print(f"\nload {os.getloadavg()[0]:.1f}")
    if RAW is not None:
        RAW.write_text(json.dumps(raw))


if __name__ == "__main__":
    main()
