"""What every executor promises about programs inside of running attempts."""

import asyncio
import hashlib
import os
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from contract.insides import OK, Room, collect, enter, room, site
from contract.test_executors import Site
from runstead.model.errors import EntryNotFound, Invalid, Unsupported
from runstead.model.executions import Command, Ended, TerminalSize

__all__ = ["room", "site"]


# Programs


async def test_a_program_runs_and_its_output_and_end_are_told(room: Room) -> None:
    script = "echo out; read x; echo err >&2; read x; printf end; exit 3"
    async with room.running("sh", "-c", script, input=True) as program:
        pieces = [await program.read()]
        for _ in range(2):  # across two pipes there is an order only for who reads before he lets write
            await program.write(b"\n")
            pieces.append(await program.read())
        assert [(piece.stream, piece.data) for piece in pieces if piece is not None] == [
            ("stdout", b"out\n"),
            ("stderr", b"err\n"),
            ("stdout", b"end"),
        ]
        assert await program.read() is None
        assert await program.wait() == Ended(3, None)


async def test_each_output_is_in_order(room: Room) -> None:
    ran = await room.shell("n=0; while [ $n -lt 2000 ]; do echo $n; echo $n >&2; n=$((n + 1)); done")
    expected = "".join(f"{number}\n" for number in range(2000))
    assert (ran.out, ran.err) == (expected, expected)


async def test_a_program_that_a_signal_ends(room: Room) -> None:
    ran = await room.shell("kill -TERM $$; sleep 10")
    assert ran.ended == Ended(None, signal.SIGTERM)


async def test_arguments_and_variables_arrive_as_they_are(room: Room) -> None:
    odd = ["", "a b", "$HOME", "ü\n", "'\"", "-x", "\udcff"]
    program = "import os, sys; sys.stdout.buffer.write(os.fsencode('|'.join(sys.argv[1:] + [os.environ['ODD']])))"
    ran = await room.run("python3", "-c", program, *odd, environment={"ODD": "a\nb=c ü"})
    [*_] = ran.pieces
    assert b"".join(data for _, data in ran.pieces) == os.fsencode("|".join([*odd, "a\nb=c ü"]))


async def test_programs_have_the_environment_of_the_attempt_under_their_own(site: Site) -> None:
    here = await enter(site, environment={"TOKEN": "one", "OTHER": "two"})
    ran = await here.shell('echo "$TOKEN $OTHER $MINE"; pwd', environment={"OTHER": "mine", "MINE": "new"})
    assert ran.out.splitlines()[0] == "one mine new"
    launch = site.launch("pwd", environment={"TOKEN": "one"})
    await site.run(launch)
    if site.row.isolated:
        assert ran.out.splitlines()[1] == site.lines(launch)[0]
    ran = await here.shell("pwd", folder="/usr")
    assert ran.out == "/usr\n"


async def test_the_same_programs_are_found_as_by_a_command(room: Room) -> None:
    ran = await room.run("python", "-c", "import sys; print(sys.prefix != sys.base_prefix)")
    assert ran.out in ("True\n", "False\n")
    launch = room.site.launch("python", "-c", "import sys; print(sys.prefix != sys.base_prefix)")
    await room.site.run(launch)
    assert room.site.lines(launch) == [ran.out.strip()]


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (Command(("no-such-program",)), "no-such-program"),
        (Command(("/no/such/program",)), "/no/such/program"),
        (Command(("/etc/passwd",)), "/etc/passwd"),
        (Command(()), ""),
        (Command(("",)), ""),
        (Command(("true",), folder="/no/such/folder"), "/no/such/folder"),
        (Command(("true",), folder="/etc/passwd"), "/etc/passwd"),
        (Command(("true",), user="no-such-user"), "no-such-user"),
        (Command(("true",), user="root:no-such-group"), "no-such-group"),
        (Command(("true", "x\0y")), ""),
        (Command(("true",), environment={"A": "x\0y"}), ""),
        (Command(("true", "x" * (4 << 20))), ""),
    ],
)
async def test_what_cannot_be_executed_says_why(room: Room, command: Command, word: str) -> None:
    for way in (room.inside.execute, room.inside.spawn):
        with pytest.raises(Invalid) as caught:
            await way(command)
        assert word in caught.value.message
        assert len(caught.value.message) > len(word) + 10
    assert (await room.run("true")).ended == OK
    assert await room.inside.background() == []


