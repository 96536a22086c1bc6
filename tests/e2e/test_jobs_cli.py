"""The `hf` command line against a real server, in every supported version of the client."""

import json
import re
import subprocess

import pytest

from clients import Client, Server, eventually, make_client

JOB_ID = re.compile(r"[0-9a-f]{24}")


def submitted(done: "subprocess.CompletedProcess[str]") -> str:
    found = JOB_ID.search(done.stdout + done.stderr)
    assert found, done
    return found.group()


def job(client: Client, job_id: str) -> dict[str, object]:
    code = f"from huggingface_hub import inspect_job; j = inspect_job(job_id={job_id!r})\n"
    code += "out({'stage': getattr(j.status.stage, 'value', j.status.stage), 'message': j.status.message})"
    return client.python(code)


def test_an_attached_run_shows_the_output_and_ends_with_the_job(client: Client) -> None:
    done = client.hf("jobs", "run", "python:3.12", "python", "-c", "print('hello ' + 'job')")
    assert "hello job" in done.stdout


def test_a_failed_run_exits_with_1_and_the_reason(newest: Client) -> None:
    done = newest.hf("jobs", "run", "python:3.12", "sh", "-c", "echo before; exit 3", check=False)
    assert done.returncode == 1
    assert "before" in done.stdout
    assert "user: the command exited with code 3" in done.stdout + done.stderr


def test_uv_run_uses_a_real_package(client: Client) -> None:
    done = client.hf("jobs", "uv", "run", "--with", "six", "python", "-c", "import six; print('six', six.PY3)")
    assert "six True" in done.stdout


def test_detached_then_ps_inspect_logs_wait_and_labels(client: Client) -> None:
    words = ["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done"]
    job_id = submitted(client.hf("jobs", "run", "-d", "--label", "suite=e2e", "ubuntu", *words))
    eventually(lambda: job(client, job_id)["stage"] == "COMPLETED")
    listed = client.hf("jobs", "ps", "-a").stdout
    assert job_id[:8] in listed
    assert "COMPLETED" in listed
    shown = json.loads(client.hf("jobs", "inspect", job_id, *json_flag(client)).stdout)
    shown = shown[0] if isinstance(shown, list) else shown
    assert shown["id"] == job_id
    assert shown["labels"]["suite"] == "e2e"
    lines = [line for line in client.hf("jobs", "logs", job_id).stdout.splitlines() if line.startswith("line")]
    assert lines == [f"line {i}" for i in range(1, 6)]


def json_flag(client: Client) -> list[str]:
    return [] if client.version == "1.9.0" else ["--format", "json"]


def test_logs_follow_and_tail(newest: Client) -> None:
    job_id = submitted(newest.hf("jobs", "run", "-d", "ubuntu", "sh", "-c", "for i in $(seq 30); do echo n $i; done"))
    followed = newest.hf("jobs", "logs", "-f", job_id).stdout
    assert [line for line in followed.splitlines() if line.startswith("n ")] == [f"n {i}" for i in range(1, 31)]
    tail = newest.hf("jobs", "logs", "--tail", "3", job_id).stdout
    assert [line for line in tail.splitlines() if line.startswith("n ")] == ["n 28", "n 29", "n 30"]
    assert "===== Job started" not in tail


def test_cancel_stops_a_running_job(client: Client) -> None:
    job_id = submitted(client.hf("jobs", "run", "-d", "ubuntu", "sleep", "1000"))
    client.hf("jobs", "cancel", job_id)
    assert eventually(lambda: job(client, job_id)["stage"] == "CANCELED")


def test_timeout_ends_a_job_with_its_reason(client: Client) -> None:
    job_id = submitted(client.hf("jobs", "run", "-d", "--timeout", "1s", "ubuntu", "sleep", "1000"))
    assert eventually(lambda: job(client, job_id)["stage"] == "ERROR", 20)
    assert "Job timeout" in str(job(client, job_id)["message"])


