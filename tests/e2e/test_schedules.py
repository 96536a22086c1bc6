"""Schedules through the real clients: every verb of `hf jobs scheduled`, and what runs of it look like."""

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from calls import Api
from clients import VERSIONS, Client, Server, eventually, make_client
from faults import run_quickly

SCHEDULE_ID = re.compile(r"[0-9a-f]{24}")
NOT_SOON = "0 0 29 2 *"
EACH_SECOND = "* * * * * *"
WITH_TRIGGER = ("2.4.0", "1.28.0")


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


@pytest.fixture(autouse=True)
def none_left(server: Server) -> Iterator[None]:
    """Schedules of one test must not run in the next."""
    yield
    api = Api(server)
    for schedule in api.call("GET", f"/api/scheduled-jobs/{server.owner}").json:
        assert api.call("DELETE", path(server, schedule["id"])).status == 200


def path(server: Server, schedule_id: str, rest: str = "") -> str:
    return f"/api/scheduled-jobs/{server.owner}/{schedule_id}{rest}"


def create(api: Api, schedule: str = NOT_SOON, *command: str, **fields: Any) -> dict[str, Any]:
    spec = {"command": list(command) or ["true"], "dockerImage": "ubuntu", "flavor": "cpu-basic", "environment": {}}
    spec |= fields.pop("spec", {})
    answer = api.call(
        "POST", f"/api/scheduled-jobs/{api.server.owner}", {"jobSpec": spec, "schedule": schedule, **fields}
    )
    assert answer.status == 200, answer
    return answer.json


def inspect(api: Api, schedule_id: str) -> dict[str, Any]:
    answer = api.call("GET", path(api.server, schedule_id))
    assert answer.status == 200, answer
    return answer.json


def runs(api: Api, schedule_id: str) -> list[dict[str, Any]]:
    jobs = api.call("GET", f"/api/jobs/{api.server.owner}").json
    return [job for job in jobs if job["initiator"] == {"type": "scheduled-job", "id": schedule_id}]


def history(api: Api, schedule_id: str) -> list[dict[str, Any]]:
    return api.call("GET", path(api.server, schedule_id, "/history")).json


def made(done: "subprocess.CompletedProcess[str]") -> str:
    found = SCHEDULE_ID.search(done.stdout)
    assert found, done
    return found.group()


def shown(client: Client, *words: str) -> Any:
    flags = [] if client.version == "1.9.0" else ["--format", "json"]
    found = json.loads(client.hf("jobs", "scheduled", *words, *flags).stdout)
    return found[0] if isinstance(found, list) and words[0] == "inspect" else found


def test_every_verb_of_the_command_line(client: Client, api: Api) -> None:
    command = ["python", "-c", "print('hello')"]
    words = ["--label", "team=a", "--env", "A=1", "--secrets", "S=hidden", "--timeout", "5m"]
    schedule_id = made(client.hf("jobs", "scheduled", "run", *words, NOT_SOON, "python:3.12", *command))
    found = shown(client, "inspect", schedule_id)
    assert found["schedule"] == NOT_SOON
    spec = found["job_spec"] if "job_spec" in found else found["jobSpec"]
    assert spec["command"] == command
    assert spec["labels"]["team"] == "a"
    assert spec["secrets"] == ["S"]
    assert spec["timeout"] == 300
    assert "hidden" not in json.dumps(api.call("GET", path(api.server, schedule_id)).json)
    [row] = [line for line in client.hf("jobs", "scheduled", "ps").stdout.splitlines() if schedule_id[:8] in line]
    assert "2028-02-29 00:00:00" in row
    client.hf("jobs", "scheduled", "suspend", schedule_id)
    assert inspect(api, schedule_id)["suspend"] is True
    assert inspect(api, schedule_id)["status"]["nextJobRunAt"] is None
    assert schedule_id[:8] not in client.hf("jobs", "scheduled", "ps").stdout
    assert schedule_id[:8] in client.hf("jobs", "scheduled", "ps", "-a").stdout
    client.hf("jobs", "scheduled", "resume", schedule_id)
    assert inspect(api, schedule_id)["status"]["nextJobRunAt"] == "2028-02-29T00:00:00.000Z"
    if client.version == "2.4.0":
        client.hf("jobs", "scheduled", "reschedule", schedule_id, "0 0 1 1 *")
        assert inspect(api, schedule_id)["status"]["nextJobRunAt"] == "2027-01-01T00:00:00.000Z"
        client.hf("jobs", "scheduled", "labels", schedule_id, "--name", "nightly")
        assert inspect(api, schedule_id)["jobSpec"]["labels"] == {"team": "a", "name": "nightly"}
    client.hf("jobs", "scheduled", "delete", schedule_id)
    assert api.call("GET", path(api.server, schedule_id)).status == 404
    refused = client.hf("jobs", "scheduled", "inspect", schedule_id, check=False)
    assert refused.returncode != 0
    assert schedule_id in refused.stdout + refused.stderr


