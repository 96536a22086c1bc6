"""What the last word says of what an engine tells; not every engine of a test notices a lack of memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from runstead.node import rundir
from runstead.node.engine_supervisor import EngineSupervisor
from runstead.node.request import ENGINE, EngineContainer, Request


@pytest.mark.parametrize(
    ("asked", "state", "reason", "number", "words"),
    [
        (None, {"ExitCode": 0}, "exited", None, None),
        (None, {"ExitCode": 137, "OOMKilled": True}, "oom", None, "more than its 64 MiB"),
        (None, {"ExitCode": 137, "OOMKilled": False}, "exited", None, "most likely"),
        (None, {"ExitCode": 0, "OOMKilled": True}, "exited", None, None),  # a child was killed, and it coped
        ("stopped", {"ExitCode": 137, "OOMKilled": False}, "stopped", 9, None),
        ("timeout", {"ExitCode": 143}, "timeout", 15, None),
        ("timeout", {"ExitCode": 3}, "timeout", None, None),
        (None, {}, "exited", None, "removed by somebody else"),
    ],
)
def test_the_last_word(
    tmp_path: Path, asked: str | None, state: dict[str, Any], reason: str, number: int | None, words: str | None
) -> None:
    supervisor, path = _supervisor(tmp_path)
    supervisor._reason, supervisor._state = asked, state
    supervisor._finish()
    record = json.loads((path / rundir.EXIT).read_text())
    assert (record["reason"], record["signal"]) == (reason, number)
    assert record["message"] is None if words is None else words in record["message"]


def test_what_the_engine_is_asked_for(tmp_path: Path) -> None:
    supervisor, _ = _supervisor(tmp_path)
    body = supervisor._wanted(init=True)
    assert (body["Image"], body["Entrypoint"], body["Cmd"]) == ("x", ["x"], [])
    host = body["HostConfig"]
    assert host["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]
    assert (host["Memory"], host["MemorySwap"], host["NetworkMode"]) == (64 << 20, 64 << 20, "none")
    assert (host["SecurityOpt"], host["CapDrop"]) == (["no-new-privileges"], ["NET_RAW"])


def _supervisor(tmp_path: Path) -> tuple[EngineSupervisor, Path]:
    container = EngineContainer(
        socket=str(tmp_path / "none.sock"),
        name="x",
        instance="1",
        image="x",
        network="none",
        environment={},
        binds=[],
        shared_memory_bytes=1,
        ulimits=[],
        entered=True,
        machine="amd64",
        gpus={"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]},
    )
    request = Request(
        job_id="a" * 24,
        attempt=1,
        namespace="alice",
        argv=["x"],
        environment={},
        cpu_millicores=0,
        memory_bytes=64 << 20,
        pids_limit=0,
        devices=[],
        gpu_ids=[],
        timeout_seconds=1,
        grace_seconds=1,
        log_path=str(tmp_path / "log"),
        log_not_before=0,
        log_limit_bytes=1 << 20,
        preamble=[],
        isolation=ENGINE,
        network=None,
        address=None,
        hosts=[],
        cgroups=[],
        mounts=[],
        view=None,
        container=None,
        engine=container,
    )
    parent = tmp_path / "node" / "attempts"
    parent.mkdir(parents=True)
    lock = rundir.create(str(parent), "a-1", {})
    assert lock is not None
    return EngineSupervisor(request, str(tmp_path), str(parent / "a-1"), lock, None), parent / "a-1"