async def test_process_conventions(room: Room) -> None:
    program = (
        "import os, signal, sys\n"
        "print(oct(os.umask(0)), os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())\n"
        "print([s.name for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN\n"
        "       and s not in (signal.SIGPIPE, signal.SIGXFSZ)])\n"
        "print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1])\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))\n"
    )
    own = os.getpriority(os.PRIO_PROCESS, 0)
    expected = f"0o22 True True\n[]\n[0, 1, 2]\nset()\n{own} 0\n"
    assert (await room.run("python3", "-c", program)).out == expected
    assert (await room.run("python3", "-c", program, input=True)).out == expected
    ran = await room.run("python3", "-c", program, terminal=TerminalSize(24, 80))
    assert ran.out.replace("\r", "") == expected


async def test_a_program_has_the_rights_of_the_command_and_not_more(room: Room) -> None:
    if not room.site.row.isolated:
        pytest.skip("not promised")
    script = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status; cat /proc/self/cgroup"
    ran = await room.shell(script)
    launch = room.site.launch("sh", "-c", script)
    await room.site.run(launch)
    own, command = ran.out.splitlines(), room.site.lines(launch)
    assert [line for line in own if ":/" not in line] == [line for line in command if ":/" not in line]
    assert "NoNewPrivs:\t1" in own
    ran = await room.shell("mount -t tmpfs none /mnt; ls -l /proc/1/environ; cat /proc/1/environ; cat /proc/1/maps")
    assert "tmpfs" not in ran.out


async def test_limits_of_the_attempt_hold_for_programs(site: Site) -> None:
    if site.capabilities.missing or not site.row.isolated:
        pytest.skip("no limits here")
    here = await enter(site, memory_bytes=64 << 20)
    ran = await here.run("python3", "-c", "x = b'x' * (256 << 20); print(len(x))")
    assert ran.ended.exit_code != 0
    assert (await here.run("true")).ended == OK


async def test_standard_input(room: Room) -> None:
    async with room.running("cat", input=True) as cat:
        await cat.write(b"one ")
        await cat.write(b"two\0\xff")
        await cat.end_input()
        await cat.end_input()
        ran = await collect(cat)
    assert b"".join(data for _, data in ran.pieces) == b"one two\0\xff"
    assert (await room.run("cat")).pieces == []


async def test_standard_input_waits_while_the_program_does_not_read(room: Room) -> None:
    data = os.urandom(8 << 20)
    async with room.running("sh", "-c", "sleep 0.3; sha256sum", input=True) as reader:
        began = time.monotonic()
        await reader.write(data)
        assert time.monotonic() - began > 0.2
        await reader.end_input()
        ran = await collect(reader)
    assert ran.out.split()[0] == hashlib.sha256(data).hexdigest()


async def test_standard_input_of_a_program_that_does_not_want_it(room: Room) -> None:
    async with room.running("sh", "-c", "exec <&-; echo closed; sleep 60", input=True) as program:
        assert (await program.read()).data == b"closed\n"
        with pytest.raises(BrokenPipeError):
            for _ in range(100):
                await program.write(b"x" * 65536)
    async with room.running("true") as program:
        with pytest.raises(BrokenPipeError):
            await program.write(b"x")


async def test_64_mb_of_binary_output(room: Room) -> None:
    size = 64 << 20
    digest, count = hashlib.sha256(), 0
    program = (
        f"import os, hashlib, sys; h = hashlib.sha256()\nfor _ in range({size >> 20}):\n"
        " b = os.urandom(1 << 20); h.update(b); sys.stdout.buffer.write(b)\nprint(h.hexdigest(), file=sys.stderr)"
    )
    async with room.running("python3", "-c", program) as writer:
        said = b""
        while (piece := await writer.read()) is not None:
            if piece.stream == "stdout":
                digest.update(piece.data)
                count += len(piece.data)
                assert len(piece.data) <= 1 << 20
            else:
                said += piece.data
        assert await writer.wait() == OK
    assert count == size
    assert said.decode().strip() == digest.hexdigest()


async def test_a_program_waits_while_nobody_reads(room: Room) -> None:
    program = (
        "import sys, os\nn = 0\n"
        "while n < 64 << 20: n += os.write(1, b'x' * 65536); open('/tmp/written', 'w').write(str(n))"
    )
    where = "/tmp/written" if room.site.row.isolated else None
    if where is None:
        pytest.skip("/tmp is the machine's")
    async with room.running("python3", "-c", program) as writer:
        assert (await writer.read()) is not None
        seen, again = 0, -1
        while again != seen:
            again = seen
            await asyncio.sleep(0.2)
            seen = int((await room.run("cat", where)).out or 0)
        assert 0 < seen < 4 << 20
        total = len((await collect(writer)).out) if False else 0
        while (piece := await writer.read()) is not None:
            total += len(piece.data)
        assert await writer.wait() == OK


