"""The Python API of every supported client, and what the server's answers promise beyond it."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calls import Api
from clients import VERSIONS, Client, Server, eventually, make_client
from faults import run_quickly

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
STAGE = "getattr(j.status.stage, 'value', j.status.stage)"


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


def test_the_life_of_a_job_in_the_python_api(client: Client) -> None:
    code = """
from huggingface_hub import HfApi
from collections.abc import Iterable
api = HfApi()
ran = api.run_job(image="python:3.12", command=["sh", "-c", "echo $GREETING; echo $SECRET | rev"],
                  env={"GREETING": "hello"}, secrets={"SECRET": "abc"}, labels={"suite": "api"}, timeout="5m")
followed = list(api.fetch_job_logs(job_id=ran.id, follow=True))
seen = api.inspect_job(job_id=ran.id)
listed = [job.id for job in api.list_jobs()]
out({"id": ran.id, "stage": getattr(seen.status.stage, "value", seen.status.stage), "lines": followed,
     "again": list(api.fetch_job_logs(job_id=ran.id)), "listed": ran.id in listed, "url": ran.url,
     "owner": seen.owner.name, "kind": seen.owner.type, "image": seen.docker_image, "command": seen.command,
     "environment": seen.environment, "labels": seen.labels, "created": seen.created_at.isoformat(),
     "secrets": seen.secrets, "flavor": getattr(seen.flavor, "value", seen.flavor)})
"""
    found = client.python(code)
    assert found["stage"] == "COMPLETED"
    assert found["lines"][-2:] == ["hello", "cba"]
    assert found["again"] == found["lines"]
    assert found["listed"]
    assert found["url"] == f"{client.server.url}/jobs/{client.server.owner}/{found['id']}"
    assert (found["owner"], found["kind"]) == (client.server.owner, "user")
    assert found["image"] == "python:3.12"
    assert found["command"] == ["sh", "-c", "echo $GREETING; echo $SECRET | rev"]
    assert found["environment"] == {"GREETING": "hello"}
    assert found["labels"]["suite"] == "api"
    assert list(found["secrets"]) == ["SECRET"]
    assert found["flavor"] == "cpu-basic"
    assert found["created"].endswith("+00:00")


def test_cancel_metrics_and_hardware_in_the_python_api(client: Client) -> None:
    code = f"""
from huggingface_hub import HfApi
api = HfApi()
ran = api.run_job(image="ubuntu", command=["sleep", "1000"])
sample = next(iter(api.fetch_job_metrics(job_id=ran.id)))
api.cancel_job(job_id=ran.id)
j = api.inspect_job(job_id=ran.id)
out({{"sample": sample, "stage": {STAGE}, "hardware": [h.name for h in api.list_jobs_hardware()]}})
"""
    found = client.python(code)
    assert found["stage"] == "CANCELED"
    assert found["sample"]["memory_total_bytes"] > 0
    assert "cpu-basic" in found["hardware"]


def test_run_uv_job_in_the_python_api(client: Client) -> None:
    code = f"""
from huggingface_hub import HfApi
api = HfApi()
ran = api.run_uv_job("python", script_args=["-c", "import six; print('six', six.PY3)"], dependencies=["six"])
lines = list(api.fetch_job_logs(job_id=ran.id, follow=True))
j = api.inspect_job(job_id=ran.id)
out([{STAGE}, lines])
"""
    stage, lines = client.python(code)
    assert stage == "COMPLETED", lines
    assert lines[-1] == "six True"


def test_more_jobs_than_a_page_are_listed_with_filters(server: Server, api: Api, tmp_path: Path) -> None:
    # What waits forever behind a job that holds the machine costs nothing: only the rows matter here.
    threads = [
        threading.Thread(
            target=lambda n=n: [api.submit("true", labels={"many": "yes", "n": f"{n}-{i}"}) for i in range(30)]
        )
        for n in range(7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for version in VERSIONS[:2]:
        code = """
from huggingface_hub import HfApi
api = HfApi()
many = [job.id for job in api.list_jobs(labels={"many": "yes"})]
one = [job.labels["n"] for job in api.list_jobs(labels={"many": "yes", "n": "3-7"})]
none = list(api.list_jobs(labels={"many": "no"}))
stages = {getattr(j.status.stage, "value", j.status.stage)
          for j in api.list_jobs(status=["COMPLETED", "error"], labels={"many": "yes"})}
