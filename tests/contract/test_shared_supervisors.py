"""Forks that are made at once share a supervisor: what becomes of one of them is not the business of the others."""

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from contract.insides import OK, Room, enter
from contract.test_executors import Site, site
from runstead.model.launches import AttemptState, ExitReason, Handle

__all__ = ["site"]


async def forks(site: Site, count: int, **changes: Any) -> list[Room]:
    """Start so many that begin with the same snapshot of another, which is over by then."""
    if site.row.name != "oci":
        pytest.skip("supervisors are not shared here")
    first = await enter(site)
    await first.shell("echo prepared > /ready")
    await site.executor.snapshot(first.handle, "alice.snapshot")
    await site.executor.remove(first.handle)
    return [await enter(site, snapshots=("alice.snapshot",), **changes) for _ in range(count)]


def facts(site: Site, handle: Handle, name: str = "attempt.json") -> dict[str, Any]:
    attempt = f"{handle.data['job_id']}-{handle.data['attempt']}"
    return json.loads((site.data_dir / "node" / "attempts" / attempt / name).read_text())


def firsts(supervisor: int) -> dict[int, set[str]]:
    """Return the first processes below a supervisor, and which attempts' locks each has open."""
    found = {}
    for thread in Path(f"/proc/{supervisor}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # one that just ended
            for child in (thread / "children").read_text().split():
                targets = [os.readlink(fd) for fd in Path(f"/proc/{child}/fd").iterdir()]
                found[int(child)] = {Path(target).parent.name for target in targets if target.endswith("/lock")}
    return found


async def test_a_supervisor_that_was_prepared_can_be_shared(site: Site) -> None:
    rooms = await forks(site, 1)
    places = [Path(place) for _kind, place in facts(site, rooms[0].handle)["cgroups"]]
    await site.executor.snapshot(rooms[0].handle, "alice.again")
    async with asyncio.timeout(30):
        while not all(list(place.glob("spare-*")) for place in places):
            await asyncio.sleep(0.01)
    more = [await enter(site, snapshots=("alice.again",)) for _ in range(3)]
    assert len({facts(site, one.handle)["supervisor"] for one in more}) == 1
    assert all(facts(site, one.handle)["shared"] for one in more)


async def test_they_share_one_and_have_nothing_of_each_other(site: Site) -> None:
    rooms = await forks(site, 3)
    [supervisor] = {facts(site, one.handle)["supervisor"] for one in rooms}
    held = firsts(supervisor)
    assert len(held) == 3
    assert sorted(held.values(), key=sorted) == sorted(({f"{one.launch.job_id}-1"} for one in rooms), key=sorted)
    for number, one in enumerate(rooms):
        await one.shell(f"echo {number} >> /ready")
    assert [(await one.shell("cat /ready")).out for one in rooms] == [f"prepared\n{n}\n" for n in range(3)]


async def test_they_see_what_others_do(site: Site) -> None:
    """A shared supervisor makes their root directories, in the place of their first processes."""
    rooms = [*await forks(site, 2), await enter(site)]
    mounts, networks, links = [], [], []
    for room in rooms:
        lines = (await room.run("cat", "/proc/self/mountinfo")).out.splitlines()
        words = [line.split() for line in lines]
        mounts.append(sorted((one[4], one[5], one[one.index("-") + 1]) for one in words))
        networks.append((await room.shell("ls /sys/class/net; cat /proc/net/route | wc -l")).out)
        links.append((await room.shell("readlink /proc/self/ns/*")).out.split())
        assert (await room.run("hostname")).out.strip() == room.launch.job_id
        assert room.launch.job_id in (await room.run("cat", "/etc/hosts")).out
    assert mounts[0] == mounts[1] == mounts[2] != []
    assert networks[0] == networks[1] == networks[2] != ""
    ours = [os.readlink(entry) for entry in Path("/proc/self/ns").iterdir()]
    all_of_them = [link for found in (*links, ours) for link in found if not link.startswith("time")]
    assert len({*all_of_them}) == len({kind for kind, _, _ in (link.partition(":") for link in all_of_them)}) * 4


async def test_those_that_are_expected_are_there_when_they_are_wanted(site: Site) -> None:
    rooms = await forks(site, 1)
    await site.executor.snapshot(rooms[0].handle, "alice.again")
    await site.executor.expect("alice", "alice.again", 23)
    made = [await enter(site, snapshots=("alice.snapshot", "alice.again")) for _ in range(3)]
    supervisors = {facts(site, one.handle)["supervisor"] for one in made}
    assert len(supervisors) == 1
    [supervisor] = supervisors
    assert len(firsts(supervisor)) == 20
    assert [(await one.shell("echo $(cat /ready) of mine")).out for one in made] == ["prepared of mine\n"] * 3
    await site.restart()  # nobody comes any more: those that wait go, the others stay
    async with asyncio.timeout(30):
        while len(firsts(supervisor)) > 3:
            await asyncio.sleep(0.01)
    for one in made:
        inside = await site.executor.inside(one.handle)
        assert (await Room(site, one.launch, one.handle, inside).run("cat", "/ready")).out == "prepared\n"


async def test_the_end_of_one_is_only_its_own(site: Site) -> None:
    one, two, three = await forks(site, 3)
    supervisor = facts(site, one.handle)["supervisor"]
    await site.executor.stop(one.handle, 0)
    ended = await site.ended(one.handle)
    assert ended.exit is not None and ended.exit.reason is ExitReason.STOPPED
    open_before = len(os.listdir(f"/proc/{supervisor}/fd"))
    await site.executor.remove(two.handle)
    assert (await site.look(three.handle)).state is AttemptState.RUNNING
    assert (await three.run("cat", "/ready")).out == "prepared\n"
    assert len(os.listdir(f"/proc/{supervisor}/fd")) < open_before
    for _ in range(3):  # what comes and goes leaves nothing open in it
        more = await enter(site, snapshots=("alice.snapshot",))
        assert facts(site, more.handle)["supervisor"] == supervisor
        await site.executor.remove(more.handle)
    # Between the last word of an attempt and the end of its thread there is a moment.
    assert len(os.listdir(f"/proc/{supervisor}/fd")) <= open_before
    assert list(firsts(supervisor).values()) == [{f"{three.launch.job_id}-1"}]


async def test_time_limits_are_kept_for_each(site: Site) -> None:
    [lasting] = await forks(site, 1)
    short = await enter(site, snapshots=("alice.snapshot",), timeout_seconds=1)
    assert facts(site, short.handle)["supervisor"] == facts(site, lasting.handle)["supervisor"]
    ended = await site.ended(short.handle)
    assert ended.exit is not None and ended.exit.reason is ExitReason.TIMEOUT
    assert (await lasting.run("true")).ended == OK


async def test_its_death_is_the_end_of_all(site: Site) -> None:
    rooms = await forks(site, 3)
    os.kill(facts(site, rooms[0].handle)["supervisor"], signal.SIGKILL)
    for one in rooms:
        assert (await site.ended(one.handle)).state is AttemptState.LOST
    again = await enter(site, snapshots=("alice.snapshot",))
    assert (await again.run("cat", "/ready")).out == "prepared\n"


async def test_the_server_may_die(site: Site) -> None:
    one, two = await forks(site, 2)
    await site.restart()
    for room in (one, two):
        inside = await site.executor.inside(room.handle)
        assert (await Room(site, room.launch, room.handle, inside).run("cat", "/ready")).out == "prepared\n"
    await site.executor.remove(one.handle)
    three = await enter(site, snapshots=("alice.snapshot",))
    assert facts(site, three.handle)["supervisor"] != facts(site, two.handle)["supervisor"]


async def test_a_fork_of_one_of_them_has_the_files_of_that_one(site: Site) -> None:
    rooms = await forks(site, 3)
    for number, one in enumerate(rooms):
        await one.shell(f"echo {number} >> /ready")
    await site.executor.snapshot(rooms[1].handle, "alice.again")
    fork = await enter(site, snapshots=("alice.snapshot", "alice.again"))
    assert (await fork.shell("cat /ready")).out == "prepared\n1\n"
