"""What becomes of the inside when an attempt ends, or somebody dies."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from contract.insides import OK, Ran, Room, collect, enter, own, read, room, site, write
from contract.test_executors import Site
from runstead.model.errors import NotRunning, Unavailable
from runstead.model.executions import Command, Ended
from runstead.model.launches import AttemptState, ExitReason, Handle

__all__ = ["room", "site"]


# An attempt and its inside


async def test_an_attempt_without_a_command_stays_until_it_is_stopped(room: Room) -> None:
    await room.inside.spawn(Command(("sleep", "85.5")))
    assert (await room.site.look(room.handle)).state is AttemptState.RUNNING
    await room.site.executor.stop(room.handle, 10)
    seen = await room.site.ended(room.handle)
    assert seen.exit is not None
    assert (seen.exit.reason, seen.exit.exit_code) == (ExitReason.STOPPED, 143)
    assert room.site.lines(room.launch) == []


async def test_an_attempt_without_a_command_has_its_grace(room: Room) -> None:
    script = "trap 'sleep 0.3; echo done > /tmp/done; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    async with room.running("sh", "-c", script.replace("/tmp", own(room))) as program:
        assert (await program.read()).data == b"ready\n"
        await room.site.executor.stop(room.handle, 20)
        ran = await collect(program)
        assert ran.ended == Ended(0, None)
    assert (await room.site.ended(room.handle)).exit.reason is ExitReason.STOPPED


async def test_an_attempt_without_a_command_that_will_not_end_is_killed(room: Room) -> None:
    await room.inside.spawn(Command(("sh", "-c", "trap '' TERM; while :; do sleep 86.6; done")))
    await room.site.executor.stop(room.handle, 0.3)
    assert (await room.site.ended(room.handle)).exit.reason is ExitReason.STOPPED


async def test_an_attempt_without_a_command_has_a_time_limit(site: Site) -> None:
    if not site.capabilities.inside:
        pytest.skip("no way in here")
    here = await enter(site, timeout_seconds=1)
    seen = await site.ended(here.handle)
    assert seen.exit is not None
    assert seen.exit.reason is ExitReason.TIMEOUT


async def test_the_end_of_the_attempt_is_the_end_of_everything(site: Site) -> None:
    if not site.capabilities.inside:
        pytest.skip("no way in here")
    here = await enter(site, "sh", "-c", "echo ready; until [ -e left ]; do sleep 0.1; done")
    await site.line(here.launch, "ready")
    started = await here.inside.spawn(Command(("sleep", "87.7")))
    execution = await here.inside.execute(Command(("sleep", "87.7"), input=True))
    file = await here.inside.open_file("left", write=True)
    assert (await site.ended(here.handle)).exit.exit_code == 0
    assert await execution.read() is None
    assert (await execution.wait()).signal == signal.SIGKILL
    with pytest.raises(BrokenPipeError):
        await execution.write(b"x")
    await execution.close()
    await file.write(0, b"x")
    await file.close()
    for call in (
        lambda: here.inside.execute(Command(("true",))),
        lambda: here.inside.spawn(Command(("true",))),
        lambda: here.inside.background(),
        lambda: here.inside.kill(started.id),
        lambda: here.inside.connect(1),
        lambda: here.inside.open_file("x"),
        lambda: here.inside.stat("x"),
        lambda: here.inside.list_folder("/", None, 1),
        lambda: here.inside.make_folder("x"),
        lambda: here.inside.delete("x", recursive=False),
        lambda: site.executor.inside(here.handle),
    ):
        with pytest.raises(NotRunning):
            await call()


async def test_attempts_that_never_were_have_no_inside(site: Site) -> None:
    if not site.capabilities.inside:
        pytest.skip("no way in here")
    strange = Handle(site.capabilities.kind, 1, {"instance": "?", "job_id": "0" * 24, "attempt": 1})
    with pytest.raises(NotRunning):
        await site.executor.inside(strange)


# Sudden deaths


async def test_after_a_restart_of_the_server(room: Room) -> None:
    ended = await room.inside.spawn(Command(("sh", "-c", "exit 9")), "tag")
    running = await room.inside.spawn(Command(("sleep", "88.1")))
    async with asyncio.timeout(10):
        while (await room.inside.background())[ended.id].ended is None:
            await asyncio.sleep(0.01)
    await write(room, "kept", b"x")
    await room.site.restart()
    again = Room(room.site, room.launch, room.handle, await room.site.executor.inside(room.handle))
    listed = await again.inside.background()
    assert [(one.id, one.tag, one.ended) for one in listed] == [(0, "tag", Ended(9, None)), (1, None, None)]
    assert (listed[1].argv, listed[1].started_at) == (("sleep", "88.1"), running.started_at)
    assert await read(again, "kept") == b"x"
    assert await again.inside.kill(running.id)
    assert (await again.inside.spawn(Command(("true",)))).id == 2


_CLIENT = """
import asyncio, importlib.util, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent.parent))
from contract import test_executors as suite
from runstead.model.executions import Command
from runstead.model.launches import Handle
async def main():
    row = next(row for row in suite.ROWS if row.name == sys.argv[2])
    executor = row.build(Path(sys.argv[3]), lambda kind, job_id: None)
    await executor.open()
    [[_, _, handle]] = await executor.owned()
    inside = await executor.inside(handle)
    tree = Command(("sh", "-c", "setsid sleep 89.1 & exec sleep 89.2"), input=True)
    running = [await inside.execute(tree) for _ in range(4)]
    running.append(await inside.execute(Command(("sh", "-c", "while :; do echo x; done"))))
    await inside.spawn(Command(("sleep", "89.3")))
    file = await inside.open_file("half", write=True)
    await file.write(0, b"half")
    print("ready", flush=True)
    async def more():
        while True:
            async def one():
                execution = await inside.execute(Command(("sleep", "89.4")))
                await asyncio.sleep(0.01)
            await one()
    await more()