async def test_programs_that_close_their_outputs_early(room: Room) -> None:
    async with room.running("sh", "-c", "echo a; exec >&- 2>&-; sleep 0.3; exit 4") as program:
        ran = await collect(program)
    assert (ran.out, ran.ended) == ("a\n", Ended(4, None))


async def test_output_that_a_descendant_holds_open_is_awaited_for_two_seconds(room: Room) -> None:
    async with room.running("sh", "-c", "(sleep 0.5; echo late) & echo now") as program:
        ran = await collect(program)
        assert ran.out == "now\nlate\n"
    began = time.monotonic()
    async with room.running("sh", "-c", "sleep 77.7 & echo now") as program:
        ran = await collect(program)
        assert ran.out == "now\n"
        assert 1.5 < time.monotonic() - began < 4
    # What a program leaves behind when it ends by itself lives on, as on any machine.
    assert "sleep 77.7" in await room.processes()


async def test_a_timeout_of_years(room: Room) -> None:
    async with room.running("cat", input=True, timeout_seconds=1e8) as program:  # poll(2) takes less than a month
        await program.write(b"x")
        assert (await program.read()) is not None
        await program.end_input()
        assert await program.wait() == OK


async def test_a_daemon_that_was_left_behind_is_not_killed_by_what_comes_after(room: Room) -> None:
    await room.shell("setsid sleep 78.8 >/dev/null 2>&1 &")
    async with room.running("sleep", "60"):
        pass
    assert (await room.run("sleep", "60", timeout_seconds=0.05)).ended.timed_out
    assert "sleep 78.8" in await room.processes()


_TREE = (
    "sleep 81.1 & setsid sleep 81.2 & (setsid sh -c 'setsid sleep 81.3 & setsid nohup sleep 81.4 &' &) ; "
    "sh -c 'trap \"\" TERM INT HUP; sleep 81.5; sleep 81.5' & echo ready; wait"
)


@pytest.mark.parametrize("way", ["close", "timeout"])
async def test_the_whole_tree_is_killed(room: Room, way: str) -> None:
    timeout = 0.5 if way == "timeout" else None
    async with room.running("sh", "-c", _TREE, timeout_seconds=timeout) as program:
        assert (await program.read()).data == b"ready\n"
        if way == "timeout":
            assert await program.wait() == Ended(None, signal.SIGKILL, timed_out=True)
    assert not {line for line in await room.processes() if "81." in line}


async def test_a_tree_in_the_background_is_killed(room: Room) -> None:
    started = await room.inside.spawn(Command(("sh", "-c", _TREE)))
    async with asyncio.timeout(10):
        while len({line for line in await room.processes() if line.startswith("sleep 81.")}) < 5:
            await asyncio.sleep(0.02)
    assert await room.inside.kill(started.id) is True
    assert not {line for line in await room.processes() if "81." in line}


@pytest.mark.parametrize("detach", ["pass", "os.setsid()"])
async def test_a_fork_bomb_is_killed(site: Site, detach: str) -> None:
    if any("processes" in text for text in site.capabilities.missing) or not site.row.isolated:
        pytest.skip("no limit of processes here")
    here = await enter(site)
    bomb = f"import os\nwhile True:\n try:\n  if os.fork() == 0: {detach}\n except OSError: pass"
    started = await here.inside.spawn(Command(("python3", "-c", bomb)))
    await asyncio.sleep(0.3)
    assert await here.inside.kill(started.id) is True
    assert not {line for line in await here.processes() if "os.fork" in line}


async def test_signals_go_to_the_whole_group(room: Room) -> None:
    below = "sh -c 'trap \"exit 0\" USR1; echo ready; while :; do sleep 0.01; done'"
    script = f"trap 'echo got; exit 7' USR1; {below} & wait"
    async with room.running("sh", "-c", script) as program:
        assert (await program.read()).data == b"ready\n"
        await program.signal(signal.SIGUSR1)
        ran = await collect(program)
        assert ran.out == "got\n"
        assert ran.ended == Ended(7, None)
        await program.signal(signal.SIGKILL)
    await program.signal(signal.SIGKILL)
    assert (await room.run("true")).ended == OK


