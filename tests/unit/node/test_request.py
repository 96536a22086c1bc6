"""What travels to the launcher arrives as it was."""

import socket

import pytest

from runstead.node import framing
from runstead.node.request import Container, EngineContainer, Request, View


def _view() -> View:
    return View(
        trees=["/usr"],
        links=[["/bin", "usr/bin"]],
        hidden=[],
        binds=[],
        files=[],
        sys=[],
        python="/usr/bin/python3",
        python_version="3.11.7",
        pip_paths=[],
        path="/usr/bin",
        environment={},
    )


def _container() -> Container:
    return Container(
        layers=["/images/layers/a"],
        environment={"A": "ü"},
        passed={},
        working_dir="/srv",
        user="1000:1000",
        files=[["/etc/hosts", "x"]],
        binds=[],
        devices=[["/dev/nvidia0", "/dev/nvidia0"]],
        links=[],
        libraries=[],
        shared_memory_bytes=1,
        disk=None,
        private_ids=True,
        filtered=True,
        runtime="",
    )


def _request(view: View | None, container: Container | None) -> Request:
    return Request(
        job_id="a" * 24,
        attempt=1,
        namespace="alice",
        argv=["echo", "ü \udcff\n", ""],
        environment={"TOKEN": "s\udc80"},
        cpu_millicores=1,
        memory_bytes=2,
        pids_limit=3,
        devices=[],
        gpu_ids=["0"],
        timeout_seconds=4,
        grace_seconds=5,
        log_path="/x",
        log_not_before=6,
        log_limit_bytes=7,
        preamble=["p"],
        isolation="root",
        network=None,
        address=None,
        hosts=[["192.0.2.1", "example.org"]],
        mounts=[["/node/0", "/data", "rw"]],
        cgroups=[["v2", "/x"]],
        view=view,
        container=container,
    )


@pytest.mark.parametrize(("view", "container"), [(_view(), None), (None, _container())])
def test_a_request_survives_the_journey(view: View | None, container: Container | None) -> None:
    sent = _request(view, container)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(framing.encode(sent.to_message()))
        message = framing.receive(theirs)
    assert message is not None
    assert message["op"] == "start"
    assert Request.from_message(message).to_message() == sent.to_message()


def test_what_an_engine_is_asked_survives_the_journey() -> None:
    sent = _request(None, None)
    sent.engine = EngineContainer(
        socket="/run/docker.sock",
        name="runstead-1-a-1",
        instance="1",
        image="sha256:0",
        network="none",
        environment={"A": "1"},
        binds=["/etc/ssl"],
        shared_memory_bytes=1,
        ulimits=[["nofile", 1, 2]],
        entered=True,
        machine="amd64",
        gpus={},
    )
    message = framing.decode(framing.encode(sent.to_message())[4:])
    assert Request.from_message(message).to_message() == sent.to_message()


def test_half_a_message_is_none() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(framing.encode({"a": "b"})[:-1])
        assert framing.receive(theirs) is None


def test_small_files_tell_of_the_attempt() -> None:
    request = _request(_view(), None)
    assert request.fill("@address@ @hostname@\n@hosts@.") == f"127.0.1.1 {'a' * 24}\n192.0.2.1 example.org\n."