asyncio.run(main())
"""


async def test_the_death_of_the_server_in_the_middle(room: Room) -> None:
    arguments = [__file__, room.site.row.name, str(room.site.data_dir)]
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CLIENT, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert await server.stdout.readline() == b"ready\n"
    await asyncio.sleep(0.3)
    assert {"sleep 89.1", "sleep 89.2", "sleep 89.3", "sleep 89.4"} <= await room.processes()
    server.kill()
    await server.wait()
    await room.absent("sleep 89.1", "sleep 89.2", "sleep 89.4", "while :")
    assert "sleep 89.3" in await room.processes()
    assert [one.ended for one in await room.inside.background()] == [None]
    assert await read(room, "half") == b"half"


async def test_the_death_of_everything_inside(room: Room) -> None:
    """A job may kill what serves it, but for process 1: what is lost is told, and what comes after works."""
    if not room.site.row.isolated:
        pytest.skip("the machine's other processes would be killed too")
    await room.inside.spawn(Command(("sleep", "90.1")))
    assert (await room.run("sh", "-c", "sleep 0.2; kill -9 -1")).ended.signal == signal.SIGKILL
    assert (await _served(room, "true")).ended == OK
    killer = Command(("sh", "-c", "read x; kill -9 -1; sleep 0.5"), input=True)
    running = [await room.inside.execute(killer) for _ in range(5)]  # all of them, before one kills
    for one in running:
        with suppress(BrokenPipeError):  # it is dead already
            await one.write(b"\n")
    ran = await asyncio.gather(*(collect(one) for one in running))
    # The one that process 1 attends to lives on if it is who kills: that signal is for everybody else.
    assert [one.ended for one in ran if one.ended.signal != signal.SIGKILL] in ([], [OK])
    for one in running:
        await one.close()
    assert (await _served(room, "echo", "still")).out == "still\n"
    assert [one.ended for one in await room.inside.background()] == [Ended(None, signal.SIGKILL)]
    assert [one async for one in _strays(room)] == []


async def _served(room: Room, *argv: str) -> Ran:
    """Run a program, again if it was asked of somebody who waited for it and was just killed as well."""
    async with asyncio.timeout(30):
        while True:
            with suppress(Unavailable):
                return await room.run(*argv)


async def _strays(room: Room) -> AsyncIterator[str]:
    for line in await room.processes():
        if line.startswith("sleep"):
            yield line


async def test_many_who_stop_in_the_middle_of_a_request_block_nobody(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that say nothing, or half of a message, or nonsense, are only their own."""
    place = room.site.data_dir / "node/attempts" / f"{room.launch.job_id}-{room.launch.attempt}" / "inside"
    if not place.exists():
        pytest.skip("there is no such socket here")
    monkeypatch.chdir(place.parent)  # a path to it may be too long for a socket
    kept = []
    for piece in (b"", b"\0\0", b"\0\0\1\0{", b"\xff\xff\xff\xff", b"\0\0\0\2{}", b"\0\0\0\2[]", b"\0\0\0\1x"):
        one = socket.socket(socket.AF_UNIX)
        one.connect("inside")
        one.sendall(piece)
        kept.append(one)
    assert (await room.run("true")).ended == OK
    for one in kept:
        one.close()
    assert (await room.run("true")).ended == OK
    assert await room.inside.background() == []
