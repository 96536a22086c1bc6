"""Nothing is lost: servers, supervisors and jobs are killed at every instant that matters, and all adds up."""

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from calls import Api
from clients import eventually
from faults import QuickServer

GONE = (ConnectionError, http.client.HTTPException, TimeoutError)
MARKER = "===== Job started"
# A job that says who it is at its start and at its end: the same, if nobody started it anew in between.
STEADY = (
    "me=$(cat /proc/sys/kernel/random/uuid); echo begin $me; echo $SECRET | rev; "
    "for i in $(seq 20); do echo line $i; sleep 0.02; done; echo end $me"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QuickServer]:
    started = QuickServer(tmp_path / "data", ("--stop-jobs-at-exit",)).start()
    yield started
    started.stop()
    assert_nothing_is_left(started, "after the last stop")


@pytest.fixture
def api(server: QuickServer) -> Api:
    return Api(server)


# What is left of jobs


def leftovers(server: QuickServer, job_ids: set[str] | None = None) -> list[str]:
    """Return what jobs of this server still have: processes, control groups, mounts, directories."""
    data = str(server.data_dir)

    def ours(text: str) -> bool:
        return any(job_id in text for job_id in job_ids) if job_ids is not None else True

    found = [str(path) for path in (server.data_dir / "node" / "attempts").glob("*") if ours(path.name)]
    instance = (server.data_dir / "node" / "instance").read_text()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        if f"runstead-{instance}" in folder:
            found += [f"{folder}/{name}" for name in names if ours(name)]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [line for line in mounts if data in line and ours(line)]
    namespaces = server.data_dir / "node" / "namespaces"
    found += [str(path) for path in namespaces.rglob("venvs/*") if ours(path.name)]
    return found


def assert_nothing_is_left(server: QuickServer, when: str, job_ids: set[str] | None = None) -> None:
    eventually(lambda: not leftovers(server, job_ids), 5)
    assert leftovers(server, job_ids) == [], when


