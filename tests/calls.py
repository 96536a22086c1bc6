"""Plain HTTP for the tests: what a client library would refuse to send, and streams read event by event."""

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from clients import Server, eventually


@dataclass
class Answer:
    """A response, read whole."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The reason, checked to be in the Hub's form: what a client shows its user."""
        found = self.json
        assert isinstance(found, dict), self
        assert isinstance(found.get("error"), str), self
        assert found["error"], self
        assert self.headers.get("x-error-message"), self
        assert self.headers.get("x-error-code"), self
        assert self.headers["x-error-message"].isprintable(), self
        return found["error"]


@dataclass
class Api:
    """A server as one token sees it."""

    server: Server
    token: str | None = None  # None: the owner's; "": none at all
    headers: dict[str, str] = field(default_factory=dict)

    def _all_headers(self, more: Mapping[str, str]) -> dict[str, str]:
        token = self.server.token if self.token is None else self.token
        given = {"Authorization": f"Bearer {token}"} if token else {}
        return given | self.headers | dict(more)

    def connect(self, timeout: float = 30) -> http.client.HTTPConnection:
        parts = urlsplit(self.server.url)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}, **options: Any) -> Answer:
        """Send one request; a body that is not bytes or an iterator of bytes is sent as JSON."""
        sent = dict(headers)
        if body is not None and not isinstance(body, bytes) and not hasattr(body, "__next__"):
            body = json.dumps(body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        connection = self.connect(**options)
        try:
            connection.request(
                method,
                path,
                body,
                self._all_headers(sent),
                encode_chunked=body is not None and hasattr(body, "__next__"),
            )
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Answer:
        return self.call("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return self.call("POST", path, body, **options)

    def put(self, path: str, body: Any = None, **options: Any) -> Answer:
        return self.call("PUT", path, body, **options)

    # Jobs

    def submit(self, *command: str, namespace: str | None = None, **more: Any) -> dict[str, Any]:
        """Submit a job and return its object."""
        body = {"command": list(command), "dockerImage": "python:3.12", **more}
        answer = self.post(f"/api/jobs/{namespace or self.server.owner}", body)
        assert answer.status == 200, answer
        return answer.json

    def shell(self, script: str, **more: Any) -> dict[str, Any]:
        """Submit a job that runs a shell script."""
        return self.submit("sh", "-c", script, **more)

    def job(self, job_id: str, namespace: str | None = None) -> dict[str, Any]:
        answer = self.get(f"/api/jobs/{namespace or self.server.owner}/{job_id}")
        assert answer.status == 200, answer
        return answer.json

    def stage(self, job_id: str) -> str:
        return self.job(job_id)["status"]["stage"]

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self.post(f"/api/jobs/{self.server.owner}/{job_id}/cancel").json

    def ended(self, job_id: str, within: float = 30) -> dict[str, Any]:
        """Wait for the end of a job and return its object."""
        assert eventually(lambda: self.stage(job_id) not in ("SCHEDULING", "RUNNING"), within), self.job(job_id)
        return self.job(job_id)

    def jobs(self, query: str = "") -> list[dict[str, Any]]:
        answer = self.get(f"/api/jobs/{self.server.owner}{query}")
        assert answer.status == 200, answer
        return answer.json

    def count(self) -> int:
        return self.get(f"/api/jobs/{self.server.owner}/count").json["count"]

    def lines(self, job_id: str, query: str = "", **options: Any) -> list[str]:
        """Return the log as it stands when its stream ends."""
        with self.stream(f"/api/jobs/{self.server.owner}/{job_id}/logs{query}", **options) as events:
            return [event["data"] for event in events]

    @contextmanager
    def stream(self, path: str, timeout: float = 30) -> Iterator[Iterator[dict[str, Any]]]:
        """Open an event stream and read it as the clients do."""
        connection = self.connect(timeout)
        try:
            connection.request("GET", path, headers=self._all_headers({}))
            response = connection.getresponse()
            assert response.status == 200, (response.status, response.read())
            assert response.getheader("Content-Type", "").startswith("text/event-stream")
            yield self._events(response)
        finally:
            connection.close()

    @staticmethod
    def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        while line := response.readline():
            if line.startswith(b"data: {"):
                yield json.loads(line[len(b"data: ") :])

    def raw(self, request: bytes, timeout: float = 10) -> bytes:
        """Send bytes as they are and return all that comes back until the server closes or falls silent."""
        parts = urlsplit(self.server.url)
        received = b""
        with socket.create_connection((parts.hostname, parts.port), timeout=timeout) as connection:
            connection.sendall(request)
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline:
                try:
                    part = connection.recv(65536)
                except (TimeoutError, ConnectionResetError):
                    break
                if not part:
                    break
                received += part
        return received
