"""Exposed ports while the server is killed and comes again: jobs and their ports outlive it."""

import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from clients import Client, Server, eventually, make_client

APP = Path(__file__).parents[1] / "ports_app.py"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path / "data", (), {"RUNSTEAD_EXECUTOR_KIND": "process"}).start()
    yield started
    if started.process is None or started.process.poll() is not None:
        started.start()
    started.terminate()
    started.flags = ("--stop-jobs-at-exit",)
    started.start()
    started.stop()


@pytest.fixture
def job(server: Server, tmp_path: Path) -> str:
    hub: Client = make_client("2.4.0", server, tmp_path)
    words = ["--expose", "8000", "--expose", "8001", "python:3.12", sys.executable, str(APP), "8000", "8001"]
    job_id = re.findall(r"^ *id: ([0-9a-f]{24})", hub.hf("jobs", "run", "-d", *words).stdout, re.MULTILINE)[0]
    assert eventually(lambda: get(server, job_id).status_code == 200, within=20)
    return job_id


def url(server: Server, job: str, port: int = 8000) -> str:
    return f"{server.url}/jobs-proxy/{job}--{port}.port"


def get(server: Server, job: str, path: str = "/x") -> httpx2.Response:
    return httpx2.get(url(server, job) + path, headers=headers(server), trust_env=False, timeout=20)


def headers(server: Server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.token}"}


def test_killed_in_the_middle_of_an_answer(server: Server, job: str) -> None:
    received = 0
    with (
        pytest.raises(httpx2.HTTPError),
        httpx2.stream(
            "GET", f"{url(server, job)}/big?2000000000", headers=headers(server), trust_env=False, timeout=20
        ) as answer,
    ):
        for data in answer.iter_raw():
            received += len(data)
            if received > 20_000_000 and server.process is not None and server.process.poll() is None:
                server.kill()
    assert received > 20_000_000
    server.start()
    assert get(server, job).json()["target"] == "/x"


def test_killed_in_the_middle_of_an_upload(server: Server, job: str) -> None:
    def body() -> Iterator[bytes]:
        for number in range(1000):
            if number == 50:
                server.kill()
            yield b"x" * 1_000_000

    given = headers(server) | {"Content-Length": "1000000000"}
    with pytest.raises(httpx2.HTTPError):
        httpx2.put(f"{url(server, job)}/upload", headers=given, content=body(), trust_env=False, timeout=20)
    server.start()
    assert get(server, job).status_code == 200


def test_a_stop_waits_for_no_websocket(server: Server, job: str) -> None:
    address = url(server, job, 8001).replace("http", "ws", 1) + "/"
    with connect(address, additional_headers=headers(server), proxy=None) as session:
        session.send("x")
        assert session.recv() == "x"
        stopping = threading.Thread(target=server.terminate)
        began = time.monotonic()
        stopping.start()
        with pytest.raises(ConnectionClosed):
            session.recv(timeout=20)
        stopping.join(30)
        assert time.monotonic() - began < 9
    server.start()
    assert get(server, job).status_code == 200


def test_ports_that_were_opened_late_are_open_after_a_restart(server: Server, job: str, tmp_path: Path) -> None:
    hub = make_client("2.4.0", server, tmp_path)
    hub.hf("jobs", "expose", job, "8000", "--public", "8001")
    server.kill()
    server.start()
    assert httpx2.get(url(server, job, 8001) + "/", trust_env=False).status_code == 426
    assert httpx2.get(url(server, job, 8000) + "/", trust_env=False).status_code == 401
