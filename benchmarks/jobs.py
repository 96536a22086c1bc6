"""Jobs: how fast they start, how many are accepted and carried through, how fast their lines travel.

    .venv/bin/python benchmarks/jobs.py [--quick] [first-line submit life queue lines followers memory cli million]

Each figure stands beside a peer measured in the same run on the same machine. Medians; latencies in ms.
"""

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median, quantiles

from server import Bench, Connection, bench_server

ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / ".venvs" / "client-2.4.0" / "bin" / "hf"
QUICK = "--quick" in sys.argv


def spec(*command: str, **more: object) -> dict[str, object]:
    return {
        "command": list(command),
        "flavor": "cpu-basic",
        "dockerImage": "python:3.12",
        "labels": {"name": "b"},
    } | more


def say(what: str, value: str, target: str = "", peer: str = "") -> None:
    print(f"| {what} | {value} | {target} | {peer} |", flush=True)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98] if len(values) > 1 else values[0]


async def first_line(bench: Bench) -> None:
    """Submission over HTTP until a follower has the first line of output."""
    connection = Connection(bench)
    times: list[float] = []
    for _ in range(20 if QUICK else 60):
        began = time.perf_counter()
        job = await connection.request("POST", f"/api/jobs/{bench.owner}", spec("echo", "first"))
        follower = Connection(bench)
        reader = await follower.stream(f"/api/jobs/{bench.owner}/{job['id']}/logs")
        await reader.readuntil(b'"data":"first"')
        times.append(time.perf_counter() - began)
        follower.close()
    peers: list[float] = []
    for _ in range(20):
        began = time.perf_counter()
        subprocess.run(["unshare", "-Urmpf", "--mount-proc", "echo", "first"], check=True, capture_output=True)
        peers.append(time.perf_counter() - began)
    say("submit to first line at a follower", ms(median(times)), "≤ 40 ms", f"unshare(1) alone {ms(median(peers))}")


async def submit(bench: Bench) -> None:
    """Durable submissions; the machine is full, so that they are stored and wait."""
    await fill(bench)
    count = 1000 if QUICK else 4000
    rate, times = await submit_many(bench, count, 16)
    with tempfile.TemporaryDirectory(dir=bench.data_dir) as folder:
        peer = sqlite3.connect(f"{folder}/peer.db", isolation_level=None)
        peer.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE job(spec TEXT)")
        began = time.perf_counter()
        for _ in range(1000):
            peer.execute("INSERT INTO job VALUES (?)", (json.dumps(spec("true")) + " " * 600,))
        peer_rate = 1000 / (time.perf_counter() - began)
    say(
        "durable submissions over HTTP, 16 at once",
        f"{rate:.0f}/s (p50 {ms(median(times))}, p99 {ms(p99(times))})",
        "≥ 500/s",
        f"bare SQLite inserts, one after the other, {peer_rate:.0f}/s",
    )


async def fill(bench: Bench) -> None:
    """Take the whole machine, so that whatever comes next waits."""
    await Connection(bench).request(
        "POST", f"/api/jobs/{bench.owner}", spec("sleep", "3600") | {"flavor": "cpu-performance"}
    )


