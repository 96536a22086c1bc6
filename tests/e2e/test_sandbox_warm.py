"""Containers that wait for the next sandbox: who gets them, and that they are in nobody's way."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandboxes
from calls import Api
from clients import Server, eventually
from sandboxes import RawSandbox

# For two of the usual size.
ROOM = {"RUNSTEAD_EXECUTOR_CPU_OVERCOMMIT": "1", "RUNSTEAD_EXECUTOR_CPUS": "4", "RUNSTEAD_EXECUTOR_MEMORY": "64 GB"}
WARM = {"RUNSTEAD_SANDBOX_WARM": "python:3.12=2"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sandboxes.serving("oci", tmp_path_factory, ROOM | WARM) as started:
        yield started


def waiting(server: Server) -> set[str]:
    """The ids of the supervisors of containers that wait."""
    return {path.name for path in (server.data_dir / "node" / "ahead").iterdir()}


def there_are(server: Server, count: int) -> bool:
    return eventually(lambda: len(waiting(server)) == count, 60)


def supervisor_of(box: RawSandbox) -> str:
    facts = (box.server.data_dir / "node" / "attempts" / f"{box.id}-1" / "attempt.json").read_text()
    return facts.partition('"supervisor": ')[2].partition(",")[0]


def test_a_sandbox_gets_one_that_waits_and_another_is_made(server: Server) -> None:
    assert there_are(server, 2)
    before = waiting(server)
    box = sandboxes.create(server, environment={"A": "b"}, secrets={"S": "secret"})
    assert supervisor_of(box) in before
    said = box.shell(
        "hostname; echo $A $S $JOB_ID; grep -c $(hostname) /etc/hosts; touch /x /root/y; id -u; env | wc -l"
    )
    assert said.split()[:6] == [box.id, "b", "secret", box.id, "1", "0"]
    assert box.read("/root/y") == b""
    assert there_are(server, 1)  # no room for more
    box.cancel()
    assert there_are(server, 2) and waiting(server) != before


def test_what_may_be_reached_is_kept_in_one_that_waited(server: Server) -> None:
    assert there_are(server, 2)
    before = waiting(server)
    box = sandboxes.create(server, environment={"RUNSTEAD_EGRESS": "none"})
    assert supervisor_of(box) in before
    send = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))"
    refused = box.shell(f'python3 -c "{send}" 2>&1; true')
    box.cancel()
    assert "Operation not permitted" in refused


def test_jobs_that_need_the_room_have_it(server: Server) -> None:
    assert there_are(server, 2)
    before = waiting(server)
    jobs = [Api(server).submit("sleep", "600")["id"] for _ in range(2)]
    assert all(eventually(lambda one=one: Api(server).stage(one) == "RUNNING", 60) for one in jobs)
    assert there_are(server, 0)
    for one in jobs:
        Api(server).cancel(one)
    assert there_are(server, 2) and not waiting(server) & before


def test_a_job_with_a_command_gets_none(server: Server) -> None:
    assert there_are(server, 2)
    before = waiting(server)
    assert Api(server).ended(Api(server).submit("hostname")["id"])["status"]["stage"] == "COMPLETED"
    assert there_are(server, 2) and waiting(server) == before


def test_one_that_died_is_no_trouble(server: Server) -> None:
    assert there_are(server, 2)
    before = waiting(server)
    for pid in before:
        os.kill(int(pid), signal.SIGKILL)
    box = sandboxes.create(server)
    assert box.shell("echo x") == "x\n"
    assert supervisor_of(box) not in before
    box.cancel()
    assert eventually(lambda: len(waiting(server) - before) == 2, 60)


def test_none_outlives_its_server(server: Server) -> None:
    assert there_are(server, 2)
    before = waiting(server)
    box = sandboxes.create(server)
    box.write("/kept", b"kept")
    server.kill()
    assert eventually(lambda: not any(Path("/proc", pid).exists() for pid in before - {supervisor_of(box)}))
    server.start()
    assert eventually(lambda: box.call("GET", "~/health").status == 200, 60)
    assert box.read("/kept") == b"kept"
    box.cancel()
    assert there_are(server, 2) and not waiting(server) & before
    ready = [path.read_text() for path in Path("/run").glob(f"runstead-{instance(server)}/*.used")]
    assert sorted(ready) == sorted(name for name in ready if name.startswith("ahead-")) and len(ready) == 2


def instance(server: Server) -> str:
    return (server.data_dir / "node" / "instance").read_text()


def test_the_examination_tells_of_them(server: Server) -> None:
    assert there_are(server, 2)
    said = server.run("doctor", "--sandbox-warm", "python:3.12=2", "--executor", "oci", check=False).stdout
    assert "2 of 2 containers wait for sandboxes" in said
    said = server.run("doctor", "--sandbox-warm", "python:3.12=2", "--executor", "process", check=False).stdout
    assert "can be prepared ahead" in said
