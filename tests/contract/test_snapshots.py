"""Snapshots: what an attempt wrote, for others to begin with. All executors that say they have them keep this."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from contract.insides import Room, enter, room, site
from runstead.executors import snapshots as keeping
from runstead.model.errors import Conflict, Invalid, NotRunning, Unsupported

__all__ = ["room", "site"]


@pytest.fixture(autouse=True)
def ripe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have snapshots listed as soon as they are made."""
    monkeypatch.setattr(keeping, "YOUNG_SECONDS", -60.0)


@pytest.fixture
async def source(room: Room) -> AsyncIterator[Room]:
    executor = room.site.executor
    if not room.site.capabilities.snapshots:
        with pytest.raises(Unsupported):
            await executor.snapshot(room.handle, "alice.a")
        assert room.site.capabilities.without_snapshots
        pytest.skip("no snapshots here")
    yield room
    for handle in room.site.handles:
        await room.site.executor.remove(handle)
    for name in await room.site.executor.snapshots():
        await room.site.executor.drop_snapshot(name)
    assert await room.site.executor.snapshots() == []


async def snapshot(room: Room, name: str) -> str:
    await room.site.executor.snapshot(room.handle, name)
    return name


async def fork(room: Room, *snapshots: str, **changes: Any) -> Room:
    return await enter(room.site, snapshots=snapshots, memory_bytes=1 << 30, **changes)


async def shell(room: Room, script: str) -> str:
    ran = await room.shell(script)
    assert ran.ended.exit_code == 0, ran
    return ran.out


SET_UP = r"""
set -e
mkdir -p /tmp/made/deep /root/dot && cd /tmp/made
echo content > deep/file && chmod 4750 deep/file && touch -d '2001-02-03 04:05:06 UTC' deep/file
ln deep/file other-name
ln -s deep/file link && ln -s /etc/hostname away && ln -s / root && ln -s nowhere nowhere
mkfifo fifo && chmod 606 fifo
mkdir locked && echo secret > locked/inner && chmod 000 locked
echo a > "$(printf 'odd\nname \377')"
dd if=/dev/zero of=holes bs=1 count=1 seek=40M 2>/dev/null
chown 1000:1001 deep
echo home > /root/dot/file
echo bye > /root/gone && rm /root/gone
"""
SEEN = r"""
set -e
cd /tmp/made
cat deep/file link
stat -c '%a %h %Y %u:%g' deep/file
stat -c '%i' deep/file other-name | sort -u | wc -l
readlink away root nowhere
stat -c '%a %F' fifo
stat -c '%a' locked; cat locked/inner
cat "$(printf 'odd\nname \377')"
stat -c %s holes
stat -c %u:%g deep
cat /root/dot/file; ls /root
"""
SEEN_FIRST = [
    *("content", "content", "4750 2 981173106 0:0", "1", "/etc/hostname", "/", "nowhere", "606 fifo"),
    *("0", "secret", "a"),
]


async def test_a_fork_begins_with_the_files_as_they_were(source: Room) -> None:
    await shell(source, SET_UP)
    before = await shell(source, SEEN)
    assert before.splitlines()[:-3] == [*SEEN_FIRST, str((40 << 20) + 1)]
    await snapshot(source, "alice.a")
    await shell(source, "echo later > /tmp/made/deep/file; rm -r /root/dot; echo new > /tmp/new")
    one, two = await fork(source, "alice.a"), await fork(source, "alice.a")
    assert await shell(one, SEEN) == before
    if source.site.capabilities.kind != "docker":  # engines fill them
        assert int(await shell(one, "du -k /tmp/made/holes | cut -f1")) < 1000
    await shell(one, "echo mine > /tmp/made/deep/file; rm -r /tmp/made/locked; echo x > /root/x; rm /root/dot/file")
    assert await shell(two, SEEN) == before
    assert await shell(two, "ls /tmp/new /root/x 2>/dev/null || :") == ""
    assert await shell(source, "cat /tmp/made/deep/file; ls /root/x 2>/dev/null || :") == "later\n"


