"""Forks: set up once, go on many times from there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import sandboxes
from calls import Api
from clients import Server, eventually, make_client
from sandboxes import RawSandbox

# So that many fit: memory is only used where it is written to.
ROOM = {"RUNSTEAD_EXECUTOR_CPUS": "64", "RUNSTEAD_EXECUTOR_MEMORY": "1 TB"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sandboxes.serving("oci", tmp_path_factory, ROOM) as started:
        yield started


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[RawSandbox]:
    made = sandboxes.create(server, environment={"A": "b"}, labels={"name": "first"})
    made.shell("mkdir -p /ready/deep && echo prepared > /ready/deep/file && chmod 640 /ready/deep/file")
    made.shell("ln -s deep/file /ready/link; rm /etc/debian_version")
    made.shell("mv /etc/issue /etc/moved; echo changed > /etc/motd")
    made.shell("mkdir -p /opt/theirs && chown 1000:1000 /opt/theirs && mkdir /ready/gone && rmdir /ready/gone")
    made.call("POST", "/processes", {"cmd": ["sleep", "1301"]})
    yield made
    made.cancel()


def forks_of(box: RawSandbox, count: int) -> list[RawSandbox]:
    answer = Api(box.server).post(f"/api/jobs/{box.server.owner}/{box.id}/fork", {"count": count}, timeout=60)
    assert answer.status == 200, answer
    made = [RawSandbox(box.server, job, box.token) for job in answer.json["jobs"]]
    for one in made:
        assert eventually(lambda one=one: one.call("GET", "~/health").status == 200, 60)
    return made


def test_a_fork_begins_with_the_files_and_none_of_the_programs(box: RawSandbox) -> None:
    [fork] = forks_of(box, 1)
    assert fork.shell("cat /ready/link; stat -c '%a %u' /ready/deep/file; stat -c %u:%g /opt/theirs").split() == [
        *("prepared", "640", "0", "1000:1000")
    ]
    assert fork.shell("ls /etc/debian_version /etc/issue 2>&1; cat /etc/motd; ls -d /etc/moved; true").split()[-2:] == [
        "changed",
        "/etc/moved",
    ]
    assert fork.run("ls /etc/debian_version /etc/issue /ready/gone")[2]["exit_code"] != 0
    assert "1301" not in fork.shell("ps ax")
    assert fork.shell("echo $A; python3 -c 'print(1)'") == "b\n1\n"
    assert fork.job["labels"]["name"] == "first" and fork.job["id"] != box.id
    fork.cancel()


def test_what_is_written_is_seen_by_nobody_else(box: RawSandbox) -> None:
    one, two = forks_of(box, 2)
    one.shell("echo one > /ready/deep/file; echo new > /ready/new; rm /etc/motd")
    box.shell("echo later > /ready/later")
    assert two.shell("cat /ready/deep/file /etc/motd; ls /ready").split() == ["prepared", "changed", "deep", "link"]
    assert box.shell("cat /ready/deep/file; ls /ready").split() == ["prepared", "deep", "later", "link"]
    box.shell("rm /ready/later")
    for fork in (one, two):
        fork.cancel()


def test_a_fork_can_be_forked(box: RawSandbox) -> None:
    [fork] = forks_of(box, 1)
    fork.shell("echo more >> /ready/deep/file")
    [again] = forks_of(fork, 1)
    fork.cancel()
    assert again.shell("cat /ready/deep/file").split() == ["prepared", "more"]
    assert again.run("ls /etc/debian_version")[2]["exit_code"] != 0
    again.cancel()


def test_many_at_once(box: RawSandbox) -> None:
    forks = forks_of(box, 20)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda fork: fork.shell("cat /ready/deep/file"), forks)) == ["prepared\n"] * 20
    for fork in forks:
        fork.cancel()


def test_the_command_and_the_client_that_connects(box: RawSandbox, tmp_path_factory: pytest.TempPathFactory) -> None:
    client = make_client("2.4.0", box.server, tmp_path_factory.mktemp("client"))
    first = client.python(
        "from huggingface_hub import Sandbox\nbox = Sandbox.create()\nbox.files.write('/x', 'kept')\nout(box.id)"
    )
    environment = os.environ | {"HF_ENDPOINT": box.server.url, "HF_TOKEN": box.server.token}
    command = [sys.executable, "-m", "runstead.cli", "sandbox", "fork", first, "-n", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done
    made = done.stdout.split()
    assert len(made) == 2
    for fork in made:
        code = f"from huggingface_hub import Sandbox\nb = Sandbox.connect({fork!r})\n"
        assert client.python(code + "out(b.files.read_text('/x'))") == "kept"
    for one in (first, *made):
        Api(box.server).cancel(one)
    refused = subprocess.run([*command[:5], "0" * 24], env=environment, capture_output=True, text=True)
    assert refused.returncode == 1 and "there is no job" in refused.stderr


def test_what_cannot_be_forked_says_why(box: RawSandbox) -> None:
    api = Api(box.server)
    job = api.shell("sleep 1000")
    assert eventually(lambda: api.stage(job["id"]) == "RUNNING", 60)
    path = f"/api/jobs/{box.server.owner}/{{}}/fork"
    ordinary = api.post(path.format(job["id"]), {"count": 1})
    assert (ordinary.status, "only sandboxes" in ordinary.error) == (409, True)
    api.cancel(job["id"])
    for count in (0, 1001, "1"):
        assert api.post(path.format(box.id), {"count": count}).status == 400
    assert Api(box.server, "").post(path.format(box.id), {"count": 1}).status == 401


def test_snapshots_are_private_to_the_server(box: RawSandbox) -> None:
    folder = box.server.data_dir / "node" / "snapshots"
    assert list(folder.iterdir()) and folder.stat().st_mode & 0o077 == 0
