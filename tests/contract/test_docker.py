"""What only the docker executor has: an engine beside it, that keeps the images and may go away."""

import asyncio
import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import engines
from engines import RunningEngine
from registry import build, busybox_archive, registry
from runner import Runner
from runstead.executors import snapshots
from runstead.executors.docker import DockerExecutor, DockerSettings, find_socket
from runstead.executors.interface import Shortfall
from runstead.executors.native import NativeSettings
from runstead.executors.shell.inside import ShellInside
from runstead.model.errors import BackendFailure, ImageFailure, Invalid, NotRunning, Unavailable, Unsupported
from runstead.model.executions import Command
from runstead.model.launches import AttemptState, ExitReason, Handle
from runstead.model.volumes import Mount
from runstead.node.engine import INSTANCE, Engine, EngineError

_IMAGE = "localhost/small:1"


@pytest.fixture(scope="module")
def engine() -> Iterator[RunningEngine]:
    with engines.podman() as running:
        running.load(busybox_archive(), _IMAGE, "ENV FROM_IMAGE=1", "WORKDIR /tmp", 'ENTRYPOINT ["false"]')
        yield running


def _executor(folder: Path, engine: RunningEngine, network: str = "none", **changes: object) -> DockerExecutor:
    settings = DockerSettings(
        NativeSettings(network=network, grace_seconds=1.0), socket=engine.socket, ulimits=engines.ULIMITS, **changes
    )
    return DockerExecutor(folder / "data", settings, lambda _kind, _job_id: None)


@pytest.fixture
async def runner(engine: RunningEngine, tmp_path: Path) -> AsyncIterator[Runner]:
    executor = _executor(tmp_path, engine)
    await executor.open()
    made = Runner(tmp_path, executor)
    yield made
    for handle in made.started:
        await executor.remove(handle)
    assert await executor.owned() == []
    await executor.close()
    assert engine.containers() == []


async def test_the_image_says_what_surrounds_the_command(runner: Runner) -> None:
    script = "pwd; echo $FROM_IMAGE $MINE; id -u; hostname; ls /proc | grep -c '^[0-9]'; cat /sys/class/net/*/address"
    launch = runner.launch("sh", "-c", script, image=_IMAGE, environment={"MINE": "a b\nc"})
    record, lines = await runner.run(launch)
    assert record.exit_code == 0
    assert lines[:4] == ["/tmp", "1 a b c", "0", launch.job_id]
    assert int(lines[4]) < 8
    assert lines[5:] == ["00:00:00:00:00:00"]


async def test_output_is_whole_lines_of_both_streams(runner: Runner) -> None:
    script = (
        "printf 'no line '; i=0; while [ $i -lt 2000 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done; printf end"
    )
    record, lines = await runner.shell_record(script, image=_IMAGE, preamble=("first",))
    assert record.exit_code == 0
    assert lines[0] == "first"
    assert [line for line in lines if line.startswith("err")] == [f"err{i}" for i in range(2000)]
    assert [line for line in lines[1:] if not line.startswith("err")] == [
        "no line out0",
        *(f"out{i}" for i in range(1, 2000)),
        "end",
    ]


async def test_a_long_line_and_any_bytes_are_kept(runner: Runner) -> None:
    record, lines = await runner.shell_record(
        "head -c 3000000 /dev/zero | tr '\\0' x; echo; printf '\\377\\n'", image=_IMAGE
    )
    assert record.exit_code == 0
    assert len("".join(lines[:-1])) == 3_000_000
    assert lines[-1] == "\N{REPLACEMENT CHARACTER}"


async def test_limits_are_the_containers(runner: Runner, engine: RunningEngine) -> None:
    launch = runner.launch("sleep", "60", image=_IMAGE, cpu_millicores=500, memory_bytes=64 << 20)
    handle = await runner.start(launch)
    [name] = engine.containers()
    limits = engine.api.call("GET", f"/containers/{name}/json")["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"], limits["NanoCpus"]) == (64 << 20, 64 << 20, 500_000_000)
    assert limits["PidsLimit"] == NativeSettings().pids_limit
    assert limits["SecurityOpt"] == ["no-new-privileges"]
    usage = await runner.executor.usage(handle)
    assert usage is not None
    assert 0 < usage.memory_used_bytes < 64 << 20
    assert usage.cpu_seconds > 0


