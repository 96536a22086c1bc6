"""What jobs may reach when that is listed, tried against an outside of our own: a network namespace behind a link."""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from container_images import OneImage
from runner import Runner
from runstead.executors.interface import Executor
from runstead.executors.native import NativeSettings
from runstead.executors.oci import OciExecutor, OciSettings, problem
from runstead.executors.process import ProcessExecutor
from runstead.model.errors import Unavailable

_LISTEN = """
import select, socket, sys
listeners = [socket.create_server(("0.0.0.0", port)) for port in (8001, 8002)]
print("ready", flush=True)
while True:
    for listener in select.select(listeners, [], [])[0]:
        listener.accept()[0].close()
"""
_TRY = """
import socket, sys
for target in sys.argv[1:]:
    host, _, port = target.partition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
        print(target, "yes")
    except OSError:
        print(target, "no")
"""


def _process(data_dir: Path, settings: NativeSettings) -> Executor:
    return ProcessExecutor(data_dir, settings, lambda _kind, _job_id: None)


def _oci(data_dir: Path, settings: NativeSettings) -> Executor:
    return OciExecutor(data_dir, OciSettings(settings), OneImage(), lambda _kind, _job_id: None)


def _crun(data_dir: Path, settings: NativeSettings) -> Executor:
    if shutil.which("crun") is None:
        pytest.skip("crun is not installed")
    return OciExecutor(data_dir, OciSettings(settings, runtime="crun"), OneImage(), lambda _kind, _job_id: None)


ROWS: dict[str, Callable[[Path, NativeSettings], Executor]] = {"process": _process, "oci": _oci, "crun": _crun}


@pytest.fixture(scope="module")
def outside() -> Iterator[tuple[str, str]]:
    """Two addresses beyond this machine, on which ports 8001 and 8002 are open."""
    if os.geteuid() != 0 or shutil.which("ip") is None or problem() is not None:
        pytest.skip("needs root and iproute2")
    name, near = f"rsout{os.getpid()}", f"rso{os.getpid()}"[:15]
    first = 8 * (os.getpid() % 8000)
    base = f"198.19.{first >> 8}.{{}}"
    addresses = [base.format((first & 255) + last) for last in (1, 2, 3)]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in (
            f"link add {near} type veth peer name eth0 netns {name}",
            f"addr add {addresses[0]}/29 dev {near}",
            f"link set {near} up",
            f"-n {name} addr add {addresses[1]}/29 dev eth0",
            f"-n {name} addr add {addresses[2]}/29 dev eth0",
            f"-n {name} link set eth0 up",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        listening = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", _LISTEN], stdout=subprocess.PIPE, text=True
        )
        assert listening.stdout is not None
        assert listening.stdout.readline() == "ready\n"
        yield addresses[1], addresses[2]
        listening.kill()
        listening.wait()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


async def _reached(executor: Executor, folder: Path, *targets: str) -> dict[str, str]:
    _, lines = await Runner(folder, executor).python(_TRY, *targets)
    return dict(line.rsplit(" ", 1) for line in lines)


@pytest.fixture(params=ROWS)
async def build(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[..., Executor]]:
    made: list[Executor] = []

    def build(**settings: object) -> Executor:
        data_dir = tmp_path / f"data{len(made)}"
        data_dir.mkdir()
        made.append(ROWS[request.param](data_dir, NativeSettings(**settings)))
        return made[-1]

    yield build
    for executor in made:
        await executor.close()


async def test_what_is_listed_is_reached_and_nothing_else(
    build: Callable[..., Executor], outside: tuple[str, str], tmp_path: Path
) -> None:
    one, two = outside
    targets = [f"{address}:{port}" for address in outside for port in (8001, 8002)]
    everywhere = build()
    await everywhere.open()
    assert await _reached(everywhere, tmp_path, *targets) == dict.fromkeys(targets, "yes")
    bounded = build(egress=(f"{one}:8001", f"{two}/32", "no-such-name.invalid:443"))
    capabilities = await bounded.open()
    assert any("no-such-name.invalid" in text for text in capabilities.missing)
    assert await _reached(bounded, tmp_path, *targets) == {
        f"{one}:8001": "yes",
        f"{one}:8002": "no",
        f"{two}:8001": "yes",
        f"{two}:8002": "yes",
    }
    other = build(egress=("192.0.2.0/24",))
    await other.open()
    assert await _reached(other, tmp_path, *targets) == dict.fromkeys(targets, "no")


async def test_jobs_without_a_network_reach_nothing(
    build: Callable[..., Executor], outside: tuple[str, str], tmp_path: Path
) -> None:
    lonely = build(network="none")
    await lonely.open()
    assert await _reached(lonely, tmp_path, f"{outside[0]}:8001", "127.0.0.1:1") == {
        f"{outside[0]}:8001": "no",
        "127.0.0.1:1": "no",
    }


async def test_a_list_that_cannot_be_kept_is_refused(build: Callable[..., Executor]) -> None:
    with pytest.raises(Unavailable, match="egress"):
        await build(egress=("10.0.0.0/8",), network="host").open()


async def test_one_job_may_be_kept_closer_than_the_others(
    build: Callable[..., Executor], outside: tuple[str, str], tmp_path: Path
) -> None:
    one, two = outside
    targets = [f"{address}:{port}" for address in outside for port in (8001, 8002)]
    executor = build(egress=(f"{one}/32", f"{two}:8001"))
    assert (await executor.open()).egress
    runner = Runner(tmp_path, executor)

    async def reached(*listed: str) -> list[str]:
        launch = runner.launch("python3", "-c", _TRY, *targets, egress=listed)
        _, lines = await runner.run(launch)
        return [line.split()[0] for line in lines if line.endswith(" yes")]

    assert await reached(f"{one}:8002", f"{two}/32") == [f"{one}:8002", f"{two}:8001"]  # what both lists allow
    assert await reached() == []
    with pytest.raises(Unavailable, match="no-such-name"):
        await executor.start(runner.launch("true", egress=("no-such-name.invalid:443",)))
    assert await executor.owned() == []
    assert await _reached(executor, tmp_path, f"{one}:8001", f"{two}:8001") == {
        f"{one}:8001": "yes",
        f"{two}:8001": "yes",
    }


async def test_the_jobs_own_root_cannot_lift_its_limits(
    build: Callable[..., Executor], outside: tuple[str, str], tmp_path: Path
) -> None:
    executor = build()
    await executor.open()
    runner = Runner(tmp_path, executor)
    script = f"""
import ctypes, socket, subprocess
for words in (["nft", "flush", "ruleset"], ["iptables", "-F"], ["ip", "netns", "exec", "x", "true"]):
    try:
        subprocess.run(words, capture_output=True)
    except OSError:
        pass
try:
    socket.socket(16, 3, 12).send(b"x" * 20)
except OSError:
    pass
try:
    socket.create_connection(({outside[0]!r}, 8001), 2)
    print("reached")
except OSError:
    print("not reached")
here = socket.create_server(("127.0.0.1", 0))
socket.create_connection(here.getsockname(), 2)
print("loopback")
"""
    _, lines = await runner.run(runner.launch("python3", "-c", script, egress=()))
    assert lines == ["not reached", "loopback"]
