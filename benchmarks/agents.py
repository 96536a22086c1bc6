"""The tools for agents: how long a call that lists or inspects takes, and what the tools cost the server's memory.

    .venv/bin/python benchmarks/agents.py [--quick]

The same question over the API by one plain connection stands beside it. Medians; latencies in ms.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from statistics import median, quantiles
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from server import Bench, Connection, bench_server

QUICK = "--quick" in sys.argv
CALLS = 50 if QUICK else 300
JOBS = 200
MODES = {"http": "auto", "http, handshake": "legacy"}


@contextlib.asynccontextmanager
async def agent(bench: Bench, mode: str) -> AsyncGenerator[Client]:
    headers = {"Authorization": f"Bearer {bench.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{bench.url}/mcp", http_client=http), mode=mode) as client,
    ):
        await client.list_tools()
        yield client


async def timed(call: Callable[[], Awaitable[Any]]) -> list[float]:
    for _ in range(5):
        await call()
    times: list[float] = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return times


def shown(times: list[float]) -> str:
    return f"{median(times) * 1000:.1f} ms (p99 {quantiles(times, n=100)[98] * 1000:.1f})"


async def main(bench: Bench) -> None:
    print("| what | measured | target | peer |\n|---|---|---|---|")
    connection = Connection(bench)
    jobs = f"/api/jobs/{bench.owner}"
    body = {"command": ["true"], "flavor": "cpu-basic", "dockerImage": "python:3.12"}
    for _ in range(JOBS):
        job = await connection.request("POST", jobs, body)
    while (await connection.request("GET", f"{jobs}/count?stage=SCHEDULING&stage=RUNNING"))["count"]:
        await asyncio.sleep(0.2)
    before = bench.resident_bytes()
    async with agent(bench, "auto"):
        after = bench.resident_bytes()
    print(f"| memory of the server before its first agent; with it | {before / 1e6:.0f}; {after / 1e6:.0f} MB | | |")
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("hf_whoami", {}, "/api/whoami-v2"),
        ("ps of 20", {"operation": "ps", "args": {"all": True}}, jobs),
        ("inspect", {"operation": "inspect", "args": {"job_id": job["id"]}}, f"{jobs}/{job['id']}"),
        ("hardware", {"operation": "hardware"}, "/api/jobs/hardware"),
        ("logs of a job that is over", {"operation": "logs", "args": {"job_id": job["id"]}}, ""),
    ]
    for name, arguments, path in calls:
        peer = ""
        if path:
            plain = Connection(bench)
            peer = shown(await timed(partial(plain.request, "GET", path)))
            plain.close()
        tool = "hf_whoami" if name == "hf_whoami" else "hf_jobs"
        for transport, mode in MODES.items():
            async with agent(bench, mode) as client:
                used = bench.cpu_seconds()
                times = await timed(partial(client.call_tool, tool, arguments))
                cpu = (bench.cpu_seconds() - used) / (CALLS + 5) * 1000
            print(
                f"| {name}, {transport} | {shown(times)}, server's processor {cpu:.1f} | 30 ms | {peer} |", flush=True
            )
    connection.close()


if __name__ == "__main__":
    with bench_server() as running:
        asyncio.run(main(running))
