"""OpenEnv environments as jobs: OpenEnv's own client and server, with the provider between them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from clients import Client, Server, eventually, make_client

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venvs/openenv/bin/python"
ECHO = ROOT / "tests/openenv_echo"
PORT = "8000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = tmp_path_factory.mktemp("config") / "config.toml"
    config.write_text(
        '[flavors.cpu-basic]\ncpu = 1\nmemory = "1GB"\n'
        '[flavors.tiny]\ncpu = 1\nmemory = "96MB"\n'
        "[executor]\ncpu_overcommit = 100\n",
        encoding="utf-8",
    )
    arguments = ("--config", str(config), "--stop-jobs-at-exit")
    started = Server(tmp_path_factory.mktemp("openenv") / "data", arguments).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def hub(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return make_client("2.4.0", server, tmp_path_factory.mktemp("hub"))


def train(hub: Client, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    uvicorn = [str(PYTHON), "-m", "uvicorn", "environment:app", "--app-dir", str(ECHO), "--host", "0.0.0.0"]
    environment = hub.environment | {
        "PYTHONPATH": str(ROOT / "src"),
        "ENVIRONMENT_COMMAND": json.dumps([*uvicorn, "--port", PORT]),
        "LIGHT_COMMAND": json.dumps([str(PYTHON), "-I", "-S", str(ECHO / "light.py"), PORT]),
        "SMALL_FLAVOR": "tiny",
        **variables,
    }
    command = [str(PYTHON), str(ECHO / "trainer.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)


def told(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def running(hub: Client) -> list[str]:
    jobs = httpx2.get(
        f"{hub.server.url}/api/jobs/{hub.server.owner}",
        params={"stage": ["RUNNING", "SCHEDULING"]},
        headers={"Authorization": f"Bearer {hub.server.token}"},
    ).json()
    return [job["id"] for job in jobs]


@pytest.mark.parametrize("access", ["auto", "public", "relay"])
def test_an_episode_with_a_real_environment(hub: Client, access: str) -> None:
    [said] = told(train(hub, "episode", access))
    assert said["first"]["echoed"] == "hello"
    assert (said["echoed"], said["reward"], said["after"]) == (100_000, 100_000.0, "again")
    assert "a bad action" in said["failed"]  # the environment's own error, not the provider's
    assert said["state"]["step_count"] == 3
    assert running(hub) == []


def test_an_environment_that_dies_is_told_from_one_that_fails(hub: Client) -> None:
    [step, death] = told(train(hub, "death"))
    assert step["step"] != "EnvironmentDied"  # OpenEnv's client sees its connection end
    assert (death["stage"], death["failure_class"]) == ("ERROR", "user")
    assert "the environment gives up" in death["log"]
    assert "code 3" in death["text"]


def test_a_crash_at_the_start_fails_at_once_with_the_reason(hub: Client) -> None:
    [said] = told(train(hub, "crash_at_start"))
    assert said["failure_class"] == "user"
    assert "code 7" in said["text"] and "no such model" in said["text"]
    assert said["seconds"] < 30


def test_waiting_uses_its_whole_time_and_says_what_was_answered(hub: Client) -> None:
    [said] = told(train(hub, "silence"))
    assert 3.0 <= said["seconds"] < 8.0
    assert "503" in said["text"] and f"hf jobs logs {said['job']}" in said["text"]
    assert eventually(lambda: running(hub) == [], 20)


def test_the_end_of_the_trainer_is_the_end_of_its_environments(hub: Client) -> None:
    [said] = told(train(hub, "forgotten"))
    assert eventually(lambda: said["job"] not in running(hub), 20)


def test_a_killed_trainer_leaves_no_environment_behind(hub: Client) -> None:
    done = train(hub, "killed", "2")
    job = json.loads(done.stdout)["job"]
    assert eventually(lambda: job not in running(hub), 20)
    assert "nobody renewed the lease for 2 s" in hub.hf("jobs", "logs", job).stdout


def test_many_at_once_come_up_and_leave_nothing(hub: Client) -> None:
    count = os.environ.get("RUNSTEAD_TEST_ENVIRONMENTS", "16")
    [said] = told(train(hub, "many", count))
    assert said["up"] == int(count)
    assert eventually(lambda: running(hub) == [], 20)


def test_it_installs_without_the_server(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert uv is not None
    build = [uv, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*build, str(ROOT / "packages/openenv"), "-o", str(tmp_path)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True)
    code = "import runstead.openenv as o, sys; print(o.__file__); assert 'runstead.app.serving' not in sys.modules"
    path = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([str(PYTHON), "-c", code], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(target))