created = [job.created_at.isoformat() for job in api.list_jobs(labels={"many": "yes"})]
out([len(many), len(set(many)), one, none, sorted(stages), created == sorted(created, reverse=True)])
"""
        client = make_client(version, server, tmp_path)
        many, different, one, none, stages, newest_first = client.python(code)
        assert many == different == 210
        assert one == ["3-7"]
        assert none == []
        assert set(stages) <= {"COMPLETED"}
        assert newest_first
    old = make_client(VERSIONS[2], server, tmp_path)
    assert old.python("from huggingface_hub import HfApi; out(len(HfApi().list_jobs()))") == 100
    assert eventually(lambda: not api.jobs("?label=many=yes&stage=SCHEDULING&stage=RUNNING"), 60)


def test_labels_rerun_and_wait_in_the_python_api(newest: Client) -> None:
    code = """
from huggingface_hub import HfApi
api = HfApi()
first = api.run_job(image="ubuntu", command=["sh", "-c", "echo $S | rev"], secrets={"S": "abc"}, env={"E": "1"},
                    labels={"a": "1", "flag": ""}, attempts=2, timeout=77, name="mine")
api.wait_for_job(first.id, poll_interval=0.1)
again = api.rerun_job(job_id=first.id)
done = api.wait_for_job([first.id, again.id], poll_interval=0.1)
changed = api.update_job_labels(job_id=again.id, labels={"b": "2"})
cleared = api.update_job_labels(job_id=first.id, labels={})
out({"again": [again.id != first.id, again.initiator.type, again.initiator.id == first.id, again.labels, again.retry],
     "stages": [getattr(j.status.stage, "value", j.status.stage) for j in done],
     "lines": list(api.fetch_job_logs(job_id=again.id, tail=1)), "changed": changed.labels, "cleared": cleared.labels})
"""
    found = newest.python(code)
    assert found["again"] == [True, "duplicated-job", True, {"a": "1", "flag": "", "name": "mine"}, 1]
    assert found["stages"] == ["COMPLETED", "COMPLETED"]
    assert found["lines"] == ["cba"]
    assert found["changed"] == {"b": "2"}
    assert found["cleared"] == {}


def test_wait_for_job_ends_with_its_own_timeout(newest: Client) -> None:
    code = """
import time
from huggingface_hub import HfApi
api = HfApi()
ran = api.run_job(image="ubuntu", command=["sleep", "1000"])
began = time.monotonic()
try:
    api.wait_for_job(ran.id, timeout=0.5, poll_interval=0.1)
except Exception as error:
    out([type(error).__name__, time.monotonic() - began])
api.cancel_job(job_id=ran.id)
"""
    kind, took = newest.python(code)
    assert "Timeout" in kind
    assert took < 5


def test_what_a_job_object_says(api: Api) -> None:
    body: dict[str, Any] = {
        "environment": {"INT": 7, "FLOAT": 1.5, "YES": True, "NO": False, "NONE": None, "TEXT": "ü\n\u2028"},
        "secrets": {"B": "2", "A": 1, "C": None},
        "resourceGroupId": "0123456789abcdef01234567",
        "arguments": ["one", ""],
        "attempts": 3,
        "labels": {"flag": ""},
    }
    job = api.shell("env; echo args $0 $1", **body)
    lines = api.lines(job["id"])
    job = api.job(job["id"])
    assert {"INT=7", "FLOAT=1.5", "YES=true", "NO=false", "NONE=", "A=1", "B=2", "C="} <= set(lines)
    assert "args one" in lines[-1]
    assert job["environment"] == {
        "INT": "7",
        "FLOAT": "1.5",
        "YES": "true",
        "NO": "false",
        "NONE": "",
        "TEXT": "ü\n\u2028",
    }
    assert job["secrets"] == ["A", "B", "C"]
    assert job["resourceGroupId"] == body["resourceGroupId"]
    assert job["resourceGroup"]["id"] == body["resourceGroupId"]
    assert job["timeout"] == 1800
    assert job["retry"] == 2
    assert job["status"]["failureCount"] == 0
    assert job["arguments"] == ["one", ""]
    assert job["labels"] == {"flag": ""}
    assert job["type"] == "job"
    assert job["owner"]["type"] == "user"
    assert job["initiator"]["type"] == "user"
    assert "endpoint" not in job
    for name in ("createdAt", "startedAt", "finishedAt"):
        assert STAMP.fullmatch(job[name]), job[name]
    assert job["createdAt"] <= job["startedAt"] <= job["finishedAt"]
    assert job["durations"].keys() == {"schedulingSecs", "runningSecs", "totalSecs"}


def test_a_job_that_can_start_is_said_to_run_by_the_answer_that_creates_it(api: Api) -> None:
    stages = [api.shell("sleep 0.2")["status"]["stage"] for _ in range(5)]
    assert stages.count("RUNNING") >= 4  # a moment's wait is bounded, and this machine may be busy


def test_a_space_is_an_image_too(newest: Client) -> None:
    code = f"""
