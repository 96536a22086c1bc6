"""What the proxy costs: small requests, a large body, WebSocket messages, idle connections.

    .venv/bin/python benchmarks/proxy.py [--seconds 4] [--gigabytes 1] [--idle 10000]

A job runs nginx (small answers and a large file) and a WebSocket echo. It is reached directly at its address, through
this server, and through nginx and caddy of the machine where there are such, one after the other in every round.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

from server import Bench, bench_server
from websockets.asyncio.client import connect

JOB = r"""
cat > /tmp/nginx.conf <<'END'
daemon off; worker_processes 1; pid /tmp/nginx.pid; error_log /dev/null;
events { worker_connections 20000; }
http {
  access_log off; sendfile on; keepalive_requests 100000000; keepalive_timeout 1000;
  client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c; uwsgi_temp_path /tmp/d;
  scgi_temp_path /tmp/e;
  server { listen 8000; location = /small { return 200 "ok"; } location / { root /tmp/www; } }
}
END
mkdir -p /tmp/www && truncate -s "$1" /tmp/www/large
hostname -i
PYTHON ECHO &
exec nginx -c /tmp/nginx.conf
"""
ECHO = """
import asyncio, uvloop
from websockets.asyncio.server import serve
async def echo(connection):
    async for message in connection:
        await connection.send(message)
async def main():
    async with serve(echo, "0.0.0.0", 8001, max_size=None, compression=None):
        await asyncio.Event().wait()
uvloop.run(main())
"""
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 30000; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e; keepalive_requests 100000000; keepalive_timeout 1000;
  upstream small {{ server {job}:8000; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    location = /ws {{ proxy_pass http://{job}:8001; proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; }}
    location / {{ proxy_pass http://small; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_max_temp_file_size 0; }}
  }}
}}
"""
CADDY = """
{{
  admin off
  auto_https off
}}
http://127.0.0.1:{port} {{
  reverse_proxy /ws {job}:8001
  reverse_proxy {job}:8000
}}
"""