def processes_with(text: str) -> list[int]:
    """Return the processes whose command line has this text."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if text.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found


# What logs must say


def starts(lines: list[str]) -> int:
    return sum(line.startswith(MARKER) for line in lines)


def output(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith((MARKER, "runstead:"))]


def check_steady(api: Api, job: dict[str, Any]) -> None:
    """The job ran once, in one process from its start to its end, and its log is whole."""
    assert job["status"]["stage"] == "COMPLETED", job
    assert job["status"]["exitCode"] == 0
    assert job["status"]["failureCount"] == 0
    lines = api.lines(job["id"])
    assert starts(lines) == 1, lines
    begin, secret, *middle, end = output(lines)
    assert begin.startswith("begin ")
    assert end == begin.replace("begin", "end")
    assert secret == "terces"
    assert middle == [f"line {i}" for i in range(1, 21)]


def check_canceled(api: Api, job: dict[str, Any]) -> None:
    assert job["status"]["stage"] == "CANCELED", job
    assert job["status"]["failureClass"] == "canceled"
    lines = api.lines(job["id"])
    assert starts(lines) <= 1, lines
    assert [line for line in output(lines) if line == "up"] == ["up"] * starts(lines)


def check_retried(api: Api, job: dict[str, Any]) -> None:
    assert job["status"]["stage"] == "ERROR", job
    assert job["status"]["failureClass"] == "user"
    assert job["status"]["exitCode"] == 7
    assert job["status"]["failureCount"] == 2
    assert job["attempt"] == 2
    lines = api.lines(job["id"])
    assert starts(lines) == 2, lines
    assert output(lines) == ["tried", "tried"]


# Dying at every commit


@dataclass
class Scenario:
    """Something that users do; the plan is in force from `act` on."""

    act: Callable[[Api, str], None]  # the second is what `prepare` returned
    check: Callable[[Api, dict[str, Any]], None]
    prepare: Callable[[Api], str] = field(default=lambda api: "")
    first: int = 1  # of the commits to die at: what comes before is the same in another scenario
    last: int | None = None  # and what comes behind it too; None: all there are


def submit_steady(api: Api, _: str) -> None:
    api.shell(STEADY, secrets={"SECRET": "secret"})


def running(api: Api) -> str:
    job_id = api.shell("echo up; sleep 1000")["id"]
    assert eventually(lambda: "up" in log_of(api, job_id))
    return job_id


def log_of(api: Api, job_id: str) -> str:
    path = api.server.data_dir / "logs" / job_id[-2:] / job_id / "1.log"
    return path.read_text() if path.exists() else ""


def cancel(api: Api, job_id: str) -> None:
    api.cancel(job_id)


def submit_failing(api: Api, _: str) -> None:
    api.shell("echo tried; exit 7", attempts=2)


SCENARIOS = {
    "a job runs": Scenario(submit_steady, check_steady),
    "a job is canceled": Scenario(cancel, check_canceled, running),
    "a job is retried": Scenario(submit_failing, check_retried, first=4, last=6),
}


def all_over(api: Api) -> bool:
    """Say whether there is nothing left to do for any job."""
    with contextlib.closing(sqlite3.connect(f"file:{api.server.data_dir}/runstead.db?mode=ro", uri=True)) as database:
        return database.execute("SELECT count(*) FROM jobs WHERE phase <> 'done'").fetchone() == (0,)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_the_server_dies_at_every_commit(server: QuickServer, api: Api, scenario: Scenario, moment: str) -> None:
    died = 0
    known: set[str] = set()
    numbers = itertools.count(scenario.first) if scenario.last is None else range(scenario.first, scenario.last + 1)
    for number in numbers:
        assert number < 25, "there is no end of commits"
        prepared = scenario.prepare(api)
        server.plan.write_text(f"{moment} {number}")
        accepted = True
        try:
            scenario.act(api, prepared)
        except GONE:
            accepted = False

        def settled() -> bool:
            try:
                return not server.alive or all_over(api)
            except GONE:
                return False

        assert eventually(settled, 20)
        survived = disarmed(server, api)
        if not survived:
            died += 1
            server.start()
        assert eventually(lambda: set_over(api, scenario), 20), api.jobs()
        new = [job for job in api.jobs() if job["id"] not in known]
        assert len(new) == 1 if accepted or prepared else len(new) <= 1
        for job in new:
            scenario.check(api, job)
            assert_nothing_is_left(server, f"{moment} commit {number}", {job["id"]})
        known.update(job["id"] for job in new)
        if survived:
            break
    assert died >= 3


def disarmed(server: QuickServer, api: Api) -> bool:
    """Take the plan away and say whether the server has outlived it."""
    server.plan.unlink()
    try:
        return api.get("/healthz").status == 200
    except GONE:
        assert server.worker is not None
        server.worker.join(10)
        return server.alive


def set_over(api: Api, scenario: Scenario) -> bool:
    """Say whether all is over; a cancellation that was never noted is asked for again."""
    if scenario.act is cancel:
        for job in api.jobs("?stage=RUNNING"):
            if job["status"]["message"] != "being canceled":
                api.cancel(job["id"])
    return all_over(api)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_server_dies_at_every_commit_of_its_recovery(server: QuickServer, api: Api, moment: str) -> None:
    job_id = api.shell("me=$(cat /proc/sys/kernel/random/uuid); echo begin $me; sleep 4; echo end $me", attempts=3)[
        "id"
    ]
    failing = api.shell("echo tried; sleep 0.5; exit 7", attempts=2)["id"]
    assert eventually(lambda: "tried" in log_of(api, failing))
    assert eventually(lambda: "begin" in log_of(api, job_id))
    server.kill()
    died = 0
    for number in itertools.count(1):
        server.plan.write_text(f"{moment} {number}")
        if server.begin():
            eventually(lambda: not server.alive, 0.5)
        if server.alive:
            break
        died += 1
    server.plan.unlink()
    assert died >= 1
    assert eventually(lambda: all_over(api), 20)
    job = api.job(job_id)
    assert job["status"]["stage"] == "COMPLETED"
    lines = api.lines(job_id)
    assert starts(lines) == 1
    begin, end = output(lines)
    assert end == begin.replace("begin", "end")
    check_retried(api, api.job(failing))


# Dying at any time


def test_the_server_is_killed_again_and_again_under_load(server: QuickServer, api: Api) -> None:
    chance = random.Random(20261121)
    script = "me=$(cat /proc/sys/kernel/random/uuid); echo begin $me; sleep 0.$PAUSE; echo end $me; exit $CODE"
    wanted = [
        {"PAUSE": str(chance.randrange(10, 70)), "CODE": str(chance.choice([0, 0, 0, 3])), "N": str(n)}
        for n in range(30)
    ]
    ids: dict[str, str] = {}

    def submit(part: list[dict[str, str]]) -> None:
        for environment in part:
            body = {"command": ["sh", "-c", script], "dockerImage": "a", "environment": environment}
            key = {"Idempotency-Key": f"load-{environment['N']}"}
            while environment["N"] not in ids:
                try:
                    answer = api.post(f"/api/jobs/{server.owner}", body, headers=key)
                    assert answer.status == 200, answer
                    ids[environment["N"]] = answer.json["id"]
                except GONE:
                    time.sleep(0.02)  # until it listens again

    threads = [threading.Thread(target=submit, args=(wanted[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    kills = 0
    while kills < 6:
        time.sleep(chance.uniform(0.05, 0.6))
        server.kill()
        kills += 1
        server.start()
    for thread in threads:
        thread.join(30)
    assert eventually(lambda: all_over(api), 30)
    jobs = {job["id"]: job for job in api.jobs()}
    assert len(jobs) == 30
    assert jobs.keys() == set(ids.values())
    for environment in wanted:
        job = jobs[ids[environment["N"]]]
        assert job["environment"] == environment
        code = int(environment["CODE"])
        assert job["status"]["stage"] == ("ERROR" if code else "COMPLETED")
        assert job["status"]["exitCode"] == code
        lines = api.lines(job["id"])
        assert starts(lines) == 1
        begin, end = output(lines)
        assert end == begin.replace("begin", "end")
    assert_nothing_is_left(server, "after the load")


# Supervisors


def supervisor_of(server: QuickServer, job_id: str, attempt: int) -> int:
    facts = server.data_dir / "node" / "attempts" / f"{job_id}-{attempt}" / "attempt.json"
    assert eventually(facts.exists)
    return int(json.loads(facts.read_text())["supervisor"])


def test_a_job_whose_supervisor_dies_fails_for_reasons_of_ours(server: QuickServer, api: Api) -> None:
    job_id = api.shell("echo up; sleep 98761")["id"]
    assert eventually(lambda: "up" in log_of(api, job_id))
    os.kill(supervisor_of(server, job_id, 1), signal.SIGKILL)
    job = api.ended(job_id, 5)
    assert job["status"]["stage"] == "ERROR"
    assert job["status"]["failureClass"] == "infra"
    assert job["status"]["message"].startswith("infra: ")
    assert output(api.lines(job_id))[0] == "up"
    assert eventually(lambda: not processes_with("98761"), 5)
    assert_nothing_is_left(server, "after the end")


def test_a_job_whose_supervisor_dies_is_tried_again(server: QuickServer, api: Api) -> None:
    job_id = api.shell("echo up; sleep 98762", attempts=2)["id"]
    assert eventually(lambda: "up" in log_of(api, job_id))
    assert leftovers(server, {job_id})  # or else the other tests would see nothing
    first = processes_with("98762")
    os.kill(supervisor_of(server, job_id, 1), signal.SIGKILL)
    assert eventually(lambda: api.job(job_id)["attempt"] == 2 and api.stage(job_id) == "RUNNING")
    assert eventually(lambda: not set(first) & set(processes_with("98762")))
    second = server.data_dir / "logs" / job_id[-2:] / job_id / "2.log"
    assert eventually(lambda: second.exists() and "up" in second.read_text())
    assert api.job(job_id)["status"]["failureCount"] == 1
    api.cancel(job_id)
    assert api.ended(job_id)["status"]["stage"] == "CANCELED"
    assert starts(api.lines(job_id)) == 2
    assert eventually(lambda: not processes_with("98762"), 5)


def test_a_supervisor_that_dies_while_the_server_is_away_is_noticed(server: QuickServer, api: Api) -> None:
    job_id = api.shell("echo up; sleep 98763")["id"]
    assert eventually(lambda: "up" in log_of(api, job_id))
    supervisor = supervisor_of(server, job_id, 1)
    server.kill()
    os.kill(supervisor, signal.SIGKILL)
    server.start()
    assert api.ended(job_id, 5)["status"]["failureClass"] == "infra"
    assert_nothing_is_left(server, "after the end")


def test_a_server_that_stops_as_soon_as_it_is_up_ends_the_jobs_of_the_last(server: QuickServer, api: Api) -> None:
    job_id = api.shell("echo up; sleep 98765")["id"]
    assert eventually(lambda: "up" in log_of(api, job_id))
    server.kill()
    server.start()
    server.stop()
    assert not processes_with("98765")
    server.start()
    assert api.stage(job_id) == "CANCELED"


def test_what_a_job_left_running_is_gone_soon_after_its_end(server: QuickServer, api: Api) -> None:
    script = (
        "setsid sleep 98764 & (setsid setsid sleep 98764 &) ; trap '' TERM HUP; nohup sleep 98764 >/dev/null 2>&1 & "
        "sleep 0.2; echo over"
    )
    job = api.ended(api.shell(script)["id"])
    assert job["status"]["stage"] == "COMPLETED"
    assert eventually(lambda: not processes_with("98764"), 5)
    assert_nothing_is_left(server, "after the end")


# Being asked to stop


def lets_jobs_go_on(server: QuickServer) -> None:
    """Start the server anew as everybody does: without what the tests use to clean up."""
    server.terminate()
    server.flags = ()
    server.start()


def test_a_server_that_is_asked_to_stop_answers_what_it_holds_and_lets_jobs_go_on(
    server: QuickServer, api: Api
) -> None:
    lets_jobs_go_on(server)
    job_id = api.shell(STEADY, secrets={"SECRET": "secret"})["id"]
    assert eventually(lambda: "begin" in log_of(api, job_id))
    body = json.dumps({"command": ["echo", "late"], "dockerImage": "a"}).encode()
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as half:
        head = f"POST /api/jobs/{server.owner} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        half.sendall(head.encode() + body[:10])
        assert api.get("/healthz").status == 200  # so that the head of the other one has been read by now
        assert server.worker is not None
        server.worker.terminate()

        def refused() -> bool:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection((parts.hostname, parts.port)):
                return False
            return True

        assert eventually(refused, 5)
        half.sendall(body[10:])
        answer = http.client.HTTPResponse(half)
        answer.begin()
        assert answer.status == 200
        late = json.loads(answer.read())["id"]
    server.worker.join(20)
    assert server.worker.exitcode == 0
    server.start()
    check_steady(api, api.ended(job_id))
    job = api.ended(late)
    assert job["status"]["stage"] == "COMPLETED"
    assert output(api.lines(late)) == ["late"]


def test_followers_do_not_hold_up_a_stop(server: QuickServer, api: Api) -> None:
    lets_jobs_go_on(server)
    job_id = api.shell("echo up; sleep 1000")["id"]
    with api.stream(f"/api/jobs/{server.owner}/{job_id}/logs") as events:
        assert any(event["data"] == "up" for event in events)
        began = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - began < 5
        assert list(events) == []
    server.start()
    assert api.stage(job_id) == "RUNNING"
    api.cancel(job_id)
