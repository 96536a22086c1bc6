"""Logs and metrics as streams: complete, in order, at once, and over when the job is."""

import contextlib
import json
import os
import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from calls import Api
from clients import Client, Server, eventually, make_client

MARKER = "===== Job started"


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


def output(lines: list[str]) -> list[str]:
    """Return what the job itself wrote."""
    return [line for line in lines if not line.startswith((MARKER, "runstead:"))]


def logs_path(api: Api, job_id: str) -> str:
    return f"/api/jobs/{api.server.owner}/{job_id}/logs"


def until(api: Api, job_id: str, line: str) -> None:
    """Wait until a job has written a line."""
    with api.stream(logs_path(api, job_id)) as events:
        assert any(event["data"] == line for event in events), f"{job_id} ended without {line!r}"


def test_a_snapshot_of_a_quiet_running_job_ends_after_the_five_seconds_of_the_client(newest: Client) -> None:
    api = Api(newest.server)
    job_id = api.shell("echo one; echo two; sleep 1000")["id"]
    until(api, job_id, "two")
    code = "import time; from huggingface_hub import fetch_job_logs, whoami; whoami(); began = time.monotonic()\n"
    code += f"lines = list(fetch_job_logs(job_id={job_id!r})); out([time.monotonic() - began, lines])"
    took, lines = newest.python(code)
    assert output(lines) == ["one", "two"]
    assert 4.9 < took < 7
    api.cancel(job_id)


def test_a_snapshot_of_a_busy_running_job_ends_by_the_date(newest: Client) -> None:
    api = Api(newest.server)
    job_id = api.shell("echo begun; while :; do echo tick; sleep 0.05; done")["id"]
    until(api, job_id, "tick")
    code = "import time; from huggingface_hub import fetch_job_logs; began = time.monotonic()\n"
    code += f"lines = list(fetch_job_logs(job_id={job_id!r})); out([time.monotonic() - began, lines])"
    took, lines = newest.python(code)
    assert output(lines)[0] == "begun"
    assert took < 5
    api.cancel(job_id)


def test_a_line_is_at_the_follower_at_once(api: Api) -> None:
    code = "import time\nfor _ in range(20): print(time.time(), flush=True); time.sleep(0.05)"
    with api.stream(logs_path(api, api.submit("python", "-c", code)["id"])) as events:
        lags = [time.time() - float(event["data"]) for event in events if event["data"][:1].isdigit()]
    assert len(lags) == 20
    assert statistics.median(lags) < 0.1
    assert max(lags) < 0.5


def test_when_the_stream_ends_the_job_is_said_to_have_ended(api: Api) -> None:
    for script in ("true", "exit 3", "echo a; sleep 0.1; echo b"):
        job_id = api.shell(script)["id"]
        api.lines(job_id)
        assert api.stage(job_id) in ("COMPLETED", "ERROR")
    job_id = api.shell("echo up; sleep 1000")["id"]
    with api.stream(logs_path(api, job_id)) as events:
        for event in events:
            if event["data"] == "up":
                api.cancel(job_id)
    assert api.stage(job_id) == "CANCELED"


def test_a_replay_is_the_same_for_ever(own_server: Server) -> None:
    api = Api(own_server)
    job_id = api.shell("for i in $(seq 50); do echo line $i; done; exit 1", attempts=2)["id"]
    with api.stream(logs_path(api, job_id)) as events:
        live = list(events)
    assert output([event["data"] for event in live]) == [f"line {i}" for i in range(1, 51)] * 2
    assert sum(event["data"].startswith(MARKER) for event in live) == 2
    times = [event["timestamp"] for event in live]
    assert times == sorted(times)
    assert all(at.endswith("Z") for at in times)

    def replay() -> list[dict[str, Any]]:
        with api.stream(logs_path(api, job_id)) as events:
            return list(events)

    assert replay() == live
    own_server.kill()
    own_server.start()
    assert replay() == live


def test_tail_gives_the_last_lines_and_the_marker(api: Api) -> None:
    job_id = api.shell("for i in $(seq 100); do echo $i; done")["id"]
    api.ended(job_id)
    whole = api.lines(job_id)
    for count in (1, 3, 100, len(whole) - 1, len(whole), 10**6):
        tail = api.lines(job_id, f"?tail={count}")
        assert tail[0].startswith(MARKER)
        assert tail[-min(count, len(whole)) :] == whole[-count:]
        assert len(tail) == min(count + 1, len(whole))
    assert [line[: len(MARKER)] for line in api.lines(job_id, "?tail=0")] == [MARKER]


