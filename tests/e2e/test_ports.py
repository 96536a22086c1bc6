"""Exposed ports: real clients on both sides of the proxy, and clients that mean no good."""

import asyncio
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from clients import Client, Server, eventually, make_client

APP = Path(__file__).parents[1] / "ports_app.py"


@dataclass
class App:
    """A job that runs `ports_app.py`."""

    server: Server
    id: str
    urls: list[str]  # that of its first port in front
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def get(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None, content: Any = None
    ) -> httpx2.Response:
        given = self.headers | (headers or {})
        return httpx2.request(method, self.urls[0] + path, headers=given, content=content, timeout=30, trust_env=False)

    def raw(self, data: bytes, *, until_close: bool = True, wait: float = 20) -> bytes:
        """Send bytes to the server and return what comes back."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=wait) as connection:
            connection.sendall(data)
            found = b""
            while until_close or b"\r\n\r\n" not in found:
                more = connection.recv(65536)
                if not more:
                    break
                found += more
            return found

    @property
    def prefix(self) -> str:
        return self.urls[0][len(self.server.url) :]

    def request(self, line: str, *fields: str, body: bytes = b"", token: bool = True) -> bytes:
        auth = (f"Authorization: Bearer {self.token}",) if token else ()
        method, target = line.split(" ", 1)
        lines = (f"{method} {self.prefix}{target} HTTP/1.1", "Host: here", *auth, *fields, "", "")
        return "\r\n".join(lines).encode("latin-1") + body


def start_app(client: Client, *options: str, ports: tuple[int, ...] = (8000, 8001)) -> App:
    words = ["jobs", "run", "-d", *options, "--timeout", "10m"]
    if not options:
        words += [word for port in ports for word in ("--expose", str(port))]
    said = client.hf(*words, "python:3.12", sys.executable, str(APP), *map(str, ports)).stdout
    [job_id] = re.findall(r"^ *id: ([0-9a-f]{24})", said, re.MULTILINE)
    urls = sorted(exposed(client, job_id), key=lambda url: f"--{ports[0]}." not in url)
    return App(client.server, job_id, urls, client.server.token)


def exposed(client: Client, job_id: str) -> list[str]:
    job = httpx2.get(
        f"{client.server.url}/api/jobs/{client.server.owner}/{job_id}",
        headers={"Authorization": f"Bearer {client.server.token}"},
        trust_env=False,
    ).json()
    return job["status"].get("exposeUrls", [])


def listening(app: App) -> None:
    assert eventually(lambda: app.get("/").status_code == 200, within=20), app.get("/").text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The process executor, for the application runs with this very Python and its libraries."""
    data_dir = tmp_path_factory.mktemp("ports") / "data"
    environment = {"RUNSTEAD_EXECUTOR_KIND": "process", "RUNSTEAD_PROXY_ANSWER_SECONDS": "2"}
    started = Server(data_dir, ("--stop-jobs-at-exit",), environment).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def hub(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return make_client("2.4.0", server, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def app(hub: Client) -> App:
    started = start_app(hub)
    listening(started)
    return started


@pytest.fixture
def start(hub: Client) -> Iterator[Callable[..., App]]:
    """Starts jobs that do not outlive the test: each takes memory that others wait for."""
    started: list[App] = []

    def start(*options: str) -> App:
        started.append(start_app(hub, *options))
        return started[-1]

    yield start
    for app in started:
        hub.hf("jobs", "cancel", app.id)


@pytest.fixture
def own_app(start: Callable[..., App]) -> App:
    """A job that the test may end."""
    started = start()
    listening(started)
    return started


@pytest.fixture(scope="module")
def stranger(server: Server) -> str:
    server.run("user", "add", "mallory")
    return server.run("token", "add", "mallory", "--name", "m", "--role", "write").stdout.split()[-1]


class TestHubClient:
    def test_the_urls_are_in_the_answer_to_the_creation(self, hub: Client) -> None:
        done = hub.hf("jobs", "run", "-d", "--expose", "8000", "--expose-public", "9000", "python:3.12", "true")
        address = re.escape(hub.server.url) + r"/jobs-proxy/[0-9a-f]{24}--(\d+)\.\w+$"
        assert sorted(re.findall(address, done.stderr, re.MULTILINE)) == ["8000", "9000"]

    def test_ports_are_opened_and_closed_while_it_runs(self, hub: Client, start: Callable[..., App]) -> None:
        app = start("--label", "a=b")
        assert app.urls == []
        said = hub.hf("jobs", "expose", app.id, "8000").stdout
        assert "8000" in said
        app.urls = exposed(hub, app.id)
        listening(app)
        hub.hf("jobs", "expose", app.id, "--public", "8000")
        assert eventually(lambda: httpx2.get(app.urls[0] + "/", trust_env=False).status_code == 200)
        hub.hf("jobs", "expose", app.id, "--clear")
        assert app.get("/").status_code == 404
        assert exposed(hub, app.id) == []

    def test_what_is_open_when_a_port_is_closed_is_ended(self, hub: Client, own_app: App) -> None:
        app = own_app

        async def session() -> int | None:
            url = app.urls[1].replace("http", "ws", 1) + "/"
            async with connect(url, additional_headers=app.headers, proxy=None) as connection:
                await connection.send("still there?")
                assert await connection.recv() == "still there?"
                await asyncio.to_thread(hub.hf, "jobs", "expose", app.id, "8000")
                with pytest.raises(ConnectionClosed):
                    await connection.recv()
            return connection.close_code

        assert asyncio.run(session()) == 1006

    @pytest.mark.parametrize("port", ["0", "65536", "-1"])
    def test_what_is_no_port_is_refused(self, hub: Client, port: str) -> None:
        done = hub.hf("jobs", "run", "-d", f"--expose={port}", "python:3.12", "true", check=False)
        assert done.returncode != 0
        assert "expose.ports" in done.stderr

    def test_too_many_are_refused(self, hub: Client) -> None:
        words = [word for port in range(1, 22) for word in ("--expose", str(port))]
        done = hub.hf("jobs", "run", "-d", *words, "python:3.12", "true", check=False)
        assert "at most 20 ports" in done.stderr

    def test_a_job_that_is_over_keeps_its_ports(self, hub: Client) -> None:
        hub.hf("jobs", "run", "python:3.12", "true")
        said = hub.hf("jobs", "ps", "-a", "-q").stdout.split()
        done = hub.hf("jobs", "expose", said[0], "8000", check=False)
        assert "is over" in done.stderr


class TestRequests:
    def test_it_comes_as_it_was_sent_but_for_what_is_not_the_jobs_business(self, app: App) -> None:
        sent = {
            "X-Custom": "as is",
            "Cookie": "a=b; runstead-12345678=secret; c=d",
            "Connection": "keep-alive, X-Hop",
            "X-Hop": "for the proxy alone",
            "X-Forwarded-For": "1.2.3.4",
            "X-Runstead-User": "forged",
            "Keep-Alive": "timeout=5",
            "Proxy-Authorization": "Basic eDp5",
        }
        answer = app.get("/some%20path?q=%2F&r", headers=sent)
        said = answer.json()
        fields = {name.lower(): value for name, value in said["fields"]}
        assert said["target"] == "/some%20path?q=%2F&r"
        assert fields["x-custom"] == "as is"
        assert fields["cookie"] == "a=b; c=d"
        assert fields["x-forwarded-for"] == "127.0.0.1"
        assert fields["x-forwarded-proto"] == "http"
        assert fields["x-forwarded-prefix"] == app.prefix
        assert fields["x-forwarded-host"] == fields["host"] == app.server.url.partition("//")[2]
        gone = ("authorization", "connection", "keep-alive", "proxy-authorization", "x-hop", "x-runstead-user")
        assert not [name for name in gone if name in fields]
        assert app.token not in answer.text

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"])
    def test_every_method(self, app: App, method: str) -> None:
        answer = app.get("/x", method)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.content == b"" if method == "HEAD" else answer.json()["method"] == method

    def test_the_url_without_a_slash(self, app: App) -> None:
        assert app.get("").json()["target"] == "/"
        assert app.get("?a=b").json()["target"] == "/?a=b"

    def test_the_applications_own_errors_are_its_own(self, app: App) -> None:
        for status in (401, 404, 500, 502, 503, 504):
            answer = app.get(f"/status/{status}")
            assert (answer.status_code, answer.text, answer.headers["x-from"]) == (status, "mine", "app")
            assert "x-runstead-cause" not in answer.headers

    def test_an_upload_is_not_gathered_first(self, app: App) -> None:
        size = 64 << 20
        block = os.urandom(1 << 20)
        digest = hashlib.sha256(block * 64).hexdigest()
        answer = app.get("/upload", "PUT", headers={"Content-Length": str(size)}, content=(block for _ in range(64)))
        assert answer.json() == {"size": size, "sha256": digest}

    def test_a_chunked_upload_with_trailers(self, app: App) -> None:
        body = b"5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nX-Check: yes\r\n\r\n"
        found = app.raw(
            app.request("POST /x", "Transfer-Encoding: chunked", "Trailer: X-Check", "Connection: close", body=body)
        )
        said = json.loads(found.partition(b"\r\n\r\n")[2])
        assert said["body"] == "hello!"
        assert said["trailers"] == {"x-check": "yes"}

    def test_large_headers(self, app: App) -> None:
        said = app.get("/x", headers={"X-Large": "x" * 60_000}).json()
        assert ["X-Large", "x" * 60_000] in said["fields"]

    def test_expect_100_continue(self, app: App) -> None:
        request = app.request("POST /continue", "Expect: 100-continue", "Content-Length: 5", "Connection: close")
        with socket.create_connection(("127.0.0.1", app.server.port), timeout=10) as connection:
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
            connection.sendall(b"hello")
            found = b""
            while more := connection.recv(65536):
                found += more
        assert b'"body": "hello"' in found

    def test_one_connection_for_the_server_and_for_jobs(self, app: App) -> None:
        """A browser does that. Whatever comes first, each request goes where it belongs."""
        api = f"GET /api/whoami-v2 HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {app.token}\r\n\r\n".encode()
        job = app.request("GET /x")
        with socket.create_connection(("127.0.0.1", app.server.port), timeout=10) as connection:
            for request, marker in [(job, b'"target": "/x"'), (api, b'"accessToken"')] * 3:
                connection.sendall(request)
                found = b""
                while marker not in found:
                    more = connection.recv(65536)
                    assert more, found
                    found += more

    def test_pipelined_requests_are_answered_in_order(self, app: App) -> None:
        first, second = app.request("POST /1", "Content-Length: 3", body=b"abc"), app.request("GET /2")
        last = app.request("GET /3", "Connection: close")
        found = app.raw(first + second + last)
        assert re.findall(rb'"target": "/(\d)"', found) == [b"1", b"2", b"3"]

    def test_http_1_0(self, app: App) -> None:
        found = app.raw(app.request("GET /x").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        assert found.startswith(b"HTTP/1.1 200 ")
        assert b'"version": "HTTP/1.0"' in found


class TestAnswers:
    def test_events_arrive_one_by_one(self, app: App) -> None:
        """The next one is sent when the one before was seen here."""
        seen: list[str] = []
        with httpx2.stream("GET", app.urls[0] + "/events", headers=app.headers, trust_env=False, timeout=30) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    seen.append(line)
                    app.get("/step", "POST")
        assert seen == [f"data: {number}" for number in range(5)]

    def test_streams_both_ways_at_once(self, app: App) -> None:
        """No piece waits for another: neither of the upload nor of the answer."""
        with socket.create_connection(("127.0.0.1", app.server.port), timeout=30) as connection:
            connection.sendall(app.request("POST /converse", "Transfer-Encoding: chunked"))
            found = b""
            for number in range(5):
                piece = b"piece %d" % number
                connection.sendall(b"7\r\n%b\r\n" % piece)
                while not found.endswith(piece + b"\r\n"):
                    more = connection.recv(65536)
                    assert more, found
                    found += more
            connection.sendall(b"0\r\n\r\n")
            while not found.endswith(b"\r\n0\r\n\r\n"):
                found += connection.recv(65536)
        assert found.startswith(b"HTTP/1.1 200 ")

    def test_a_large_one(self, app: App) -> None:
        size = 50_000_001
        digest = hashlib.sha256()
        with httpx2.stream("GET", f"{app.urls[0]}/big?{size}", headers=app.headers, trust_env=False) as answer:
            assert answer.headers["content-length"] == str(size)
            for data in answer.iter_bytes():
                digest.update(data)
        expected = hashlib.sha256((bytes(range(256)) * (size // 256 + 1))[:size])
        assert digest.digest() == expected.digest()

    def test_trailers(self, app: App) -> None:
        found = app.raw(app.request("GET /trailers", "Connection: close", "TE: trailers"))
        assert found.endswith(b"0\r\nX-Sum: 5\r\n\r\n")

    def test_until_the_connection_ends(self, app: App) -> None:
        assert app.get("/until-close").text == "until the end"

    def test_early_hints(self, app: App) -> None:
        found = app.raw(app.request("GET /hints", "Connection: close"))
        assert found.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: ")
        assert b"HTTP/1.1 200 OK\r\n" in found

    def test_an_answer_before_the_end_of_the_upload_is_read(self, app: App) -> None:
        answer = app.get("/early", "POST", content=b"x" * 20_000_000)
        assert answer.status_code == 413

    def test_an_early_answer_whose_connection_is_reset_is_one_all_the_same(self, app: App) -> None:
        """The program's own system may have thrown it away."""
        answer = app.get("/rude", "POST", content=b"x" * 20_000_000)
        assert (answer.status_code, answer.headers.get("x-runstead-cause")) in [(413, None), (502, "connection-lost")]

    @pytest.mark.parametrize("connection", ["keep-alive", "close"])
    @pytest.mark.parametrize(
        ("path", "authorized", "status"),
        [
            ("{prefix}/", False, 401),
            ("{none}/", True, 404),
            ("/api/jobs/{owner}", True, 413),
            ("/xet/any/v1/xorbs/default/" + "0" * 64, False, 401),
        ],
    )
    def test_an_early_answer_of_the_server_is_read(
        self, app: App, path: str, authorized: bool, status: int, connection: str
    ) -> None:
        """At every door: clients send all of it, and read then."""
        names = {"prefix": app.prefix, "none": app.prefix.replace(app.id, "0" * 24), "owner": app.server.owner}
        line = f"POST {path.format(**names)} HTTP/1.1"
        token = (f"Authorization: Bearer {app.token}",) if authorized else ()
        fields = ("Host: here", *token, f"Connection: {connection}", "Content-Length: 40000000", "", "")
        with socket.create_connection(("127.0.0.1", app.server.port), timeout=30) as client:
            client.sendall("\r\n".join((line, *fields)).encode())
            for _ in range(40):
                client.sendall(b"x" * 1_000_000)
            found = client.recv(65536)
        assert found.split()[1] == b"%d" % status, found

    def test_what_breaks_off_is_seen_to_be_broken_off(self, app: App) -> None:
        with pytest.raises(httpx2.RemoteProtocolError):
            app.get("/short")

    @pytest.mark.parametrize(
        ("sent", "came"),
        [
            ("Location: /next", "Location: {prefix}/next"),
            ("Location: http://{host}/next?a#b", "Location: {prefix}/next?a#b"),
            ("Location: {prefix}/next", "Location: {prefix}/next"),
            ("Location: next", "Location: next"),
            ("Location: https://example.com/", "Location: https://example.com/"),
            ("Location: //example.com/", "Location: //example.com/"),
            ("Set-Cookie: a=b; Path=/; HttpOnly", "Set-Cookie: a=b; HttpOnly; Path={prefix}"),
            ("Set-Cookie: a=b; Domain=here; Path=/x/", "Set-Cookie: a=b; Path={prefix}/x"),
            ("Set-Cookie: a=b", "Set-Cookie: a=b; Path={prefix}"),
            ("Set-Cookie: runstead-12345678=x; Path=/", None),
            ("Set-Cookie: __Host-runstead-12345678=x; Path=/; Secure", None),
            ("Clear-Site-Data: *", None),
            ("Strict-Transport-Security: max-age=1", None),
            ("X-Runstead-Cause: forged", None),
            ("Alt-Svc: h2=:1", None),
        ],
    )
    def test_what_reaches_beyond_the_port_is_bound_to_it(self, app: App, sent: str, came: str | None) -> None:
        host = app.server.url.partition("//")[2]
        line = sent.format(prefix=app.prefix, host=host)
        found = app.get("/head-of", "POST", content=json.dumps([line]))
        lines = [f"{name.decode().title()}: {value.decode()}" for name, value in found.headers.raw]
        name = sent.partition(":")[0]
        if came is None:
            assert not [line for line in lines if line.startswith(f"{name.title()}:")]
        else:
            assert came.format(prefix=app.prefix) in lines

    def test_pages_that_share_the_servers_origin_are_in_a_sandbox(self, app: App) -> None:
        policies = app.get("/head-of", "POST", content='["Content-Security-Policy: script-src *"]').headers.get_list(
            "content-security-policy"
        )
        assert policies[0] == "script-src *"
        assert policies[1].startswith("sandbox ")
        assert "allow-same-origin" not in policies[1]


class TestUpgrades:
    def test_a_websocket(self, app: App) -> None:
        async def session() -> tuple[int | None, str | None]:
            url = app.urls[1].replace("http", "ws", 1) + "/"
            async with connect(url, additional_headers=app.headers, proxy=None, max_size=None) as connection:
                for message in ("text ✓", b"\x00binary\xff", "", b"x" * 3_000_000):
                    await connection.send(message)
                    assert await connection.recv() == message
                await (await connection.ping(b"are you there"))
                await connection.send("close")
                with pytest.raises(ConnectionClosed):
                    await connection.recv()
            return connection.close_code, connection.close_reason

        assert asyncio.run(session()) == (4321, "as asked")

    def test_pings_and_codes_of_the_other_side(self, own_app: App) -> None:
        async def session() -> str | bytes:
            url = own_app.urls[1].replace("http", "ws", 1) + "/"
            async with connect(url, additional_headers=own_app.headers, proxy=None) as first:
                await first.send("ping")
                assert await first.recv() == "there was a pong"
                await first.close(4001, "enough")
            async with connect(url, additional_headers=own_app.headers, proxy=None) as second:
                await second.send("how did the last one end")
                return await second.recv()

        assert json.loads(asyncio.run(asyncio.wait_for(session(), 60))) == [4001, "enough"]

    def test_any_protocol(self, app: App) -> None:
        request = app.request("GET /upgrade", "Connection: Upgrade", "Upgrade: shout")
        with socket.create_connection(("127.0.0.1", app.server.port), timeout=10) as connection:
            connection.sendall(request)
            found = b""
            while not found.endswith(b"READY\n"):
                found += connection.recv(65536)
            assert found.startswith(b"HTTP/1.1 101 ")
            connection.sendall(b"hello")
            assert connection.recv(65536) == b"HELLO"
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(65536) == b""

    def test_http_2_in_clear_text_is_not_changed_to(self, app: App) -> None:
        found = app.raw(app.request("GET /x", "Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c"))
        assert b"200 OK" in found
        assert b"h2c" not in found


class TestWhoMay:
    def test_without_a_token(self, app: App) -> None:
        answer = httpx2.get(app.urls[0] + "/", trust_env=False)
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (401, "token")
        assert answer.headers["www-authenticate"].startswith("Bearer")

    @pytest.mark.parametrize("value", ["Bearer hf_wrong", "Basic eDp5", "Bearer", "hf_x"])
    def test_with_a_wrong_one(self, app: App, value: str) -> None:
        assert app.get("/", headers={"Authorization": value}).status_code == 401

    def test_a_stranger(self, app: App, stranger: str) -> None:
        answer = app.get("/", headers={"Authorization": f"Bearer {stranger}"})
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (403, "access")

    def test_a_token_that_may_only_read(self, app: App, server: Server) -> None:
        token = server.run("token", "add", server.owner, "--name", "r", "--role", "read").stdout.split()[-1]
        headers = {"Authorization": f"Bearer {token}"}
        assert app.get("/", headers=headers).status_code == 200
        server.run("token", "revoke", "r")
        assert app.get("/", headers=headers).status_code == 401

    def test_a_pass_lets_in_without_headers(self, app: App, server: Server) -> None:
        value = "not-like-the-hubs-tokens"
        server.run("token", "add", server.owner, "--name", "p", "--role", "read", "--value", "-", input=value)
        headers = {"Authorization": f"Bearer {value}"}
        said = httpx2.get(app.urls[0].removesuffix(".port") + ".pass", headers=headers, trust_env=False).json()
        url = server.url + said["path"]
        for given in ({}, headers):
            fields = httpx2.get(url + "/x", headers=given, trust_env=False).json()["fields"]
            assert value not in str(fields)
        assert httpx2.get(url.replace("--8000", "--8001") + "/x", trust_env=False).status_code == 401
        assert httpx2.get(url[:-1] + "/x", trust_env=False).status_code == 401
        server.run("token", "revoke", "p")
        assert httpx2.get(url + "/x", trust_env=False).status_code == 401

    def test_no_such_job_and_no_such_port(self, app: App) -> None:
        answer = httpx2.get(app.urls[0].replace("--8000", "--8002"), headers=app.headers, trust_env=False)
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (404, "no-such-port")
        answer = httpx2.get(app.urls[0].replace(app.id, "0" * 24), headers=app.headers, trust_env=False)
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (404, "no-such-port")

    def test_a_public_port(self, start: Callable[..., App], stranger: str) -> None:
        app = start("--expose-public", "8000", "--expose", "8001")
        listening(app)
        assert httpx2.get(app.urls[0] + "/", trust_env=False).status_code == 200
        assert httpx2.get(app.urls[1] + "/", trust_env=False).status_code == 401

        def handed_on(value: str) -> list[str]:
            answer = httpx2.get(app.urls[0] + "/", headers={"Authorization": value}, trust_env=False)
            return [value for name, value in answer.json()["fields"] if name.lower() == "authorization"]

        assert handed_on("Bearer my-own-key") == ["Bearer my-own-key"]
        assert handed_on(f"Bearer {stranger}") == []
        assert handed_on("Bearer hf_somebodysHubToken") == []


class TestWhatIsWrong:
    """Each reason told apart."""

    def test_nothing_listens_yet(self, start: Callable[..., App]) -> None:
        app = start("--expose", "8000", "--expose", "9999")
        app.urls.reverse()
        assert "--9999." in app.urls[0]
        assert eventually(lambda: app.get("/").headers.get("x-runstead-cause") == "not-listening", within=20)
        answer = app.get("/")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    def test_the_job_waits(self, hub: Client) -> None:
        flavors = httpx2.get(f"{hub.server.url}/api/jobs/hardware", trust_env=False).json()
        largest = max(flavors, key=lambda one: float(one["ram"].split()[0]))["name"]
        done = [
            hub.hf("jobs", "run", "-d", "--flavor", largest, "--expose", "1", "python:3.12", "sleep", "60").stdout
            for _ in range(2)
        ]
        ids = [re.findall(r"^ *id: ([0-9a-f]{24})", said, re.MULTILINE)[0] for said in done]
        app = App(hub.server, ids[1], exposed(hub, ids[1]), hub.server.token)
        answer = app.get("/")
        for job_id in ids:
            hub.hf("jobs", "cancel", job_id)
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (503, "not-started")

    def test_it_is_over(self, hub: Client, own_app: App) -> None:
        hub.hf("jobs", "cancel", own_app.id)
        answer = own_app.get("/")
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (502, "job-ended")
        assert answer.headers["x-runstead-failure-class"] == "canceled"

    def test_it_dies_of_the_request(self, own_app: App) -> None:
        answer = own_app.get("/die")
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (502, "job-ended")
        assert answer.headers["x-runstead-failure-class"] == "user"
        assert answer.json()["failureClass"] == "user"

    @pytest.mark.parametrize(
        ("path", "cause"),
        [("/nothing", "connection-lost"), ("/rubbish", "bad-answer"), ("/two-lengths", "bad-answer")],
    )
    def test_the_program_is_at_fault(self, app: App, path: str, cause: str) -> None:
        answer = app.get(path)
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (502, cause)

    def test_no_answer_in_time(self, app: App) -> None:
        answer = app.get("/hang")
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (504, "no-answer")

    def test_nothing_is_accepted(self, hub: Client) -> None:
        program = (
            "import socket, time\n"
            "listener = socket.create_server(('0.0.0.0', 8000), backlog=0)\n"
            "waiting = [socket.socket() for _ in range(8)]\n"
            "for one in waiting: one.setblocking(False); one.connect_ex(('127.0.0.1', 8000))\n"
            "print('full', flush=True)\n"
            "time.sleep(600)\n"
        )
        said = hub.hf("jobs", "run", "-d", "--expose", "8000", "python:3.12", sys.executable, "-c", program).stdout
        [job_id] = re.findall(r"^ *id: ([0-9a-f]{24})", said, re.MULTILINE)
        app = App(hub.server, job_id, exposed(hub, job_id), hub.server.token)
        assert eventually(lambda: "full" in hub.hf("jobs", "logs", job_id, "--tail", "1").stdout, within=30)
        answer = app.get("/")
        assert (answer.status_code, answer.headers["x-runstead-cause"]) == (504, "not-accepting")
        hub.hf("jobs", "cancel", job_id)


class TestNoGood:
    @pytest.mark.parametrize(
        "fields",
        [
            ("Content-Length: 5", "Transfer-Encoding: chunked"),
            ("Content-Length: 5", "Content-Length: 6"),
            ("Content-Length: 5", "Content-Length: 5"),
            ("Content-Length: 5, 5",),
            ("Content-Length: +5",),
            ("Content-Length: 0x5",),
            ("Content-Length: 5 5",),
            ("Transfer-Encoding: gzip, chunked",),
            ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
            ("Transfer-Encoding:\x0bchunked",),
            ("Transfer-Encoding : chunked",),
            (" folded: line",),
            ("X: a\rb",),
            ("X: a\x00b",),
            ("X-No-Colon",),
            (": empty",),
            ("Host: twice",),
        ],
    )
    def test_a_request_that_could_be_read_in_two_ways_is_refused(self, app: App, fields: tuple[str, ...]) -> None:
        found = app.raw(app.request("POST /x", *fields, body=b"5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"))
        assert found.split()[1] in (b"400", b"501"), found
        assert found.count(b"HTTP/1.1") == 1

    @pytest.mark.parametrize(
        "body",
        [
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello!\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"5;\nx\r\nhello\r\n0\r\n\r\n",
            b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\nX-Forwarded-For: 1\r\n\r\n",
            b"0\r\nno colon\r\n\r\n",
        ],
    )
    def test_chunks_that_could_be_read_in_two_ways_are_refused(self, app: App, body: bytes) -> None:
        found = app.raw(app.request("POST /x", "Transfer-Encoding: chunked", body=body))
        assert b" 400 " in found.split(b"\r\n")[0], found

    def test_a_length_that_connection_lists_stays(self, app: App) -> None:
        """Else the body would become a request of its own."""
        body = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        found = app.raw(
            app.request("POST /x", f"Content-Length: {len(body)}", "Connection: close, content-length", body=body)
        )
        assert json.loads(found.partition(b"\r\n\r\n")[2])["body"] == body.decode()

    @pytest.mark.parametrize(
        "target", ["/..%2f..%2fapi/whoami-v2", "/../../api/whoami-v2", "/%2e%2e/x", "//example.com/", "/\\example.com"]
    )
    def test_a_path_stays_within_the_port(self, app: App, target: str) -> None:
        found = app.raw(app.request(f"GET {target}", "Connection: close"))
        assert json.loads(found.partition(b"\r\n\r\n")[2])["target"] == target

    @pytest.mark.parametrize(
        "path", ["x--8000.port", "{id}--0.port", "{id}--65536.port", "{id}--08000.port", "{id}--8000", "{id}.port"]
    )
    def test_what_is_no_address_is_no_page(self, app: App, path: str) -> None:
        url = f"{app.server.url}/jobs-proxy/{path.format(id=app.id)}/"
        assert httpx2.get(url, headers=app.headers, trust_env=False).status_code == 404

    @pytest.mark.parametrize(
        "request_line", ["GET http://example.com/", "CONNECT example.com:443", "CONNECT 127.0.0.1:22"]
    )
    def test_it_is_no_proxy_for_the_world(self, app: App, request_line: str) -> None:
        found = app.raw(f"{request_line} HTTP/1.1\r\nHost: example.com\r\n\r\n".encode())
        assert b" 403 " in found.split(b"\r\n")[0]

    def test_names_by_which_no_port_is_meant(self, app: App) -> None:
        for host in (f"{app.id}--8000.example.com", f"{app.id}--8000.localhost.example.com"):
            found = app.raw(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert b"x-runstead-cause" not in found.lower()

    def test_a_head_without_end(self, app: App) -> None:
        found = app.raw(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 400_000)
        assert b" 431 " in found.split(b"\r\n")[0]


class TestHosts:
    """A host name for each port: under `localhost` always."""

    def call(self, app: App, host: str, *fields: str, target: str = "/x") -> bytes:
        lines = (f"GET {target} HTTP/1.1", f"Host: {host}", *fields, "Connection: close", "", "")
        return app.raw("\r\n".join(lines).encode())

    def test_under_localhost(self, app: App) -> None:
        host = f"{app.id}--8000.localhost:{app.server.port}"
        found = self.call(app, host, f"Authorization: Bearer {app.token}")
        said = json.loads(found.partition(b"\r\n\r\n")[2])
        fields = dict(said["fields"])
        assert said["target"] == "/x"
        assert fields["Host"] == host
        assert "X-Forwarded-Prefix" not in fields
        assert b"sandbox" not in found

    def test_as_a_proxy(self, app: App) -> None:
        """*.localhost is not resolved everywhere, but HTTP_PROXY is a way to us."""
        url = f"http://{app.id}--8000.hf-jobs.localhost/x"
        done = subprocess.run(
            ["curl", "-s", "-x", app.server.url, "-H", f"Authorization: Bearer {app.token}", url],
            capture_output=True,
            check=True,
        )
        assert json.loads(done.stdout)["target"] == "/x"

    def test_as_a_proxy_by_connect(self, app: App) -> None:
        url = f"http://{app.id}--8000.hf-jobs.localhost/x"
        done = subprocess.run(
            ["curl", "-s", "-p", "-x", app.server.url, "-H", f"Authorization: Bearer {app.token}", url],
            capture_output=True,
            check=True,
        )
        assert json.loads(done.stdout)["target"] == "/x"


class TestWaiting:
    """`runstead job wait`."""

    def wait(self, server: Server, *words: str, token: str | None = None) -> "subprocess.CompletedProcess[str]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return server.run(
            "job",
            "wait",
            *words,
            check=False,
            env=environment | {"HF_TOKEN": token or server.token, "HF_HOME": "/none"},
        )

    def test_until_it_listens(self, start: Callable[..., App]) -> None:
        app = start()
        done = self.wait(app.server, app.id, "--port", "8000")
        assert (done.returncode, done.stdout.strip()) == (0, app.urls[0]), done.stderr
        assert app.get("/").status_code == 200

    def test_a_job_that_ends_is_waited_for_no_longer(self, hub: Client) -> None:
        words = ["--expose", "8000", "python:3.12", "sh", "-c", "sleep 1; exit 7"]
        said = hub.hf("jobs", "run", "-d", *words).stdout
        [job_id] = re.findall(r"^ *id: ([0-9a-f]{24})", said, re.MULTILINE)
        begin = time.monotonic()
        done = self.wait(hub.server, f"{hub.server.owner}/{job_id}", "--port", "8000")
        assert done.returncode == 1
        assert "over" in done.stderr
        assert time.monotonic() - begin < 20

    def test_what_will_never_be(self, app: App, stranger: str) -> None:
        assert "exposes no port 9" in self.wait(app.server, app.id, "--port", "9").stderr
        assert "no job" in self.wait(app.server, "0" * 24, "--port", "9").stderr
        assert "no job" in self.wait(app.server, "../x", "--port", "9").stderr
        assert "no read access" in self.wait(app.server, app.id, "--port", "8000", token=stranger).stderr
        assert "no such token" in self.wait(app.server, app.id, "--port", "8000", token="hf_wrong").stderr

    def test_its_time_is_over(self, start: Callable[..., App]) -> None:
        app = start("--expose", "9999")
        done = self.wait(app.server, app.id, "--port", "9999", "--timeout", "3s")
        assert done.returncode == 1
        assert "after 3 s" in done.stderr
