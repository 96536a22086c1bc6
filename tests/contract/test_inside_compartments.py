"""What every executor promises about the compartments of a running attempt, where it has them."""

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from contract.insides import OK, Ran, Room, collect, enter, room, site
from contract.test_executors import Site
from runstead.executors.inside import Execution, Inside
from runstead.model.errors import Conflict, EntryNotFound, Invalid, NotRunning, Unavailable, Unsupported
from runstead.model.executions import Command, CompartmentLimits, Ended, TerminalSize
from runstead.model.launches import AttemptState
from runstead.node import processes

__all__ = ["room", "site"]

_PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
_LIMITS = CompartmentLimits(processes=64, memory_bytes=128 << 20)


@pytest.fixture
async def host(site: Site) -> AsyncIterator[Room]:
    room = await enter(site, memory_bytes=1 << 30, divided=True)
    if not site.capabilities.compartments:
        with pytest.raises(Unsupported):
            await room.inside.make_compartments([new_id()], _LIMITS)
        pytest.skip("no compartments here")
    yield room


async def test_a_job_is_divided_only_if_it_was_started_for_that(site: Site) -> None:
    if not site.capabilities.inside:
        pytest.skip("no way in here")
    room = await enter(site)
    with pytest.raises(Unsupported, match="no host of pooled sandboxes"):
        await room.inside.make_compartments([new_id()], _LIMITS)


def new_id() -> str:
    return secrets.token_hex(8)


async def make(host: Room, count: int = 1, limits: CompartmentLimits = _LIMITS) -> list["Part"]:
    made = await host.inside.make_compartments([new_id() for _ in range(count)], limits)
    return [Part(host, one.id, one.uid, one.home, await host.inside.compartment(one.id)) for one in made]


class Part:
    """One compartment."""

    def __init__(self, host: Room, part_id: str, uid: int, home: str, inside: Inside) -> None:
        self.host, self.id, self.uid, self.home, self.inside = host, part_id, uid, home, inside

    async def run(self, *argv: str, **options: Any) -> Ran:
        options["environment"] = {**_PATH, **options.get("environment", {})}
        execution = await self.inside.execute(Command(argv, **options))
        try:
            return await collect(execution)
        finally:
            await execution.close()

    async def shell(self, script: str, **options: Any) -> Ran:
        return await self.run("sh", "-c", script, **options)


async def test_compartments_are_made_listed_and_removed(host: Room) -> None:
    assert await host.inside.compartments() == []
    ids = [new_id() for _ in range(5)]
    made = await host.inside.make_compartments(ids, _LIMITS)
    assert [one.id for one in made] == ids
    assert len({one.uid for one in made}) == 5
    assert all(one.uid >= 20000 and one.home.endswith(one.id) and "namespace" in one.confinement for one in made)
    assert await host.inside.make_compartments(ids[:2], _LIMITS) == made[:2]
    assert sorted(one.id for one in await host.inside.compartments()) == sorted(ids)
    assert await host.inside.remove_compartments([ids[0], ids[0], new_id(), "../..", ids[3]]) == 2
    assert await host.inside.remove_compartments(ids[:1]) == 0
    assert sorted(one.id for one in await host.inside.compartments()) == sorted({*ids} - {ids[0], ids[3]})
    again = await host.inside.make_compartments([ids[0]], _LIMITS)
    assert again[0].uid not in {one.uid for one in made}


async def test_a_program_in_a_compartment(host: Room) -> None:
    [one] = await make(host)
    ran = await one.shell(
        'id -u; id -g; id -G; pwd; echo "$A|$HOME"; ls -A; touch x && echo made', environment={"A": "1"}
    )
    assert ran.out.splitlines() == [*[str(one.uid)] * 3, one.home, "1|", "made"]
    assert (await one.run("env")).out.splitlines() == [f"PATH={_PATH['PATH']}"]
    status = (await one.run("cat", "/proc/self/status")).out
    assert "NoNewPrivs:\t1" in status
    assert [line.split()[1] for line in status.splitlines() if line.startswith("Cap")] == ["0" * 16] * 5
    assert (await one.shell("cat /proc/keys /proc/key-users /proc/timer_list /proc/kcore")).out == ""
    assert (await one.run("true", user="root")).ended == OK
    assert (await one.run("id", "-u", user="root")).out == f"{one.uid}\n"
    ran = await one.shell("tty; echo $TERM", terminal=TerminalSize(10, 80))
    assert ran.out.startswith("/dev/pts/")
    assert (await one.run("sleep", "60", timeout_seconds=0.1)).ended == Ended(None, signal.SIGKILL, timed_out=True)
    started = await one.inside.spawn(Command(("/bin/sleep", "60")))
    assert await one.inside.kill(started.id)