@pytest.mark.parametrize("version", WITH_TRIGGER)
def test_a_manual_run_changes_nothing_else(version: str, server: Server, tmp_path: Path, api: Api) -> None:
    client = make_client(version, server, tmp_path)
    schedule = create(api, NOT_SOON, "sh", "-c", "echo by hand; sleep 60", suspend=True)
    client.hf("jobs", "scheduled", "trigger", schedule["id"])
    [run] = runs(api, schedule["id"])
    after = inspect(api, schedule["id"])
    assert after["suspend"] is True
    assert after["schedule"] == schedule["schedule"]
    assert after["status"]["nextJobRunAt"] == schedule["status"]["nextJobRunAt"]
    assert after["status"]["lastJob"]["id"] == run["id"]
    again = client.hf("jobs", "scheduled", "trigger", schedule["id"], check=False)
    assert again.returncode == 1
    assert "409" in again.stderr
    assert f"hf jobs cancel {run['id']}" in again.stderr
    api.call("POST", f"/api/jobs/{server.owner}/{run['id']}/cancel")
    eventually(lambda: runs(api, schedule["id"])[0]["status"]["stage"] == "CANCELED")
    client.hf("jobs", "scheduled", "trigger", schedule["id"])
    assert len(runs(api, schedule["id"])) == 2
    api.call("POST", f"/api/jobs/{server.owner}/{runs(api, schedule['id'])[0]['id']}/cancel")


def test_due_runs_begin_on_time_and_carry_all_of_the_job(newest: Client, api: Api) -> None:
    words = ["--env", "A=plain", "--secrets", "S=hidden", "--label", "team=a"]
    script = "echo $A $S"
    schedule_id = made(newest.hf("jobs", "scheduled", "run", *words, "*/2 * * * * *", "ubuntu", "sh", "-c", script))
    assert eventually(lambda: len(runs(api, schedule_id)) >= 3, 15)
    api.call("POST", path(api.server, schedule_id, "/suspend"))
    found = runs(api, schedule_id)
    due = [datetime.fromisoformat(one["dueAt"]) for one in history(api, schedule_id) if one["kind"] == "run"]
    assert len(due) == len(set(due)) == len(found)
    assert all(at.second % 2 == 0 and not at.microsecond for at in due)
    for job, at in zip(found, due, strict=True):
        assert timedelta(0) <= datetime.fromisoformat(job["createdAt"]) - at < timedelta(seconds=3), job
        assert job["labels"]["team"] == "a"
        eventually(lambda job_id=job["id"]: ended(api, job_id))
        assert "plain hidden" in newest.hf("jobs", "logs", job["id"]).stdout


def ended(api: Api, job_id: str) -> bool:
    return api.call("GET", f"/api/jobs/{api.server.owner}/{job_id}").json["status"]["stage"] == "COMPLETED"


def test_without_concurrency_a_due_run_waits_for_the_next_instant(api: Api) -> None:
    schedule = create(api, EACH_SECOND, "sleep", "60")
    assert eventually(
        lambda: any(one["kind"] == "skipped" and one["count"] > 1 for one in history(api, schedule["id"]))
    )
    [run] = runs(api, schedule["id"])
    skipped = history(api, schedule["id"])[0]
    assert skipped["jobId"] == run["id"]
    assert skipped["message"] == "another run was active, and the schedule allows one at a time"
    api.call("POST", path(api.server, schedule["id"], "/suspend"))
    api.call("POST", f"/api/jobs/{api.server.owner}/{run['id']}/cancel")


