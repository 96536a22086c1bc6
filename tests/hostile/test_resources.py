"""Jobs that take all they can get: processes, memory, disk, the log, time."""

import asyncio
import json
import os
import signal

import pytest

from hostile.conftest import Prison
from runstead.model.launches import AttemptState, ExitReason
from runstead.node import processes


async def test_a_fork_bomb_hurts_nobody_else(prison: Prison) -> None:
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    launch = prison.launch("python3", "-c", bomb, timeout_seconds=6)
    handle = await prison.start(launch)
    await prison.responsive()
    record = await prison.ended(handle)
    # A kernel of its own has threads, which count as processes of the job: it ends when it gets no more.
    assert record.reason in (ExitReason.TIMEOUT, ExitReason.OOM) or (prison.own_kernel and record.exit_code != 0)


async def test_a_bomb_of_the_shell_ends_when_it_is_told_to(prison: Prison) -> None:
    handle = await prison.start(prison.launch("bash", "-c", "b() { b | b & }; b; sleep 60"))
    await asyncio.sleep(0.5)
    await prison.executor.stop(handle, 0.2)
    record = await prison.ended(handle)
    # A kernel of its own may have ended before it was told to.
    assert record.reason is ExitReason.STOPPED or (prison.own_kernel and record.exit_code != 0)
    await prison.responsive()


async def test_a_first_process_that_hears_nothing_ends_too(prison: Prison) -> None:
    """As in a bomb, where it has its hands full: what it was told is unread when it is killed."""
    if not prison.first_is_ours:
        pytest.skip("the first process is not ours")
    handle = await prison.start(prison.launch("sleep", "60"))
    [started] = (prison.data_dir / "node" / "attempts").glob("*/started.json")
    supervisor = json.loads(started.read_text())["supervisor"]
    [first] = processes.children(supervisor) or []
    os.kill(first, signal.SIGSTOP)
    await prison.executor.stop(handle, 0.1)
    record = await prison.ended(handle)
    assert (record.reason, record.signal) == (ExitReason.STOPPED, signal.SIGKILL)


async def test_a_memory_hog_dies_alone_and_is_told_how_much_it_had(prison: Prison) -> None:
    neighbour = await prison.start(prison.launch("sleep", "60", namespace="bob"))
    hog = "import os\nfor _ in range(4): os.fork()\nx = []\nwhile True: x.append(b'x' * (4 << 20))"
    record, _ = await prison.python(hog, memory_bytes=128 << 20)
    assert record.reason is ExitReason.OOM
    assert "128 MiB" in str(record.message)
    assert await prison.state(neighbour) is AttemptState.RUNNING


async def test_files_in_memory_count_as_memory(prison: Prison) -> None:
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=1000; dd if=/dev/zero of=/dev/x bs=1M count=1000; exit 9"
    record, lines = await prison.run(prison.launch("sh", "-c", script, memory_bytes=48 << 20))
    full = sum("No space" in line for line in lines)
    assert record.reason is ExitReason.OOM or (record.exit_code == 9 and full + _refused(lines) == 2), lines


def _refused(lines: list[str]) -> int:
    return sum("denied" in line for line in lines)


async def test_a_disk_filler_fills_its_own_disk(prison: Prison) -> None:
    assert prison.capabilities is not None
    if not prison.capabilities.disk_limits:
        pytest.skip("the space that a job may take is not limited here, which is a capability and documented")
    fill = "dd if=/dev/zero of={}/fill bs=1M count=400 2>&1 | grep -o 'No space left'"
    neighbour = prison.launch("sh", "-c", "sleep 2; echo data > /file && cat /file", disk_bytes=64 << 20)
    handle = await prison.start(neighbour)
    for place in ("/", "/tmp", "/var/tmp", "/root"):
        record, lines = await prison.shell_record(fill.format(place), disk_bytes=64 << 20)
        in_memory = prison.own_kernel and record.exit_code == 137  # gVisor keeps /tmp there, and in the job's
        assert in_memory or (record.exit_code, lines) == (0, ["No space left"]), place
    assert (await prison.ended(handle)).exit_code == 0
    assert prison.lines(neighbour) == ["data"]


async def test_many_small_files_are_gone_at_once(prison: Prison) -> None:
    many = "import os\nos.makedirs('/tmp/d')\nfor n in range(5000): open(f'/tmp/d/{n}', 'w').close()\nprint('made')"
    launch = prison.launch("python3", "-c", many, disk_bytes=256 << 20)
    handle = await prison.start(launch)
    assert (await prison.ended(handle)).exit_code == 0
    async with asyncio.timeout(5):
        await prison.executor.remove(handle)