@dataclass(frozen=True)
class Way:
    """One way to the job."""

    name: str
    host: str
    port: int
    prefix: str
    echo: str  # URL
    token: str = ""

    def request(self, path: str) -> bytes:
        fields = f"Host: {self.host}:{self.port}\r\n" + (
            f"Authorization: Bearer {self.token}\r\n" if self.token else ""
        )
        return f"GET {self.prefix}{path} HTTP/1.1\r\n{fields}\r\n".encode()

    def connection(self) -> socket.socket:
        made = socket.create_connection((self.host, self.port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


def small_requests(way: Way, seconds: float) -> list[float]:
    """Return how long requests on one kept connection took, each."""
    request, taken = way.request("/small"), list[float]()
    with way.connection() as connection:
        until = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < until:
            connection.sendall(request)
            data = b""
            while not data.endswith(b"\r\n\r\nok"):
                more = connection.recv(65536)
                if not more:
                    raise RuntimeError(f"{way.name}: {data[:300]!r}")
                data += more
            taken.append(time.perf_counter() - begin)
    return taken


def large_body(way: Way) -> float:
    """Return the bytes per second of the large file."""
    buffer = bytearray(1 << 20)
    with way.connection() as connection:
        begin = time.perf_counter()
        connection.sendall(way.request("/large"))
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
        left = length - len(head.partition(b"\r\n\r\n")[2])
        while left:
            count = connection.recv_into(buffer)
            if not count:
                raise RuntimeError(f"{way.name} broke off")
            left -= count
        return length / (time.perf_counter() - begin)


async def echoes(way: Way, seconds: float, ahead: int) -> float:
    """Return the messages per second through one WebSocket, with so many on their way at once."""
    headers = {"Authorization": f"Bearer {way.token}"} if way.token else {}
    async with connect(way.echo, additional_headers=headers, compression=None, proxy=None) as connection:
        for _ in range(ahead):
            await connection.send("x" * 32)
        count, until = 0, time.perf_counter() + seconds
        begin = time.perf_counter()
        while time.perf_counter() < until:
            for _ in range(ahead):
                await connection.recv()
                await connection.send("x" * 32)
            count += ahead
        return count / (time.perf_counter() - begin)


def idle_connections(way: Way, bench: Bench, count: int) -> dict[str, float]:
    """Open connections that made a request and wait; return what they cost and that the server still answers."""
    before, request = bench.resident_bytes(), way.request("/small")
    opened: list[socket.socket] = []
    try:
        begin = time.perf_counter()
        for _ in range(count):
            connection = way.connection()
            connection.sendall(request)
            data = b""
            while not data.endswith(b"ok"):
                data += connection.recv(4096)
            opened.append(connection)
        took = time.perf_counter() - begin
        cpu, since = bench.cpu_seconds(), time.perf_counter()
        latency = statistics.median(small_requests(way, 1.0))
        time.sleep(1)
        return {
            "open": len(opened),
            "opened_per_second": len(opened) / took,
            "bytes_each": (bench.resident_bytes() - before) / count,
            "median_ms_beside": latency * 1000,
            "cores": (bench.cpu_seconds() - cpu) / (time.perf_counter() - since),
        }
    finally:
        for connection in opened:
            connection.close()


@contextmanager
def peer(program: str, arguments: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for("127.0.0.1", port)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_for(host: str, port: int) -> None:
    until = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=1).close()
            return
        if time.monotonic() > until:
            raise RuntimeError(f"nothing listens on {host}:{port}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(bench: Bench, method: str, path: str, body: object = None) -> HTTPResponse:
    request = urllib.request.Request(
        f"{bench.url}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {bench.token}", "Content-Type": "application/json"},
        method=method,
    )
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30)


def start_job(bench: Bench, size: int) -> tuple[str, str]:
    """Start the job; return its id and its address."""
    script = JOB.replace("PYTHON", sys.executable).replace("ECHO", "-c '" + ECHO.replace("'", '"') + "'")
    body = {
        "command": ["sh", "-c", script, "job", str(size)],
        "dockerImage": "debian",
        "expose": {"ports": [8000, 8001], "portsPublic": []},
        "timeoutSeconds": 3600,
    }
    job_id = json.load(ask(bench, "POST", f"/api/jobs/{bench.owner}", body))["id"]
    with ask(bench, "GET", f"/api/jobs/{bench.owner}/{job_id}/logs") as log:
        for line in log:
            found = re.search(r'"data": ?"(\d+\.\d+\.\d+\.\d+)', line.decode())
            if found:
                return job_id, found[1]
    raise RuntimeError("the job does not tell its address")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--idle", type=int, default=10_000)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with bench_server() as bench, contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="runstead-peers-"))
        job_id, address = start_job(bench, int(given.gigabytes * 1e9))
        wait_for(address, 8000)
        wait_for(address, 8001)
        path = f"/jobs-proxy/{job_id}--{{}}.port"
        echo = f"ws://{bench.host}:{bench.port}{path.format(8001)}/ws"
        ways = [
            Way("direct", address, 8000, "", f"ws://{address}:8001/ws"),
            Way("runstead", bench.host, bench.port, path.format(8000), echo, bench.token),
        ]
        for program, text, arguments in (
            ("nginx", NGINX, lambda file: ["-c", file]),
            ("caddy", CADDY, lambda file: ["run", "--adapter", "caddyfile", "--config", file]),
        ):
            if shutil.which(program) is None:
                print(f"{program} is not installed: left out", file=sys.stderr)
                continue
            port, file = free_port(), Path(folder, program)
            file.write_text(text.format(folder=folder, job=address, port=port))
            stack.enter_context(peer(program, arguments(str(file)), port))
            ways.append(Way(program, "127.0.0.1", port, "", f"ws://127.0.0.1:{port}/ws"))
        measure(ways, given)
        print(json.dumps({"idle": idle_connections(ways[1], bench, given.idle)}), flush=True)


def measure(ways: list[Way], given: argparse.Namespace) -> None:
    found: dict[str, dict[str, list[float]]] = {way.name: {} for way in ways}

    def note(way: Way, what: str, value: float) -> None:
        found[way.name].setdefault(what, []).append(value)

    for _ in range(given.rounds):
        for way in ways:
            taken = small_requests(way, given.seconds)
            note(way, "median_ms", statistics.median(taken) * 1000)
            note(way, "p99_ms", statistics.quantiles(taken, n=100)[98] * 1000)
        for way in ways:
            note(way, "large_MB_per_s", large_body(way) / 1e6)
        for way in ways:
            note(way, "echoes_per_s", asyncio.run(echoes(way, given.seconds, 1)))
            note(way, "echoes_per_s_64_ahead", asyncio.run(echoes(way, given.seconds, 64)))
    for name, values in found.items():
        print(json.dumps({"way": name} | {what: round(statistics.median(all_), 3) for what, all_ in values.items()}))


if __name__ == "__main__":
    os.environ.pop("http_proxy", None)
    main()
