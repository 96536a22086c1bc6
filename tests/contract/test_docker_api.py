"""Containers that are reached by their engine's API alone, as where the engine is in a virtual machine: podman's here.

What holds for every way in is in the suites of the inside, which have a row of this kind.
"""

import asyncio
import errno
import io
import os
import signal
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import engines
from engines import RunningEngine
from registry import busybox_archive
from runner import Runner
from runstead.cli import machine_checks
from runstead.executors.docker import DockerExecutor, DockerSettings
from runstead.executors.inside import Inside
from runstead.executors.interface import Shortfall
from runstead.executors.native import NativeSettings
from runstead.executors.shell.ports import listening
from runstead.kit.settings import Settings
from runstead.model.errors import Invalid, Unsupported
from runstead.model.executions import Command, Ended
from runstead.model.launches import ExitReason

_IMAGE = "localhost/small:1"


@pytest.fixture(scope="module")
def engine() -> Iterator[RunningEngine]:
    with engines.podman() as running:
        running.load(busybox_archive(), _IMAGE, "WORKDIR /tmp")
        yield running


def _executor(folder: Path, socket: Path, network: str = "none") -> DockerExecutor:
    native = NativeSettings(network=network, grace_seconds=1.0)
    settings = DockerSettings(native, socket=socket, ulimits=engines.ULIMITS, by_api=True)
    return DockerExecutor(folder / "data", settings, lambda _kind, _job_id: None)


@pytest.fixture
async def runner(engine: RunningEngine, tmp_path: Path) -> AsyncIterator[Runner]:
    executor = _executor(tmp_path, engine.socket)
    await executor.open()
    made = Runner(tmp_path, executor)
    yield made
    for handle in made.started:
        await executor.remove(handle)
    await executor.close()
    assert engine.containers() == []


async def _shell(inside: Inside, script: str, **options: object) -> tuple[Ended, bytes]:
    execution = await inside.execute(Command(("sh", "-c", script), **options))
    said = b""
    while (piece := await execution.read()) is not None:
        said += piece.data
    ended = await execution.wait()
    await execution.close()
    return ended, said


async def test_busybox_is_enough(runner: Runner) -> None:
    handle = await runner.start(runner.launch(image=_IMAGE))
    inside = await runner.executor.inside(handle)
    ended, said = await _shell(inside, 'pwd; id -u; echo "$A"; exit 3', environment={"A": "b c"}, user="user")
    assert (ended, said) == (Ended(3, None), b"/tmp\n1000\nb c\n")
    data = os.urandom(200_000)
    file = await inside.open_file("new/file", write=True, parents=True, mode=0o600)
    await file.write(100_001, data[100_001:])  # no round offset, and not from the beginning
    await file.write(0, data[:100_001])
    await file.close()
    file = await inside.open_file("new/file")
    assert await file.size() == len(data)
    assert await file.read(7, len(data)) == data[7:]
    await file.close()
    with pytest.raises(OSError) as caught:
        await file.read(0, 1)
    assert caught.value.errno == errno.EBADF
    entry = await inside.stat("new/file")
    assert (entry.path, entry.kind, entry.size_bytes, entry.mode) == ("/tmp/new/file", "file", len(data), 0o600)
    assert [one.name for one in await inside.list_folder("/tmp/new", None, 10)] == ["file"]
    started = await inside.spawn(Command(("sleep", "60")), "tag")
    assert [(one.id, one.pid, one.tag, one.ended) for one in await inside.background()] == [
        (0, started.pid, "tag", None)
    ]
    assert await inside.kill(started.id)
    assert [one.ended for one in await inside.background()] == [Ended(None, signal.SIGKILL)]
    ended, _ = await _shell(inside, "sleep 60 & sleep 60", timeout_seconds=0.2)
    assert ended == Ended(None, signal.SIGKILL, timed_out=True)
    async with asyncio.timeout(60):  # what stood by the one in the background takes a moment to note its end
        while b"sleep" in (await _shell(inside, "cat /proc/[0-9]*/comm"))[1]:
            await asyncio.sleep(0.05)
    await runner.executor.stop(handle, 10)
    assert (await runner.ended(handle)).reason is ExitReason.STOPPED


async def test_a_port_is_reached_by_a_program_of_the_image(runner: Runner) -> None:
    inside = await runner.executor.inside(await runner.start(runner.launch(image=_IMAGE)))
    with pytest.raises(ConnectionRefusedError):
        await inside.connect(8000)
    await inside.spawn(Command(("nc", "-ll", "-p", "8000", "-e", "cat")))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        while True:
            try:
                connection = await inside.connect(8000)
            except ConnectionRefusedError:  # it does not listen yet
                await asyncio.sleep(0.05)
            else:
                break
    with connection:
        for word in (b"one", bytes(range(256)) * 100):
            await loop.sock_sendall(connection, word)
            said = b""
            while len(said) < len(word):
                said += await loop.sock_recv(connection, 65536)
            assert said == word