from huggingface_hub import HfApi
api = HfApi()
ran = api.run_job(image="https://huggingface.co/spaces/owner/some-space", command=["true"])
api.wait_for_job(ran.id, poll_interval=0.1)
j = api.inspect_job(job_id=ran.id)
out([ran.space_id, ran.docker_image, {STAGE}])
"""
    assert newest.python(code) == ["owner/some-space", None, "COMPLETED"]


def test_the_log_and_the_status_say_that_the_image_is_not_used(api: Api) -> None:
    job = api.shell("sleep 1000", dockerImage="ghcr.io/some/image:1")
    assert eventually(lambda: "image is not used" in (api.job(job["id"])["status"]["message"] or ""))
    api.cancel(job["id"])
    assert any("image is not used" in line for line in api.lines(job["id"]))


def test_the_same_idempotency_key_is_the_same_job(api: Api, server: Server) -> None:
    before = api.count()

    def submit(key: str, word: str) -> str:
        body = {"command": ["echo", word], "dockerImage": "a"}
        return api.post(f"/api/jobs/{server.owner}", body, headers={"Idempotency-Key": key}).json["id"]

    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(submit("key-1", "a"))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 10
    assert len(set(ids)) == 1
    assert submit("key-1", "b") == ids[0]
    assert submit("key-2", "a") != ids[0]
    assert submit("", "a") != submit("", "a")
    assert api.count() == before + 4


def test_links_carry_the_host_the_client_used(api: Api, server: Server) -> None:
    while api.count() < 102:
        api.submit("true")
    path = f"/api/jobs/{server.owner}"
    for host in (f"localhost:{server.port}", "jobs.example.org", "jobs.example.org:8443"):
        link = api.get(f"{path}?stage=completed&stage=RUNNING&stage=SCHEDULING", headers={"Host": host}).headers["link"]
        assert link.startswith(f"<http://{host}{path}?stage=completed&stage=RUNNING&stage=SCHEDULING&cursor=")
        assert link.endswith('>; rel="next"')
    first = api.get(path)
    following = first.headers["link"].partition(">")[0].removeprefix(f"<{server.url}")
    rest = api.get(following)
    assert {job["id"] for job in first.json}.isdisjoint({job["id"] for job in rest.json})
    assert len(first.json) == 100


def test_the_public_url_is_in_links(tmp_path: Path) -> None:
    port = free_port()
    settings = f"[server]\npublic_url = 'http://localhost:{port}/'\n[flavors.cpu-basic]\ncpu = 1\nmemory = '64MB'\n"
    (tmp_path / "runstead.toml").write_text(settings)
    flags = ("--config", str(tmp_path / "runstead.toml"), "--executor-memory", "64MB", "--stop-jobs-at-exit")
    started = Server(tmp_path / "data", flags, port=port)
    try:
        api = Api(started.start())
        assert started.url == f"http://localhost:{port}"
        api.shell("sleep 1000")  # all others wait: only their rows matter
        for _ in range(100):
            api.submit("true")
        link = api.get(f"/api/jobs/{started.owner}", headers={"Host": "inside:1"}).headers["link"]
        assert link.startswith(f"<http://localhost:{port}/api/jobs/{started.owner}?cursor=")
    finally:
        started.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def org(server: Server) -> str:
    run_quickly(server, "org", "add", "the-org")
    run_quickly(server, "org", "add-member", "the-org", server.owner, "--role", "admin")
    return "the-org"


def test_organizations_are_namespaces(client: Client, server: Server, org: str) -> None:
    done = client.hf("jobs", "run", "--namespace", org, "ubuntu", "echo", "for", "the", "org")
    assert "for the org" in done.stdout
    code = f"""