async def test_a_job_cannot_have_more_memory_than_its_flavor(runner: Runner) -> None:
    script = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo survived"
    record, lines = await runner.shell_record(script, image=_IMAGE, memory_bytes=64 << 20)
    assert "survived" not in lines
    assert (record.reason, record.exit_code) == (ExitReason.OOM, 137)
    assert "64 MiB" in (record.message or "")


async def test_volumes_are_bound(runner: Runner, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "text").write_text("there")
    mounts = (Mount(tmp_path / "in", "/in: a", read_only=True), Mount(tmp_path / "out", "/out", read_only=False))
    script = "cat '/in: a/text'; touch '/in: a/x' && echo bad; echo made > /out/file"
    record, lines = await runner.shell_record(script, image=_IMAGE, mounts=mounts)
    assert record.exit_code == 0, lines
    assert "there" in lines
    assert "bad" not in lines
    assert (tmp_path / "out" / "file").read_text() == "made\n"


async def test_the_machines_network(engine: RunningEngine, tmp_path: Path) -> None:
    executor = _executor(tmp_path, engine, "host")
    capabilities = await executor.open()
    assert (capabilities.private_network, capabilities.host_address) == (False, "127.0.0.1")
    code, lines = await Runner(tmp_path, executor).shell("readlink /proc/self/ns/net", image=_IMAGE)
    await executor.close()
    assert (code, lines) == (0, [os.readlink("/proc/self/ns/net")])


@pytest.mark.parametrize("other", [{"DefaultRuntime": "runsc"}, {"KernelVersion": "5.15.49-linuxkit"}, {"Name": "vm2"}])
async def test_containers_that_are_no_processes_of_this_machine_are_not_entered(
    engine: RunningEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    executor = _executor(tmp_path, engine)
    ask = Engine.call

    def answer(self: Engine, method: str, path: str, **more: object) -> object:
        found = ask(self, method, path, **more)
        return {**found, **other} if path == "/info" else found

    monkeypatch.setattr(Engine, "call", answer)
    capabilities = await executor.open()
    assert (capabilities.inside, capabilities.ports) == (True, True)
    assert Shortfall.IMAGE_PROGRAMS in capabilities.shortfalls
    runner = Runner(tmp_path, executor)
    handle = await runner.start(runner.launch("sleep", "60", image=_IMAGE))
    assert isinstance(await executor.inside(handle), ShellInside)
    await executor.remove(handle)
    await executor.close()


async def test_what_is_done_inside_has_the_limits_and_rights_of_the_container(runner: Runner) -> None:
    show = "grep -E 'Cap|NoNew|Seccomp:' /proc/self/status; cut -d: -f2- /proc/self/cgroup; ulimit -n; ulimit -u; env"
    handle = await runner.start(
        launch := runner.launch(
            "sh", "-c", f"{show}; echo; sleep 60", image=_IMAGE, environment={"MINE": "1"}, memory_bytes=64 << 20
        )
    )
    await runner.line(launch, "")
    execution = await (await runner.executor.inside(handle)).execute(Command(("sh", "-c", show)))
    said = b""
    while (piece := await execution.read()) is not None:
        said += piece.data
    await execution.close()
    theirs = runner.lines(launch)[:-1]
    differs = {"SHLVL=1", "_=/bin/env"}
    assert set(said.decode().splitlines()) ^ set(theirs) <= differs


async def test_an_image_without_any_program_can_be_entered(engine: RunningEngine, runner: Runner) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("data"))
    engine.load(archive.getvalue(), "localhost/bare:1", "USER 1234:4321")
    handle = await runner.start(runner.launch(image="localhost/bare:1"))
    inside = await runner.executor.inside(handle)
    assert [entry.name for entry in await inside.list_folder("/", None, 100) if entry.kind == "file"] == [
        ".runstead-pause",
        "data",
    ]
    with pytest.raises(Invalid, match="no such program"):
        await inside.execute(Command(("sh",)))
    await runner.executor.stop(handle, 10)
    assert (await runner.ended(handle)).reason is ExitReason.STOPPED


