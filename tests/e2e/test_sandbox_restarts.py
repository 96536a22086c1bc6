"""Sandboxes live on when the server dies in the middle of what it does for them, and nothing of that is left over."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandboxes
from calls import Api
from clients import eventually, make_client
from faults import QuickServer
from sandboxes import RawSandbox


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[QuickServer]:
    started = QuickServer(tmp_path / "data", ("--executor", "process")).start()
    yield started
    started.stop()


def running(box: RawSandbox) -> str:
    return box.shell("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")


def told_no_end(events: Iterator[dict[str, Any]]) -> bool:
    """Read the rest of a command's events; say whether there was none that says how it ended."""
    try:
        return all(event["event"] != "exit" for event in events)
    except (http.client.HTTPException, OSError):
        return True


def ready(box: RawSandbox) -> bool:
    return box.call("GET", "~/health").status == 200


def test_a_command_dies_with_the_server_and_the_sandbox_does_not(own_server: QuickServer) -> None:
    box = sandboxes.create(own_server)
    started = box.call("POST", "/processes", {"cmd": ["sleep", "1006"], "tag": "kept"}).json
    box.write("/tmp/kept", b"data")
    events = box.events("echo started; setsid sleep 1007 & exec sleep 1008")
    next(events), next(events)
    own_server.kill()
    assert told_no_end(events)
    own_server.start()
    assert eventually(lambda: ready(box))
    assert box.read("/tmp/kept") == b"data"
    assert [(p["id"], p["pid"], p["tag"]) for p in box.call("GET", "/processes").json if p["running"]] == [
        (started["id"], started["pid"], "kept")
    ]
    assert eventually(lambda: "sleep 1008" not in running(box) and "sleep 1007" not in running(box))
    assert "sleep 1006" in running(box)
    assert box.call("DELETE", f"/processes/{started['id']}").json["killed"] is True
    box.cancel()
    assert Api(own_server).ended(box.id)["status"]["stage"] == "CANCELED"


def test_a_server_that_stops_says_that_the_connection_is_lost(own_server: QuickServer, tmp_path: Path) -> None:
    box = sandboxes.create(own_server)
    events = box.events("echo started; exec sleep 1009")
    next(events), next(events)
    assert own_server.worker is not None
    own_server.worker.terminate()
    assert list(events) == []  # a proper end of the answer, and no exit: clients call it a lost connection
    assert own_server.terminate() == 0
    own_server.start()
    assert eventually(lambda: ready(box))
    assert eventually(lambda: "sleep 1009" not in running(box))


def test_an_upload_is_cut_and_can_be_done_again(own_server: QuickServer) -> None:
    box = sandboxes.create(own_server)
    connection = box.connect()
    connection.putrequest("PUT", box.at("/files/write", {"path": "/tmp/up"}))
    for name, value in {"Authorization": f"Bearer {own_server.token}", "X-Sandbox-Token": box.token}.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(10**7))
    connection.endheaders()
    connection.send(b"x" * 10**6)
    own_server.kill()
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.send(b"x" * 10**6)
        connection.getresponse().read()
        raise http.client.HTTPException
    own_server.start()
    assert eventually(lambda: ready(box))
    data = b"y" * 10**6
    box.write("/tmp/up", data)
    assert box.read("/tmp/up") == data


def test_the_client_connects_again(own_server: QuickServer, tmp_path: Path) -> None:
    client = make_client("2.4.0", own_server, tmp_path)
    sandbox_id = client.python("from huggingface_hub import Sandbox\nout(Sandbox.create().id)")
    own_server.kill()
    own_server.start()
    connect = f"from huggingface_hub import Sandbox\ns = Sandbox.connect({sandbox_id!r})\n"
    assert client.python(connect + "out(s.run('echo here').stdout)") == "here\n"
    client.python(connect + "s.kill()")
    assert Api(own_server).ended(sandbox_id)["status"]["stage"] == "CANCELED"


def test_an_idle_sandbox_completes_and_one_in_use_does_not(own_server: QuickServer) -> None:
    idle, used = sandboxes.create(own_server, idle=2), sandboxes.create(own_server, idle=2)
    used.call("POST", "/processes", {"cmd": ["sleep", "1010"]})
    ended = Api(own_server).ended(idle.id)
    assert (ended["status"]["stage"], ended["status"]["exitCode"]) == ("COMPLETED", 0)
    assert ended["status"]["message"] == "ended: nobody used the sandbox for 2 s, its idle timeout"
    assert Api(own_server).stage(used.id) == "RUNNING"
    gone = idle.call("GET", "/processes")
    assert gone.status in (404, 502) and "over" in gone.json["error"]


def test_the_time_limit_of_the_job_is_the_lifetime(own_server: QuickServer) -> None:
    box = sandboxes.create(own_server, timeoutSeconds=1)
    ended = Api(own_server).ended(box.id)
    assert (ended["status"]["stage"], ended["status"]["failureClass"]) == ("ERROR", "timeout")


def test_nothing_is_left_of_it(own_server: QuickServer) -> None:
    box = sandboxes.create(own_server)
    box.call("POST", "/processes", {"cmd": "setsid sleep 1011 & sleep 1012"})
    box.cancel()
    Api(own_server).ended(box.id)
    attempts = own_server.data_dir / "node" / "attempts"
    assert eventually(lambda: not list(attempts.iterdir()), 5)
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\x00101" in _read(path)]
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
