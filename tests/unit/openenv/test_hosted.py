"""The provider with the forms of the hosted service: its name, its addresses of ports, its way to let clients in.

Nothing of it can be reached from here. So a proxy that the trainer's environment names (`HTTPS_PROXY`) is the whole
internet: whatever it is asked for, it answers itself, over TLS, by the name that was asked for.
"""

import asyncio
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from runstead.kit.clock import SystemClock
from runstead.proxy.certificates import OwnCertificates

TOKEN = "hf_hosted"
HUB = "huggingface.co"
JOBS = [f"6a44fadf33c08a2c0dadf7b{number}" for number in range(3)]

TRAINER = """
import json, logging, sys
from websockets.sync.client import connect
from huggingface_hub.utils import get_session
from runstead.openenv import EnvironmentDied, JobsProvider

class Lines(logging.Handler):
    def emit(self, record):
        print(json.dumps({"log": [record.job_id, record.stage, record.cause], "text": record.getMessage()}), flush=True)

logging.getLogger("runstead.openenv").addHandler(Lines())
logging.getLogger("runstead.openenv").setLevel(logging.INFO)
first, second = JobsProvider(command=["serve"]), JobsProvider(command=["serve"])
urls = [one.start_container("echo:latest") for one in (first, second)]
for one, url in zip((first, second), urls):
    one.wait_for_ready(url)
echoed = []
for url in urls:
    with connect("ws" + url.removeprefix("http") + "/ws") as session:
        for message in ("text", b"binary"):
            session.send(message)
            echoed.append(str(session.recv()))
public = JobsProvider(command=["serve"], access="public", lease_seconds=0)
url = public.start_container("echo:latest")
public.wait_for_ready(url)
print(json.dumps({"urls": urls, "echoed": echoed, "public": url}), flush=True)
first.stop_container()
answer = get_session().get(urls[0] + "/health")
get_session().post("https://huggingface.co/end-of-all")
answer = get_session().get(urls[1] + "/health")
print(json.dumps({"dead": [answer.status_code, answer.headers.get("x-runstead-cause")]}), flush=True)
try:
    second.wait_for_ready(urls[1])
except EnvironmentDied as died:
    print(json.dumps({"died": [died.job_id, died.stage, died.failure_class]}), flush=True)
"""


