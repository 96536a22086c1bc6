"""Jobs in containers of an engine that the machine runs: a real podman, a real registry, the real client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import engines
import registry
from clients import VERSIONS, Client, Server, make_client


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.RegistryServer]:
    with registry.registry(tmp_path_factory.mktemp("registry")) as running:
        config = {"Env": ["PATH=/bin", "LEVEL=image"], "WorkingDir": "/tmp", "Entrypoint": ["false"]}
        running.push("small", registry.build([registry.busybox_archive()], config=config), "1")
        yield running


@pytest.fixture(scope="module")
def engine(images: registry.RegistryServer) -> Iterator[engines.RunningEngine]:
    with engines.podman(insecure=[images.host]) as running:
        running.load(registry.busybox_archive(), "localhost/loaded:1")
        yield running


@pytest.fixture(scope="module")
def machine(engine: engines.RunningEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = server_of(engine, tmp_path_factory.mktemp("server")).start()
    yield started
    started.stop()
    assert engine.containers() == []


@pytest.fixture(scope="module")
def elsewhere(engine: engines.RunningEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that reaches its containers by the engine's API alone, as on macOS."""
    started = server_of(engine, tmp_path_factory.mktemp("elsewhere"), RUNSTEAD_DOCKER_BY_API="true").start()
    yield started
    started.stop()


def server_of(engine: engines.RunningEngine, folder: Path, **settings: str) -> Server:
    environment = {
        "RUNSTEAD_EXECUTOR_KIND": "docker",
        "RUNSTEAD_EXECUTOR_NETWORK": "none",
        "RUNSTEAD_DOCKER_SOCKET": str(engine.socket),
        "RUNSTEAD_DOCKER_ULIMITS": ",".join(engines.ULIMITS),
        **settings,
    }
    return Server(folder / "data", ("--stop-jobs-at-exit",), environment)


@pytest.fixture
def hf(machine: Server, tmp_path: Path) -> Client:
    return make_client(VERSIONS[0], machine, tmp_path)


def test_a_job_runs_in_the_image_that_the_engine_pulls(images: registry.RegistryServer, hf: Client) -> None:
    name = f"{images.host}/small:1"
    done = hf.hf("jobs", "run", "-e", "MINE=1", name, "sh", "-c", "echo $LEVEL $MINE; pwd; echo err >&2", timeout=100)
    assert f"runstead: pulled {name}" in done.stdout
    lines = done.stdout.splitlines()
    assert {"image 1", "/tmp", "err"} <= set(lines)
    again = hf.hf("jobs", "run", name, "sh", "-c", "exit 3", check=False, timeout=100)
    assert again.returncode == 1
    assert "pull" not in again.stdout


def test_an_image_that_was_loaded_needs_no_registry(hf: Client) -> None:
    assert "hello" in hf.hf("jobs", "run", "localhost/loaded:1", "echo", "hello", timeout=100).stdout


def test_an_image_that_is_nowhere_fails_with_the_engines_reason(images: registry.RegistryServer, hf: Client) -> None:
    done = hf.hf("jobs", "run", f"{images.host}/no-such-image", "true", check=False, timeout=100)
    assert done.returncode == 1
    assert "no-such-image" in done.stdout + done.stderr
    assert "manifest unknown" in done.stdout + done.stderr


def test_buckets_appear_in_a_job_and_what_it_wrote_is_in_them(hf: Client) -> None:
    bucket = f"{hf.server.owner}/engine"
    hf.python(
        f"from huggingface_hub import HfApi; api = HfApi(); api.create_bucket({bucket!r}, private=True)\n"
        f"api.batch_bucket_files({bucket!r}, add=[(b'one', 'in.txt')])"
    )
    script = "cat /data/in.txt; echo two > /data/out.txt"
    done = hf.hf(
        "jobs", "run", "-v", f"hf://buckets/{bucket}:/data", "localhost/loaded:1", "sh", "-c", script, timeout=100
    )
    assert "one" in done.stdout
    read = f"from huggingface_hub import HfApi; out(sorted(f.path for f in HfApi().list_bucket_tree({bucket!r})))"
    assert hf.python(read) == ["in.txt", "out.txt"]


def test_a_sandbox_is_a_container_of_the_engine(hf: Client) -> None:
    code = (
        "from huggingface_hub import Sandbox\n"
        "with Sandbox.create(image='localhost/loaded:1') as box:\n"
        "    box.files.write('/tmp/in', b'one')\n"
        "    ran = box.run('cat /tmp/in; echo err >&2; exit 3', check=False)\n"
        "    out([ran.exit_code, ran.stdout, ran.stderr])"
    )
    assert hf.python(code) == [3, "one", "err\n"]


def test_a_sandbox_where_containers_are_reached_by_the_engines_api_alone(elsewhere: Server, tmp_path: Path) -> None:
    hf = make_client(VERSIONS[0], elsewhere, tmp_path)
    code = (
        "import os\n"
        "from huggingface_hub import Sandbox\n"
        "data = os.urandom(3_000_000)\n"
        "with Sandbox.create(image='localhost/loaded:1') as box:\n"
        "    box.files.write('/tmp/in', data)\n"
        "    same = box.files.read('/tmp/in') == data\n"
        "    ran = box.run('wc -c < /tmp/in; echo $A; echo err >&2; exit 3', env={'A': 'b'}, check=False)\n"
        "    out([same, ran.exit_code, ran.stdout, ran.stderr])"
    )
    assert hf.python(code) == [True, 3, "3000000\nb\n", "err\n"]