def test_secrets_and_environment_reach_the_job_and_nothing_else(newest: Client) -> None:
    code = "import os; print(os.environ['PLAIN'], os.environ['HIDDEN'][::-1])"
    words = [
        "jobs",
        "run",
        "--env",
        "PLAIN=yes",
        "--secrets",
        "HIDDEN=s3cr3tvalue",
        "python:3.12",
        "python",
        "-c",
        code,
    ]
    done = newest.hf(*words)
    assert "yes eulavt3rc3s" in done.stdout
    job_id = submitted(done)
    shown = newest.hf("jobs", "inspect", job_id, "--format", "json").stdout
    assert "HIDDEN" in shown
    assert "s3cr3tvalue" not in shown
    server = newest.server
    for path in server.data_dir.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"s3cr3tvalue" not in path.read_bytes(), path
    assert "s3cr3tvalue" not in server.log.read_text()


def test_rerun_wait_and_labels(newest: Client) -> None:
    job_id = submitted(newest.hf("jobs", "run", "-d", "--name", "first", "--secrets", "S=1", "ubuntu", "true"))
    newest.hf("jobs", "wait", job_id)
    again = submitted(newest.hf("jobs", "rerun", "-d", job_id))
    assert again != job_id
    newest.hf("jobs", "wait", again)
    newest.hf("jobs", "labels", again, "--name", "renamed")
    assert "renamed" in newest.hf("jobs", "ps", "-a", "--no-truncate").stdout


def test_wait_fails_for_a_failed_job(newest: Client) -> None:
    job_id = submitted(newest.hf("jobs", "run", "-d", "ubuntu", "false"))
    assert newest.hf("jobs", "wait", job_id, check=False).returncode == 1


def test_hardware_lists_what_is_there(client: Client) -> None:
    listed = client.hf("jobs", "hardware").stdout
    assert "cpu-basic" in listed
    assert "free" in listed or client.version == "1.9.0"


def test_stats_of_a_running_job(newest: Client) -> None:
    job_id = submitted(newest.hf("jobs", "run", "-d", "ubuntu", "sh", "-c", "while :; do :; done"))
    try:
        shown = newest.hf("jobs", "stats", job_id).stdout
        assert job_id[:12] in shown
        percent = re.search(r"([\d.]+)%", shown)
        assert percent
        assert float(percent.group(1)) > 5
    finally:
        newest.hf("jobs", "cancel", job_id)


def test_whoami_and_login(client: Client) -> None:
    assert client.server.owner in client.hf("auth", "whoami").stdout


def test_retries_are_counted_and_each_attempt_has_its_part_of_the_log(newest: Client) -> None:
    words = ["jobs", "run", "-d", "--attempts", "2", "ubuntu", "sh", "-c", "echo attempt of $JOB_ID; exit 7"]
    job_id = submitted(newest.hf(*words))
    assert eventually(lambda: job(newest, job_id)["stage"] == "ERROR", 20)
    shown = job(newest, job_id)
    assert "attempt 2 of 2" in str(shown["message"])
    log = newest.hf("jobs", "logs", job_id).stdout
    assert log.count(f"attempt of {job_id}") == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--flavor", "no-such-flavor", "ubuntu", "true"], "this server has no flavor 'no-such-flavor'"),
        (["NOT AN IMAGE", "true"], "not an image reference"),
        (["--label", "a b=c", "ubuntu", "true"], "labels"),
        (["--expose", "70000", "ubuntu", "true"], "expose.ports"),
        (["-v", "hf://buckets/root/b:/mnt", "ubuntu", "true"], "volumes"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(newest: Client, words: list[str], reason: str) -> None:
    done = newest.hf("jobs", "run", *words, check=False)
    assert done.returncode == 1
    assert reason in done.stdout + done.stderr


def test_an_unknown_job_is_said_to_be_unknown(client: Client) -> None:
    for words in (["inspect"], ["logs"], ["cancel"]):
        done = client.hf("jobs", *words, "0" * 24, check=False)
        assert done.returncode == 1
        assert "not found" in (done.stdout + done.stderr).lower() or "no job" in done.stdout + done.stderr


def test_a_wrong_token_is_refused(server: Server, tmp_path: object) -> None:
    stranger = make_client("2.4.0", server, tmp_path)  # type: ignore[arg-type]
    stranger.token = "hf_wrong"
    done = stranger.hf("jobs", "ps", check=False)
    assert done.returncode == 1
    assert "token" in (done.stdout + done.stderr).lower()
