"""Forks: set up once, go on many times from there."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

import engines
import sandboxes
from calls import Api
from clients import Server, eventually, make_client
from runstead.executors import interface, snapshots
from runstead.executors.attempts import Attempts
from runstead.executors.engine_snapshots import EngineSnapshots
from runstead.executors.snapshots import Snapshots
from runstead.kit.clock import SystemClock
from runstead.services.jobs import Jobs
from runstead.services.sandbox_forks import Forking
from runstead.services.secrets import SecretBox
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from sandboxes import RawSandbox

# So that many fit: memory is only used where it is written to.
ROOM = {"RUNSTEAD_EXECUTOR_CPUS": "64", "RUNSTEAD_EXECUTOR_MEMORY": "1 TB"}


@pytest.fixture(scope="module", params=sandboxes.EXECUTORS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if request.param == "docker":
        request.getfixturevalue("engine")
    with sandboxes.serving(request.param, tmp_path_factory, ROOM) as started:
        yield started


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[RawSandbox]:
    made = sandboxes.create(server, environment={"A": "b"}, labels={"name": "first"})
    made.shell("mkdir -p /root/ready/deep && cd /root/ready && echo prepared > deep/file && chmod 640 deep/file")
    made.shell("cd /root/ready; ln -s deep/file link; mkdir theirs gone && chown 1000:1000 theirs && rmdir gone")
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
    said = fork.shell("cd /root/ready; cat link; stat -c '%a %u' deep/file; stat -c %u:%g theirs; ls")
    assert said.split() == ["prepared", "640", "0", "1000:1000", "deep", "link", "theirs"]
    assert "1301" not in fork.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert fork.shell("echo $A; python3 -c 'print(1)'") == "b\n1\n"
    assert fork.job["labels"]["name"] == "first" and fork.job["id"] != box.id
    fork.cancel()


def test_what_is_written_is_seen_by_nobody_else(box: RawSandbox) -> None:
    one, two = forks_of(box, 2)
    one.shell("cd /root/ready; echo one > deep/file; echo new > new; rm link")
    box.shell("echo later > /root/ready/later")
    assert two.shell("cd /root/ready; cat deep/file; ls").split() == ["prepared", "deep", "link", "theirs"]
    assert box.shell("cd /root/ready; cat deep/file; ls").split() == ["prepared", "deep", "later", "link", "theirs"]
    box.shell("rm /root/ready/later")
    for fork in (one, two):
        fork.cancel()


def test_what_is_changed_of_an_image(server: Server) -> None:
    if server.data_dir.parent.name.startswith("process"):
        pytest.skip("there is no image")
    box = sandboxes.create(server)
    box.shell("rm /etc/debian_version; mv /etc/issue /etc/moved; echo changed > /etc/motd")
    [fork] = forks_of(box, 1)
    [again] = forks_of(fork, 1)
    for one in (fork, again):
        assert one.shell(
            "cat /etc/motd; ls /etc/moved; ls /etc/debian_version /etc/issue 2>/dev/null || :"
        ).split() == [
            "changed",
            "/etc/moved",
        ]
    for one in (box, fork, again):
        one.cancel()


def test_many_at_once(box: RawSandbox) -> None:
    forks = forks_of(box, 20)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda fork: fork.shell("cat /root/ready/deep/file"), forks)) == ["prepared\n"] * 20
    for fork in forks:
        fork.cancel()


def test_the_command_says_what_was_wrong(box: RawSandbox) -> None:
    refused = forked(box.server, "0" * 24, 1)
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


def test_without_namespaces_there_are_no_forks_and_the_reason_is_told(tmp_path: Path) -> None:
    flags = ("--executor", "process", "--stop-jobs-at-exit")
    server = Server(tmp_path / "data", flags, {"RUNSTEAD_EXECUTOR_ISOLATION": "none"}).start()
    try:
        box = sandboxes.create(server)
        refused = Api(server).post(f"/api/jobs/{server.owner}/{box.id}/fork", {"count": 1})
        assert (refused.status, "without namespaces" in refused.error) == (501, True)
        settings = os.environ | {"RUNSTEAD_EXECUTOR_KIND": "process"} | server.environment
        said = server.run("doctor", check=False, env=settings).stdout
        assert "cannot be forked: jobs run without namespaces" in said
    finally:
        server.stop()


def test_snapshots_are_private_to_the_server(box: RawSandbox) -> None:
    [fork] = forks_of(box, 1)
    folder = box.server.data_dir / "node" / "snapshots"
    assert list(folder.iterdir()) and folder.stat().st_mode & 0o077 == 0
    fork.cancel()


@pytest.mark.parametrize("server", ["process", "oci", "docker"], indirect=True)
def test_from_the_first_sandbox_to_the_last_fork_and_nothing_is_left(
    server: Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client("2.4.0", server, tmp_path_factory.mktemp("client"))
    first = client.python(
        "from huggingface_hub import Sandbox\n"
        "box = Sandbox.create(env={'A': 'b'}, secrets={'SECRET': 'of mine'})\n"
        "box.files.write('/root/kept', 'from the first, ')\n"
        "box.files.write('/data/deep/file', 'data, ')\n"
        "box.run('mkdir /root/more; echo 1 > /root/more/one')\n"
        "out(box.id)"
    )
    [second, third] = fork(server, first, 2)
    over(server, first)
    assert client.python(
        "from huggingface_hub import Sandbox\n"
        f"box, other = Sandbox.connect({second!r}), Sandbox.connect({third!r})\n"
        "box.run('echo 2 > /root/more/two; rm /root/more/one')\n"
        "out([other.run('ls /root/more; echo $A $SECRET').stdout, box.files.read_text('/root/kept')])"
    ) == ["one\nb of mine\n", "from the first, "]
    [last] = fork(server, second, 1)
    over(server, second, third)
    server.kill()
    kept = kept_by(server, monkeypatch)
    [_, newest] = [name for name in kept.names() if name in asyncio.run(clean(server, kept))]  # it needs both
    server.start()
    [again] = fork(server, last, 1)
    assert (
        client.python(
            "from huggingface_hub import Sandbox\n"
            f"box = Sandbox.connect({again!r})\n"
            "out(box.run('cat /root/kept /data/deep/file; ls /root/more; echo $A $SECRET').stdout)"
        )
        == "from the first, data, two\nb of mine\n"
    )
    over(server, last, again)
    assert newest in kept.names()
    # What others are made of may go only after them, in an engine, and after the last container.
    assert eventually(lambda: asyncio.run(clean(server, kept)) == [], 60)


def forked(server: Server, sandbox: str, count: int) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_TOKEN": server.token}
    command = [sys.executable, "-m", "runstead.cli", "sandbox", "fork", sandbox, "-n", str(count)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def fork(server: Server, sandbox: str, count: int) -> list[str]:
    """Make forks with the command, and return their ids."""
    done = forked(server, sandbox, count)
    assert done.returncode == 0, done
    made = done.stdout.split()
    assert len(made) == count
    return made


def over(server: Server, *ids: str) -> None:
    """Cancel sandboxes and wait for their end."""
    for one in ids:
        Api(server).cancel(one)
    for one in ids:
        Api(server).ended(one)


def kept_by(server: Server, monkeypatch: pytest.MonkeyPatch) -> Snapshots | EngineSnapshots:
    """Return the snapshots of a server, listed as soon as they are made."""
    monkeypatch.setattr(snapshots, "YOUNG_SECONDS", -60.0)
    node = server.data_dir / "node"
    if server.environment.get("RUNSTEAD_EXECUTOR_KIND") == "docker":
        return EngineSnapshots(os.environ[engines.SOCKET], (node / "instance").read_text())
    return Snapshots(node, Attempts(node))


async def clean(server: Server, kept: Snapshots | EngineSnapshots) -> list[str]:
    """Do what the server does every minute; return what is left."""

    class Executor:
        async def snapshots(self) -> list[str]:
            return kept.names()

        async def drop_snapshot(self, name: str) -> None:
            kept.drop(name)

    database = await open_database(f"sqlite:///{server.data_dir / 'runstead.db'}")
    try:
        store, executor = SqlJobStore(database), cast(interface.Executor, Executor())
        await Forking(cast(Jobs, None), store, executor, SecretBox(b"k" * 32), SystemClock()).run_once()
    finally:
        await database.close()
    return kept.names()