def test_what_listens_is_read_from_the_kernels_tables() -> None:
    table = (
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:1F90 00000000:0000 0A x\n   1: 0200590A:1F90 00000000:0000 0A x\n"
        "   2: 00000000:1F91 00000000:0000 0A x\n   3: 0100007F:1F92 0100007F:1F90 01 x\n"
        "   4: 00000000000000000000000000000000:1F93 00000000000000000000000000000000:0000 0A x\n   5: odd\n"
        "   6: 0000000000000000FFFF00000100007F:1F94 00000000000000000000000000000000:0000 0A x\n"
    )
    assert list(listening(table, 8080)) == ["127.0.0.1", "10.89.0.2"]
    assert [list(listening(table, port)) for port in (8081, 8082, 8083, 8084)] == [
        ["127.0.0.1"],
        [],
        ["::1"],
        ["127.0.0.1"],
    ]


async def test_what_cannot_be_had_says_why(engine: RunningEngine, runner: Runner) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("data"))
    engine.load(archive.getvalue(), "localhost/bare:1")
    bare = await runner.executor.inside(await runner.start(runner.launch(image="localhost/bare:1")))
    for way in (lambda: bare.execute(Command(("true",))), lambda: bare.stat("/data"), bare.background):
        with pytest.raises(Unsupported, match="the image has no shell"):
            await way()
    inside = await runner.executor.inside(await runner.start(runner.launch(image=_IMAGE)))
    for command, words in (
        (Command(("no-such-program",)), "no-such-program"),
        (Command(("true",), folder="/no/such"), "/no/such"),
        (Command(("true",), user="nobody-here"), "nobody-here"),
        (Command(("true", "\udcff")), "UTF-8"),
        (Command(("true",), environment={"a-b": "c"}), "a-b"),
    ):
        for way in (inside.execute, inside.spawn):
            with pytest.raises(Invalid, match=words):
                await way(command)
    assert await inside.background() == []


_SERVER = """
import asyncio, importlib.util, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent.parent))
from contract import test_docker_api as suite
from runstead.model.executions import Command
async def main():
    executor = suite._executor(Path(sys.argv[2]), Path(sys.argv[3]))
    await executor.open()
    [[_, _, handle]] = await executor.owned()
    inside = await executor.inside(handle)
    running = await inside.execute(Command(("sh", "-c", "setsid sleep 91.1 & exec sleep 91.2")))
    await inside.spawn(Command(("sleep", "91.3")))
    print("ready", flush=True)
    await running.read()
asyncio.run(main())
"""


async def test_what_a_killed_server_attended_to_ends(engine: RunningEngine, runner: Runner) -> None:
    inside = await runner.executor.inside(await runner.start(runner.launch(image=_IMAGE)))
    arguments = [__file__, str(runner.folder), str(engine.socket)]
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVER, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert await server.stdout.readline() == b"ready\n"
    # Those that are `sleep` by now, not the shells whose lines have the word, too.
    found = "grep -la '^sleep.91' /proc/[0-9]*/cmdline 2>/dev/null"
    async with asyncio.timeout(60):
        await _shell(inside, f"until [ $({found} | wc -l) = 3 ]; do sleep 0.1; done")
        server.kill()
        await server.wait()
        left = f"until [ $({found} | wc -l) = 1 ]; do sleep 0.1; done; cat $({found}) | tr '\\0' ' '"
        assert (await _shell(inside, left))[1] == b"sleep 91.3 "
    assert [one.ended for one in await inside.background()] == [None]


@pytest.mark.parametrize("network", ["none", "auto"])
async def test_what_is_less_than_elsewhere_is_told(engine: RunningEngine, tmp_path: Path, network: str) -> None:
    executor = _executor(tmp_path, engine.socket, network)
    told = (await executor.open()).shortfalls
    await executor.close()
    assert frozenset(Shortfall) - told == (frozenset() if network == "auto" else {Shortfall.SHARED_BRIDGE})


def test_doctor_tells_of_it(engine: RunningEngine, tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {
            "server": {"data_dir": tmp_path},
            "executor": {"kind": "docker"},
            "docker": {"socket": engine.socket, "by_api": True},
        }
    )
    told = [finding.text for finding in machine_checks.executor(settings)]
    assert {one.value for one in Shortfall} <= set(told)
    assert "can be forked (`runstead sandbox fork`)" in told
