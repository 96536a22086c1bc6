"""Schedules while servers die at every commit: no due instant without its run, none with two, and use told once."""

import http.client
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from calls import Api
from clients import eventually
from faults import QuickServer, run_quickly

EVERY = timedelta(seconds=2)
# A run is one commit to begin and some to start, to run, to end and to tidy up: this passes all of them.
COMMITS = 8
GONE = (ConnectionError, http.client.HTTPException, TimeoutError)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QuickServer]:
    config = tmp_path / "runstead.toml"
    config.write_text("[prices]\ncpu-basic = 0.6\n")
    started = QuickServer(
        tmp_path / "data", ("--config", str(config), "--executor", "process", "--stop-jobs-at-exit")
    ).start()
    yield started
    started.stop()


@pytest.fixture
def api(server: QuickServer) -> Api:
    return Api(server)


def create(api: Api, schedule: str, **fields: Any) -> dict[str, Any]:
    spec = {"command": ["true"], "dockerImage": "ubuntu", "flavor": "cpu-basic"}
    answer = api.call(
        "POST", f"/api/scheduled-jobs/{api.server.owner}", {"jobSpec": spec, "schedule": schedule, **fields}
    )
    assert answer.status == 200, answer
    return answer.json


@pytest.mark.timeout(300)
def test_a_server_that_dies_at_every_commit_begins_each_run_once(server: QuickServer, api: Api) -> None:
    schedule = create(api, f"*/{EVERY.seconds} * * * * *", concurrency=True)
    place = f"/api/scheduled-jobs/{server.owner}/{schedule['id']}"
    for number in range(1, COMMITS + 1):
        for moment in ("before", "after"):
            server.plan.write_text(f"{moment} {number}")
            assert eventually(lambda: not server.alive, 20), f"nothing was committed {moment} {number}"
            server.plan.unlink()
            server.start()
    final = api.call("POST", f"{place}/suspend")
    assert final.status == 200
    jobs = [job for job in listed(api) if job["initiator"]["id"] == schedule["id"]]
    began = [one for one in api.call("GET", f"{place}/history").json if one["kind"] == "run"][::-1]
    assert [one["jobId"] for one in began] == [job["id"] for job in jobs[::-1]]
    due = [datetime.fromisoformat(one["dueAt"]) for one in began]
    assert due == [due[0] + n * EVERY for n in range(len(due))], due
    assert final.json["runs"] == len(jobs)
    assert datetime.fromisoformat(schedule["status"]["nextJobRunAt"]) == due[0]
    check_use(server, api, schedule["id"])


def listed(api: Api) -> list[dict[str, Any]]:
    answer = api.call("GET", f"/api/jobs/{api.server.owner}")
    assert "link" not in answer.headers
    return answer.json


def check_use(server: QuickServer, api: Api, schedule_id: str) -> None:
    """Every attempt is in the ledger once, the sums agree, and nothing stays reserved."""
    assert eventually(lambda: all(job["status"]["stage"] == "COMPLETED" for job in listed(api)), 30), [
        job["status"] for job in listed(api)
    ]
    told = json.loads(run_quickly(server, "usage", "--by", "job", "--json").stdout)
    costs = {job["id"]: job["cost"]["USD"] for job in listed(api)}
    assert {row["job"]: row["cost"] for row in told} == costs
    assert {row["attempts"] for row in told} == {1}
    assert all(cost > 0 for cost in costs.values())
    schedule = api.call("GET", f"/api/scheduled-jobs/{server.owner}/{schedule_id}").json
    assert schedule["cost"]["microUSD"] == sum(job["cost"]["microUSD"] for job in listed(api))
    run_quickly(server, "budget", "set", server.owner, "1000")
    [budget] = json.loads(run_quickly(server, "budget", "list", "--json").stdout)
    assert budget["reserved"] == 0
    assert budget["spent"] == schedule["cost"]["USD"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_schedule_that_was_answered_is_there(server: QuickServer, api: Api, moment: str) -> None:
    first = create(api, "0 0 29 2 *")
    server.plan.write_text(f"{moment} 1")
    with pytest.raises(GONE):
        create(api, "0 0 29 2 *")
    assert eventually(lambda: not server.alive)
    server.plan.unlink()
    server.start()
    found = api.call("GET", f"/api/scheduled-jobs/{server.owner}").json
    assert [one["id"] for one in found][-1] == first["id"]
    assert len(found) == (1 if moment == "before" else 2)
    for one in found:
        events = api.call("GET", f"/api/scheduled-jobs/{server.owner}/{one['id']}/history").json
        assert [event["kind"] for event in events] == ["created"]
        assert one["status"]["nextJobRunAt"] == "2028-02-29T00:00:00.000Z"
