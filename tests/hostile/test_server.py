"""The server answers while jobs do their worst, and has their true ends afterwards."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import registry
from clients import Server, eventually
from runstead.executors.oci import problem


@pytest.fixture(scope="module", params=["process", "oci"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    if (lacking := problem()) is not None:
        pytest.skip(f"nothing here promises to keep jobs apart: {lacking}")
    folder = tmp_path_factory.mktemp("server")
    settings = folder / "runstead.toml"
    settings.write_text(
        '[executor]\npids_limit = 200\nlog_limit_bytes = "4MB"\n'
        '[flavors.small]\ncpu = 0.5\nmemory = "64MB"\ndisk = "64MB"\n'
    )
    environment = {"RUNSTEAD_EXECUTOR_KIND": request.param, "RUNSTEAD_CONFIG": str(settings)}
    with registry.registry(folder / "registry") as images:
        images.push("busybox", registry.build([registry.busybox_archive()]), "latest")
        server = Server(folder / "data", ("--stop-jobs-at-exit",), environment).start()
        yield server, f"{images.host}/busybox"
        server.stop()


def _call(server: Server, method: str, path: str, body: object = None) -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def _run(server: Server, image: str, script: str, seconds: int = 60) -> str:
    spec = {"dockerImage": image, "command": ["sh", "-c", script], "flavor": "small", "timeoutSeconds": seconds}
    return str(_call(server, "POST", f"/api/jobs/{server.owner}", spec)["id"])


def _status(server: Server, job_id: str) -> dict[str, object]:
    return _call(server, "GET", f"/api/jobs/{server.owner}/{job_id}")["status"]  # type: ignore[return-value]


def _over(server: Server, job_id: str) -> dict[str, object]:
    eventually(lambda: _status(server, job_id)["stage"] in ("COMPLETED", "ERROR", "CANCELED"), 60)
    return _status(server, job_id)


def test_it_answers_while_jobs_do_their_worst(site: tuple[Server, str]) -> None:
    server, image = site
    worst = {
        "timeout": _run(server, image, "b() { b | b & }; b; while :; do :; done", 8),
        "oom": _run(server, image, "x=$(head -c 300000000 /dev/zero | tr '\\0' a); echo ${#x}"),
        "flood": _run(server, image, "yes | head -c 60000000; exit 3"),
        "deaf": _run(server, image, "trap '' TERM HUP INT; while :; do sleep 1; done", 4),
    }
    slowest = 0.0
    for _ in range(20):
        began = time.monotonic()
        _call(server, "GET", "/api/whoami-v2")
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.2)
    assert slowest < 5, slowest
    began = time.monotonic()
    fine = _run(server, image, "echo fine")
    assert _over(server, fine)["stage"] == "COMPLETED"
    assert time.monotonic() - began < 30
    assert "timeout" in str(_over(server, worst["deaf"])["message"])
    assert str(_over(server, worst["timeout"])["message"]).startswith(("timeout", "oom", "user"))
    assert "oom" in str(_over(server, worst["oom"])["message"])
    flooded = _over(server, worst["flood"])
    assert "missing in the log" in str(flooded["message"]) or "code 3" in str(flooded["message"])
    log = next((server.data_dir / "logs").rglob(f"{worst['flood']}/1.log"))
    assert log.stat().st_size < 5_000_000


def test_nothing_is_left_of_them(site: tuple[Server, str]) -> None:
    server, _ = site
    assert eventually(lambda: not list((server.data_dir / "node" / "attempts").iterdir()), 15)
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _has(path, str(server.data_dir).encode())]
    assert len(left) <= 6  # the server, its launcher, a spare and its process 1


def _has(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False