async def test_200_programs_at_once(room: Room) -> None:
    async def one(number: int) -> None:
        ran = await room.shell(f"echo {number}; sleep 0.1; echo {number} >&2; exit {number % 250}")
        assert (ran.out, ran.err, ran.ended.exit_code) == (f"{number}\n", f"{number}\n", number % 250)

    await asyncio.gather(*(one(number) for number in range(200)))


async def test_closing_twice_and_using_what_is_closed(room: Room) -> None:
    execution = await room.inside.execute(Command(("sh", "-c", "echo a; exec sleep 82.2"), input=True))
    await execution.close()
    await execution.close()
    assert await execution.read() is None
    with pytest.raises(BrokenPipeError):
        await execution.write(b"x")
    await execution.end_input()
    await execution.signal(signal.SIGTERM)
    await execution.resize(TerminalSize(1, 1))
    assert (await execution.wait()).signal == signal.SIGKILL
    assert "sleep 82.2" not in await room.processes()


async def test_a_task_that_is_cancelled_leaves_no_program(room: Room) -> None:
    async def stay() -> None:
        async with room.running("sleep", "83.3") as program:
            await program.read()

    task = asyncio.create_task(stay())
    async with asyncio.timeout(5):
        while "sleep 83.3" not in await room.processes():
            await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert "sleep 83.3" not in await room.processes()
    for number in range(40):  # also in the middle of being started
        task = asyncio.create_task(room.run("sleep", "83.3"))
        await asyncio.sleep(number * 0.0002)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await room.absent("sleep 83.3")


async def test_nothing_leaks_in_this_process(room: Room) -> None:
    async def everything() -> None:
        await room.shell("echo a; echo b >&2")
        await room.run("cat", terminal=TerminalSize(2, 2), timeout_seconds=0.01)
        with suppress(Invalid):
            await room.run("no-such-program")
        async with room.running("sleep", "60", input=True):
            pass
        file = await room.inside.open_file("leak", write=True)
        await file.close()
        with suppress(EntryNotFound):
            await room.inside.open_file("no/such")
        with suppress(ConnectionRefusedError, Unsupported):
            await room.inside.connect(1)

    await everything()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await everything()
    assert len(os.listdir("/proc/self/fd")) <= before + 2


# Terminals


async def test_a_terminal(room: Room) -> None:
    script = "tty >&2; stty size; test -t 0 && test -t 1 && test -t 2 && echo yes; echo $TERM; cat /proc/self/stat"
    ran = await room.shell(script, terminal=TerminalSize(33, 101))
    name, size, yes, term, stat = ran.out.replace("\r", "").splitlines()
    assert (name[:9], size, yes, bool(term)) == ("/dev/pts/", "33 101", "yes", True)
    assert int(stat.rpartition(")")[2].split()[4]) != 0  # it has a controlling terminal
    assert ran.err == ""


async def test_a_terminal_is_typed_into_and_resized(room: Room) -> None:
    script = (
        "stty -echo; trap 'stty size' WINCH; echo ready; read a; echo \"<$a>\"; "
        # Not `echo going; exec sleep`: a signal that reaches bash right before it becomes another program is lost.
        "until read -t 0.05 b; do :; done; exec awk 'BEGIN { print \"going\"; fflush(); getline }'"
    )
    async with room.running("bash", "-c", script, terminal=TerminalSize(10, 20)) as program:
        seen = ""

        async def see(wanted: str) -> None:
            nonlocal seen
            async with asyncio.timeout(10):
                while wanted not in seen:
                    piece = await program.read()
                    assert piece is not None, seen
                    seen += piece.data.decode()

        await see("ready\r\n")
        await program.write(b"typed\n")
        await see("<typed>\r\n")
        await program.resize(TerminalSize(40, 120))
        await see("40 120\r\n")
        await program.write(b"\n")
        await see("going\r\n")
        await program.write(b"\x03")  # what Ctrl-C sends: a signal to the foreground group
        assert (await program.wait()).signal == signal.SIGINT


async def test_the_end_of_input_of_a_terminal(room: Room) -> None:
    async with room.running("cat", terminal=TerminalSize(10, 20)) as cat:
        await cat.write(b"line\n")
        await cat.end_input()
        assert (await cat.wait()) == OK


# Users