from huggingface_hub import HfApi
api = HfApi()
j = list(api.list_jobs(namespace={org!r}))[0]
lines = list(api.fetch_job_logs(job_id=j.id, namespace={org!r}))
out([api.whoami(), j.owner.name, j.owner.type, j.id, lines])
"""
    me, owner, kind, job_id, lines = client.python(code)
    assert me["name"] == server.owner
    assert me["type"] == "user"
    assert [(one["name"], one["roleInOrg"]) for one in me["orgs"]] == [(org, "admin")]
    assert me["auth"]["accessToken"]["role"] == "write"
    assert (owner, kind) == (org, "org")
    assert lines[-1] == "for the org"
    api = Api(server)
    assert job_id not in [job["id"] for job in api.jobs()]
    assert api.get(f"/api/jobs/{server.owner}/{job_id}").status == 404
    assert api.job(job_id, org)["owner"]["type"] == "org"


def test_the_endpoint_inside_a_job_is_this_server(newest: Client) -> None:
    code = "import os; from huggingface_hub import whoami, run_job, HfApi; print('I am', whoami()['name']); "
    code += "print('at', HfApi().endpoint); print('ran', run_job(image='a', command=['true']).id)"
    words = ["jobs", "uv", "run", "--with", "huggingface_hub", "--secrets", "HF_TOKEN", "python", "-c", code]
    done = newest.hf(*words, timeout=110)
    assert f"I am {newest.server.owner}" in done.stdout
    assert f":{newest.server.port}" in done.stdout
    ran = re.search(r"ran ([0-9a-f]{24})", done.stdout)
    assert ran
    assert Api(newest.server).ended(ran[1])["status"]["stage"] == "COMPLETED"


def test_the_built_in_variables(api: Api) -> None:
    job = api.shell("env")
    variables = dict(line.split("=", 1) for line in api.lines(job["id"]) if "=" in line)
    assert variables["JOB_ID"] == job["id"]
    assert variables["ACCELERATOR"] == "none"
    assert float(variables["CPU_CORES"]) > 0
    assert re.fullmatch(r"\d+(Gi|Mi)", variables["MEMORY"])
    assert variables["HF_ENDPOINT"].endswith(f":{api.server.port}")
    assert "HF_TOKEN" not in variables
    assert not [name for name in variables if name.startswith("RUNSTEAD")]
    own = api.shell("echo $HF_ENDPOINT $JOB_ID", environment={"HF_ENDPOINT": "http://other", "JOB_ID": "x"})
    assert api.lines(own["id"])[-1] == "http://other x"


def test_secrets_win_over_variables_of_the_same_name(api: Api) -> None:
    job = api.shell("echo $X", environment={"X": "plain"}, secrets={"X": "secret"})
    assert api.lines(job["id"])[-1] == "secret"


def test_the_history_tells_what_happened(api: Api, server: Server) -> None:
    job_id = api.shell("exit 9", attempts=2)["id"]
    job = api.ended(job_id)
    assert job["status"]["failureClass"] == "user"
    assert job["status"]["exitCode"] == 9
    assert job["status"]["failureCount"] == 2
    entries = api.get(f"/api/jobs/{server.owner}/{job_id}/history").json
    stages = [entry["stage"] for entry in entries]
    assert stages[0] == "SCHEDULING"
    assert stages[-1] == "ERROR"
    assert [entry["at"] for entry in entries] == sorted(entry["at"] for entry in entries)
    assert {entry["attempt"] for entry in entries} == {1, 2}


def test_cancel_of_what_is_over_changes_nothing(api: Api, server: Server) -> None:
    job = api.ended(api.shell("true")["id"])
    for method, suffix in (("POST", "/cancel"), ("DELETE", "")):
        answer = api.call(method, f"/api/jobs/{server.owner}/{job['id']}{suffix}")
        assert answer.status == 200
        assert answer.json["status"]["stage"] == "COMPLETED"
        assert answer.json["finishedAt"] == job["finishedAt"]


def test_a_time_limit_says_so(api: Api) -> None:
    job = api.ended(api.shell("sleep 1000", timeoutSeconds=1)["id"])
    assert job["timeout"] == 1
    assert job["status"]["stage"] == "ERROR"
    assert job["status"]["failureClass"] == "timeout"
    assert "Job timeout" in job["status"]["message"]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Api]:
    """A server on which one job of the common flavor runs at a time."""
    flavors = "[flavors.cpu-basic]\ncpu = 1\nmemory = '64MB'\n[flavors.cpu-upgrade]\ncpu = 1\nmemory = '100MB'\n"
    (tmp_path / "small.toml").write_text(flavors)
    flags = ("--config", str(tmp_path / "small.toml"), "--executor-memory", "100MB", "--stop-jobs-at-exit")
    started = Server(tmp_path / "data", (*flags, "--jobs-endpoint", "off")).start()
    yield Api(started)
    started.stop()


def test_waiting_jobs_say_why_and_start_in_order(small: Api) -> None:
    first = small.shell("echo up; sleep 1000")
    assert first["status"]["stage"] == "RUNNING"
    waiting = [small.shell(f"echo job {i}") for i in range(4)]
    for place, job in enumerate(waiting, 1):
        message = job["status"]["message"]
        assert job["status"]["stage"] == "SCHEDULING"
        assert "waiting for 0.1 GB memory (0.0 of 0.1 free)" in message, message
        assert f"position {place} of {place} in the queue" in message
        assert re.search(r"next at \d\d:\d\d:\d\d UTC", message)
    small.cancel(waiting[1]["id"])
    assert small.stage(waiting[1]["id"]) == "CANCELED"
    message = small.job(waiting[3]["id"])["status"]["message"]
    assert "position 3 of 3" in message
    small.cancel(first["id"])
    order = [waiting[0], waiting[2], waiting[3]]
    ended = [small.ended(job["id"]) for job in order]
    assert [job["status"]["stage"] for job in ended] == ["COMPLETED"] * 3
    started = [job["startedAt"] for job in ended]
    assert started == sorted(started)
    assert all(small.lines(job["id"])[-1] == f"job {i}" for i, job in zip((0, 2, 3), order, strict=True))
    assert "HF_ENDPOINT" not in " ".join(small.lines(small.shell("env")["id"]))


def test_a_large_job_is_not_starved_by_small_ones(small: Api) -> None:
    first = small.shell("echo up; sleep 1000")
    large = small.shell("echo large", flavor="cpu-upgrade")
    younger = [small.shell("echo small") for _ in range(3)]
    small.cancel(first["id"])
    ended = [small.ended(job["id"]) for job in (large, *younger)]
    started = [job["startedAt"] for job in ended]
    assert started == sorted(started)


def test_background_calls_of_a_client_are_answered(api: Api) -> None:
    assert api.get("/api/agent-harnesses").json == {"standardEnvVars": [], "harnesses": {}}
    assert Api(api.server, "").get("/api/agent-harnesses").status == 200
    assert Api(api.server, "").get("/api/jobs/hardware").status == 200
    for flavor in api.get("/api/jobs/hardware").json:
        assert flavor.keys() >= {"name", "prettyName", "cpu", "ram", "unitCostMicroUSD", "unitCostUSD", "unitLabel"}
    assert "date" in api.get("/healthz").headers
    json.dumps(api.get("/openapi.json").json)


def test_auth_check_says_who_may_what(api: Api, server: Server) -> None:
    job_id = api.shell("true")["id"]
    for path in (f"/api/jobs/{server.owner}/auth-check/write", f"/api/jobs/{server.owner}/{job_id}/auth-check/read"):
        found = api.post(path).json
        assert found["namespace"]["name"] == server.owner
        assert found["user"]["name"] == server.owner
    assert api.post("/api/jobs/strangers/auth-check/read").status == 403