async def test_the_inside_while_the_engine_is_away(engine: RunningEngine, runner: Runner) -> None:
    handle = await runner.start(runner.launch(image=_IMAGE))
    inside = await runner.executor.inside(handle)
    await asyncio.to_thread(engine.stop)
    execution = await inside.execute(Command(("sh", "-c", "exit 7")))
    assert (await execution.wait()).exit_code == 7
    await execution.close()
    await asyncio.to_thread(engine.start)


async def test_what_a_killed_supervisor_left_is_found_and_removed(runner: Runner, engine: RunningEngine) -> None:
    handle = await runner.start(runner.launch("sleep", "60", image=_IMAGE))
    [(_, _, found)] = await runner.executor.owned()
    assert found == handle
    facts = runner.folder / f"data/node/attempts/{handle.data['job_id']}-1/attempt.json"
    supervisor = json.loads(facts.read_text())["supervisor"]
    os.kill(supervisor, signal.SIGKILL)
    async with asyncio.timeout(10):
        while await runner.state(handle) is AttemptState.RUNNING:
            await asyncio.sleep(0.01)
    assert await runner.state(handle) is AttemptState.LOST
    assert len(engine.containers()) == 1
    shutil.rmtree(facts.parent)  # as when a server dies between giving back the one and the other
    [(_, _, left)] = await runner.executor.owned()
    assert left == handle
    await runner.executor.remove(left)
    assert engine.containers() == []


async def test_a_container_that_others_remove_ends_the_attempt(runner: Runner, engine: RunningEngine) -> None:
    handle = await runner.start(runner.launch("sleep", "60", image=_IMAGE))
    engine.api.remove(engine.containers()[0])
    record = await runner.ended(handle)
    assert (record.reason, record.exit_code) == (ExitReason.EXITED, 137)


async def test_the_engine_may_be_restarted_while_a_job_runs(runner: Runner, engine: RunningEngine) -> None:
    script = "echo one; while [ ! -e /go/now ]; do sleep 0.1; done; echo two; sleep 1.5; echo three; exit 4"
    go = runner.folder / "go"
    go.mkdir()
    mounts = (Mount(go, "/go", read_only=True),)
    launch = runner.launch("sh", "-c", script, image=_IMAGE, mounts=mounts)
    handle = await runner.start(launch)
    await runner.line(launch, "one")
    await asyncio.to_thread(engine.stop)
    assert await runner.state(handle) is AttemptState.RUNNING
    await asyncio.to_thread(engine.start)
    (go / "now").touch()
    record = await runner.ended(handle)
    assert (record.reason, record.exit_code) == (ExitReason.EXITED, 4)
    assert runner.lines(launch)[-1] == "three"


async def test_a_job_that_closes_its_output_goes_on(runner: Runner) -> None:
    record, lines = await runner.shell_record("echo said; exec >&- 2>&-; sleep 2.5; exit 5", image=_IMAGE)
    assert (record.exit_code, lines) == (5, ["said"])


async def test_an_engine_that_is_gone_is_no_lost_job(runner: Runner, engine: RunningEngine) -> None:
    await asyncio.to_thread(engine.stop)
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            await runner.executor.prepare(runner.launch("true", image=_IMAGE), lambda _line: None)
        with pytest.raises(Unavailable, match="does not answer"):
            await runner.executor.owned()
    finally:
        await asyncio.to_thread(engine.start)
    assert (await runner.shell("exit 0", image=_IMAGE))[0] == 0


# Images


@pytest.fixture
def told() -> tuple[list[str], Callable[[str], None]]:
    lines: list[str] = []
    return lines, lines.append


async def test_images_are_pulled_by_the_engine(tmp_path: Path, told: tuple[list[str], Callable[[str], None]]) -> None:
    with registry(tmp_path) as server, engines.podman(insecure=[server.host]) as engine:
        server.push("small", build([busybox_archive()]), "1")
        executor = _executor(tmp_path, engine)
        await executor.open()
        runner = Runner(tmp_path, executor)
        launch = runner.launch("echo", "hello", image=f"{server.host}/small:1")
        await executor.prepare(launch, told[1])
        assert told[0][0] == f"pulling {server.host}/small:1"
        assert told[0][-1] == f"pulled {server.host}/small:1"
        assert (await runner.run(launch))[1] == ["hello"]
        told[0].clear()
        await executor.prepare(launch, told[1])
        assert told[0] == []
        with pytest.raises(ImageFailure, match=r"no-such.*manifest unknown"):
            await executor.prepare(runner.launch("true", image=f"{server.host}/no-such:1"), told[1])
        await executor.close()