async def test_programs_as_other_users(room: Room) -> None:
    if not (room.site.capabilities.private_ids or room.site.capabilities.images):
        with pytest.raises((Unsupported, Invalid)):
            await room.run("true", user="nobody")
        assert (await room.shell("id -u", user=str(os.geteuid()))).out == f"{os.geteuid()}\n"
        return
    show = 'id -u; id -g; echo "$HOME $USER"; echo hi > /dev/stdout; touch /tmp/of-$(id -u); touch /etc/x 2>&1 | wc -l'
    for user, start in (
        ("nobody", ["65534", "65534"]),
        ("nobody:daemon", ["65534", "1"]),
        ("1234", ["1234", "0"]),
        ("1234:4321", ["1234", "4321"]),
        ("root", ["0", "0"]),
    ):
        ran = await room.shell(show, user=user)
        lines = ran.out.splitlines()
        assert lines[:2] == start, (user, ran)
        assert "hi" in lines
        if user != "root":
            assert "CapEff:\t0000000000000000" in (await room.run("cat", "/proc/self/status", user=user)).out
    ran = await room.run("sleep", "60", user="nobody", timeout_seconds=0.1)
    assert ran.ended.timed_out
    ran = await room.shell("tty; id -u", user="nobody", terminal=TerminalSize(10, 80))
    assert ran.out.replace("\r", "").splitlines()[1] == "65534"
    started = await room.inside.spawn(Command(("sleep", "60"), user="nobody"))
    assert await room.inside.kill(started.id)
    for user in ("70000", "4294967295", "-1", "0x10", "nobody:70000"):
        with pytest.raises((Invalid, Unsupported)):
            await room.run("true", user=user)


# In the background


async def test_programs_in_the_background(room: Room) -> None:
    before = datetime.now(UTC)
    first = await room.inside.spawn(Command(("sh", "-c", "exit 5")), "tag")
    second = await room.inside.spawn(Command(("sleep", "84.4"), folder="/"))
    assert (first.id, first.argv, first.tag, second.id, second.tag) == (0, ("sh", "-c", "exit 5"), "tag", 1, None)
    assert before - timedelta(seconds=1) <= first.started_at <= datetime.now(UTC)
    async with asyncio.timeout(10):
        while (listed := await room.inside.background())[0].ended is None:
            await asyncio.sleep(0.01)
    assert listed[0].ended == Ended(5, None)
    assert listed[1] == second
    assert (await room.shell(f"tr '\\0' ' ' < /proc/{second.pid}/cmdline")).out == "sleep 84.4 "
    assert [await room.inside.kill(number) for number in (0, 1, 1, 2, -1)] == [False, True, False, False, False]
    listed = await room.inside.background()
    assert listed[1].ended == Ended(None, signal.SIGKILL)


async def test_a_program_in_the_background_with_a_time_limit(room: Room) -> None:
    await room.inside.spawn(Command(("sleep", "60"), timeout_seconds=0.05))
    async with asyncio.timeout(10):
        while (listed := await room.inside.background())[0].ended is None:
            await asyncio.sleep(0.01)
    assert listed[0].ended == Ended(None, signal.SIGKILL, timed_out=True)


async def test_a_program_in_the_background_reads_nothing_and_writes_nowhere(room: Room) -> None:
    target = "/tmp/there" if room.site.row.isolated else str(room.site.data_dir / "there")
    await room.inside.spawn(Command(("sh", "-c", f"cat; echo out; echo err >&2; echo $? > {target}"), input=True))
    async with asyncio.timeout(10):
        while (await room.inside.background())[0].ended is None:
            await asyncio.sleep(0.01)
    assert (await room.run("cat", target)).out == "0\n"


async def test_the_list_of_the_background_is_bounded(room: Room) -> None:
    await room.inside.spawn(Command(("sleep", "60")))
    for _ in range(10):
        await asyncio.gather(*(room.inside.spawn(Command(("true",))) for _ in range(27)))
    async with asyncio.timeout(10):
        while sum(one.ended is None for one in await room.inside.background()) > 1:
            await asyncio.sleep(0.02)
    listed = await room.inside.background()
    assert [one.id for one in listed] == [0, *range(15, 271)]


async def test_two_who_kill_the_same(room: Room) -> None:
    started = await room.inside.spawn(Command(("sh", "-c", _TREE)))
    assert sorted(await asyncio.gather(*(room.inside.kill(started.id) for _ in range(8)))) == [False] * 7 + [True]
