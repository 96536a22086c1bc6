"""Jobs in containers of their images: a real registry, a real server, the real client."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import registry
from clients import VERSIONS, Client, Server, make_client
from container_images import debian_root
from runstead.executors.oci import problem


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.RegistryServer]:
    if (lacking := problem()) is not None:
        pytest.skip(lacking)
    debian = registry.archive_of(debian_root())
    more = registry.Archive().folder("srv/app", 0o755, uid=1000, gid=1000)
    more.add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/home/worker:/bin/sh\n")
    more.add("etc/group", b"root:x:0:\nworker:x:1000:\nextra:x:2000:worker\n")
    with registry.registry(tmp_path_factory.mktemp("registry")) as running:
        for name in ("python", "library/python"):
            running.push(name, registry.build([debian]), "3.12")
        config = {"Env": ["PATH=/usr/bin:/bin", "LEVEL=image"], "WorkingDir": "/srv/app", "User": "worker"}
        running.push("app", registry.build([debian, more.bytes()], config=config), "latest")
        yield running


@pytest.fixture(scope="module")
def containers(images: registry.RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server") / "data"
    environment = {
        "RUNSTEAD_EXECUTOR_KIND": "oci",
        "RUNSTEAD_IMAGES_MIRRORS": f"docker.io={images.host}",
    }
    started = Server(folder, ("--stop-jobs-at-exit",), environment).start()
    yield started
    started.stop()


@pytest.fixture(params=VERSIONS)
def client(request: pytest.FixtureRequest, containers: Server, tmp_path: Path) -> Client:
    return make_client(request.param, containers, tmp_path)


@pytest.fixture
def newest(containers: Server, tmp_path: Path) -> Client:
    return make_client(VERSIONS[0], containers, tmp_path)


def test_a_job_runs_in_the_image_it_names(client: Client, images: registry.RegistryServer) -> None:
    image = f"{images.host}/python:3.12"
    done = client.hf("jobs", "run", image, "python", "-c", "print(open('/etc/debian_version').read())", timeout=100)
    assert re.search(r"^\d+\.\d+", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_what_the_image_says_of_its_surroundings_holds(newest: Client, images: registry.RegistryServer) -> None:
    script = "id -u; id -G; pwd; echo $HOME $LEVEL $MINE; touch here && echo made; cat /etc/hostname; mount | wc -l"
    done = newest.hf("jobs", "run", "-e", "MINE=1", f"{images.host}/app", "sh", "-c", script, timeout=100)
    lines = [line for line in done.stdout.splitlines() if line]
    start = lines.index("1000")
    assert lines[start : start + 5] == ["1000", "1000 2000", "/srv/app", "/home/worker image 1", "made"]
    done = newest.hf("jobs", "run", "-e", "LEVEL=mine", f"{images.host}/app", "sh", "-c", "echo $LEVEL", timeout=100)
    assert "mine" in done.stdout.splitlines()


def test_an_image_that_is_nowhere_fails_with_the_registrys_reason(
    newest: Client, images: registry.RegistryServer
) -> None:
    done = newest.hf("jobs", "run", f"{images.host}/no-such-image", "true", check=False, timeout=100)
    assert done.returncode == 1
    assert "image: " in done.stdout + done.stderr
    assert "no-such-image" in done.stdout + done.stderr


def test_a_name_of_the_hub_comes_from_the_mirror(newest: Client) -> None:
    done = newest.hf("jobs", "run", "python:3.12", "cat", "/etc/os-release", timeout=100)
    assert "ID=debian" in done.stdout
