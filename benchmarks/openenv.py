"""OpenEnv environments: how soon one is ready, how many come up at once, what is left of them.

    .venv/bin/python benchmarks/openenv.py [--many 64] [--process]

The environment is a server with a health check and nothing else, so that what is measured is what the provider, the
server and the container cost. Its own start, without any of them, is measured in the same run and taken off.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from server import Bench, bench_server  # noqa: E402

import registry  # noqa: E402
from runstead.openenv import JobsProvider  # noqa: E402

LIGHT = (ROOT / "tests/openenv_echo/light.py").read_text(encoding="utf-8")
PORT = 8000
TIMES = 20


def ready_alone() -> float:
    """Seconds that the environment's server takes by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    with subprocess.Popen(["python3", "-I", "-S", "-c", LIGHT, str(port)]) as server:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.002)
        took = time.perf_counter() - began
        server.kill()
    return took


def provider(bench: Bench) -> JobsProvider:
    command = ["python3", "-I", "-S", "-c", LIGHT, str(PORT)]
    return JobsProvider(
        endpoint=bench.url,
        token=bench.token,
        namespace=bench.owner,
        flavor="tiny",
        command=command,
        start_timeout_s=300,
    )


def ready(environments: JobsProvider) -> float:
    """Seconds from the call to an answer of the environment."""
    began = time.perf_counter()
    environments.wait_for_ready(environments.start_container("python:3.12"), 300)
    return time.perf_counter() - began


def running(bench: Bench) -> int:
    url = f"{bench.url}/api/jobs/{bench.owner}?stage=RUNNING&stage=SCHEDULING"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bench.token}"})
    return len(json.loads(urllib.request.urlopen(request).read()))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--many", type=int, default=64)
    options.add_argument("--process", action="store_true", help="on the machine's own system instead of an image")
    chosen = options.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openenv-bench-")))
        settings = folder / "config.toml"
        text = '[flavors.tiny]\ncpu = 1\nmemory = "64MB"\n[executor]\ncpu_overcommit = 100\n'
        settings.write_text(text, encoding="utf-8")
        variables = {"RUNSTEAD_CONFIG": str(settings)}
        if not chosen.process:
            images = stack.enter_context(registry.registry(folder / "registry"))
            image = registry.build([registry.python_archive(folder)], config={"Env": ["PATH=/usr/local/bin:/bin"]})
            images.push("library/python", image, "3.12")
            variables |= {"RUNSTEAD_EXECUTOR_KIND": "oci", "RUNSTEAD_IMAGES_MIRRORS": f"docker.io={images.host}"}
        bench = stack.enter_context(bench_server(**variables))
        with provider(bench) as environments:
            ready(environments)  # its image is here from now on
        alone = statistics.median(ready_alone() for _ in range(TIMES))
        times: list[float] = []
        for _ in range(TIMES):
            with provider(bench) as environments:
                times.append(ready(environments))
        median, worst = statistics.median(times), max(times)
        print(f"its server alone: {alone * 1000:.0f} ms")
        print(f"ready after start_container, beyond that: {(median - alone) * 1000:.0f} ms (worst {worst * 1000:.0f})")
        many = [provider(bench) for _ in range(chosen.many)]
        with ThreadPoolExecutor(chosen.many) as threads:
            began = time.perf_counter()
            took = list(threads.map(ready, many))
            up = time.perf_counter() - began
            print(f"{len(took)} at once: all up after {up:.1f} s, running {running(bench)}")
            began = time.perf_counter()
            list(threads.map(JobsProvider.stop_container, many))
            print(f"all stopped after {time.perf_counter() - began:.1f} s, running {running(bench)}")
        deadline = time.monotonic() + 20
        attempts = bench.data_dir / "node" / "attempts"
        while (left := len(os.listdir(attempts))) and time.monotonic() < deadline:
            time.sleep(0.05)
        print(f"attempts left on the machine: {left}")


if __name__ == "__main__":
    main()