def test_tail_of_a_running_job_goes_on_with_what_comes(api: Api) -> None:
    job_id = api.shell("echo old; echo older; sleep 0.5; echo new; sleep 0.1; echo newer")["id"]
    until_written = api.lines(job_id, "?tail=0") if api.stage(job_id) == "COMPLETED" else None
    assert until_written is None
    until(api, job_id, "older")
    for count, expected in ((0, ["new", "newer"]), (1, ["older", "new", "newer"])):
        lines = api.lines(job_id, f"?tail={count}")
        if api.stage(job_id) == "COMPLETED" and count:
            expected = ["newer"]  # it had ended before this one began
        assert output(lines) == expected
        assert lines[0].startswith(MARKER)


ODD = r"""
import os, sys
w = sys.stdout.buffer
w.write("a\u2028b\u2029c\u0085d\x0b\x0c\x1c\x1d\x1e\n".encode())
w.write(b"broken \xff\xfe utf8 \xe2\x82\n")
w.write(b"nul \x00 and \x1b[31mcolour\x1b[0m\n")
w.write(b"\n")
w.write(b"dos\r\n")
w.write(b"progress 1\rprogress 2\n")
w.write(b'{"data": "quoted \\" \\\\"}\n')
w.write(b"data: {\n")
w.write("\U0001f680 \u00fc\n".encode())
w.write(b"x" * 200_000 + b"\n")
w.flush()
os.write(2, b"from stderr\n")
w.write(b"no end of line")
w.flush()
"""


def test_odd_output_comes_through(client: Client) -> None:
    api = Api(client.server)
    job_id = api.submit("python", "-c", ODD)["id"]
    assert api.ended(job_id)["status"]["stage"] == "COMPLETED"
    expected = [
        "a\u2028b\u2029c\u0085d\x0b\x0c\x1c\x1d\x1e",
        "broken \ufffd\ufffd utf8 \ufffd",
        "nul \x00 and \x1b[31mcolour\x1b[0m",
        "",
        "dos",
        "progress 1\rprogress 2",
        '{"data": "quoted \\" \\\\"}',
        "data: {",
        "\U0001f680 ü",
    ]
    code = f"from huggingface_hub import fetch_job_logs; out(list(fetch_job_logs(job_id={job_id!r})))"
    lines = output(client.python(code))
    assert lines[: len(expected)] == expected
    rest = lines[len(expected) :]
    assert "".join(rest[:-2]) == "x" * 200_000
    assert rest[-2:] == ["from stderr", "no end of line"]


def test_a_hundred_thousand_lines_are_complete_and_in_order(newest: Client) -> None:
    api = Api(newest.server)
    job_id = api.submit("python", "-c", "for i in range(100_000): print('line', i)")["id"]
    code = f"from huggingface_hub import fetch_job_logs\nlines = list(fetch_job_logs(job_id={job_id!r}, follow=True))\n"
    code += "lines = [l for l in lines if l.startswith('line')]; out(lines == [f'line {i}' for i in range(100_000)])"
    assert newest.python(code) is True
    assert output(api.lines(job_id)) == [f"line {i}" for i in range(100_000)]


def test_a_stream_of_a_waiting_job_stays_open_until_it_ran(tmp_path: Path) -> None:
    started = Server(tmp_path / "data", ("--executor-cpus", "0.5", "--stop-jobs-at-exit")).start()
    try:
        api = Api(started)
        first = api.shell("echo up; sleep 1000")["id"]
        until(api, first, "up")
        machine = len(
            [job for job in [api.shell("sleep 1000") for _ in range(8)] if job["status"]["stage"] == "RUNNING"]
        )
        assert machine < 8
        last = api.shell("echo at last", labels={"place": "last"})
        assert last["status"]["stage"] == "SCHEDULING"
        with api.stream(logs_path(api, last["id"])) as events:
            for job in api.jobs("?stage=RUNNING&stage=SCHEDULING"):
                if job["id"] != last["id"]:
                    api.cancel(job["id"])
            assert output([event["data"] for event in events]) == ["at last"]
        assert api.stage(last["id"]) == "COMPLETED"
    finally:
        started.stop()


def test_metrics_of_a_job_that_does_not_run_are_refused_with_406(api: Api) -> None:
    job_id = api.shell("true")["id"]
    api.ended(job_id)
    answer = api.get(f"/api/jobs/{api.server.owner}/{job_id}/metrics")
    assert answer.status == 406
    assert "COMPLETED" in answer.error


