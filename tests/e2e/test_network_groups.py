"""Jobs of one network group reach each other on every port, by name; others do not."""

import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from clients import Client, Server, eventually, make_client

APP = Path(__file__).parents[1] / "ports_app.py"


@dataclass
class Member:
    """A job that says what it can see and reach."""

    client: Client
    id: str
    url: str

    def ask(self, what: str) -> Any:
        headers = {"Authorization": f"Bearer {self.client.token or self.client.server.token}"}
        return httpx2.get(f"{self.url}/{what}", headers=headers, trust_env=False, timeout=30).json()

    def reaches(self, host: str, port: int = 7000) -> bool:
        said = self.ask(f"connect?{host}:{port}")
        assert said in ("HTTP/1.1 200 OK", "TimeoutError", "ConnectionRefusedError", "gaierror", "OSError"), said
        return said == "HTTP/1.1 200 OK"

    @property
    def address(self) -> str:
        [address] = self.ask(f"resolve?{self.id}")  # what `hostname -i` says
        return address

    def resolve(self, name: str) -> list[str]:
        return self.ask(f"resolve?{name}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("groups") / "data", (), {"RUNSTEAD_EXECUTOR_KIND": "process"}).start()
    yield started
    if started.process is not None and started.process.poll() is None:
        started.terminate()
    started.flags = ("--stop-jobs-at-exit",)
    started.start()
    started.stop()


@pytest.fixture
def hub(server: Server, tmp_path: Path) -> Client:
    return make_client("2.4.0", server, tmp_path)


Start = Callable[..., Member]


@pytest.fixture
def start(hub: Client) -> Iterator[Start]:
    started: list[Member] = []

    def start(*options: str, client: Client = hub) -> Member:
        program = ["python:3.12", sys.executable, str(APP), "7000", "7001"]
        done = client.hf("jobs", "run", "-d", "--expose", "7000", *options, *program)
        [job_id] = re.findall(r"^ *id: ([0-9a-f]{24})", done.stdout, re.MULTILINE)
        member = Member(client, job_id, f"{client.server.url}/jobs-proxy/{job_id}--7000.port")
        assert eventually(
            lambda: (
                "X-Runstead-Cause"
                not in httpx2.get(
                    member.url,
                    headers={"Authorization": f"Bearer {client.token or client.server.token}"},
                    trust_env=False,
                ).headers
            ),
            within=20,
        )
        started.append(member)
        return member

    yield start
    for member in started:
        member.client.hf("jobs", "cancel", member.id)


def test_members_find_and_reach_each_other(hub: Client, start: Start) -> None:
    one = start("--network-group", "train", "--network-alias", "leader", "--network-alias", "first")
    two = start("--network-group", "train", "--network-alias", "worker")
    three = start("--network-group", "train", "--network-alias", "worker")
    every = sorted((one.address, two.address, three.address))
    assert len(set(every)) == 3
    environment = two.ask("environment")
    group, prefix = environment["HF_NETWORK_GROUP_HOSTNAME"], environment["HF_NETWORK_GROUP_PREFIX"]
    for member in (one, two, three):
        assert member.resolve(group) == every
        assert member.resolve(f"{prefix}leader") == member.resolve(f"{prefix}first") == [one.address]
        assert member.resolve(f"{prefix}worker") == sorted((two.address, three.address))
        assert member.reaches(f"{prefix}leader")
        assert member.reaches(f"{prefix}worker")
        for address in every:
            assert member.reaches(address)
    hub.hf("jobs", "cancel", two.id)
    gone = (set(every) - {one.address, three.address}).pop()
    assert eventually(lambda: gone not in one.resolve(group))
    assert one.resolve(f"{prefix}worker") == [three.address]


def test_others_do_not(server: Server, hub: Client, start: Start, tmp_path: Path) -> None:
    server.run("user", "add", "mallory")
    stranger = make_client("2.4.0", server, tmp_path / "stranger")
    stranger.token = server.run("token", "add", "mallory", "--name", "m", "--role", "write").stdout.split()[-1]
    member = start("--network-group", "train", "--network-alias", "leader")
    address = member.address
    for other in (
        start("--network-group", "other"),
        start("--label", "in=none"),
        start("--network-group", "train", client=stranger),
    ):
        assert other.resolve("member-leader") == []
        assert not other.reaches(address)
        assert not member.reaches(other.address)
        other.client.hf("jobs", "cancel", other.id)
    assert start("--network-group", "train").reaches(address)


def test_a_group_outlives_the_server(server: Server, hub: Client, start: Start) -> None:
    one = start("--network-group", "train", "--network-alias", "leader")
    two = start("--network-group", "train")
    server.kill()
    server.start()
    assert two.reaches("member-leader")
    three = start("--network-group", "train")
    assert three.reaches("member-leader")
    assert eventually(lambda: len(one.resolve("group-train")) == 3)
    assert one.reaches(three.address)


def test_what_the_job_object_says(hub: Client, start: Start) -> None:
    member = start("--network-group", "train", "--network-alias", "leader")
    headers = {"Authorization": f"Bearer {hub.server.token}"}
    url = f"{hub.server.url}/api/jobs/{hub.server.owner}/{member.id}"
    assert httpx2.get(url, headers=headers, trust_env=False).json()["network"] == {
        "group": "train",
        "aliases": ["leader"],
    }


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--network-group", "Upper"), "network.group"),
        (("--network-group", "x" * 47), "network.group"),
        (("--network-group", "dot.ted"), "network.group"),
        (("--network-group", "ok", "--network-alias", "line\nbreak"), "network.aliases"),
        (("--network-group", "ok", "--network-alias", "x" * 35), "network.aliases"),
        (("--network-group", "ok", "--network-alias", "a", "--network-alias", "a"), "network.aliases"),
    ],
)
def test_names_that_cannot_be(hub: Client, options: tuple[str, ...], field: str) -> None:
    done = hub.hf("jobs", "run", "-d", *options, "python:3.12", "true", check=False)
    assert done.returncode != 0
    assert field in done.stderr