async def test_compartments_see_nothing_of_each_other(host: Room) -> None:
    mark = secrets.token_hex(8)
    one, two = await make(host, 2)
    await one.shell(
        f"echo {mark} > ~/{mark} 2>/dev/null; echo {mark} > {mark}; echo {mark} > /tmp/{mark}; chmod 777 . *"
    )
    await one.shell(f"echo {mark} > /dev/shm/{mark}; echo {mark} > /var/tmp/{mark}")
    started = await one.inside.spawn(Command(("/bin/sh", "-c", f"MARK={mark} sleep 60"), environment={"MARK": mark}))
    await host.inside.spawn(Command(("sh", "-c", f": {mark}; sleep 60"), environment={"MARK": mark}))
    ran = await two.shell(
        "ls /sbx /sbx/* /sbx/*/* /tmp /var/tmp /dev/shm; ls -a /root /workspace; cat /proc/mounts; find / -xdev; "
        "cat /proc/*/cmdline /proc/*/environ | tr '\\0' '\\n'; ps -ef; ipcs; cat /sys/fs/cgroup/*/cgroup.procs"
    )
    assert two.id in ran.out
    assert mark not in ran.out
    assert one.id not in ran.out
    assert (await two.run("cat", f"{one.home}/{mark}")).ended.exit_code == 1
    assert int((await two.shell("ls /proc | grep -c '^[0-9]'")).out) <= 8
    for number in (started.pid, 1, 2, 3, 10, 50):
        with suppress(Unavailable):  # one of them serves the request
            await two.shell(f"sleep 0.1; kill -9 {number}; kill -9 -- -{number}")
    await two.shell("sleep 0.1; kill -9 -1")
    assert [entry.ended for entry in await one.inside.background()] == [None]
    assert [entry.ended for entry in await host.inside.background()] == [None]
    assert (await two.run("true")).ended == OK


async def test_a_compartment_can_write_to_its_own_places_only(host: Room) -> None:
    one, two = await make(host, 2)
    ran = await one.shell(
        "for d in $(find / -maxdepth 3 -type d -not -path '/proc/*' -not -path '/sys/*' 2>/dev/null); do "
        "if touch $d/.mine 2>/dev/null; then echo $d; fi; done"
    )
    assert set(ran.out.split()) <= {one.home, "/tmp", "/var/tmp", "/dev/shm"}
    assert one.home in ran.out
    assert (await two.shell("find / -xdev -name .mine 2>/dev/null")).out == ""
    ran = await one.shell(
        "mount -t tmpfs none /tmp; umount /proc; unshare -Ur id; chroot / id; hostname x; nsenter -t 1 -m id"
    )
    assert "uid=0" not in ran.out or "unshare" not in ran.err  # a user namespace of its own gives nothing outside
    assert (await two.run("hostname")).out == (await host.run("hostname")).out


# Starts something that has other parents and another session, and says its number once it is there.
_FAR = (
    "rm -f line; mkfifo line; (setsid sh -c 'echo $$ > line; exec sleep 1004' > /dev/null 2>&1 &); "
    "read pid < line; echo $pid; "
)


async def word(execution: Execution) -> str:
    output = await execution.read()
    assert output is not None
    return output.data.decode().strip()


