"""The local proxy of a trainer: what an environment says passes, what became of it is told apart."""

import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.sync.client import connect
from websockets.sync.server import Server, ServerConnection, serve

from runstead.openenv import EnvironmentDied
from runstead.openenv.relay import Relay

TOKEN = "Bearer hf_secret"
DIED = EnvironmentDied("j1", "ERROR", "oom: the job used more than its memory and was killed")


class Environment(BaseHTTPRequestHandler):
    """Answers with the status that the path names; drops the connection at `/drop`, and in the middle at `/half`."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[list[object]] = []

    def setup(self) -> None:
        super().setup()
        self.connections.append(self.client_address)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.say(200, body + self.headers["authorization"].encode())

    def do_GET(self) -> None:
        word = self.path.partition("?")[0].rpartition("/")[2]
        if word in ("drop", "half"):
            if word == "half":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.say(int(word), f"my own {self.path}".encode())

    def say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-From", "environment")
        self.send_header("X-Cookies", self.headers.get("cookie", ""))
        self.send_header("Set-Cookie", "session=of-this-environment; Path=/")
        if status == 307:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def session(connection: ServerConnection) -> None:
    for message in connection:
        if message == "close":
            connection.close(4321, "as asked")
        elif message == "die":
            connection.socket.shutdown(socket.SHUT_RDWR)
        else:
            connection.send(message)


def at_the_door(connection: ServerConnection, request: Request) -> Response | None:
    word = request.path.rpartition("/")[2]
    assert request.headers["authorization"] == TOKEN
    return connection.respond(int(word), "my own") if word.isdigit() else None


@dataclass
class Job:
    """What a hub would tell of the job, and how often it was asked."""

    died: EnvironmentDied | None = None
    asked: list[None] = field(default_factory=list)

    def death(self) -> EnvironmentDied | None:
        self.asked.append(None)
        return self.died


@pytest.fixture
def http() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Environment)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def websocket() -> Iterator[str]:
    server: Server = serve(session, "127.0.0.1", 0, process_request=at_the_door, max_size=None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def relay() -> Relay:
    return Relay()


@pytest.fixture
def job() -> Job:
    return Job()


def join(relay: Relay, url: str, job: Job, job_id: str = "j1") -> str:
    return relay.add(job_id, url, lambda: {"Authorization": TOKEN}, job.death)


def get(url: str) -> httpx2.Response:
    return httpx2.get(url, trust_env=False, timeout=30)


@pytest.mark.parametrize("status", [200, 307, 400, 401, 404, 410, 500, 502, 503, 504])
def test_what_the_environment_says_passes(relay: Relay, http: str, job: Job, status: int) -> None:
    answer = get(f"{join(relay, http, job)}/at/{status}?a=b%20c")
    assert (answer.status_code, answer.text) == (status, f"my own /at/{status}?a=b%20c")
    assert answer.headers["x-from"] == "environment"
    assert "x-runstead-cause" not in answer.headers


def test_connections_are_kept_for_the_next_request(relay: Relay, http: str, job: Job) -> None:
    url, other = join(relay, http, job), join(relay, http, job, "j2")
    before = len(Environment.connections)
    for number in range(10):
        assert get(f"{(url, other)[number % 2]}/200").status_code == 200
    assert len(Environment.connections) == before + 1


def test_cookies_are_the_clients_alone(relay: Relay, http: str, job: Job) -> None:
    url = join(relay, http, job)
    assert get(f"{url}/200").headers["set-cookie"] == "session=of-this-environment; Path=/"
    assert get(f"{url}/200").headers["x-cookies"] == ""
    given = httpx2.get(f"{url}/200", headers={"Cookie": "mine=1"}, trust_env=False)
    assert given.headers["x-cookies"] == "mine=1"


def test_the_token_goes_in_and_bodies_both_ways(relay: Relay, http: str, job: Job) -> None:
    answer = httpx2.post(f"{join(relay, http, job)}/", content=b"x" * 3_000_000, trust_env=False)
    assert answer.content == b"x" * 3_000_000 + TOKEN.encode()
    assert job.asked == []


def test_a_connection_that_is_lost_is_no_death(relay: Relay, http: str, job: Job) -> None:
    answer = get(f"{join(relay, http, job)}/drop")
    assert (answer.status_code, answer.headers["x-runstead-cause"]) == (502, "unreachable")
    assert "x-from" not in answer.headers


@pytest.mark.parametrize("word", ["drop", "404", "502", "503"])
def test_a_death_is_told_whatever_is_answered_in_its_place(
    relay: Relay, http: str, job: Job, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    job.died = DIED
    with caplog.at_level(logging.INFO, "runstead.openenv"):
        answer = get(f"{join(relay, http, job)}/{word}")
    assert (answer.status_code, answer.headers["x-runstead-cause"]) == (502, "job-ended")
    assert "used more than its memory" in answer.text
    [record] = [vars(one) for one in caplog.records if one.name == "runstead.openenv"]
    assert (record["job_id"], record["stage"], record["cause"]) == ("j1", "ERROR", "oom")


def test_nothing_listens_any_more(relay: Relay, job: Job) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    job.died = DIED
    answer = get(f"{join(relay, url, job)}/200")
    assert (answer.status_code, answer.headers["x-runstead-cause"]) == (502, "job-ended")


def test_half_an_answer_is_not_made_whole(relay: Relay, http: str, job: Job) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        get(f"{join(relay, http, job)}/half")


def test_it_serves_what_was_added_to_those_who_know_its_secret(relay: Relay, http: str, job: Job) -> None:
    url = join(relay, http, job)
    assert join(relay, http, job, "j2").rpartition("/")[0] == url.rpartition("/")[0]  # one for all
    for wrong in (url.replace("/j1", "/j3"), "/".join([*url.split("/")[:3], "guessed", "j1"]), url.rpartition("/")[0]):
        assert get(f"{wrong}/200").status_code == 404
    relay.drop("j2")
    assert get(f"{url.replace('/j1', '/j2')}/200").status_code == 404
    assert get(f"{url}/200").status_code == 200


def call(relay: Relay, url: str, job: Job, path: str = "/") -> Any:
    return connect("ws" + join(relay, url, job).removeprefix("http") + path, max_size=None, proxy=None)


def test_messages_both_ways(relay: Relay, websocket: str, job: Job) -> None:
    with call(relay, websocket, job) as connection:
        for message in ("text ✓", b"\x00binary\xff", "", b"x" * 3_000_000):
            connection.send(message)
            assert connection.recv(30) == message
        connection.send("close")
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(30)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "as asked")


def test_a_session_whose_environment_dies_is_closed_with_a_code_of_its_own(
    relay: Relay, websocket: str, job: Job
) -> None:
    with call(relay, websocket, job) as connection:
        connection.send("die")
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(30)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1014


@pytest.mark.parametrize(("died", "said"), [(None, (503, None)), (DIED, (502, "job-ended"))], ids=["alive", "dead"])
def test_a_session_that_is_refused(
    relay: Relay, websocket: str, job: Job, died: EnvironmentDied | None, said: tuple[int, str | None]
) -> None:
    job.died = died
    with pytest.raises(InvalidStatus) as refused, call(relay, websocket, job, "/503"):
        pass
    answer = refused.value.response
    assert (answer.status_code, answer.headers.get("x-runstead-cause")) == said
    assert b"my own" in (answer.body or b"") if died is None else b"memory" in (answer.body or b"")
