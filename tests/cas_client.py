"""A content store in a process of its own, plain HTTP to it, and the real `hf_xet` driven from its environment."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from clients import CLIENTS, ROOT
from runstead.xet.checksum import crc64nvme

SCOPE = "bucket:test"


@dataclass
class CasServer:
    directory: Path
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: "subprocess.Popen[str] | None" = None

    def start(self) -> "CasServer":
        path = f"{ROOT / 'tests'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "tests" / "cas_server.py"), str(self.directory)),
                *("--port", str(self.port)),
                *self.flags,
            ],
            stdout=subprocess.PIPE,
            stderr=(self.directory.parent / f"{self.directory.name}.log").open("a"),
            text=True,
            env=os.environ | {"PYTHONPATH": path} | self.environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready"), f"the store did not start: {self.log}"
        self.port = int(line.split()[1])
        return self

    @property
    def log(self) -> str:
        return (self.directory.parent / f"{self.directory.name}.log").read_text()[-4000:]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class Cas:
    """The protocol by hand: what `hf_xet` sends, and what it never would."""

    def __init__(self, url: str, scope: str = SCOPE) -> None:
        self._address = url.removeprefix("http://")
        self.scope = scope
        self._local = threading.local()
        self.renew()

    def renew(self) -> None:
        write = self.http("GET", f"/token/write?scope={self.scope}").json()
        self.write = write["accessToken"]
        self.read = self.http("GET", f"/token/read?scope={self.scope}").json()["accessToken"]
        self.cas_url: str = write["casUrl"]
        self.base = "/" + self.cas_url.split("/", 3)[3]

    def http(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = HTTPConnection(self._address, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer: HTTPResponse = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def call(
        self, method: str, path: str, body: bytes | None = None, *, token: str | None = None, **headers: str
    ) -> Answer:
        sent = {"Authorization": f"Bearer {self.write if token is None else token}"} | headers
        return self.http(method, f"{self.base}/{path}", body, sent)

    def grant(self, name: str, body: bytes, **changes: Any) -> Answer:
        said = {"length": len(body), "checksum": {"algo": "crc64nvme", "value": str(crc64nvme(body))}} | changes
        return self.call("POST", f"v1/xorb-grants/default/{name}", json.dumps(said).encode())

    def put(self, url: str, body: bytes) -> Answer:
        return self.http("PUT", "/" + url.split("/", 3)[3], body)

    def upload_xorb(self, name: str, body: bytes) -> int:
        """Grant, put, commit; return the status of the grant."""
        granted = self.grant(name, body)
        if granted.status == 201:
            assert self.put(granted.json()["url"], body).status == 200
            committed = self.call("POST", f"v1/xorb-commits/default/{name}/grant/{granted.json()['id']}")
            assert committed.status == 200
        return granted.status

    def upload_shard(self, shard: bytes) -> dict[str, Any]:
        answer = self.call("POST", "v2/shards", shard)
        assert answer.status == 200, answer
        assert answer.headers["content-type"] == "application/x-ndjson"
        return answer.lines()[-1]

    def reconstruction(self, name: str, span: str | None = None, version: int = 2) -> Answer:
        headers = {"Range": span} if span else {}
        return self.call("GET", f"v{version}/reconstructions/{name}", token=self.read, **headers)

    def fetch(self, url: str, first: int, last: int) -> Answer:
        return self.http("GET", "/" + url.split("/", 3)[3], headers={"Range": f"bytes={first}-{last}"})

    def plain(self, name: str, first: int | None = None, last: int | None = None) -> bytes:
        headers = {} if first is None else {"Range": f"bytes={first}-{'' if last is None else last}"}
        return self.http("GET", f"/plain/{name}", headers=headers).body


def hf_xet(program: str, *arguments: str, version: str, home: Path, **environment: str) -> Any:
    """Run a program of `xet_programs.py` with the client of that version; return what it prints as JSON."""
    python = CLIENTS / f"client-{version}" / "bin" / "python"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "RUNSTEAD_", "PYTHON"))}
    done = subprocess.run(
        [str(python), str(ROOT / "tests" / "xet_programs.py"), program, *arguments],
        env=inherited | {"HF_HOME": str(home), "HF_XET_LOG": "error"} | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
