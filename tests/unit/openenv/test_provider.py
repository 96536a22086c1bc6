"""The provider against a hub that fails in every way a network can. A fake: no real one fails on demand."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runstead.openenv import EnvironmentDied, EnvironmentNotReady, EnvironmentNotStarted, JobsProvider
from runstead.openenv.jobs import _pauses
from runstead.openenv.leases import LEASES

SLOW = 299


class Hub(ThreadingHTTPServer):
    """Jobs as the hosted service keeps them: it knows no idempotency keys, and every POST is a job that costs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.jobs: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.faults: list[str] = []  # of the next creations: "503", "402", "lost" (it is created, nothing is answered)
        self.cancels: list[str] = []
        self.cancel_faults = 0
        self.health: list[int] = []  # the next answers of the environment; the last one stays
        self.stage, self.message = "RUNNING", None
        self.late = threading.Event()  # lets slow answers go

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answering(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            self.say(200, {"id": "u", "type": "user", "name": "alice", "orgs": [], "auth": {}})
        elif path == "/api/jobs/alice":
            self.say(200, [job for job in hub.jobs if job["labels"]["openenv-key"] in self.path])
        elif path.endswith("/logs"):
            self.say(200, None, b'data: {"data": "out of luck", "timestamp": "2026-01-01T00:00:00Z"}\n\n')
        elif path.startswith("/api/jobs/alice/"):
            self.say(200, hub.jobs[0] | {"status": {"stage": hub.stage, "message": hub.message}})
        elif path.endswith("/health"):
            if hub.health[0] == SLOW:
                hub.late.wait(60)
            self.say(hub.health.pop(0) if len(hub.health) > 1 else hub.health[0], {})
        else:
            self.say(404, {"error": "not here"})

    def do_POST(self) -> None:
        hub = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if self.path.endswith("/cancel"):
            if hub.cancel_faults:
                hub.cancel_faults -= 1
                self.say(503, {"error": "later"})
                return
            hub.cancels.append(self.path.split("/")[-2])
            self.say(200, hub.jobs[0])
            return
        hub.keys.append(self.headers.get("Idempotency-Key"))
        fault = hub.faults.pop(0) if hub.faults else ""
        if fault.isdigit():
            self.say(int(fault), {"error": "no"})
            return
        number = len(hub.jobs)
        urls = [f"{hub.url}/{number}--{port}.port" for port in body["expose"]["ports"]]
        job = {
            "id": f"{number:024x}",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "owner": {"id": "u", "name": "alice", "type": "user"},
            "labels": body["labels"],
            "environment": body["environment"],
            "command": body["command"],
            "flavor": "cpu-basic",
            "status": {"stage": "SCHEDULING", "message": None, "exposeUrls": urls},
        }
        hub.jobs.append(job)
        if fault == "lost":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.say(200, job)

    def say(self, status: int, value: object, raw: bytes | None = None) -> None:
        body = raw if raw is not None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    server.health = [200]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.late.set()
    server.shutdown()
    server.server_close()


def provider(hub: Hub, **options: Any) -> JobsProvider:
    chosen = {"access": "public", "lease_seconds": 0, "command": ["serve"], "start_timeout_s": 5.0} | options
    return JobsProvider(endpoint=hub.url, token="hf_secret", namespace="alice", **chosen)


def test_it_starts_one_job_and_ends_it(hub: Hub) -> None:
    with provider(hub) as environments:
        url = environments.start_container("echo:latest", port=9000, env_vars={"A": "b"}, workers=2)
        environments.wait_for_ready(url)
        assert url == f"{hub.url}/0--9000.port"
        assert environments.job_id == "0" * 24
    assert (len(hub.jobs), hub.cancels) == (1, ["0" * 24])
    assert hub.jobs[0]["environment"] == {"A": "b"}
    assert environments.job_id is None


@pytest.mark.parametrize("faults", [["503", "500"], ["lost"], ["503", "lost"]], ids=str)
def test_one_job_however_the_creation_fails(hub: Hub, faults: list[str]) -> None:
    hub.faults = faults
    with provider(hub) as environments:
        environments.start_container("echo:latest")
    assert len(hub.jobs) == 1
    assert len(set(hub.keys)) == 1  # the same key with each try, for servers that know keys
    assert len(hub.keys[0] or "") == 32


def test_what_is_refused_is_not_tried_again(hub: Hub) -> None:
    hub.faults = ["402"]
    with pytest.raises(EnvironmentNotStarted, match="refused"):
        provider(hub).start_container("echo:latest")
    assert len(hub.keys) == 1


def test_tries_are_bounded(hub: Hub) -> None:
    hub.faults = ["503"] * 9
    with pytest.raises(EnvironmentNotStarted, match="in 3 tries"):
        provider(hub, create_tries=3).start_container("echo:latest")
    assert len(hub.keys) == 3


def test_a_death_before_the_port_answers_is_told_with_its_cause(hub: Hub) -> None:
    hub.health = [503]
    environments = provider(hub)
    url = environments.start_container("echo:latest")
    hub.stage, hub.message = "ERROR", "oom: the job used more than its 1 GiB of memory and was killed"
    with pytest.raises(EnvironmentDied) as died:
        environments.wait_for_ready(url, 60)
    assert (died.value.stage, died.value.failure_class, died.value.log) == ("ERROR", "oom", ("out of luck",))
    environments.stop_container()


def test_what_is_slow_to_answer_is_waited_for(hub: Hub) -> None:
    hub.health = [503, 502, 500, 404, 200]
    with provider(hub) as environments:
        environments.wait_for_ready(environments.start_container("echo:latest"), 30)
    assert hub.health == [200]


@pytest.mark.parametrize("fault", ["refused", "slow", "erroring"])
def test_waiting_uses_its_whole_time(hub: Hub, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstead.openenv.provider._ANSWER_SECONDS", 0.2)
    hub.health = [SLOW if fault == "slow" else 500]
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with provider(hub) as environments:
        url = environments.start_container("echo:latest")
        began = time.monotonic()
        with pytest.raises(EnvironmentNotReady, match=r"within 1\.5 s"):
            environments.wait_for_ready(closed if fault == "refused" else url, 1.5)
        assert time.monotonic() - began >= 1.5


def test_pauses_grow_up_to_a_limit_and_are_left_to_chance() -> None:
    assert _pauses(7, lambda: 1.0) == [0.25, 0.5, 1, 2, 4, 8, 8]
    assert _pauses(7, lambda: 0.0) == [0.125, 0.25, 0.5, 1, 2, 4, 4]
    assert _pauses(3) != _pauses(3)


def test_a_job_that_never_runs_is_ended(hub: Hub) -> None:
    hub.stage = "SCHEDULING"
    environments = provider(hub, start_timeout_s=0.3)
    with pytest.raises(EnvironmentNotReady, match=r"did not run within 0\.3 s"):
        environments.start_container("echo:latest")
    assert hub.cancels == ["0" * 24]


def test_stopping_is_idempotent_and_tries_again(hub: Hub) -> None:
    environments = provider(hub)
    environments.start_container("echo:latest")
    hub.cancel_faults = 2
    environments.stop_container()
    environments.stop_container()
    assert hub.cancels == ["0" * 24]


def test_stopping_never_raises(hub: Hub) -> None:
    environments = provider(hub)
    environments.start_container("echo:latest")
    hub.cancel_faults = 99
    environments.stop_container()
    assert hub.cancels == []


def test_what_is_forgotten_is_ended(hub: Hub) -> None:
    environments = provider(hub)
    environments.start_container("echo:latest")
    del environments
    assert hub.cancels == ["0" * 24]


def test_the_child_of_a_fork_renews_nothing_of_its_parent(hub: Hub) -> None:
    with provider(hub, lease_seconds=600) as environments:
        environments.start_container("echo:latest")
        assert list(LEASES._leases) == ["0" * 24]
        child = os.fork()
        if child == 0:
            os._exit(len(LEASES._leases))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert hub.cancels == ["0" * 24]


def test_it_can_be_used_again_but_not_twice(hub: Hub) -> None:
    environments = provider(hub)
    environments.start_container("echo:latest")
    with pytest.raises(EnvironmentNotStarted, match="already"):
        environments.start_container("echo:latest")
    environments.stop_container()
    environments.start_container("echo:latest")
    environments.stop_container()
    assert len(hub.jobs) == len(hub.cancels) == 2


def test_unknown_options_are_refused_before_anything_costs(hub: Hub) -> None:
    with pytest.raises(TypeError, match="flavour"):
        provider(hub).start_container("echo:latest", flavour="cpu-basic")
    assert hub.jobs == []


@pytest.mark.parametrize("endpoint", ["http://hub.example.com", "http://localhost.example.com", "http://10.0.0.1:5627"])
def test_tokens_do_not_travel_unencrypted(endpoint: str) -> None:
    with pytest.raises(ValueError, match="unencrypted"):
        JobsProvider(endpoint=endpoint, token="hf_secret")
    JobsProvider(endpoint=endpoint, token="hf_secret", unencrypted=True)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://a.example"]
)
def test_to_this_machine_they_may(endpoint: str) -> None:
    JobsProvider(endpoint=endpoint, token="hf_secret")


TRAINER = """
import signal, sys
from runstead.openenv import JobsProvider
environments = JobsProvider(
    endpoint=sys.argv[1], token="hf_secret", namespace="alice", access="relay", lease_seconds=600, command=["serve"]
)
environments.start_container("echo:latest")
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(3)", 3), ("raise ValueError", 1), ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT)],
    ids=["its last line", "an exit", "an error", "an interrupt"],
)
def test_what_is_still_referenced_ends_with_the_process(hub: Hub, end: str, code: int) -> None:
    words = [sys.executable, "-c", TRAINER + end, hub.url]
    assert subprocess.run(words, capture_output=True).returncode == code
    assert hub.cancels == ["0" * 24]


def written(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str | None, str | None, str | None]]:
    lines = [vars(one) for one in caplog.records if one.name == "runstead.openenv"]
    return [(one["levelname"], one["job_id"], one["stage"], one["cause"]) for one in lines]


def test_the_lines_of_a_death_have_job_stage_and_cause(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "runstead.openenv")
    with provider(hub) as environments:
        url = environments.start_container("echo:latest")
        environments.wait_for_ready(url)
        hub.health, hub.stage, hub.message = [502], "ERROR", "user: exit code 3"
        with pytest.raises(EnvironmentDied):
            environments.wait_for_ready(url)
    job = "0" * 24
    assert written(caplog) == [
        ("INFO", job, "SCHEDULING", None),
        ("INFO", job, "RUNNING", None),
        ("ERROR", job, "ERROR", "user"),
        ("INFO", job, None, None),
    ]
    assert "hf_secret" not in caplog.text


def test_the_lines_of_what_fails_have_a_cause(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "runstead.openenv")
    hub.faults = ["503", "lost"]
    environments = provider(hub)
    url = environments.start_container("echo:latest")
    hub.health = [418]
    with pytest.raises(EnvironmentNotReady):
        environments.wait_for_ready(url, 0.2)
    hub.cancel_faults = 99
    environments.stop_container()
    job = "0" * 24
    lines = written(caplog)
    assert lines[0] == ("WARNING", None, None, "answer-503")
    assert lines[1][:3] == ("WARNING", None, None) and str(lines[1][3]).endswith("Error")
    assert lines[2] == ("INFO", job, "SCHEDULING", None)
    assert lines[3][:3] == ("ERROR", job, "RUNNING")
    assert lines[3][3] in ("answer-418", "ReadTimeout", "ConnectTimeout")  # a busy machine may take that long
    assert lines[4:] == [("WARNING", job, None, "answer-503")] * 4 + [("ERROR", job, None, "server-away")]
