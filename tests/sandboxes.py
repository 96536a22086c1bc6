"""Sandboxes over plain HTTP: what the client library would not send, and answers event by event."""

import http.client
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

import engines
import registry
from calls import Answer, Api
from clients import Server, eventually
from container_images import debian_root
from runstead.executors.oci import problem

EXECUTORS = ("process", "oci")

COMMAND = ["/bin/sh", "-c", "echo the command of a sandbox is not run; exit 3"]


@contextmanager
def serving(executor: str, folders: pytest.TempPathFactory, settings: Mapping[str, str] = {}) -> Iterator[Server]:
    """Run a server whose sandboxes are of this executor; python:3.12 is a small Debian there.

    That of the docker executor uses the engine that the environment names (`engines.SOCKET`).
    """
    data_dir = folders.mktemp(executor) / "data"
    if executor != "oci":
        kind = engines.settings() if executor == "docker" else {}
        started = Server(data_dir, ("--stop-jobs-at-exit",), kind | dict(settings)).start()
        try:
            yield started
        finally:
            started.stop()
        return
    if (lacking := problem()) is not None:
        pytest.skip(lacking)
    with registry.registry(folders.mktemp("registry")) as images:
        images.push("library/python", registry.build([registry.archive_of(debian_root())]), "3.12")
        environment = {"RUNSTEAD_EXECUTOR_KIND": "oci", "RUNSTEAD_IMAGES_MIRRORS": f"docker.io={images.host}"}
        started = Server(data_dir, ("--stop-jobs-at-exit",), environment | dict(settings)).start()
        try:
            yield started
        finally:
            started.stop()


def create_body(token: str, mode: str = "dedicated", idle: int | None = 600, **more: Any) -> dict[str, Any]:
    """What clients send to create a sandbox, or the host of a pool."""
    environment = {"SBX_PORT": "49983", "SBX_SERVER_URL": "http://x/y", "SBX_SERVER_SHA256": "0" * 64}
    environment |= {"SBX_SERVER_MOUNT": "/.hf-sbx-server"}
    if idle is not None:
        environment["SBX_IDLE_TIMEOUT"] = str(idle)
    if mode == "pool":
        environment |= {"SBX_HOST_MODE": "1", "SBX_CAPACITY": str(more.pop("capacity", 50))}
    labels = {"hf-sandbox": "1", "hf-sandbox-mode": mode, "hf-sandbox-nonce": "0" * 32}
    program = {"type": "bucket", "source": "huggingface/sbx-server", "mountPath": "/.hf-sbx-server", "readOnly": True}
    body: dict[str, Any] = {
        "command": COMMAND,
        "arguments": [],
        "environment": environment | more.pop("environment", {}),
        "secrets": {"SBX_TOKEN": token} | more.pop("secrets", {}),
        "flavor": "cpu-basic",
        "dockerImage": "python:3.12",
        "timeoutSeconds": 86400,
        "labels": labels | more.pop("labels", {}),
        "volumes": [*more.pop("volumes", []), program],
        "expose": {"ports": [49983], "portsPublic": []},
    }
    return body | more


@dataclass
class RawSandbox:
    """A sandbox as somebody with both tokens sees it."""

    server: Server
    job: dict[str, Any]
    token: str
    prefix: str = "/v1"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.job["id"]

    @property
    def url(self) -> str:
        return next(url for url in self.job["status"]["exposeUrls"] if "--49983." in url)

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        usual = {"Authorization": f"Bearer {self.server.token}", "X-Sandbox-Token": self.token}
        named = {} if self.path else {"Host": urlsplit(self.url).netloc}  # by a host name of its own
        return usual | named | self.headers | dict(more)

    def connect(self, timeout: float = 30) -> http.client.HTTPConnection:
        parts = urlsplit(self.server.url)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)

    def at(self, path: str, query: Mapping[str, Any] = {}) -> str:
        """The path of a request: below the sandbox's own prefix, or from the root of its URL for `/health` alike."""
        rest = path.removeprefix("~") if path.startswith("~") else self.prefix + path
        return self.path + rest + ("?" + urlencode(query) if query else "")

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, Any] = {},
        headers: Mapping[str, str] = {},
        timeout: float = 30,
    ) -> Answer:
        """Send one request; `~` in front of a path leaves the prefix away, a body that is not bytes is JSON."""
        connection = self.connect(timeout)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        try:
            connection.request(method, self.at(path, query), body, self._headers(headers))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def refused(self, status: int, *words: Any, **options: Any) -> str:
        """Send a request that is refused with this status, and return the reason that a client would show."""
        answer = self.call(*words, **options)
        assert answer.status == status, answer
        assert isinstance(answer.json["error"], str) and answer.json["error"], answer
        return answer.json["error"]

    def events(self, command: Any, patience: float = 30, **more: Any) -> Iterator[dict[str, Any]]:
        """Run a command and yield its events as they arrive. The connection ends with the iterator."""
        connection = self.connect(patience)
        try:
            body = json.dumps({"cmd": command} | more).encode()
            connection.request("POST", self.at("/exec"), body, self._headers({}))
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.getheader("content-type") == "application/x-ndjson"
            for line in response:
                yield json.loads(line)
        finally:
            connection.close()

    def run(self, command: Any, **more: Any) -> tuple[str, str, dict[str, Any]]:
        """Run a command; return its two outputs and how it ended."""
        events = list(self.events(command, **more))
        assert events[0]["event"] == "start" and events[-1]["event"] == "exit", events
        texts = {name: "".join(e["data"] for e in events if e["event"] == name) for name in ("stdout", "stderr")}
        return texts["stdout"], texts["stderr"], events[-1]

    def shell(self, script: str, **more: Any) -> str:
        """Run a script that shall succeed; return what it writes."""
        out, err, end = self.run(script, **more)
        assert end["exit_code"] == 0, (out, err, end)
        return out

    def write(self, path: str, data: bytes, **query: Any) -> Answer:
        answer = self.call("PUT", "/files/write", data, {"path": path} | query)
        assert answer.status == 200, answer
        return answer

    def read(self, path: str, **query: Any) -> bytes:
        answer = self.call("GET", "/files/read", query={"path": path} | query)
        assert answer.status == 200, answer
        return answer.body

    def cancel(self) -> None:
        Api(self.server).cancel(self.id)


def create(server: Server, mode: str = "dedicated", idle: int | None = 600, **more: Any) -> RawSandbox:
    """Create a sandbox or a host, and wait until it can be used."""
    token = secrets.token_hex(32)
    answer = Api(server).post(f"/api/jobs/{server.owner}", create_body(token, mode, idle, **more))
    assert answer.status == 200, answer
    made = RawSandbox(server, answer.json, token)
    ready = eventually(lambda: made.call("GET", "~/health").status == 200, 60)
    assert ready, (made.call("GET", "~/health"), Api(server).job(made.id))
    return made


def pooled(host: RawSandbox, **wanted: Any) -> RawSandbox:
    """Create a sandbox on a host."""
    answer = host.call("POST", "~/v1/sandboxes", {"count": 1} | wanted)
    assert answer.status == 200, answer
    [made] = answer.json["sandboxes"]
    return RawSandbox(host.server, host.job, made["token"], f"/v1/sandboxes/{made['id']}")