async def test_registries_that_may_not_be_used(engine: RunningEngine, tmp_path: Path) -> None:
    executor = _executor(tmp_path, engine, registries=("ghcr.io",))
    await executor.open()
    with pytest.raises(ImageFailure, match=r"images\.registries"):
        await executor.prepare(Runner(tmp_path, executor).launch("true", image=_IMAGE), lambda _line: None)
    await executor.close()


# Which engine


def test_the_engine_is_the_one_that_is_named_else_the_usual_one(tmp_path: Path) -> None:
    assert find_socket(Path("/x"), {"DOCKER_HOST": "unix:///y"}) == "/x"
    assert find_socket(None, {"DOCKER_HOST": "unix:///y"}) == "/y"
    with pytest.raises(Unavailable, match="tcp://other"):
        find_socket(None, {"DOCKER_HOST": "tcp://other:2375"})


async def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    settings = DockerSettings(socket=tmp_path / "none.sock")
    with pytest.raises(Unavailable, match=r"none\.sock"):
        await DockerExecutor(tmp_path, settings, lambda _kind, _job_id: None).open()


async def test_limits_on_the_network_are_refused(tmp_path: Path) -> None:
    settings = DockerSettings(NativeSettings(egress=("10.0.0.0/8",)), socket=tmp_path / "none.sock")
    with pytest.raises(Unavailable, match=r"executor\.egress"):
        await DockerExecutor(tmp_path, settings, lambda _kind, _job_id: None).open()


# Snapshots: what suites of all executors do not see, because only engines keep a configuration with the files

_NAMED = "localhost/named:1"


async def _in(runner: Runner, handle: Handle, script: str) -> str:
    inside = await runner.executor.inside(handle)
    execution = await inside.execute(Command(("sh", "-c", script)))
    said = b""
    while (piece := await execution.read()) is not None:
        said += piece.data
    ended = await execution.wait()
    await execution.close()
    assert ended.exit_code == 0, said
    return said.decode()


