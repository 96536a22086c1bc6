"""Ports and network groups of jobs in containers: the same promises, another root."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import registry
from clients import Client, Server, eventually, make_client
from container_images import debian_root
from runstead.executors.oci import problem

SERVE = "mkdir /tmp/www && cd /tmp/www && echo here > at && exec python -m http.server 8000"
ASK = """
import socket, sys, time, urllib.request
for _ in range(100):
    try:
        print(urllib.request.urlopen("http://member-leader:8000/at", timeout=5).read())
        break
    except OSError:
        time.sleep(0.1)
print(len({one[4][0] for one in socket.getaddrinfo("group-train", 80)}), "members")
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.RegistryServer]:
    if (lacking := problem()) is not None:
        pytest.skip(lacking)
    with registry.registry(tmp_path_factory.mktemp("registry")) as running:
        running.push("python", registry.build([registry.archive_of(debian_root())]), "3.12")
        yield running


@pytest.fixture(scope="module")
def server(images: registry.RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    del images
    environment = {"RUNSTEAD_EXECUTOR_KIND": "oci"}
    started = Server(tmp_path_factory.mktemp("ports") / "data", ("--stop-jobs-at-exit",), environment).start()
    yield started
    started.stop()


def test_a_port_and_a_group(server: Server, images: registry.RegistryServer, tmp_path: Path) -> None:
    hub: Client = make_client("2.4.0", server, tmp_path)
    image = f"{images.host}/python:3.12"
    group = ("--network-group", "train")
    words = ("jobs", "run", "-d", *group, "--network-alias", "leader", "--expose", "8000", image, "sh", "-c", SERVE)
    [leader] = re.findall(r"^ *id: ([0-9a-f]{24})", hub.hf(*words).stdout, re.MULTILINE)
    url, headers = f"{server.url}/jobs-proxy/{leader}--8000.port/at", {"Authorization": f"Bearer {server.token}"}
    assert eventually(lambda: httpx2.get(url, headers=headers, trust_env=False).status_code == 200, within=60)
    assert httpx2.get(url, headers=headers, trust_env=False).text == "here\n"
    said = hub.hf("jobs", "run", *group, image, "python", "-c", ASK, timeout=120).stdout
    assert "b'here\\n'" in said
    assert "2 members" in said
    alone = hub.hf(
        "jobs", "run", image, "python", "-c", ASK.replace("range(100)", "range(2)"), check=False, timeout=120
    )
    assert "here" not in alone.stdout