async def test_what_a_program_in_a_compartment_started_goes_with_it_and_nothing_else(host: Room) -> None:
    [one] = await make(host)
    first = await one.inside.execute(Command(("sh", "-c", f"{_FAR} exec sleep 1005"), environment=_PATH))
    gone = await word(first)
    left = (await one.shell(_FAR)).out.strip()  # it ends while the first one runs, and leaves something behind
    alive = f"for pid in {gone} {left} {first.pid}; do kill -0 $pid 2> /dev/null && echo $pid; done; true"
    assert (await one.shell(alive)).out.split() == [gone, left, str(first.pid)]
    await first.close()
    assert (await one.shell(alive)).out.split() == [left]
    killed = Ended(None, signal.SIGKILL, timed_out=True)
    for before in (f"kill -0 {left}", f"kill -9 {left}"):  # beside what was left behind, then alone again
        late = await one.shell(f"{_FAR} sleep 1006", timeout_seconds=0.5)
        assert late.ended == killed
        ran = await one.shell(f"{before}; kill -0 {late.out.strip() or 999999} 2> /dev/null && echo alive; true")
        assert (ran.out, ran.err) == ("", "")


async def test_programs_in_a_compartment_one_after_the_other(host: Room) -> None:
    [one] = await make(host)
    script = "trap 'echo told' USR1; read x; echo $x; read y; echo $y"
    for _ in range(2):
        execution = await one.inside.execute(Command(("sh", "-c", script), environment=_PATH, input=True))
        await execution.write(b"one\n")
        assert await word(execution) == "one"
        await execution.signal(signal.SIGUSR1)
        assert await word(execution) == "told"
        await execution.end_input()
        await collect(execution)
        await execution.close()
        with pytest.raises(Invalid):
            await one.run("no-such-program")
        assert (await one.run("sh", "-c", "exit 3")).ended == Ended(3, None)
        assert (await one.run("sh", "-c", "kill -9 $$")).ended == Ended(None, signal.SIGKILL)
        assert (await one.run("nice", timeout_seconds=1e8)).out == "0\n"


async def test_limits_of_a_compartment(host: Room) -> None:
    one, two = await make(host, 2, CompartmentLimits(processes=40, memory_bytes=64 << 20))
    program = (
        "import os, time\nn = 0\ntry:\n while n < 500:\n  if os.fork() == 0: time.sleep(30)\n  n += 1\n"
        "except OSError: pass\nprint(n)"
    )
    execution = await one.inside.execute(Command(("python3", "-c", program), environment=_PATH))
    said = await execution.read()
    assert said is not None
    assert 10 < int(said.data) <= 41
    assert (await two.run("true")).ended == OK
    await execution.close()
    assert (await one.run("true")).ended == OK
    ran = await one.run("python3", "-c", "x = b'x' * (200 << 20); print(len(x))")
    assert ran.ended.exit_code != 0
    for other in (one, two):
        assert (await other.run("true")).ended == OK


async def test_networks_of_compartments(host: Room) -> None:
    one, two = await make(host, 2)
    server = (
        "import socket, sys\ns = socket.socket(); s.bind(('0.0.0.0', 8000)); s.listen()\nprint('up', flush=True)\n"
        "while True: c, _ = s.accept(); c.sendall(sys.argv[1].encode()); c.close()"
    )
    running = []
    for part, word in ((one, "first"), (two, "second"), (host, "host")):
        execution = await part.inside.execute(Command(("python3", "-c", server, word), environment=_PATH))
        assert (await execution.read()).data == b"up\n"
        running.append(execution)
    loop = asyncio.get_running_loop()
    for part, word in ((one, b"first"), (two, b"second"), (host, b"host")):
        with await part.inside.connect(8000) as connection:
            assert await loop.sock_recv(connection, 100) == word
    addresses = [
        (
            await part.shell("cat /proc/net/fib_trie | grep -B1 'host LOCAL' | grep -o '10[.][0-9.]*' | head -1")
        ).out.strip()
        for part in (one, two)
    ]
    client = "import socket, sys; print(socket.create_connection((sys.argv[1], 8000), 1).recv(100))"
    for address in {*addresses, str(host.handle.data["address"])} - {""}:
        ran = await two.run("python3", "-c", client, address)
        assert b"first" not in ran.out.encode()
        assert b"host" not in ran.out.encode()
    for execution in running:
        await execution.close()
    with pytest.raises(ConnectionRefusedError):
        await one.inside.connect(8000)