async def test_a_fork_of_a_fork_outlives_both_before_it_and_the_server(source: Room) -> None:
    site = source.site
    await shell(source, "mkdir -p /root/a /tmp/b; echo 1 > /root/a/one; echo 1 > /tmp/b/one; echo 1 > /tmp/b/two")
    await snapshot(source, "alice.a")
    second = await fork(source, "alice.a")
    await site.executor.remove(source.handle)
    await shell(second, "echo 2 >> /root/a/one; rm -r /tmp/b; mkdir /tmp/b; echo 2 > /tmp/b/three; mv /root/a /root/c")
    await snapshot(second, "alice.b")
    await site.executor.remove(second.handle)
    await site.restart()
    third = await fork(second, "alice.a", "alice.b")
    assert await shell(third, "cat /root/c/one; ls -d /root/a 2>/dev/null || :; ls /tmp/b") == "1\n2\nthree\n"
    assert await site.executor.snapshots() == ["alice.a", "alice.b"]
    for name in ("alice.a", "alice.b"):  # others may begin with them no more; what runs goes on
        if site.capabilities.kind != "docker":  # an engine keeps what its containers are made of
            await site.executor.drop_snapshot(name)
    assert await shell(third, "cat /root/c/one") == "1\n2\n"


async def test_what_goes_on_meanwhile_stops_no_snapshot(source: Room) -> None:
    busy = (
        "cd /tmp; mkdir -p many; i=0; while :; do i=$((i+1)); mkdir -p many/d$i; echo x > many/d$i/f; "
        "mv many/d$i many/e$i; ln -s /etc many/d$i; rm -rf many/e$((i-50)) many/d$((i-50)); "
        "[ $i != 10 ] || echo begun; done"
    )
    await shell(source, "mkdir /tmp/kept; for i in 1 2 3 4 5 6 7 8 9; do echo $i > /tmp/kept/$i; done")
    async with source.running("sh", "-c", busy) as program:
        assert (await program.read()).data == b"begun\n"
        for number in range(3):
            await snapshot(source, f"alice.{number}")
    one = await fork(source, "alice.2")
    assert await shell(one, "cat /tmp/kept/*") == "".join(f"{i}\n" for i in range(1, 10))
    assert await shell(one, "find /tmp/many -name passwd") == ""


async def test_what_cannot_be_kept_or_begun_with_says_why(source: Room) -> None:
    site = source.site
    await snapshot(source, "alice.a")
    with pytest.raises(Conflict):
        await snapshot(source, "alice.a")
    for name in ("", "../x", "a/b", ".hidden", "a b"):
        with pytest.raises(Invalid):
            await snapshot(source, name)
    await site.executor.drop_snapshot("alice.a")
    await site.executor.drop_snapshot("alice.a")
    with pytest.raises(Invalid, match="are gone"):
        await site.start(site.launch(snapshots=("alice.a",)))
    await site.executor.stop(source.handle, 0)
    await site.ended(source.handle)
    with pytest.raises(NotRunning):
        await snapshot(source, "alice.b")
    await site.executor.remove(source.handle)
    with pytest.raises(NotRunning):
        await snapshot(source, "alice.b")
    assert await site.executor.snapshots() == []


async def test_many_forks_at_once(source: Room) -> None:
    await shell(source, "echo prepared > /root/file")
    await snapshot(source, "alice.a")
    size = 32 << 20 if source.site.capabilities.disk_limits else None
    forks = await asyncio.gather(*(fork(source, "alice.a", disk_bytes=size) for _ in range(5)))
    said = await asyncio.gather(*(shell(one, f"echo {i} >> /root/file; cat /root/file") for i, one in enumerate(forks)))
    assert said == [f"prepared\n{i}\n" for i in range(5)]
    await snapshot(forks[3], "alice.b")  # of this one, whatever it shares with the others
    assert await shell(await fork(source, "alice.a", "alice.b"), "cat /root/file") == "prepared\n3\n"


async def test_programs_and_what_is_in_memory_are_not_carried_over(source: Room) -> None:
    await shell(source, "echo x > /dev/shm/x; sleep 1302 </dev/null >/dev/null 2>&1 &")
    await snapshot(source, "alice.a")
    one = await fork(source, "alice.a")
    assert not {line for line in await one.processes() if "sleep 1302" in line}
    assert await shell(one, "ls /dev/shm") == ""