def test_with_concurrency_runs_overlap(newest: Client, api: Api) -> None:
    schedule_id = made(newest.hf("jobs", "scheduled", "run", "--concurrency", EACH_SECOND, "ubuntu", "sleep", "60"))
    assert inspect(api, schedule_id)["concurrency"] is True
    assert eventually(lambda: len(runs(api, schedule_id)) >= 2)
    api.call("POST", path(api.server, schedule_id, "/suspend"))
    for run in runs(api, schedule_id):
        api.call("POST", f"/api/jobs/{api.server.owner}/{run['id']}/cancel")


@pytest.mark.parametrize("version", WITH_TRIGGER)
def test_a_local_script_runs_each_time(version: str, server: Server, tmp_path: Path, api: Api) -> None:
    client = make_client(version, server, tmp_path)
    script = tmp_path / "report.py"
    script.write_text("import sys; print('report for', sys.argv[1])")
    schedule_id = made(client.hf("jobs", "scheduled", "uv", "run", NOT_SOON, str(script), "today"))
    [volume] = inspect(api, schedule_id)["jobSpec"]["volumes"]
    assert volume["mountPath"] == "/data"
    for _ in range(2):
        job = api.call("POST", path(server, schedule_id, "/run")).json
        over = eventually(lambda job_id=job["id"]: ended(api, job_id), 60)
        assert over, (api.job(job["id"]), api.lines(job["id"]))
        assert "report for today" in client.hf("jobs", "logs", job["id"]).stdout


def test_the_python_api_reads_what_it_needs(client: Client) -> None:
    found = client.python(
        "from huggingface_hub import HfApi, create_scheduled_job, inspect_scheduled_job\n"
        "made = create_scheduled_job(image='ubuntu', command=['true'], schedule='@hourly', suspend=True,"
        " labels={'k': 'v'})\n"
        "seen = inspect_scheduled_job(scheduled_job_id=made.id)\n"
        "out({'same': made == seen, 'listed': [one.id for one in HfApi().list_scheduled_jobs()], 'id': made.id,"
        " 'created': seen.created_at, 'spec': seen.job_spec.labels, 'owner': seen.owner.type,"
        " 'status': seen.status.next_job_run_at})"
    )
    assert found["same"]
    assert found["listed"] == [found["id"]]
    assert found["spec"]["k"] == "v"
    assert (found["owner"], found["status"]) == ("user", None)


def test_labels_filter_the_list(api: Api) -> None:
    one = create(api, spec={"labels": {"a": "1", "b": "2"}})
    create(api, spec={"labels": {"a": "1"}})
    listing = f"/api/scheduled-jobs/{api.server.owner}"
    assert len(api.call("GET", f"{listing}?label=a%3D1").json) == 2
    assert [found["id"] for found in api.call("GET", f"{listing}?label=a%3D1&label=b%3D2").json] == [one["id"]]
    assert api.call("GET", f"{listing}?label=nonsense").status == 400