async def test_ports_that_are_sockets_in_the_home(host: Room) -> None:
    [one] = await make(host)
    server = (
        "import os, socket\nos.makedirs('.sbx/proxy')\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('.sbx/proxy/7000.sock')\ns.listen()\nprint('up', flush=True)\n"
        "while True: c, _ = s.accept(); c.sendall(b'unix'); c.close()"
    )
    execution = await one.inside.execute(Command(("python3", "-c", server), environment=_PATH))
    assert (await execution.read()).data == b"up\n"
    with await one.inside.connect(7000) as connection:
        assert connection.family == socket.AF_UNIX
        assert await asyncio.get_running_loop().sock_recv(connection, 10) == b"unix"
    await execution.close()
    with pytest.raises(ConnectionRefusedError):
        await one.inside.connect(7000)


async def test_files_begin_at_the_home_and_follow_no_links(host: Room) -> None:
    one, two = await make(host, 2)
    for path in ("/a/file", "../../b/file", "c/./d/../file"):
        file = await one.inside.open_file(path, write=True, parents=True)
        await file.write(0, path.encode())
        await file.close()
    assert (await one.run("cat", "a/file", "b/file", "c/file")).out == "/a/file../../b/filec/./d/../file"
    entry = await one.inside.stat("a/file")
    assert (entry.name, entry.path) == ("file", "/a/file")
    assert (await one.inside.stat("/..")).path == (await one.inside.stat("")).path == "/"
    assert [one.path for one in await one.inside.list_folder("/", None, 10)] == ["/a", "/b", "/c"]
    await one.shell("ln -s /etc out; ln -s /etc/passwd word; ln -s a in; ln -s a/file near; mkfifo pipe")
    assert (await one.inside.stat("out")).kind == "symlink"
    for path in ("out/passwd", "word", "in/file", "near", "pipe"):
        for write in (False, True):
            with pytest.raises(Invalid):
                await one.inside.open_file(path, write=write)
    for path in ("out/passwd", "in/file"):
        with pytest.raises(Invalid):
            await one.inside.stat(path)
        with pytest.raises(Invalid):
            await one.inside.delete(path, recursive=True)
    with pytest.raises(Invalid):
        await one.inside.list_folder("in", None, 10)
    with pytest.raises(Invalid):
        await one.inside.make_folder("in/new")
    with pytest.raises(Conflict):
        await one.inside.open_file("a")
    with pytest.raises(EntryNotFound):
        await one.inside.open_file("/etc/passwd")
    with pytest.raises(EntryNotFound):
        await one.inside.stat(two.home)
    with pytest.raises(Invalid):
        await one.inside.delete("/", recursive=True)
    await one.inside.delete("out", recursive=True)
    await one.inside.delete("a", recursive=True)
    assert [entry.name for entry in await one.inside.list_folder("", None, 10)] == [
        "b",
        "c",
        "in",
        "near",
        "pipe",
        "word",
    ]


async def test_compartments_that_are_gone(host: Room) -> None:
    [one] = await make(host)
    execution = await one.inside.execute(Command(("/bin/sleep", "60")))
    await one.run("true")
    assert await host.inside.remove_compartments([one.id]) == 1
    assert await execution.read() is None
    assert (await execution.wait()).signal == signal.SIGKILL
    await execution.close()
    for inside in (one.inside, await host.inside.compartment(one.id), await host.inside.compartment(new_id())):
        with pytest.raises(EntryNotFound):
            await inside.execute(Command(("/bin/true",)))
        with pytest.raises(EntryNotFound):
            await inside.stat("/")
        with pytest.raises(EntryNotFound):
            await inside.background()
    [again] = await make(host)
    await host.site.executor.stop(host.handle, 10)
    assert (await host.site.ended(host.handle)).state is AttemptState.EXITED
    with pytest.raises(NotRunning):
        await again.inside.execute(Command(("/bin/true",)))
    with pytest.raises(NotRunning):
        await host.inside.make_compartments([new_id()], _LIMITS)


async def test_an_attempt_with_compartments_ends_soon(host: Room) -> None:
    parts = await make(host, 3)
    await parts[0].inside.spawn(Command(("/bin/sleep", "60")))
    began = time.monotonic()
    await host.site.executor.stop(host.handle, 30)
    await host.site.ended(host.handle)
    assert time.monotonic() - began < 15