@dataclass
class Internet:
    """Jobs at huggingface.co, and their ports below hf.jobs, in plain HTTP behind the TLS of the proxy."""

    stages: dict[str, str] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)  # host, method and path
    connections: list[str] = field(default_factory=list)  # hosts

    async def hub(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request for the Hub after the other."""
        while line := await reader.readline():
            method, path, _ = line.decode().split()
            fields: dict[str, str] = {}
            while (text := (await reader.readline()).decode().strip()) != "":
                name, _, value = text.partition(":")
                fields[name.lower()] = value.strip()
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            self.asked.append((HUB, f"{method} {path}"))
            status, said = (401, {"error": "who?"})
            if fields.get("authorization") == f"Bearer {TOKEN}" or path == "/end-of-all":
                status, said = self._answer(method, path.partition("?")[0], body)
            data = json.dumps(said).encode()
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data))
            await writer.drain()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        found = re.fullmatch("/api/jobs/alice(?:/([0-9a-f]{24}))?(/cancel|/logs)?", path)
        match method, path, found:
            case "GET", "/api/whoami-v2", _:
                return 200, {"id": "u", "type": "user", "name": "alice", "orgs": [], "auth": {}}
            case "POST", "/end-of-all", _:
                self.stages = dict.fromkeys(self.stages, "ERROR")
                return 200, {}
            case "POST", "/api/jobs/alice", _:
                job_id = JOBS[len(self.bodies)]
                self.bodies.append(json.loads(body))
                self.stages[job_id] = "RUNNING"
                return 200, self._job(job_id)
            case "POST", _, re.Match() if found[2] == "/cancel":
                self.stages[found[1]] = "CANCELED"
                return 200, self._job(found[1])
            case "GET", _, re.Match() if found[1] and found[2] is None:
                return 200, self._job(found[1])
            case _:
                return 404, {"error": "not here"}

    def _job(self, job_id: str) -> dict[str, Any]:
        body = self.bodies[JOBS.index(job_id)]
        return {
            "id": job_id,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "owner": {"id": "u", "name": "alice", "type": "user"},
            "labels": body["labels"],
            "environment": {},
            "command": body["command"],
            "flavor": "cpu-basic",
            "status": {
                "stage": self.stages[job_id],
                "message": None,
                "exposeUrls": [f"https://{job_id}--{port}.hf.jobs" for port in body["expose"]["ports"]],
            },
        }

    def at_a_port(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request to `<job>--<port>.hf.jobs`, or let a WebSocket in."""
        host = request.headers["host"]
        self.asked.append((host, request.path))
        job_id, _, port = host.removesuffix(".hf.jobs").partition("--")
        body = self.bodies[JOBS.index(job_id)]
        public = int(port) in body["expose"]["portsPublic"]
        if not public and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return connection.respond(401, "who?")
        if self.stages[job_id] != "RUNNING":
            return connection.respond(503, "nothing here")
        return None if request.path == "/ws" else connection.respond(200, "{}")

    async def echo(self, connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)


@pytest.fixture
async def internet(tmp_path: Path) -> AsyncIterator[tuple[Internet, int, Path]]:
    internet = Internet()
    authority, context = certificates(tmp_path, [HUB, "*.hf.jobs"])
    ports = await serve(internet.echo, "127.0.0.1", 0, process_request=internet.at_a_port)
    address = next(iter(ports.sockets)).getsockname()
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        host, _, port = head.split()[1].partition(":")
        assert head.startswith("CONNECT ") and port == "443", head
        internet.connections.append(host)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        await writer.start_tls(context)
        try:
            if host == HUB:
                await internet.hub(reader, writer)
            else:
                there, back = await asyncio.open_connection(*address)
                await asyncio.gather(pipe(reader, back), pipe(there, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield internet, server.sockets[0].getsockname()[1], authority
    for task in tasks:
        task.cancel()
    server.close()
    ports.close()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def certificates(folder: Path, names: list[str]) -> tuple[Path, ssl.SSLContext]:
    own = OwnCertificates(folder, SystemClock())
    authority = own.ensure_authority()
    own.ensure(names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    return authority, context


async def test_the_same_code_runs_on_the_hosted_service(internet: tuple[Internet, int, Path], tmp_path: Path) -> None:
    service, port, authority = internet
    variables = {name: value for name, value in os.environ.items() if not name.upper().startswith("HF_")}
    variables |= {"HTTPS_PROXY": f"http://127.0.0.1:{port}", "SSL_CERT_FILE": str(authority)}
    variables |= {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TRAINER), env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, err.decode()
    said: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for line in map(json.loads, out.decode().splitlines()):
        lines.append(line) if "log" in line else said.update(line)
    first, second = said["urls"]
    # Clients that cannot send headers: one local proxy, whatever the number of environments.
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]+/" + JOBS[0], first)
    assert second == first.replace(JOBS[0], JOBS[1])
    assert said["echoed"] == ["text", "b'binary'"] * 2
    # Where no header is needed, none is in between.
    assert said["public"] == f"https://{JOBS[2]}--8000.hf.jobs"
    assert [body["expose"] for body in service.bodies] == [
        *[{"ports": [8000, 49982], "portsPublic": []}] * 2,
        {"ports": [8000], "portsPublic": [8000]},
    ]
    assert {(f"{job_id}--49982.hf.jobs", "/") for job_id in JOBS[:2]} <= set(service.asked)  # leases
    assert said["dead"] == [502, "job-ended"]
    assert said["died"] == [JOBS[1], "ERROR", None]
    assert {HUB} | {f"{job_id}--8000.hf.jobs" for job_id in JOBS} <= set(service.connections)
    # What was still there when the trainer ended was ended with it.
    assert [(HUB, f"POST /api/jobs/alice/{job_id}/cancel") in service.asked for job_id in JOBS] == [True] * 3
    assert [*JOBS[1:2], "ERROR", "ended"] in [line["log"] for line in lines]
    assert [JOBS[0], "RUNNING", None] in [line["log"] for line in lines if line["text"] == "environment ready"]
