"""A bucket over HTTP: what each answer means, with a server that answers as the test says."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runstead.model.errors import BackendFailure, Forbidden, NotFound, RunsteadError, Unavailable
from runstead.node.filled.hub import Hub


@dataclass
class Answers:
    """What the server says, one after the other, and what it was asked."""

    url: str = ""
    said: list[tuple[int, Any, dict[str, str]]] = field(default_factory=list)
    asked: list[tuple[str, str, bytes, str]] = field(default_factory=list)

    def hub(self) -> Hub:
        return Hub(self.url, "me/b", "rsv1.token")


@pytest.fixture
def answers() -> Iterator[Answers]:
    made = Answers()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            made.asked.append((self.command, self.path, body, self.headers["authorization"]))
            status, value, headers = made.said.pop(0)
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def entry(path: str) -> dict[str, Any]:
    return {"type": "file", "path": path, "xetHash": "a" * 64, "size": 1, "mtime": "2026-01-01T00:00:00.250Z"}


def test_pages_are_followed_on_the_address_that_was_given(answers: Answers) -> None:
    following = '<https://public.example/api/buckets/me/b/tree/in%20x?cursor=2>; rel="next"'
    answers.said = [(200, [entry("in x/1")], {"Link": following}), (200, [entry("in x/2")], {})]
    found = list(answers.hub().files("in x"))
    assert [file.path for file in found] == ["in x/1", "in x/2"]
    assert found[0].mtime_ns == 1_767_225_600_250_000_000
    assert answers.asked[0][1].startswith("/api/buckets/me/b/tree/in%20x?recursive=true")
    assert answers.asked[1][1] == "/api/buckets/me/b/tree/in%20x?cursor=2"
    assert {asked[3] for asked in answers.asked} == {"Bearer rsv1.token"}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((404, NotFound), (401, Forbidden), (403, Forbidden), (400, BackendFailure)),
        *((429, Unavailable), (500, Unavailable), (503, Unavailable)),
    ],
)
def test_what_a_refusal_means(answers: Answers, status: int, error: type[RunsteadError]) -> None:
    answers.said = [(status, {"error": "why"}, {"X-Error-Message": "why"})]
    with pytest.raises(error, match="why"):
        answers.hub().check()


@pytest.mark.parametrize("status", [200, 422])
def test_an_operation_that_is_refused_is_no_success(answers: Answers, status: int) -> None:
    answers.said = [(status, {"failed": [{"path": "x", "error": "no content with this hash"}]}, {})]
    with pytest.raises(BackendFailure, match="no content with this hash"):
        answers.hub().batch([{"type": "addFile", "path": "x"}, {"type": "deleteFile", "path": "y"}])
    assert answers.asked[0][2].count(b"\n") == 2


def test_a_server_that_is_away_may_come_back() -> None:
    with pytest.raises(Unavailable):
        Hub("http://127.0.0.1:9", "me/b", "t").check()