async def test_a_program_in_a_compartment_may_finish_when_the_attempt_is_asked_to_end(host: Room) -> None:
    [one] = await make(host)
    script = "trap 'sleep 0.3; echo told; exit 7' TERM; echo up; while :; do sleep 0.05; done"
    execution = await one.inside.execute(Command(("sh", "-c", script), environment=_PATH))
    assert await word(execution) == "up"
    await make(host)  # who makes them is there as well
    await host.site.executor.stop(host.handle, 30)
    assert "told" in (await collect(execution)).out
    assert await execution.wait() == Ended(7, None)
    await execution.close()
    assert (await host.site.ended(host.handle)).state is AttemptState.EXITED


async def test_compartments_after_a_restart_of_the_server(host: Room) -> None:
    one, two = await make(host, 2)
    await one.shell("echo kept > file")
    started = await one.inside.spawn(Command(("/bin/sleep", "60")), "tag")
    listed = await host.inside.compartments()
    await host.site.restart()
    inside = await host.site.executor.inside(host.handle)
    assert await inside.compartments() == listed
    again = Part(host, one.id, one.uid, one.home, await inside.compartment(one.id))
    assert (await again.run("cat", "file")).out == "kept\n"
    assert [(entry.id, entry.tag) for entry in await again.inside.background()] == [(started.id, "tag")]
    assert await inside.remove_compartments([one.id, two.id]) == 2
    fresh = await inside.make_compartments([new_id()], _LIMITS)
    assert fresh[0].uid not in (one.uid, two.uid)


async def test_many_compartments_at_once(host: Room) -> None:
    before = len(os.listdir("/proc/self/fd"))
    parts = [part for made in await asyncio.gather(*(make(host, 4) for _ in range(6))) for part in made]
    assert len({part.uid for part in parts}) == 24

    async def one(part: Part) -> None:
        assert (await part.run("id", "-u")).out == f"{part.uid}\n"

    await asyncio.gather(*(one(part) for part in parts))
    assert await host.inside.remove_compartments([part.id for part in parts]) == 24
    assert await host.inside.compartments() == []
    assert len(os.listdir("/proc/self/fd")) <= before + 4


async def test_a_fork_bomb_in_a_compartment_starves_nobody(host: Room) -> None:
    one, two = await make(host, 2)
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    await one.inside.spawn(Command(("python3", "-c", bomb), environment=_PATH))
    for _ in range(5):
        assert (await two.run("true")).ended == OK
    assert await host.inside.remove_compartments([one.id]) == 1
    assert (await two.run("true")).ended == OK


async def test_ids_that_could_be_paths(site: Site) -> None:
    if not site.capabilities.compartments:
        pytest.skip("no compartments here")
    host = await enter(site, divided=True)
    for strange in ("", "..", "../../../../etc", "x" * 16, "A" * 16, "0" * 15, "0" * 17, "0000000000000/00"):
        with pytest.raises((EntryNotFound, Invalid)):
            await host.inside.make_compartments([strange], _LIMITS)
        with pytest.raises(EntryNotFound):
            await host.inside.compartment(strange)
    assert await host.inside.compartments() == []