def test_metrics_come_at_once_and_every_second_and_end_with_the_job(api: Api) -> None:
    job_id = api.shell("echo up; end=$(($(date +%s)+4)); while [ $(date +%s) -lt $end ]; do :; done")["id"]
    until(api, job_id, "up") if api.stage(job_id) != "RUNNING" else None
    began = time.monotonic()
    seen: list[tuple[float, dict[str, Any]]] = []
    with api.stream(f"/api/jobs/{api.server.owner}/{job_id}/metrics") as events:
        seen.extend((time.monotonic() - began, event) for event in events)
    assert api.stage(job_id) == "COMPLETED"
    assert seen[0][0] < 1
    assert len(seen) >= 2
    for _, sample in seen:
        assert sample["memory_total_bytes"] > 0
        assert 0 <= sample["memory_used_bytes"] <= sample["memory_total_bytes"]
        assert {"cpu_usage_pct", "cpu_millicores", "rx_bps", "tx_bps", "gpus", "replica"} <= sample.keys()
    assert max(sample["cpu_usage_pct"] for _, sample in seen) > 5


def sockets_of(server: Server) -> int:
    """Count the open sockets of the server's process."""
    assert server.process is not None
    folder = f"/proc/{server.process.pid}/fd"
    found = 0
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"{folder}/{name}").startswith("socket:")
    return found


def test_a_client_that_leaves_is_forgotten(server: Server, api: Api) -> None:
    job_id = api.shell("echo up; sleep 1000")["id"]
    until(api, job_id, "up")
    before = sockets_of(server)
    with contextlib.ExitStack() as stack:
        for route in ("logs", "metrics") * 20:
            events = stack.enter_context(api.stream(f"/api/jobs/{server.owner}/{job_id}/{route}"))
            next(events)
        assert sockets_of(server) >= 40
    assert eventually(lambda: sockets_of(server) <= before, 5), (before, sockets_of(server))
    api.cancel(job_id)


class PatientProxy:
    """Passes connections on to a server, and holds them while it is away: what a load balancer does at an upgrade."""

    def __init__(self, server: Server) -> None:
        self._target = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _connected(self) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            try:
                return socket.create_connection(("127.0.0.1", urlsplit(self._target.url).port or 0))
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _serve(self, near: socket.socket) -> None:
        asked = b""  # what the server was sent and has not answered: it may have gone away with it
        with contextlib.suppress(OSError), near:
            while True:
                with self._connected() as far:
                    sent = 0
                    while True:
                        if sent < len(asked):
                            if not delivered(far, asked[sent:]):
                                break
                            sent = len(asked)
                        ready = select.select([near, far], [], [])[0]
                        if near in ready:
                            part = near.recv(65536)
                            if not part:
                                return
                            asked += part
                        if far in ready:
                            part = received(far)
                            if not part:
                                break
                            asked, sent = asked[sent:], 0
                            near.sendall(part)
                if not asked:
                    return


def delivered(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


@pytest.fixture
def through(own_server: Server) -> Iterator[Server]:
    """The server as it looks behind a proxy that outlives it."""
    proxy = PatientProxy(own_server)
    yield Server(own_server.data_dir, url=proxy.url, token=own_server.token, owner=own_server.owner)
    proxy.close()


@pytest.mark.parametrize("way", ["kill", "terminate"])
def test_a_follower_sees_every_line_once_though_the_server_is_restarted(
    own_server: Server, through: Server, tmp_path: Path, way: str
) -> None:
    api = Api(own_server)
    job_id = api.shell("for i in $(seq 300); do echo line $i; sleep 0.05; done")["id"]
    follower = make_client("2.4.0", through, tmp_path).popen("jobs", "logs", "-f", job_id)
    assert follower.stdout is not None
    seen = [follower.stdout.readline()]
    while "line 20" not in seen[-1]:
        seen.append(follower.stdout.readline())
    getattr(own_server, way)()
    own_server.start()
    rest, _ = follower.communicate(timeout=60)
    lines = [line for line in ("".join(seen) + rest).splitlines() if line.startswith("line ")]
    assert lines == [f"line {i}" for i in range(1, 301)], rest
    assert follower.returncode == 0
    assert api.stage(job_id) == "COMPLETED"


def test_two_hundred_followers_get_the_same(api: Api) -> None:
    job_id = api.shell("for i in $(seq 200); do echo $i; sleep 0.005; done")["id"]
    found: list[list[str]] = []

    def follow() -> None:
        found.append(output(api.lines(job_id, timeout=60)))

    threads = [threading.Thread(target=follow) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    assert all(lines == [str(i) for i in range(1, 201)] for lines in found)


def test_events_are_framed_the_way_clients_read_them(api: Api) -> None:
    job_id = api.shell("echo one")["id"]
    api.ended(job_id)
    answer = api.get(logs_path(api, job_id))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "date" in answer.headers
    events = answer.body.split(b"\n\n")
    assert events[-1] == b""
    for event in events[:-1]:
        assert event.startswith(b"data: {")
        assert event.isascii()
        assert set(json.loads(event[6:])) == {"data", "timestamp"}