async def submit_many(bench: Bench, count: int, at_once: int) -> tuple[float, list[float]]:
    times: list[float] = []

    async def client(share: int) -> None:
        connection = Connection(bench)
        for _ in range(share):
            began = time.perf_counter()
            await connection.request("POST", f"/api/jobs/{bench.owner}", spec("true"))
            times.append(time.perf_counter() - began)
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(count // at_once) for _ in range(at_once)))
    return count / (time.perf_counter() - began), times


async def life(bench: Bench) -> None:
    """Trivial jobs through their whole life, submission to nothing left."""
    count = 200 if QUICK else 600
    connection = Connection(bench)
    before = (await connection.request("GET", f"/api/jobs/{bench.owner}/count?stage=COMPLETED"))["count"]
    began = time.perf_counter()
    await submit_many(bench, count, 8)
    connection = Connection(bench)  # the other one was idle for long
    while (await connection.request("GET", f"/api/jobs/{bench.owner}/count?stage=COMPLETED"))["count"] < before + count:
        await asyncio.sleep(0.02)
    rate = count / (time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(count // 10):
        starters = [subprocess.Popen(["unshare", "-Urmpf", "--mount-proc", "true"]) for _ in range(8)]
        for starter in starters:
            starter.wait()
    peer = count // 10 * 8 / (time.perf_counter() - began)
    say(
        "trivial jobs through their whole life", f"{rate:.0f}/s", "≥ 80/s", f"unshare(1) alone, 8 at once, {peer:.0f}/s"
    )


async def queue(bench: Bench) -> None:
    """With 10,000 jobs waiting: list, inspect and submit."""
    await fill(bench)
    connection = Connection(bench)
    await submit_many(bench, 2000 if QUICK else 10_000, 16)
    page = await connection.request("GET", f"/api/jobs/{bench.owner}?stage=SCHEDULING")
    job_id = page[0]["id"]
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        "list": lambda: connection.request("GET", f"/api/jobs/{bench.owner}"),
        "inspect": lambda: connection.request("GET", f"/api/jobs/{bench.owner}/{job_id}"),
        "submit": lambda: connection.request("POST", f"/api/jobs/{bench.owner}", spec("true")),
    }
    for name, ask in asked.items():
        times: list[float] = []
        for _ in range(50 if QUICK else 300):
            began = time.perf_counter()
            await ask()
            times.append(time.perf_counter() - began)
        say(f"{name} with 10,000 jobs queued", f"p50 {ms(median(times))}, p99 {ms(p99(times))}", "p99 < 50 ms")


async def lines(bench: Bench) -> None:
    """One job that writes a million lines, and how late a line is at a follower."""
    count = 200_000 if QUICK else 1_000_000
    connection = Connection(bench)
    began = time.perf_counter()
    job = await connection.request("POST", f"/api/jobs/{bench.owner}", spec("seq", str(count)))
    reader = await connection.stream(f"/api/jobs/{bench.owner}/{job['id']}/logs")
    seen, data = 0, b""
    while piece := await reader.read(1 << 20):
        seen += piece.count(b'"timestamp"')
        data = data[-200:] + piece
    followed = time.perf_counter() - began
    assert str(count).encode() in data, (seen, data)
    shown = await connection.request("GET", f"/api/jobs/{bench.owner}/{job['id']}")
    log = next(bench.data_dir.joinpath("logs").rglob(f"{job['id']}/1.log")).read_bytes().splitlines()
    wanted = [line for line in log if line[28:].isdigit()]
    assert len(wanted) == count, len(wanted)
    stamps = [line[:27].decode() for line in (wanted[0], wanted[-1])]
    from datetime import datetime

    first, last = (datetime.fromisoformat(stamp) for stamp in stamps)
    written = max((last - first).total_seconds(), 1e-6)
    assert shown["status"]["stage"] == "COMPLETED", shown
    began = time.perf_counter()
    subprocess.run(f"seq {count} | cat > {bench.data_dir}/peer.txt", shell=True, check=True)
    peer = count / (time.perf_counter() - began)
    say(f"one job writing {count:,} lines", f"{count / written:,.0f} lines/s into the log, none lost", "≥ 100,000/s")
    say(
        "the same, until a follower has all of them",
        f"{seen / followed:,.0f} lines/s",
        "",
        f"seq into cat into a file {peer:,.0f} lines/s",
    )
    code = "import time,sys\nfor i in range(100):\n print(f'at {time.time():.6f}', flush=True); time.sleep(0.02)"
    job = await connection.request("POST", f"/api/jobs/{bench.owner}", spec("python3", "-c", code))
    reader = await connection.stream(f"/api/jobs/{bench.owner}/{job['id']}/logs")
    late: list[float] = []
    with contextlib.suppress(asyncio.IncompleteReadError):
        while line := await reader.readuntil(b"\n"):
            if b'"data":"at ' in line:
                late.append(time.time() - float(line.partition(b'"data":"at ')[2].partition(b'"')[0]))
    say("a line at a follower after it was written", f"p50 {ms(median(late))}, p99 {ms(p99(late))}", "≤ 20 ms")


async def followers(bench: Bench) -> None:
    """Two hundred followers of one job that writes a hundred lines a second."""
    connection = Connection(bench)
    seconds = 4 if QUICK else 10
    code = f"import time\nfor i in range({seconds * 100}):\n print('line', i, flush=True); time.sleep(0.01)"
    job = await connection.request("POST", f"/api/jobs/{bench.owner}", spec("python3", "-c", code))

    async def follow() -> int:
        reader = await connection.stream(f"/api/jobs/{bench.owner}/{job['id']}/logs")
        seen = 0
        while piece := await reader.read(1 << 16):
            seen += piece.count(b'"data":"line')
        return seen

    cpu, began = bench.cpu_seconds(), time.perf_counter()
    counts = await asyncio.gather(*(follow() for _ in range(200)))
    used = (bench.cpu_seconds() - cpu) / (time.perf_counter() - began)
    assert set(counts) == {seconds * 100}, set(counts)
    say("200 followers of one job, 100 lines/s each", f"{used:.2f} cores in the server", "< 1 core")


async def memory(bench: Bench) -> None:
    """What the idle server and the supervisor of a running job hold."""
    connection = Connection(bench)
    say("resident memory of the idle server", f"{bench.resident_bytes() / 1e6:.0f} MB", "≤ 120 MB")
    job = await connection.request("POST", f"/api/jobs/{bench.owner}", spec("sleep", "30"))
    facts = json.loads(bench.data_dir.joinpath("node", "attempts", f"{job['id']}-1", "attempt.json").read_text())
    rollup = Path(f"/proc/{facts['supervisor']}/smaps_rollup").read_text()
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
    resident, share = kilobytes["Rss:"] / 1000, kilobytes["Pss:"] / 1000
    say("the supervisor of a running job", f"{resident:.1f} MB resident, {share:.1f} MB its share", "≤ 12 MB")
    await connection.request("POST", f"/api/jobs/{bench.owner}/{job['id']}/cancel")


async def cli(bench: Bench) -> None:
    """The real client: an attached run against its own start."""
    with tempfile.TemporaryDirectory() as home:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
            "HF_ENDPOINT": bench.url,
            "HF_TOKEN": bench.token,
            "HF_HOME": home,
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }

        def timed(*words: str) -> float:
            began = time.perf_counter()
            subprocess.run([CLIENT, *words], env=environment, check=True, capture_output=True)
            return time.perf_counter() - began

        pairs = [(timed("jobs", "run", "ubuntu", "true"), timed("version")) for _ in range(6 if QUICK else 16)][1:]
    say(
        "attached `hf jobs run ubuntu true` beyond `hf version`",
        ms(median(run - version for run, version in pairs)),
        "≤ 400 ms",
        f"`hf version` {ms(median(version for _, version in pairs))}",
    )


MEASURES: dict[str, tuple[Callable[[Bench], Awaitable[None]], dict[str, str]]] = {
    "memory": (memory, {}),
    "first-line": (first_line, {}),
    "cli": (cli, {}),
    "lines": (lines, {}),
    "followers": (followers, {}),
    "life": (life, {}),
    "submit": (submit, {}),
    "queue": (queue, {}),
}


def main() -> None:
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")] or list(MEASURES)
    if not shutil.which("unshare"):
        raise SystemExit("this benchmark needs unshare(1) as its peer: install util-linux")
    print("| what | measured | target | peer in the same run |\n|---|---|---|---|")
    for name in wanted:
        measure, environment = MEASURES[name]
        with bench_server(**environment) as bench:
            asyncio.run(measure(bench))


if __name__ == "__main__":
    main()