async def test_a_flood_of_output_is_cut_and_says_so(prison: Prison) -> None:
    flood = "import sys\nline = b'x' * 999 + b'\\n'\nfor _ in range(40): sys.stdout.buffer.write(line * 1000)"
    launch = prison.launch("python3", "-c", flood)
    handle = await prison.start(launch)
    await prison.responsive()
    record = await prison.ended(handle)
    assert record.exit_code == 0
    assert launch.log_path.stat().st_size < prison.log_limit_bytes * 1.2
    assert "missing in the log" in str(record.message)


async def test_output_without_a_line_end_is_kept_and_bounded(prison: Prison) -> None:
    launch = prison.launch("python3", "-c", "import sys\nfor _ in range(100): sys.stdout.write('y' * 100_000)")
    record, lines = await prison.run(launch)
    assert record.exit_code == 0
    size = sum(len(line) for line in lines)
    assert 0.9 * prison.log_limit_bytes < size + 64 * len(lines) < prison.log_limit_bytes * 1.2
    assert max(len(line) for line in lines) <= 1 << 20


async def test_zombies_are_buried(prison: Prison) -> None:
    if prison.name in ("crun", "runc", "runsc"):
        pytest.skip("with a runtime the command is process 1 and has to bury them itself, which is documented")
    makers = (
        "import os, time\n"
        "for n in range(1000):\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0: os._exit(0)\n"  # an orphan, which process 1 has to bury
        "        os._exit(0)\n"
        "    os.wait()\n"
        "print('made')\n"
        "time.sleep(0.3)\n"
        "states = [open(f'/proc/{p}/stat').read().split()[2] for p in os.listdir('/proc') if p.isdigit()]\n"
        "print(states.count('Z') < 5)"
    )
    record, lines = await prison.python(makers)
    assert (record.exit_code, lines) == (0, ["made", "True"])


async def test_zombies_that_are_not_buried_are_bounded(prison: Prison) -> None:
    makers = (
        "import os\nn = 0\ntry:\n while n < 5000:\n  if os.fork() == 0: os._exit(0)\n  n += 1\nexcept OSError: print(n)"
    )
    record, lines = await prison.python(makers)
    if prison.own_kernel and record.exit_code != 0:
        return  # as with a fork bomb
    assert record.exit_code == 0
    assert int(lines[0]) < 200


# Who does not want to end


async def test_ignoring_the_polite_signal_helps_for_the_grace_only(prison: Prison) -> None:
    deaf = "import signal, time\nfor s in signal.valid_signals():\n try: signal.signal(s, signal.SIG_IGN)\n"
    deaf += " except (OSError, ValueError): pass\nprint('deaf')\nwhile True: time.sleep(1)"
    launch = prison.launch("python3", "-uc", deaf)
    handle = await prison.start(launch)
    await prison.line(launch, "deaf")
    await prison.executor.stop(handle, 0.5)
    record = await prison.ended(handle)
    assert (record.reason, record.signal) == (ExitReason.STOPPED, 9)


@pytest.mark.parametrize(
    "way",
    [
        "setsid sh -c 'trap \"\" TERM HUP; sleep 1000' &",
        "(setsid sh -c 'setsid sleep 1000 & exit' &)",
        "nohup sleep 1000 > /dev/null 2>&1 & disown",
        "python3 -c 'import os,time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); "
        'os.closerange(0, 100); os.chdir("/"); time.sleep(1000)\'',
    ],
)
async def test_daemons_end_with_their_job(prison: Prison, way: str) -> None:
    handle = await prison.start(prison.launch("bash", "-c", f"{way}\nsleep 0.2; exit 5", environment={"MARK": "m"}))
    assert (await prison.ended(handle)).exit_code == 5
    assert await prison.executor.usage(handle) is None


async def test_killing_everybody_kills_the_job_alone(prison: Prison) -> None:
    neighbour = await prison.start(prison.launch("sleep", "60"))
    record, _ = await prison.shell_record("kill -9 1; kill -STOP 1; sleep 60 & kill -9 -1; kill -9 $$")
    assert record.reason is ExitReason.EXITED
    # A first process that is the job's own cannot be killed from inside; and an engine tells no signal.
    assert record.signal == 9 or not prison.first_is_ours
    assert await prison.state(neighbour) is AttemptState.RUNNING


async def test_stopping_everybody_does_not_stop_the_clock(prison: Prison) -> None:
    record, _ = await prison.shell_record("kill -STOP -1; kill -STOP $$; sleep 60", timeout_seconds=1)
    assert record.reason is ExitReason.TIMEOUT