def test_aliases_and_seven_fields(api: Api) -> None:
    now = datetime.now(UTC)
    daily = create(api, "@daily")["status"]["nextJobRunAt"]
    assert datetime.fromisoformat(daily) == (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    assert create(api, "0 30 12 1 1 * 2035")["status"]["nextJobRunAt"] == "2035-01-01T12:30:00.000Z"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"schedule": "0 9 * * MON"}, "numbers instead of names"),
        ({"schedule": "0 0 0 1 1 * 2020"}, "this time is over"),
        ({"schedule": 5}, "schedule"),
        ({"schedule": None}, "schedule"),
        ({"jobSpec": None}, "jobSpec"),
        ({"jobSpec": {"command": [], "dockerImage": "x"}}, "command"),
        ({"jobSpec": {"command": ["x"], "dockerImage": "x", "flavor": "nope"}}, "flavor"),
        ({"jobSpec": {"command": ["x"], "dockerImage": "x", "ssh": {"enabled": True}}}, "ssh"),
        ({"jobSpec": {"command": ["x"], "dockerImage": "x", "network": {"group": "g"}}}, "network"),
        ({"concurrency": "perhaps"}, "concurrency"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(api: Api, body: dict[str, Any], reason: str) -> None:
    good = {"schedule": "@daily", "jobSpec": {"command": ["x"], "dockerImage": "x"}}
    answer = api.call("POST", f"/api/scheduled-jobs/{api.server.owner}", good | body)
    assert answer.status == 400, answer
    assert reason in answer.error


@pytest.mark.parametrize(
    ("method", "rest"),
    [("GET", ""), ("DELETE", ""), ("POST", "/suspend"), ("POST", "/resume"), ("POST", "/run"), ("GET", "/history")],
)
def test_an_unknown_schedule_is_a_404(api: Api, method: str, rest: str) -> None:
    for unknown in ("f" * 24, "nonsense"):
        answer = api.call(method, path(api.server, unknown, rest))
        assert answer.status == 404
        assert unknown in answer.error


def test_strangers_and_readers_may_not(server: Server, api: Api, tmp_path: Path) -> None:
    schedule = create(api)
    run_quickly(server, "user", "add", "mallory")
    value = re.search(r"hf_\w+", run_quickly(server, "token", "add", "mallory").stdout)
    assert value is not None
    theirs = Api(server, value.group())
    for method, rest in [("GET", ""), ("DELETE", ""), ("POST", "/run"), ("POST", "/suspend")]:
        assert theirs.call(method, path(server, schedule["id"], rest)).status == 403
    reading = re.search(r"hf_\w+", run_quickly(server, "token", "add", server.owner, "--role", "read").stdout)
    assert reading is not None
    reader = Api(server, reading.group())
    assert reader.call("GET", path(server, schedule["id"])).status == 200
    for method, rest in [("DELETE", ""), ("POST", "/run"), ("POST", "/suspend"), ("POST", "/resume")]:
        assert reader.call(method, path(server, schedule["id"], rest)).status == 403
    assert inspect(api, schedule["id"])["suspend"] is False


def test_a_schedule_whose_bucket_is_gone_suspends_itself(api: Api) -> None:
    owner = api.server.owner
    assert api.call("POST", f"/api/buckets/{owner}/fleeting", {}).status == 200
    volume = {"type": "bucket", "source": f"{owner}/fleeting", "mountPath": "/data"}
    schedule = create(api, "*/2 * * * * *", "true", spec={"volumes": [volume]})
    assert api.call("DELETE", f"/api/buckets/{owner}/fleeting").status == 200
    suspended = eventually(lambda: (found := inspect(api, schedule["id"]))["suspend"] and found)
    assert "fleeting" in suspended["suspendReason"]
    refused = api.call("POST", path(api.server, schedule["id"], "/resume"))
    assert refused.status == 404
    assert "fleeting" in refused.error
    assert api.call("POST", f"/api/buckets/{owner}/fleeting", {}).status == 200
    assert api.call("POST", path(api.server, schedule["id"], "/resume")).status == 200
    assert "suspendReason" not in inspect(api, schedule["id"])


def test_a_schedule_of_somebody_who_left_goes_on_with_who_resumes_it(server: Server, api: Api) -> None:
    run_quickly(server, "org", "add", "lab")
    people: dict[str, Api] = {}
    for name in ("leaver", "stayer"):
        run_quickly(server, "user", "add", name)
        run_quickly(server, "org", "add-member", "lab", name)
        token = re.search(r"hf_\w+", run_quickly(server, "token", "add", name).stdout)
        assert token is not None
        people[name] = Api(server, token.group())
    body = {"jobSpec": {"command": ["true"], "dockerImage": "ubuntu"}, "schedule": "*/2 * * * * *"}
    schedule = people["leaver"].post("/api/scheduled-jobs/lab", body).json
    place = f"/api/scheduled-jobs/lab/{schedule['id']}"
    run_quickly(server, "org", "remove-member", "lab", "leaver")
    stayer = people["stayer"]
    assert eventually(lambda: stayer.get(place).json["suspend"])
    assert stayer.get(place).json["suspendReason"] == "leaver may not start jobs in 'lab' any more"
    before = stayer.get(place).json["runs"]
    assert stayer.post(f"{place}/resume").json["createdBy"]["name"] == "stayer"
    assert eventually(lambda: stayer.get(place).json["runs"] > before)
    assert stayer.get("/api/jobs/lab").json[0]["createdBy"]["name"] == "stayer"
    assert people["leaver"].get(place).status == 403
    assert stayer.call("DELETE", place).status == 200


def test_older_clients_are_served(server: Server, tmp_path: Path) -> None:
    assert VERSIONS[-1] == "1.9.0"
    client = make_client("1.9.0", server, tmp_path)
    schedule_id = made(client.hf("jobs", "scheduled", "run", "@hourly", "ubuntu", "true"))
    assert schedule_id[:8] in client.hf("jobs", "scheduled", "ps").stdout
