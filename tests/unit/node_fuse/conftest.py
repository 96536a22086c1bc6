"""A real server, and mounts of its buckets by the real program, on this machine."""

import asyncio
import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from clients import Server
from runstead.model.volumes import Flushed, MountRequest, Volume, VolumeKind
from runstead.node import places
from runstead.node.fuse import device
from runstead.node.fuse.own_upload import upload
from runstead.volumes import fuse

MISSING = fuse.problem()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if MISSING is not None and {"node", "server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason=MISSING))


@dataclass
class Bucket:
    """A bucket of a server, by plain HTTP."""

    server: Server
    path: str

    def call(self, method: str, address: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        headers = {"Authorization": f"Bearer {self.server.token}", "Content-Type": kind}
        request = urllib.request.Request(self.server.url + address, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def create(self) -> "Bucket":
        self.call("POST", f"/api/buckets/{self.path}", b"{}")
        return self

    def names(self) -> dict[str, dict[str, Any]]:
        found = json.loads(self.call("GET", f"/api/buckets/{self.path}/tree?recursive=true&limit=5000"))
        return {entry["path"]: entry for entry in found}

    def read(self, path: str) -> bytes:
        return self.call("GET", f"/buckets/{self.path}/resolve/{quote(path)}")

    def files(self) -> dict[str, bytes]:
        return {path: self.read(path) for path in self.names()}

    def put(self, files: dict[str, bytes], where: Path) -> None:
        """Upload files, as another writer."""
        where.mkdir(parents=True, exist_ok=True)
        token = json.loads(self.call("GET", f"/api/buckets/{self.path}/xet-write-token"))
        paths: list[str] = []
        for number, data in enumerate(files.values()):
            paths.append(str(where / str(number)))
            Path(paths[-1]).write_bytes(data)
        known = upload({"cas_url": token["casUrl"], "token": token["accessToken"], "paths": paths})
        self.batch(
            [
                json.dumps({"type": "addFile", "path": name, "xetHash": digits})
                for name, (digits, _) in zip(files, known, strict=True)
            ]
        )
        for path in paths:
            os.unlink(path)

    def delete(self, *names: str) -> None:
        self.batch([json.dumps({"type": "deleteFile", "path": name}) for name in names])

    def batch(self, lines: Sequence[str]) -> None:
        self.call("POST", f"/api/buckets/{self.path}/batch", "\n".join(lines).encode(), "application/x-ndjson")


@dataclass
class Node:
    """A data directory with mounts."""

    server: Server
    data_dir: Path
    endpoint: str = ""
    cache_bytes: int = 2 << 30
    patience: float = 3.0
    stall: float = 2.0
    private_ids: bool = False
    passthrough: bool = True
    requests: dict[tuple[str, int], list[MountRequest]] = field(default_factory=dict)
    provider: fuse.FuseVolumes = field(init=False)
    providers: list[fuse.FuseVolumes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.new_provider()

    def new_provider(self) -> None:
        """As after a restart of the server."""

        async def again(job_id: str, attempt: int) -> list[MountRequest]:
            return self.requests[job_id, attempt]

        self.provider = fuse.FuseVolumes(
            self.data_dir,
            again,
            private_ids=self.private_ids,
            cache_bytes=self.cache_bytes,
            patience_seconds=self.patience,
            stall_seconds=self.stall,
            passthrough=self.passthrough,
        )
        asyncio.run(self.provider.open())
        self.providers.append(self.provider)

    def mount(self, bucket: Bucket, job: str, folder: str = "", *, read_only: bool = False, attempt: int = 1) -> Path:
        job_id = job.encode().hex().ljust(24, "0")[:24]
        volume = Volume(VolumeKind.BUCKET, bucket.path, "/data", folder, None, read_only)
        request = MountRequest(
            job_id,
            attempt,
            "owner",
            0,
            volume,
            self.endpoint or self.server.url,
            self.server.token,
            datetime.now(UTC) + timedelta(days=1),
        )
        self.requests[job_id, attempt] = [request]
        return asyncio.run(self.provider.prepare([request]))[0].source

    def flush(self, path: Path, within: float = 30.0) -> Flushed:
        return asyncio.run(self.provider.flush(*_names(path), within))

    def release(self, path: Path, *, keep: bool = True) -> None:
        asyncio.run(self.provider.release(*_names(path), keep))

    def owned(self) -> list[tuple[str, int]]:
        return asyncio.run(self.provider.owned())

    def told(self) -> dict[str, Any]:
        """What the program says of itself."""
        return asyncio.run(self.provider._ask(self.provider._name, {"op": "hello"}, 10))

    def stop(self) -> None:
        for job_id, attempt in self.owned():
            asyncio.run(self.provider.release(job_id, attempt, False))
        for provider in self.providers:
            asyncio.run(provider.close())
        with open("/proc/self/mountinfo", encoding="utf-8") as lines:
            left = [line.split()[4] for line in lines if str(self.data_dir) in line and " - fuse." in line]
        for path in left:
            device.abort(path)
        assert left == []


def _names(path: Path) -> tuple[str, int]:
    job_id, _, attempt = path.parent.name.partition("-")
    return job_id, int(attempt)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server") / "data").start()
    yield made
    made.stop()


_count = 0


@pytest.fixture
def bucket(server: Server) -> Bucket:
    global _count
    _count += 1
    return Bucket(server, f"{server.owner}/fuse-{_count}").create()


@pytest.fixture
def node(server: Server, tmp_path: Path) -> Iterator[Node]:
    data_dir = tmp_path / "node-data"
    places.first_id(str(data_dir), "owner")
    made = Node(server, data_dir)
    yield made
    made.stop()