@pytest.fixture
def images(engine: RunningEngine) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The images that are made here, of which none is left in the end."""

    def made() -> list[dict[str, Any]]:
        rows = engine.api.call("GET", "/images/json", query={"all": "true"})
        return [row for row in rows if (row["Labels"] or {}).get(INSTANCE)]

    engine.load(busybox_archive(), _NAMED, "ENV FROM_IMAGE=1", "USER user", 'ENTRYPOINT ["a b"]', 'CMD ["$c"]')
    yield made
    assert made() == []


async def test_a_snapshot_has_the_files_and_no_secret(
    runner: Runner, engine: RunningEngine, images: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "YOUNG_SECONDS", -60.0)
    monkeypatch.setenv("NO_PROXY", "somewhere")
    environment = {"TOKEN": 'se"cr$et', "FROM_IMAGE": "se'cr et", "HOME": "/tmp/se", "EMPTY": ""}
    launch = runner.launch(image=_NAMED, environment=environment)
    handle = await runner.start(launch)
    seen = "pwd; id -u; echo $TOKEN, $FROM_IMAGE, $HOME, $NO_PROXY; cat /tmp/file 2>/dev/null || :"
    first = await _in(runner, handle, seen)
    await _in(runner, handle, "echo kept > /tmp/file")
    await runner.executor.snapshot(handle, "alice.one")
    [image] = images()
    text = json.dumps(engine.api.call("GET", f"/images/{image['Id']}/json"))
    text += json.dumps(engine.api.call("GET", f"/images/{image['Id']}/history"))
    assert not {word for word in ("cr$et", "cr et", "/tmp/se", "somewhere", launch.job_id) if word in text}
    config = engine.api.call("GET", f"/images/{image['Id']}/json")["Config"]
    assert (config["Entrypoint"], config["Cmd"], config["User"]) == (["a b"], ["$c"], "user")
    assert config["Labels"]["runstead.snapshot"] == "alice.one"
    fork = runner.launch(image="localhost/not-there:1", environment=environment, snapshots=("alice.one",))
    await runner.executor.prepare(fork, lambda _line: None)
    began = await runner.start(fork)
    assert await _in(runner, began, seen) == first + "kept\n"
    assert await _in(runner, began, "echo $HOSTNAME") == fork.job_id + "\n"
    # In use it stays, and is listed again; others' are never ours.
    await runner.executor.drop_snapshot("alice.one")
    assert await runner.executor.snapshots() == ["alice.one"]
    other = _executor(runner.folder / "other", engine)
    await other.open()
    assert await other.snapshots() == []
    await other.drop_snapshot("alice.one")
    await other.close()
    for one in (handle, began):
        await runner.executor.remove(one)
    await runner.executor.drop_snapshot("alice.one")
    await runner.executor.drop_snapshot("alice.one")


async def test_an_engine_that_keeps_secrets_makes_no_snapshot(
    runner: Runner, images: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await runner.start(runner.launch(image=_NAMED, environment={"TOKEN": "secret"}))
    ask = Engine.call

    def older(engine: Engine, method: str, path: str, **words: Any) -> Any:
        """As Docker did before version 26, and still shows to who asks in an older version of its API."""
        answer = ask(engine, method, path, **words)
        if path.startswith("/v1.") and "/images/" in path:
            answer["ContainerConfig"] = {"Env": ["TOKEN=secret"]}
        return answer

    monkeypatch.setattr(Engine, "call", older)
    with pytest.raises(Unsupported, match="TOKEN"):
        await runner.executor.snapshot(handle, "alice.one")
    assert images() == []
    monkeypatch.undo()
    await runner.executor.remove(handle)
    handle = await runner.start(runner.launch(image=_NAMED, environment={"TO KEN": "secret"}))
    with pytest.raises(Unsupported, match="TO KEN"):
        await runner.executor.snapshot(handle, "alice.one")


async def test_an_engine_that_stumbles_over_a_file_is_asked_again(
    runner: Runner, images: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await runner.start(runner.launch(image=_NAMED))
    ask, failures = Engine.call, [EngineError(500, "processing tar file(unexpected EOF)")] * 2

    def stumbling(engine: Engine, method: str, path: str, **words: Any) -> Any:
        if path == "/commit" and failures:
            raise failures.pop()
        return ask(engine, method, path, **words)

    monkeypatch.setattr(Engine, "call", stumbling)
    await runner.executor.snapshot(handle, "alice.one")
    assert len(images()) == 1
    failures += [EngineError(500, "no space left on device")] * 9
    with pytest.raises(BackendFailure, match="no space"):
        await runner.executor.snapshot(handle, "alice.two")
    failures.clear()
    await runner.executor.remove(handle)
    await runner.executor.drop_snapshot("alice.one")


async def test_what_is_in_volumes_and_sockets_is_not_carried_over(
    runner: Runner, engine: RunningEngine, images: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    engine.load(busybox_archive(), "localhost/volume:1", "VOLUME /declared")
    (tmp_path / "asked").mkdir(mode=0o777)
    mounts = (Mount(tmp_path / "asked", "/asked", read_only=False),)
    handle = await runner.start(runner.launch(image="localhost/volume:1", mounts=mounts))
    await _in(runner, handle, "echo x > /declared/x; echo x > /asked/x; echo x > /dev/shm/x; echo x > /kept")
    await runner.executor.snapshot(handle, "alice.one")
    fork = await runner.start(runner.launch(snapshots=("alice.one",)))
    assert await _in(runner, fork, "ls /declared /dev/shm /asked; cat /kept") == (
        "/asked:\n\n/declared:\n\n/dev/shm:\nx\n"
    )
    shared = await runner.start(runner.launch(snapshots=("alice.one",), mounts=mounts))
    assert await _in(runner, shared, "cat /asked/x") == "x\n"
    for one in (handle, fork, shared):
        await runner.executor.remove(one)
    await runner.executor.drop_snapshot("alice.one")


async def test_a_snapshot_of_what_ends_meanwhile_or_without_an_engine(runner: Runner, engine: RunningEngine) -> None:
    handle = await runner.start(runner.launch(image=_IMAGE))
    await runner.executor.stop(handle, 0)
    await runner.ended(handle)
    with pytest.raises(NotRunning):
        await runner.executor.snapshot(handle, "alice.one")
    engine.stop()
    try:
        for asked in (runner.executor.snapshots(), runner.executor.snapshot(handle, "alice.one")):
            with pytest.raises(Unavailable):
                await asked
    finally:
        engine.start()
