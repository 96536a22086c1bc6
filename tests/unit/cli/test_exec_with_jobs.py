"""`runstead exec` with the real server: jobs that still run when it ends are gone with it."""

import os
import secrets
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

START_A_JOB = """
import json, os, sys, time, urllib.request

def call(method, path, body=None):
    headers = {"Authorization": "Bearer " + os.environ["HF_TOKEN"], "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(os.environ["HF_ENDPOINT"] + path, data, headers, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)

me = call("GET", "/api/whoami-v2")["name"]
spec = {
    "dockerImage": "python:3.12",
    "command": ["sh", "-c", "trap '' TERM; while :; do sleep " + sys.argv[1] + "; done"],
    "flavor": "cpu-basic",
    "environment": {},
    "timeoutSeconds": 600,
}
job = call("POST", "/api/jobs/" + me, spec)
while call("GET", "/api/jobs/" + me + "/" + job["id"])["status"]["stage"] != "RUNNING":
    time.sleep(0.1)
print("running", flush=True)
time.sleep(float(sys.argv[2]))
"""


def processes(marker: str) -> list[str]:
    """Return the command lines that hold `marker`, of every namespace: our /proc shows them all."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in line:
            found.append(line)
    return found


def wait_until(happened: Callable[[], bool], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not happened() and time.monotonic() < limit:
        time.sleep(0.05)
    return happened()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_jobs_that_still_run_are_gone(tmp_path: Path, number: signal.Signals | None) -> None:
    marker = f"600.{secrets.randbelow(10**9):09d}"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    script = tmp_path / "start.py"
    script.write_text(textwrap.dedent(START_A_JOB))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RUNSTEAD_", "HF_"))}
    exec_ = [sys.executable, "-m", "runstead.cli", "exec", "--jobs-cancel-grace-seconds", "0.5", "--"]
    process = subprocess.Popen(
        [*exec_, sys.executable, str(script), marker, "0" if number is None else "60"],
        env={**kept, "HOME": str(tmp_path), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    first = process.stdout.readline()
    assert first == "running\n", process.communicate(timeout=60)
    if number is not None:
        assert wait_until(lambda: any(line.startswith("sleep") for line in processes(marker)), 10)
        process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == (0 if number is None else 128 + number), complaints
    assert processes(marker) == []
    assert wait_until(lambda: processes(str(temporary)) == [], 5), processes(str(temporary))
    assert list(temporary.iterdir()) == []
