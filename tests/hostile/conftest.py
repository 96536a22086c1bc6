"""Executors that promise to keep jobs apart. One joins the suite with a row in ROWS."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

import engines
from container_images import OneImage
from runner import Runner
from runstead.executors.docker import DockerExecutor, DockerSettings
from runstead.executors.interface import Capabilities, Executor
from runstead.executors.native import NativeSettings
from runstead.executors.oci import OciExecutor, OciSettings, problem
from runstead.executors.process import ProcessExecutor
from runstead.model.launches import AttemptState

_LOG_LIMIT = 8 << 20
_SETTINGS = NativeSettings(grace_seconds=1.0, pids_limit=200, log_limit_bytes=_LOG_LIMIT)


def _process(data_dir: Path) -> Executor:
    return ProcessExecutor(data_dir, _SETTINGS, lambda _kind, _job_id: None)


def _oci(data_dir: Path) -> Executor:
    return OciExecutor(data_dir, OciSettings(_SETTINGS), OneImage(), lambda _kind, _job_id: None)


def _runtime(name: Literal["crun", "runc", "runsc"]) -> Callable[[Path], Executor]:
    def build(data_dir: Path) -> Executor:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        return OciExecutor(data_dir, OciSettings(_SETTINGS, runtime=name), OneImage(), lambda _kind, _job_id: None)

    return build


def _docker(data_dir: Path) -> Executor:
    settings = replace(_SETTINGS, network="none")
    found = DockerSettings(settings, socket=Path(os.environ[engines.SOCKET]), ulimits=engines.ULIMITS)
    return DockerExecutor(data_dir, found, lambda _kind, _job_id: None)


ROWS: dict[str, Callable[[Path], Executor]] = {
    "process": _process,
    "oci": _oci,
    "crun": _runtime("crun"),
    "runc": _runtime("runc"),
    "runsc": _runtime("runsc"),
    "docker": _docker,
}


@dataclass
class Prison(Runner):
    """A runner over an executor that keeps jobs apart, on a machine whose traces of jobs are counted."""

    data_dir: Path = field(default_factory=Path)
    capabilities: Capabilities | None = None
    log_limit_bytes: int = _LOG_LIMIT
    name: str = ""

    @property
    def first_is_ours(self) -> bool:
        """Whether the first process of a job is ours; what a job does to its own is its own business."""
        return self.name in ("process", "oci")

    @property
    def own_kernel(self) -> bool:
        """Whether a job has a kernel of its own: gVisor's, which is a process like others and ends like them."""
        return self.name == "runsc"

    async def responsive(self) -> None:
        """Another owner's job starts and ends in a reasonable time, whatever the hostile one does meanwhile."""
        async with asyncio.timeout(15):
            code, lines = await self.shell("echo fine", namespace="bob")
        assert (code, lines) == (0, ["fine"])


# `RUNSTEAD_TEST_HOSTILE=all` has these rows, too.
_ON_DEMAND = {"runc": "made and entered as by crun", "runsc": "how its kernel ends in a bomb depends on its release"}


@pytest.fixture(params=ROWS)
async def prison(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Prison]:
    if (lacking := problem()) is not None:
        pytest.skip(f"nothing here promises to keep jobs apart: {lacking}")
    if request.param in _ON_DEMAND and os.environ.get("RUNSTEAD_TEST_HOSTILE") != "all":
        pytest.skip(f"{_ON_DEMAND[request.param]}; RUNSTEAD_TEST_HOSTILE=all runs it")
    if request.param == "docker":
        request.getfixturevalue("engine")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "runstead.db").write_text("precious")
    executor = ROWS[request.param](data_dir)
    made = Prison(tmp_path, executor, data_dir=data_dir, capabilities=await executor.open(), name=request.param)
    assert made.capabilities is not None
    yield made
    for handle in made.started:
        await executor.remove(handle)
        assert await made.state(handle) is AttemptState.LOST
    assert await executor.owned() == []
    assert not list(data_dir.glob("node/attempts/*"))
    await executor.close()
    assert (data_dir / "runstead.db").read_text() == "precious"
    async with asyncio.timeout(10):
        while left := _processes(str(data_dir)) | _mounts(made.capabilities.instance, str(tmp_path)):
            await asyncio.sleep(0.05)
    assert not left


def _mounts(*marks: str) -> set[str]:
    """Return what is mounted that could be ours."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[4] for line in lines if any(mark in line for mark in marks)}


def _processes(text: str) -> set[str]:
    found: set[str] = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.add(path.parent.name)
        except OSError:
            continue
    return found
