"""A fresh server for a benchmark, and a small HTTP client that costs little beside it."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Bench:
    """A running server."""

    host: str
    port: int
    token: str
    owner: str
    pid: int
    data_dir: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def resident_bytes(self) -> int:
        """Resident memory of the server process."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Processor time of the server process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def bench_server(**environment: str) -> Generator[Bench]:
    """Start a server over an empty directory; stop it, and what it runs, at the end."""
    with tempfile.TemporaryDirectory(prefix="runstead-bench-") as folder:
        reader, writer = os.pipe()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RUNSTEAD_", "HF_"))}
        inherited["RUNSTEAD_EXECUTOR_KIND"] = "process"
        command = [sys.executable, "-m", "runstead.cli", "serve", "--port", "0", "--data-dir", f"{folder}/data"]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--ready-fd", str(writer), "--stop-jobs-at-exit"],
                env=inherited | environment,
                pass_fds=[writer],
                stdout=log,
                stderr=log,
            )
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = json.loads(pipe.read() or "{}")
        if not said:
            raise SystemExit(Path(folder, "log").read_text())
        host, _, port = said["url"].removeprefix("http://").rpartition(":")
        try:
            yield Bench(host, int(port), said["token"], said["owner"], process.pid, Path(folder, "data"))
        finally:
            process.terminate()
            process.wait(60)


class Connection:
    """One keep-alive connection; as little client as possible."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._streams: list[asyncio.StreamWriter] = []

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the JSON of its answer. Raises AssertionError unless it is a 2xx."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._bench.host, self._bench.port)
        self._writer.write(self._head(method, path, body))
        status, headers = await read_head(self._reader)
        data = await self._reader.readexactly(int(headers.get("content-length", 0)))
        assert 200 <= status < 300, (status, data[:500])
        return json.loads(data) if data else None

    async def stream(self, path: str) -> asyncio.StreamReader:
        """Open a stream and return its reader, behind the head of the answer."""
        reader, writer = await asyncio.open_connection(self._bench.host, self._bench.port)
        writer.write(self._head("GET", path, None).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        status, _ = await read_head(reader)
        assert status == 200, status
        self._streams.append(writer)  # a writer that nobody holds closes its connection
        return reader

    def close(self) -> None:
        """Close what is open."""
        for writer in (self._writer, *self._streams):
            if writer is not None:
                writer.close()

    def _head(self, method: str, path: str, body: Any) -> bytes:
        data = json.dumps(body).encode() if body is not None else b""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._bench.host}:{self._bench.port}\r\n"
            f"Authorization: Bearer {self._bench.token}\r\nContent-Length: {len(data)}\r\n"
            "Content-Type: application/json\r\n\r\n"
        )
        return head.encode() + data


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read the head of an answer: its status and its headers."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return int(lines[0].split()[1]), headers