def test_where_it_is_not_possible_the_job_is_refused(tmp_path: Path) -> None:
    environment = {"RUNSTEAD_EXECUTOR_KIND": "process", "RUNSTEAD_EXECUTOR_NETWORK": "host"}
    server = Server(tmp_path / "host", ("--stop-jobs-at-exit",), environment).start()
    try:
        hub = make_client("2.4.0", server, tmp_path)
        done = hub.hf("jobs", "run", "-d", "--network-group", "x", "python:3.12", "true", check=False)
        assert "networks of their own" in done.stderr
        # There two jobs cannot listen on the same port either.
        words = ("jobs", "run", "-d", "--expose", "7000", "python:3.12", "sleep", "60")
        first = re.findall(r"^ *id: ([0-9a-f]{24})", hub.hf(*words).stdout, re.MULTILINE)[0]
        refused = hub.hf(*words, check=False).stderr
        assert f"job {first} exposes port 7000 already" in refused
        server.kill()
        server.start()
        assert "already" in hub.hf(*words, check=False).stderr
        hub.hf("jobs", "cancel", first)
        # Also of those that come at once.
        url, headers = f"{server.url}/api/jobs/{server.owner}", {"Authorization": f"Bearer {server.token}"}
        body = {
            "command": ["sleep", "60"],
            "arguments": [],
            "environment": {},
            "flavor": "cpu-basic",
            "dockerImage": "python:3.12",
            "expose": {"ports": [7000], "portsPublic": []},
        }
        with ThreadPoolExecutor(8) as threads:
            answers = list(
                threads.map(lambda _: httpx2.post(url, json=body, headers=headers, trust_env=False), range(8))
            )
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
        assert all("exposes port 7000 already" in one.text for one in answers if one.status_code == 409)
    finally:
        server.stop()