async def test_a_module_in_the_way_is_not_run(host: Room) -> None:
    """Who makes compartments has the machine's rights among the attempt's files."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    planted = "import os; os.system('touch /tmp/taken; id > /tmp/taken')"
    await host.shell(
        f"for d in $(echo {shlex.quote(' '.join(path for path in sys.path if path))}) /usr/lib/{name} .; do "
        f"mkdir -p $d/encodings; for f in ascii.py zipimport.py _strptime.py encodings/ascii.py encodings/idna.py; do "
        f"echo {shlex.quote(planted)} > $d/$f; done; done 2>/dev/null; true"
    )
    [one] = await make(host)
    assert (await one.run("id", "-u")).out == f"{one.uid}\n"
    with pytest.raises(EntryNotFound):
        await host.inside.stat("/tmp/taken")
    assert await host.inside.remove_compartments([one.id]) == 1


async def test_the_death_of_the_supervisor_is_the_end_of_compartments(host: Room) -> None:
    supervisor = host.site.row.supervisor
    if supervisor is None:
        pytest.skip("it is none of ours")
    parts = await make(host, 3)
    execution = await parts[0].inside.execute(Command(("/bin/sleep", "60")))
    await parts[1].inside.spawn(Command(("/bin/sleep", "60")))
    os.kill(supervisor(host.site.data_dir, host.handle), signal.SIGKILL)
    assert (await host.site.ended(host.handle)).state is AttemptState.LOST
    assert (await execution.wait()).signal == signal.SIGKILL
    await execution.close()
    with pytest.raises(NotRunning):
        await parts[2].inside.execute(Command(("/bin/true",)))
    # What the site leaves behind is looked at when it is removed.


def makers(host: Room) -> list[int]:
    """Return the process that made several compartments of a host lately, if it is still there."""
    assert host.site.row.supervisor is not None
    [first] = processes.children(host.site.row.supervisor(host.site.data_dir, host.handle)) or []
    return [pid for pid in processes.children(first) or [] if len(processes.children(pid) or []) > 1]


async def test_who_makes_compartments_keeps_nothing_of_them_open(host: Room) -> None:
    if host.site.row.supervisor is None:
        pytest.skip("it is none of ours")
    found: list[int] = []
    while not found:  # on a slow machine it may be gone before it is looked at
        parts = await make(host, 20)
        with suppress(FileNotFoundError):
            found = [len(os.listdir(f"/proc/{maker}/fd")) for maker in makers(host)]
        assert await host.inside.remove_compartments([part.id for part in parts]) == 20
    assert max(found) < 40


async def test_compartments_outlive_who_made_them(host: Room) -> None:
    if host.site.row.supervisor is None:
        pytest.skip("it is none of ours")
    one, two = await make(host, 2)
    execution = await two.inside.execute(
        Command(("sh", "-c", "echo up; read x; echo $x"), input=True, environment=_PATH)
    )
    assert await word(execution) == "up"
    for maker in makers(host):  # it may have gone by itself, as it does after a while
        os.kill(maker, signal.SIGKILL)
    ids = {one.id, two.id}
    [three] = await make(host)
    assert three.uid not in {one.uid, two.uid}
    assert {entry.id for entry in await host.inside.compartments()} == {*ids, three.id}
    assert await host.inside.remove_compartments([one.id]) == 1
    with pytest.raises(EntryNotFound):
        await one.run("true")
    await execution.write(b"still here\n")
    assert (await collect(execution)).out == "still here\n"
    await execution.close()
    assert await host.inside.remove_compartments([two.id, three.id]) == 2


async def test_what_a_killed_maker_leaves_is_in_nobodys_way(host: Room) -> None:
    if host.site.row.supervisor is None:
        pytest.skip("it is none of ours")
    await make(host)
    half = new_id()
    folder = host.site.data_dir / "node/attempts" / f"{host.launch.job_id}-{host.launch.attempt}" / "compartments"
    with socket.socket(socket.AF_UNIX) as left, contextlib.chdir(folder):
        left.bind(f".{half}")
    await host.site.restart()
    inside = await host.site.executor.inside(host.handle)
    assert half not in {one.id for one in await inside.compartments()}
    [made] = await inside.make_compartments([half], _LIMITS)
    part = Part(host, half, made.uid, made.home, await inside.compartment(half))
    assert (await part.run("id", "-u")).out == f"{made.uid}\n"
    assert await inside.remove_compartments([half]) == 1
    assert [name for name in os.listdir(folder) if half in name] == []


async def test_the_death_of_the_server_while_it_makes_compartments(host: Room) -> None:
    ids = [new_id() for _ in range(40)]
    task = asyncio.create_task(host.inside.make_compartments(ids, _LIMITS))
    await asyncio.sleep(0.15)
    await host.site.restart()
    inside = await host.site.executor.inside(host.handle)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    ids = [one.id for one in await inside.compartments()]
    assert await inside.remove_compartments(ids) == len(ids)
    [made] = await inside.make_compartments([new_id()], _LIMITS)
    part = Part(host, made.id, made.uid, made.home, await inside.compartment(made.id))
    assert (await part.run("id", "-u")).out == f"{made.uid}\n"
