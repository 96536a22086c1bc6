"""What every Executor promises. An executor joins with one row in ROWS."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

import engines
from container_images import OneImage
from runstead.executors.docker import DockerExecutor, DockerSettings
from runstead.executors.interface import Capabilities, Executor
from runstead.executors.native import NativeExecutor, NativeSettings
from runstead.executors.oci import OciExecutor, OciSettings
from runstead.executors.process import ProcessExecutor
from runstead.model.errors import Invalid
from runstead.model.ids import new_id
from runstead.model.launches import AttemptState, ExitReason, ExitRecord, GpuUsage, Handle, Launch, Observation
from runstead.model.volumes import Mount
from runstead.node import places
from runstead.node.logformat import PREFIX_BYTES, parse_stamp

_WAIT_SECONDS = 30.0
_MEMORY = 256 << 20


@dataclass(frozen=True)
class Row:
    """One executor under test and what the suite needs to know about it beyond its capabilities."""

    name: str
    build: Callable[[Path, Callable[[str, str], None]], Executor]
    isolated: bool  # promises that jobs do not see the machine's other processes and files
    supervisor: Callable[[Path, Handle], int] | None = None  # the process beside the job, if it is ours to kill
    launcher: Callable[[Path], int] | None = None  # the process that starts those
    abandon: Callable[[Executor], None] = lambda _executor: None  # what a crash does that losing the object does not
    only: tuple[str, ...] = ()  # the tests, and modules of them, that can hold for it; (): all


def _process(isolation: str) -> Callable[[Path, Callable[[str, str], None]], Executor]:
    def build(data_dir: Path, wake: Callable[[str, str], None]) -> Executor:
        settings = NativeSettings(isolation=isolation, grace_seconds=1.0, pids_limit=600)
        return ProcessExecutor(data_dir, settings, wake)

    return build


def _process_supervisor(data_dir: Path, handle: Handle) -> int:
    name = f"{handle.data['job_id']}-{handle.data['attempt']}"
    return json.loads((data_dir / "node/attempts" / name / "attempt.json").read_text())["supervisor"]


def _process_launcher(data_dir: Path) -> int:
    [found] = _processes_with(f"{data_dir} launcher-".encode().replace(b" ", b"\0"), "cmdline", leader_only=True)
    return found


def _process_abandon(executor: Executor) -> None:
    assert isinstance(executor, NativeExecutor)
    os.close(executor._presence)
    executor._hosts.close()


def _oci(data_dir: Path, wake: Callable[[str, str], None]) -> Executor:
    settings = OciSettings(NativeSettings(grace_seconds=1.0, pids_limit=600))
    return OciExecutor(data_dir, settings, OneImage(), wake)


def _runtime(name: Literal["crun", "runc"]) -> Callable[[Path, Callable[[str, str], None]], Executor]:
    def build(data_dir: Path, wake: Callable[[str, str], None]) -> Executor:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        settings = OciSettings(NativeSettings(grace_seconds=1.0, pids_limit=600), runtime=name)
        return OciExecutor(data_dir, settings, OneImage(), wake)

    return build


def _docker(*, by_api: bool) -> Callable[[Path, Callable[[str, str], None]], Executor]:
    def build(data_dir: Path, wake: Callable[[str, str], None]) -> Executor:
        native = NativeSettings(network="none", grace_seconds=1.0, pids_limit=600)
        socket = Path(os.environ[engines.SOCKET])  # told in this way to other processes of a test, too
        settings = DockerSettings(native, socket=socket, ulimits=engines.ULIMITS, by_api=by_api)
        return DockerExecutor(data_dir, settings, wake)

    return build


# Where the container is not of our making, the agent inside has another way in; what does not depend on that is as
# elsewhere, or tested in `test_containers.py`. With RUNSTEAD_TEST_EXECUTORS=all the whole suites of the inside are run.
_INSIDE = (
    "test_inside_attempts",
    "test_inside_ports",
    "test_inside_files.test_files_are_written_and_read",
    "test_inside_files.test_folders_are_listed_by_many_at_once",
    "test_inside_files.test_links_lead_nowhere_but_inside",
    "test_inside_programs.test_a_program_runs_and_its_output_and_end_are_told",
    "test_inside_programs.test_programs_have_the_environment_of_the_attempt_under_their_own",
    "test_inside_programs.test_what_cannot_be_executed_says_why",
    "test_inside_programs.test_process_conventions",
    "test_inside_programs.test_a_program_has_the_rights_of_the_command_and_not_more",
    "test_inside_programs.test_limits_of_the_attempt_hold_for_programs",
    "test_inside_programs.test_a_daemon_that_was_left_behind_is_not_killed_by_what_comes_after",
    "test_inside_programs.test_the_whole_tree_is_killed",
    "test_inside_programs.test_a_tree_in_the_background_is_killed",
    "test_inside_programs.test_a_task_that_is_cancelled_leaves_no_program",
    "test_inside_programs.test_a_terminal_is_typed_into_and_resized",
    "test_inside_programs.test_programs_as_other_users",
    "test_inside_programs.test_a_program_in_the_background_with_a_time_limit",
    *(("test_inside_files", "test_inside_programs") if os.environ.get("RUNSTEAD_TEST_EXECUTORS") == "all" else ()),
)
# Of an engine's containers less can be promised: no signal's number, only exit codes, and not whether a command
# that is missing was never executed or ended with a shell's code, nor the order of lines on two streams. Some of the
# rest needs a network, or uv in the image.
_DOCKER = (
    "test_a_running_attempt_is_running_and_has_a_start",
    "test_exit_codes",
    "test_the_working_directory_home_and_tmp_are_private_and_writable",
    "test_starting_twice_gives_the_same_attempt",
    "test_starting_at_the_same_time_starts_one",
    "test_starting_what_has_ended_starts_nothing",
    "test_two_servers_start_one",
    "test_attempts_of_one_job_are_apart",
    "test_a_new_executor_finds_what_runs_and_what_ended_meanwhile",
    "test_names_that_could_become_paths_are_refused",
    "test_stop_asks_first",
    "test_stop_kills_after_the_grace",
    "test_stop_ends_a_command_that_ignores_nothing_at_once",
    "test_stop_of_what_has_ended_or_never_was_is_nothing",
    "test_the_time_limit",
    "test_the_time_limit_kills_who_does_not_listen",
    "test_everything_ends_with_the_command",
    "test_removing_ends_and_gives_back",
    "test_handles_that_are_not_known_are_lost",
    "test_the_death_of_the_launcher_harms_nobody",
    "test_times_never_go_back_behind_an_earlier_attempt",
    "test_a_line_wakes_at_once",
    "test_secrets_are_with_the_job_only",
    "test_snapshots",
    *_INSIDE,
)
_BY_API_ALL = (
    "test_inside_attempts.test_an_attempt_without_a_command_that_will_not_end_is_killed",
    "test_inside_attempts.test_the_death_of_the_server_in_the_middle",
    "test_inside_programs.test_programs_have_the_environment_of_the_attempt_under_their_own",
    "test_inside_programs.test_what_cannot_be_executed_says_why",
    "test_inside_programs.test_a_program_has_the_rights_of_the_command_and_not_more",
    "test_inside_programs.test_limits_of_the_attempt_hold_for_programs",
    "test_inside_programs.test_a_daemon_that_was_left_behind_is_not_killed_by_what_comes_after",
    "test_inside_programs.test_a_tree_in_the_background_is_killed",
    "test_inside_programs.test_a_program_in_the_background_with_a_time_limit",
    "test_inside_programs.test_two_who_kill_the_same",
    "test_inside_files.test_offsets_beyond_four_gigabytes",
    "test_inside_files.test_a_full_disk_is_an_error_of_the_system",
    "test_inside_files.test_folders_are_made_and_deleted",
    "test_inside_files.test_links_lead_nowhere_but_inside",
)
# Where a container is reached by the engine's API alone, `Shortfall` says what is not as elsewhere; and each program
# that is started costs an engine a tenth of a second.
_BY_API = (
    "test_inside_attempts.test_an_attempt_without_a_command_stays_until_it_is_stopped",
    "test_inside_attempts.test_after_a_restart_of_the_server",
    "test_snapshots.test_a_fork_begins_with_the_files_as_they_were",
    "test_snapshots.test_a_fork_of_a_fork_outlives_both_before_it_and_the_server",
    "test_snapshots.test_programs_and_what_is_in_memory_are_not_carried_over",
    "test_inside_programs.test_process_conventions",
    "test_inside_programs.test_standard_input",
    "test_inside_programs.test_the_whole_tree_is_killed",
    "test_inside_programs.test_signals_go_to_the_whole_group",
    "test_inside_programs.test_a_terminal",
    "test_inside_programs.test_programs_in_the_background",
    "test_inside_files.test_files_are_written_and_read",
    "test_inside_files.test_what_cannot_be_opened_says_why",
    "test_inside_files.test_folders_are_listed_in_pages",
    "test_inside_files.test_names_that_are_no_text",
    *(_BY_API_ALL if os.environ.get("RUNSTEAD_TEST_EXECUTORS") == "all" else ()),
)
_IMAGE = "python:3.12"  # what every launch here names

ROWS = [
    Row("process-full", _process("full"), True, _process_supervisor, _process_launcher, _process_abandon),
    Row("oci", _oci, True, _process_supervisor, _process_launcher, _process_abandon),
    Row("process-plain", _process("none"), False, _process_supervisor, _process_launcher, _process_abandon),
    Row("oci-crun", _runtime("crun"), True, _process_supervisor, _process_launcher, _process_abandon, _INSIDE),
    Row("oci-runc", _runtime("runc"), True, _process_supervisor, _process_launcher, _process_abandon, _INSIDE),
    Row("docker", _docker(by_api=False), True, _process_supervisor, _process_launcher, _process_abandon, _DOCKER),
    Row("docker-api", _docker(by_api=True), True, _process_supervisor, _process_launcher, _process_abandon, _BY_API),
]


@dataclass
class Site:
    """One executor at work, and short ways to ask it things."""

    row: Row
    data_dir: Path
    log_dir: Path
    executor: Executor
    capabilities: Capabilities
    wakes: "asyncio.Queue[tuple[str, str]]"
    handles: list[Handle] = field(default_factory=list)

    def launch(self, *argv: str, **changes: object) -> Launch:
        job_id = new_id(datetime.now(UTC))
        launch = Launch(
            job_id=job_id,
            attempt=1,
            namespace="alice",
            image=_IMAGE,
            argv=argv,
            environment={},
            cpu_millicores=2000,
            memory_bytes=_MEMORY,
            disk_bytes=None,
            gpu_ids=(),
            timeout_seconds=60,
            log_path=self.log_dir / f"{job_id}.log",
            log_not_before=datetime.fromtimestamp(0, UTC),
            preamble=(),
        )
        return replace(launch, **changes)

    async def start(self, launch: Launch) -> Handle:
        handle = await self.executor.start(launch)
        self.handles.append(handle)
        return handle

    async def look(self, handle: Handle) -> Observation:
        [observation] = await self.executor.poll([handle])
        return observation

    async def ended(self, handle: Handle) -> Observation:
        async with asyncio.timeout(_WAIT_SECONDS):
            while (seen := await self.look(handle)).state is AttemptState.RUNNING:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.25):
                        await self.wakes.get()
        return seen

    async def run(self, launch: Launch) -> ExitRecord:
        seen = await self.ended(await self.start(launch))
        assert seen.state is AttemptState.EXITED, seen
        assert seen.exit is not None
        return seen.exit

    async def shell(self, script: str, **changes: object) -> tuple[ExitRecord, str]:
        launch = self.launch("sh", "-c", script, **changes)
        record = await self.run(launch)
        return record, "\n".join(self.lines(launch))

    def lines(self, launch: Launch) -> list[str]:
        with suppress(FileNotFoundError):
            data = launch.log_path.read_bytes()
            assert data == b"" or data.endswith(b"\n")
            return [line[PREFIX_BYTES:].decode() for line in data.split(b"\n")[:-1]]
        return []

    async def line(self, launch: Launch, wanted: str) -> None:
        """Wait until the log has this line, told by wake-ups."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while wanted not in self.lines(launch):
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.25):
                        await self.wakes.get()

    async def restart(self) -> None:
        """Go on with another executor object, as after a crash of the server: nothing was closed in order."""
        self.row.abandon(self.executor)
        self.executor = self.row.build(self.data_dir, self._wake)
        self.capabilities = await self.executor.open()

    def _wake(self, kind: str, job_id: str) -> None:
        self.wakes.put_nowait((kind, job_id))


@pytest.fixture
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    if sys.platform != "linux":
        pytest.skip("these look into /proc")
    row: Row = request.param
    if row.name.startswith("docker"):
        request.getfixturevalue("engine")
    data_dir, log_dir = tmp_path / "data", tmp_path / "logs"
    data_dir.mkdir()
    log_dir.mkdir()
    wakes: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    executor = row.build(data_dir, lambda kind, job_id: wakes.put_nowait((kind, job_id)))
    capabilities = await executor.open()
    made = Site(row, data_dir, log_dir, executor, capabilities, wakes)
    yield made
    for handle in made.handles:
        await made.executor.remove(handle)
    assert await made.executor.owned() == []
    await made.executor.close()
    until = time.monotonic() + 30  # the kernel takes its time with network namespaces
    while (left := _leavings(tmp_path, capabilities.instance)) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    assert not left


def _leavings(folder: Path, instance: str) -> set[str]:
    """Return what could be left on the machine: processes, mounts, control groups, links of a network."""
    found = {f"process {pid}" for pid in _processes_with(str(folder).encode(), "cmdline")}
    found |= {f"job process {pid}" for pid in _processes_with(str(folder).encode(), "environ")}
    found.discard(f"process {os.getpid()}")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found |= {f"mount {line.split()[4]}" for line in mounts if str(folder) in line}
    found |= {f"link {path.name}" for path in Path("/sys/class/net").iterdir() if instance[:6] in path.name}
    for root, folders, _files in os.walk("/sys/fs/cgroup"):
        found |= {f"control group {root}/{name}" for name in folders if instance in f"{root}/{name}"}
    return found


def _processes_with(text: bytes, where: str, *, leader_only: bool = False) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            with suppress(OSError):
                if text in (path / where).read_bytes():
                    found.append(int(path.name))
    if leader_only:  # supervisors are forked from the launcher and look like it
        found = [pid for pid in found if _parent(pid) not in found]
        listening = [pid for pid in found if _listens(pid)]
        return listening or found
    return found


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _listens(pid: int) -> bool:
    inodes = {link.split("[")[1][:-1] for link in _links(pid) if link.startswith("socket:[")}
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(row[6] in inodes and row[3] == "00010000" for row in rows)


def _links(pid: int) -> list[str]:
    found = []
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


async def _gone(pids: Sequence[int]) -> None:
    async with asyncio.timeout(5):
        while any(_parent(pid) and not _is_zombie(pid) for pid in pids):
            await asyncio.sleep(0.005)


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


# A life


async def test_a_command_runs_and_its_output_and_end_are_told(site: Site) -> None:
    before = datetime.now(UTC)
    launch = site.launch("sh", "-c", "echo out; echo err >&2; printf 'no line end'", preamble=("first", "second"))
    handle = await site.start(launch)
    assert handle.executor == site.capabilities.kind
    assert json.loads(json.dumps(dict(handle.data))) == dict(handle.data)
    seen = await site.ended(handle)
    assert seen.state is AttemptState.EXITED
    assert seen.exit is not None
    assert (seen.exit.reason, seen.exit.exit_code, seen.exit.signal) == (ExitReason.EXITED, 0, None)
    assert site.lines(launch) == ["first", "second", "out", "err", "no line end"]
    assert seen.exit.started_at is not None
    assert before <= seen.exit.started_at <= seen.exit.finished_at <= datetime.now(UTC)


async def test_a_running_attempt_is_running_and_has_a_start(site: Site) -> None:
    launch = site.launch("sh", "-c", "echo ready; sleep 60")
    handle = await site.start(launch)
    await site.line(launch, "ready")
    seen = await site.look(handle)
    assert (seen.state, seen.exit) == (AttemptState.RUNNING, None)
    assert seen.started_at is not None
    assert [(job_id, attempt) for job_id, attempt, _ in await site.executor.owned()] == [(launch.job_id, 1)]
    assert (await site.executor.owned())[0][2] == handle


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
async def test_exit_codes(site: Site, code: int) -> None:
    record, _ = await site.shell(f"exit {code}")
    assert (record.reason, record.exit_code, record.signal) == (ExitReason.EXITED, code, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
async def test_signals(site: Site, number: signal.Signals) -> None:
    record, _ = await site.shell(f"kill -{number.value} $$; sleep 10")
    assert (record.reason, record.exit_code, record.signal) == (ExitReason.EXITED, 128 + number, number)


async def test_the_environment_is_what_the_launch_says_and_little_else(site: Site) -> None:
    environment = {"A": "1", "HOME": "/tmp", "ODD": "a\nb=c ü", "PATH": os.defpath + ":/usr/bin:/bin"}
    program = "import os, json; print(json.dumps(dict(os.environ)))"
    launch = site.launch(sys.executable if not site.row.isolated else "python3", "-c", program)
    launch = replace(
        launch,
        environment={**environment, "PATH": os.environ["PATH"]}
        if not site.row.isolated
        else {key: value for key, value in environment.items() if key != "PATH"},
    )
    await site.run(launch)
    [line] = site.lines(launch)
    seen = json.loads(line)
    assert {key: seen[key] for key in launch.environment} == dict(launch.environment)
    assert seen["LANG"]
    assert "PYTEST_CURRENT_TEST" not in seen


async def test_arguments_arrive_as_they_are(site: Site) -> None:
    odd = ["", "a b", "$HOME", "ü\n", "'\"", "-x"]
    launch = site.launch("python3", "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *odd)
    await site.run(launch)
    assert json.loads(site.lines(launch)[0]) == odd


async def test_the_working_directory_home_and_tmp_are_private_and_writable(site: Site) -> None:
    script = 'cd ~ && pwd && touch x && cd "${TMPDIR:-/tmp}" && ls -A && touch y && cd "$OLDPWD" && ls -A'
    for _ in range(2):
        record, text = await site.shell(f"ls -A; touch here; {script}")
        assert record.exit_code == 0, text
        assert text.split("\n")[1:] == ["x"] or text.split("\n")[-1].endswith("x")


async def test_standard_streams_can_be_opened_by_name(site: Site) -> None:
    record, text = await site.shell("echo a > /dev/stdout; echo b > /dev/stderr; cat /dev/stdin; cat < /dev/null")
    assert (record.exit_code, text) == (0, "a\nb")


async def test_process_conventions(site: Site) -> None:
    program = (
        "import os, signal, sys\n"
        "print(oct(os.umask(0)), os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())\n"
        "print([s.name for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN\n"
        "       and s not in (signal.SIGPIPE, signal.SIGXFSZ)])\n"
        "print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1])\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('NoNewPrivs')])\n"
    )
    launch = site.launch("python3", "-c", program)
    await site.run(launch)
    assert site.lines(launch) == ["0o22 True True", "[]", "[0, 1, 2]", "set()", "['1']"]


# Starting again


async def test_starting_twice_gives_the_same_attempt(site: Site) -> None:
    launch = site.launch("sh", "-c", "echo once; sleep 60")
    first, second = await site.start(launch), await site.executor.start(launch)
    assert first == second
    await site.line(launch, "once")
    await site.restart()
    assert await site.executor.start(launch) == first
    assert site.lines(launch) == ["once"]


async def test_starting_at_the_same_time_starts_one(site: Site) -> None:
    launch = site.launch("sh", "-c", "echo once; sleep 0.3")
    handles = await asyncio.gather(*(site.executor.start(launch) for _ in range(8)))
    site.handles.append(handles[0])
    assert all(handle == handles[0] for handle in handles)
    await site.ended(handles[0])
    assert site.lines(launch) == ["once"]


async def test_starting_what_has_ended_starts_nothing(site: Site) -> None:
    launch = site.launch("sh", "-c", "echo once; exit 4")
    handle = await site.start(launch)
    first = await site.ended(handle)
    assert await site.executor.start(launch) == handle
    assert await site.look(handle) == first
    assert site.lines(launch) == ["once"]


async def test_two_servers_start_one(site: Site) -> None:
    launch = site.launch("sh", "-c", "echo once; sleep 0.3")
    other = site.row.build(site.data_dir, lambda _kind, _job_id: None)
    await other.open()
    first, second = await asyncio.gather(site.start(launch), other.start(launch))
    assert first == second
    await site.ended(first)
    await other.close()
    assert site.lines(launch) == ["once"]


async def test_attempts_of_one_job_are_apart(site: Site) -> None:
    launch = site.launch("sh", "-c", "echo one")
    again = replace(launch, attempt=2, argv=("sh", "-c", "echo two"), log_path=launch.log_path.with_suffix(".2"))
    assert (await site.run(launch)).exit_code == 0
    assert (await site.run(again)).exit_code == 0
    assert (site.lines(launch), site.lines(again)) == (["one"], ["two"])


async def test_a_new_executor_finds_what_runs_and_what_ended_meanwhile(site: Site) -> None:
    running = site.launch("sh", "-c", "echo ready; sleep 60")
    ending = site.launch("sh", "-c", "exit 5")
    handles = [await site.start(running), await site.start(ending)]
    await site.line(running, "ready")
    await site.ended(handles[1])
    await site.restart()
    restored = [Handle(h.executor, h.version, json.loads(json.dumps(dict(h.data)))) for h in handles]
    first, second = await site.executor.poll(restored)
    assert first.state is AttemptState.RUNNING
    assert second.exit is not None
    assert second.exit.exit_code == 5
    await site.executor.stop(restored[0], 5)
    seen = await site.ended(restored[0])
    assert seen.exit is not None
    assert seen.exit.reason is ExitReason.STOPPED


# What cannot start


async def test_a_program_that_does_not_exist(site: Site) -> None:
    launch = site.launch("no-such-program", "x")
    record = await site.run(launch)
    assert (record.reason, record.exit_code, record.started_at) == (ExitReason.START_FAILED, 127, None)
    assert record.message is not None
    assert "not found" in record.message
    assert "no-such-program" in record.message
    assert "no-such-program" in site.lines(launch)[-1]


@pytest.mark.parametrize(
    ("text", "mode", "word"),
    [
        ("echo hi", "755", "exec format"),
        ("#!/bin/sh", "644", "ermission"),
        ("#!/no/such/interpreter", "755", "interpreter"),
    ],
)
async def test_a_file_that_cannot_be_executed(site: Site, text: str, mode: str, word: str) -> None:
    # Jobs of one owner share a cache: one makes the file, the next tries it.
    script = (
        'mkdir -p "$XDG_CACHE_HOME" && cd "$XDG_CACHE_HOME" && echo "$1" > odd && chmod "$2" odd && echo "$PWD/odd"'
    )
    launch = site.launch("sh", "-c", script, "-", text, mode)
    await site.run(launch)
    record = await site.run(site.launch(site.lines(launch)[0]))
    assert record.reason is ExitReason.START_FAILED
    assert record.exit_code == (127 if word == "interpreter" else 126)
    assert word in str(record.message)


async def test_arguments_that_are_too_long(site: Site) -> None:
    record = await site.run(site.launch("true", "x" * (1 << 20)))
    assert (record.reason, record.exit_code) == (ExitReason.START_FAILED, 126)
    assert "too long" in str(record.message)


@pytest.mark.parametrize(
    "changes", [{"job_id": "../../etc"}, {"job_id": "A" * 24}, {"attempt": 0}, {"namespace": ".."}]
)
async def test_names_that_could_become_paths_are_refused(site: Site, changes: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        await site.executor.start(site.launch("true", **changes))


# Ending


async def test_stop_asks_first(site: Site) -> None:
    launch = site.launch("sh", "-c", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    handle = await site.start(launch)
    await site.line(launch, "ready")
    await site.executor.stop(handle, 20)
    seen = await site.ended(handle)
    assert seen.exit is not None
    assert (seen.exit.reason, seen.exit.exit_code) == (ExitReason.STOPPED, 7)
    assert site.lines(launch)[-1] == "bye"


async def test_stop_kills_after_the_grace(site: Site) -> None:
    launch = site.launch("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    handle = await site.start(launch)
    await site.line(launch, "ready")
    asked = datetime.now(UTC)
    await site.executor.stop(handle, 0.3)
    await site.executor.stop(handle, 30)  # a second request does not prolong it
    seen = await site.ended(handle)
    assert seen.exit is not None
    assert (seen.exit.reason, seen.exit.exit_code, seen.exit.signal) == (ExitReason.STOPPED, 137, 9)
    assert timedelta(seconds=0.25) < seen.exit.finished_at - asked < timedelta(seconds=5)


async def test_stop_ends_a_command_that_ignores_nothing_at_once(site: Site) -> None:
    launch = site.launch("sleep", "60")
    handle = await site.start(launch)
    await site.executor.stop(handle, 30)
    seen = await site.ended(handle)
    assert seen.exit is not None
    assert (seen.exit.reason, seen.exit.exit_code, seen.exit.signal) == (ExitReason.STOPPED, 143, 15)


async def test_stop_of_what_has_ended_or_never_was_is_nothing(site: Site) -> None:
    launch = site.launch("true")
    handle = await site.start(launch)
    before = await site.ended(handle)
    await site.executor.stop(handle, 0)
    assert await site.look(handle) == before
    await site.executor.stop(_stranger(handle), 0)


async def test_the_time_limit(site: Site) -> None:
    launch = site.launch("sh", "-c", "trap 'echo late; exit 3' TERM; while :; do sleep 0.05; done", timeout_seconds=1)
    record = await site.run(launch)
    assert record.reason is ExitReason.TIMEOUT
    assert record.started_at is not None
    assert timedelta(seconds=1) <= record.finished_at - record.started_at < timedelta(seconds=4)
    assert site.lines(launch)[-1] == "late"


async def test_the_time_limit_kills_who_does_not_listen(site: Site) -> None:
    record, _ = await site.shell("trap '' TERM; while :; do sleep 0.05; done", timeout_seconds=1)
    assert (record.reason, record.signal) == (ExitReason.TIMEOUT, 9)


async def test_everything_ends_with_the_command(site: Site) -> None:
    mark = secrets.token_hex(8)
    script = (
        f"(MARK={mark} setsid sleep 1000 &) ; MARK={mark} sleep 1000 & (trap '' TERM; MARK={mark} sleep 1000) & exit 6"
    )
    record, _ = await site.shell(script)
    assert record.exit_code == 6
    assert _processes_with(mark.encode(), "environ") == []


async def test_removing_ends_and_gives_back(site: Site) -> None:
    mark = secrets.token_hex(8)
    script = f"mkdir -p a/b; touch a/b/c; chmod 0 a/b a; echo ready; MARK={mark} setsid sleep 1000 & sleep 1000"
    launch = site.launch("sh", "-c", script)
    handle = await site.start(launch)
    await site.line(launch, "ready")
    await site.executor.remove(handle)
    assert _processes_with(mark.encode(), "environ") == []
    assert await site.executor.owned() == []
    assert (await site.look(handle)).state is AttemptState.LOST
    assert launch.log_path.exists()
    await site.executor.remove(handle)
    await site.executor.remove(_stranger(handle))


async def test_removing_does_not_follow_links_and_takes_deep_trees(site: Site) -> None:
    precious = site.log_dir / "precious"
    precious.mkdir()
    (precious / "file").touch()
    deep = "i=0; while [ $i -lt 300 ]; do mkdir ddddddddddddddd; cd -P ddddddddddddddd; i=$((i+1)); done"
    record, text = await site.shell(f"ln -s {precious} link; ln -s / root; {deep}; touch end")
    assert record.exit_code == 0, text
    await site.executor.remove(site.handles[-1])
    assert (precious / "file").exists()


async def test_handles_that_are_not_known_are_lost(site: Site) -> None:
    handle = await site.start(site.launch("true"))
    foreign = Handle("other", 1, {"x": 1})
    strange = Handle(handle.executor, handle.version, {"job_id": "../..", "attempt": 1})
    seen = await site.executor.poll([_stranger(handle), foreign, strange])
    assert [one.state for one in seen] == [AttemptState.LOST] * 3
    assert await site.executor.usage(_stranger(handle)) is None


def _stranger(handle: Handle) -> Handle:
    return replace(handle, data={**handle.data, "job_id": "f" * 24})


# Faults


async def test_the_death_of_a_supervisor_is_the_death_of_its_job(site: Site) -> None:
    if site.row.supervisor is None:
        pytest.skip("no supervisor of ours")
    mark = secrets.token_hex(8)
    launch = site.launch("sh", "-c", "sleep 1000 & setsid sleep 1000 & sh -c 'echo ready; exec sleep 1000'")
    launch = replace(launch, environment={"MARK": mark})
    handle = await site.start(launch)
    await site.line(launch, "ready")
    pids = _processes_with(mark.encode(), "environ")
    assert len(pids) >= 1
    while not site.wakes.empty():
        site.wakes.get_nowait()
    os.kill(site.row.supervisor(site.data_dir, handle), signal.SIGKILL)
    async with asyncio.timeout(5):  # told without polling
        while await site.wakes.get() != ("jobs", launch.job_id):
            pass
    seen = await site.ended(handle)
    assert (seen.state, seen.exit) == (AttemptState.LOST, None)
    if site.row.isolated:
        await _gone(pids)
    await site.executor.remove(handle)
    await _gone(pids)
    assert await site.executor.start(launch) is not None  # what is removed is forgotten: services never ask again
    await site.executor.remove(handle)


async def test_the_death_of_the_launcher_harms_nobody(site: Site) -> None:
    if site.row.launcher is None:
        pytest.skip("no launcher of ours")
    first = site.launch("sh", "-c", "echo ready; sleep 60")
    handle = await site.start(first)
    await site.line(first, "ready")
    os.kill(site.row.launcher(site.data_dir), signal.SIGKILL)
    assert (await site.look(handle)).state is AttemptState.RUNNING
    assert await site.executor.start(first) == handle
    record, text = await site.shell("echo second")
    assert (record.exit_code, text) == (0, "second")
    await site.executor.stop(handle, 5)
    seen = await site.ended(handle)
    assert seen.exit is not None
    assert seen.exit.reason is ExitReason.STOPPED
    assert site.lines(first) == ["ready"]


async def test_the_death_of_the_launcher_at_any_instant_starts_nothing_twice(site: Site) -> None:
    if site.row.launcher is None:
        pytest.skip("no launcher of ours")
    for step in range(8):
        launch = site.launch("sh", "-c", "echo once; sleep 0.05")
        starting = asyncio.create_task(site.start(launch))
        await asyncio.sleep(step * 0.002)
        with suppress(ProcessLookupError, ValueError):
            os.kill(site.row.launcher(site.data_dir), signal.SIGKILL)
        handle = await starting
        assert await site.executor.start(launch) == handle
        await site.ended(handle)
        assert site.lines(launch).count("once") <= 1


# The log


async def test_a_million_lines_arrive_once_each_and_in_order(site: Site) -> None:
    launch = site.launch("seq", "1000000", preamble=("start",))
    began = datetime.now(UTC)
    assert (await site.run(launch)).exit_code == 0
    data = launch.log_path.read_bytes().split(b"\n")
    assert data.pop() == b""
    assert data[0][PREFIX_BYTES:] == b"start"
    assert [line[PREFIX_BYTES:] for line in data[1:]] == [b"%d" % n for n in range(1, 1_000_001)]
    stamps = [line[:PREFIX_BYTES] for line in data]
    assert stamps == sorted(stamps)
    assert began - timedelta(seconds=1) < parse_stamp(stamps[0][:-1]) <= parse_stamp(stamps[-1][:-1])
    assert parse_stamp(stamps[-1][:-1]) <= datetime.now(UTC)


async def test_times_never_go_back_behind_an_earlier_attempt(site: Site) -> None:
    bound = datetime.now(UTC) + timedelta(hours=1)
    launch = site.launch("echo", "late", preamble=("start",), log_not_before=bound)
    await site.run(launch)
    stamps = [line[: PREFIX_BYTES - 1] for line in launch.log_path.read_bytes().split(b"\n")[:-1]]
    assert [parse_stamp(stamp) for stamp in stamps] == [bound, bound]


async def test_any_bytes_and_long_lines_are_kept(site: Site) -> None:
    program = r"import sys; w = sys.stdout.buffer.write; w(b'\xff\x00\r\n'); w(b'x' * 200000 + b'\n\n'); w(b'end')"
    launch = site.launch("python3", "-c", program)
    await site.run(launch)
    lines = [line[PREFIX_BYTES:] for line in launch.log_path.read_bytes().split(b"\n")[:-1]]
    assert lines[0] == b"\xff\x00\r"
    assert b"".join(lines[1:-2]) == b"x" * 200000
    assert lines[-2:] == [b"", b"end"]


async def test_a_line_wakes_at_once(site: Site) -> None:
    launch = site.launch("sh", "-c", "echo a; sleep 0.3; echo b; sleep 60")
    await site.start(launch)
    await site.line(launch, "a")
    while not site.wakes.empty():
        site.wakes.get_nowait()
    told: set[tuple[str, str]] = set()
    async with asyncio.timeout(5):
        while site.lines(launch) != ["a", "b"]:  # a wake for the first line, or of another job, may come late
            told.add(await site.wakes.get())
    assert ("logs", launch.job_id) in told
    age = datetime.now(UTC) - parse_stamp(launch.log_path.read_bytes().split(b"\n")[1][: PREFIX_BYTES - 1])
    assert age < timedelta(seconds=0.5)


# Limits and isolation, where they are promised


async def test_memory(site: Site) -> None:
    if any("memory" in text for text in site.capabilities.missing):
        pytest.skip("no memory limits here")
    launch = site.launch("python3", "-c", "x = bytearray(1 << 30)", memory_bytes=128 << 20)
    record = await site.run(launch)
    assert (record.reason, record.exit_code) == (ExitReason.OOM, 137)
    assert "128 MiB" in str(record.message)


async def test_usage(site: Site) -> None:
    launch = site.launch("python3", "-uc", "x = b'x' * (64 << 20)\nprint('ready')\nwhile True: pass")
    handle = await site.start(launch)
    await site.line(launch, "ready")
    first = await site.executor.usage(handle)
    await asyncio.sleep(0.3)
    second = await site.executor.usage(handle)
    assert first is not None
    assert second is not None
    assert second.cpu_seconds > first.cpu_seconds
    assert (64 << 20) < second.memory_used_bytes < _MEMORY
    await site.executor.stop(handle, 0)
    await site.ended(handle)
    assert await site.executor.usage(handle) is None


async def test_usage_of_the_gpus_that_were_reserved(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    if site.row.name != "process-plain":
        pytest.skip("shows a job only GPUs that there are")
    tool = site.log_dir / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\n[ "$3" = --id=1 ] && echo "1, 37, 1024, 4096"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    launch = site.launch("sh", "-c", "echo ready; exec sleep 60", gpu_ids=("1",))
    handle = await site.start(launch)
    await site.line(launch, "ready")
    used = await site.executor.usage(handle)
    assert used is not None
    assert used.gpus == {"1": GpuUsage(37, 1 << 30, 4 << 30)}


async def test_two_jobs_listen_on_the_same_port(site: Site) -> None:
    if not site.capabilities.private_network:
        pytest.skip("jobs share a network")
    program = (
        "import socket; s = socket.create_server(('0.0.0.0', 8000)); print('ready', flush=True)\n"
        "while True:\n c, _ = s.accept(); c.sendall(b'%s'); c.close()"
    )
    launches = [site.launch("python3", "-c", program % word) for word in ("one", "two")]
    handles = [await site.start(launch) for launch in launches]
    for launch in launches:
        await site.line(launch, "ready")
    addresses = [handle.data["address"] for handle in handles]
    for address, word in zip(addresses, (b"one", b"two"), strict=True):
        reader, writer = await asyncio.open_connection(address, 8000)
        assert await reader.read() == word
        writer.close()
    reach = "import socket; s = socket.socket(); s.settimeout(0.5)\ntry: s.connect((%r, %d)); print('reached')\n"
    reach += "except OSError as e: print('not', type(e).__name__)"
    probe = site.launch("python3", "-c", reach % (addresses[0], 8000))
    await site.run(probe)
    assert site.lines(probe)[0].startswith("not")
    assert site.capabilities.host_address is not None
    with socket.create_server(("0.0.0.0", 0)) as other_service:
        port = other_service.getsockname()[1]
        for target in (site.capabilities.host_address, _own_address(), "127.0.0.1"):
            probe = site.launch("python3", "-c", reach % (target, port))
            await site.run(probe)
            assert site.lines(probe)[0].startswith("not"), target


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        any_socket.connect(("192.0.2.1", 9))  # sends nothing
        return any_socket.getsockname()[0]


async def test_secrets_are_with_the_job_only(site: Site) -> None:
    secret = f"s3cret-{secrets.token_hex(16)}"
    launch = site.launch("sh", "-c", "echo ${#TOKEN}; sleep 60", environment={"TOKEN": secret})
    await site.start(launch)
    await site.line(launch, str(len(secret)))
    own = Path("/proc/self/ns/pid").readlink()
    assert _processes_with(secret.encode(), "cmdline") == []
    for pid in _processes_with(secret.encode(), "environ"):
        if site.row.isolated:
            assert Path(f"/proc/{pid}/ns/pid").readlink() != own
        else:
            assert b"launcher" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    for path in site.data_dir.rglob("*"):
        with suppress(OSError):
            assert not path.is_file() or secret.encode() not in path.read_bytes()


async def test_a_job_sees_neither_the_machine_nor_other_jobs(site: Site) -> None:
    if not site.row.isolated:
        assert any("without isolation" in note for note in site.capabilities.notes)
        pytest.skip("not promised")
    mark = secrets.token_hex(8)
    other = site.launch("sh", "-c", f"echo {mark} > /tmp/{mark}; echo ready; MARK={mark} exec sleep 60")
    handle = await site.start(other)
    await site.line(other, "ready")
    (site.data_dir / "secret").write_text(mark)
    assert site.row.supervisor is not None
    supervisor = site.row.supervisor(site.data_dir, handle)
    script = f"""
        cat {site.data_dir}/secret; ls {site.data_dir}; ls -A /tmp /home
        cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep {mark}; ls -d /proc/[0-9]* | wc -l
        kill -9 {supervisor}; cat /etc/shadow; touch /usr/x /etc/x; cat /root/.bash_history
        mount -t tmpfs none /mnt; echo 1 > /proc/sys/kernel/sysrq; cat /proc/1/environ | head -c 100 | wc -c
        exit 0
    """
    record, text = await site.shell(script)
    assert record.exit_code == 0
    assert mark not in text.replace("grep", "")
    if not site.capabilities.images:  # an image has a list of passwords of its own
        assert "root:" not in text
    assert (await site.look(handle)).state is AttemptState.RUNNING
    assert not any(Path(path).exists() for path in ("/usr/x", "/etc/x"))


async def test_python_and_its_packages_are_the_jobs_own(site: Site) -> None:
    if site.capabilities.images:
        pytest.skip("what Python there is, and where, is the image's business")
    program = (
        "import sys, os, sysconfig; print(sys.prefix != sys.base_prefix); import pip\n"
        "open(os.path.join(sysconfig.get_path('purelib'), 'mine.py'), 'w').write('x = 1')"
    )
    record, text = await site.shell(
        f'python -c "{program}" && python3 -c "import mine; print(mine.x)" && pip --version'
    )
    assert record.exit_code == 0, text
    assert text.startswith("True\n1\npip ")
    record, text = await site.shell('python -c "import mine"')
    assert record.exit_code == 1


_SERVER = """
import asyncio, importlib.util, pickle, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent.parent))
spec = importlib.util.spec_from_file_location("suite", sys.argv[1])
suite = importlib.util.module_from_spec(spec)
sys.modules["suite"] = suite
spec.loader.exec_module(suite)
async def main():
    row = next(row for row in suite.ROWS if row.name == sys.argv[2])
    executor = row.build(Path(sys.argv[3]), lambda kind, job_id: None)
    await executor.open()
    print("open", flush=True)
    launch = suite.plain_launch(sys.stdin.readline().strip(), Path(sys.argv[4]))
    await executor.start(launch)
    print("started", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def plain_launch(job_id: str, log_dir: Path) -> Launch:
    """A launch that two processes can make alike."""
    return Launch(
        job_id=job_id,
        attempt=1,
        namespace="alice",
        image="",
        argv=("sh", "-c", "echo once; sleep 0.2; echo end"),
        environment={},
        cpu_millicores=1000,
        memory_bytes=_MEMORY,
        disk_bytes=None,
        gpu_ids=(),
        timeout_seconds=60,
        log_path=log_dir / f"{job_id}.log",
        log_not_before=datetime.fromtimestamp(0, UTC),
        preamble=(),
    )


@pytest.mark.parametrize("wait_seconds", [0.001, 0.004, 0.008, 0.02, None])
async def test_the_death_of_the_server_while_it_starts_something(site: Site, wait_seconds: float | None) -> None:
    launch = plain_launch(new_id(datetime.now(UTC)), site.log_dir)
    arguments = [__file__, site.row.name, str(site.data_dir), str(site.log_dir)]
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVER, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert await server.stdout.readline() == b"open\n"
    server.stdin.write(launch.job_id.encode() + b"\n")
    await server.stdin.drain()
    if wait_seconds is None:
        assert await server.stdout.readline() == b"started\n"
    else:
        await asyncio.sleep(wait_seconds)
    server.kill()
    await server.wait()
    await site.restart()
    handle = await site.start(launch)
    assert await site.executor.start(launch) == handle
    seen = await site.ended(handle)
    assert seen.state is AttemptState.EXITED
    assert seen.exit is not None
    assert (seen.exit.reason, seen.exit.exit_code) == (ExitReason.EXITED, 0)
    assert site.lines(launch) == ["once", "end"]


async def test_processes_are_bounded(site: Site) -> None:
    if any("processes" in text for text in site.capabilities.missing):
        pytest.skip("no limit of processes here")
    program = (
        "import os, time\nn = 0\ntry:\n"
        " while n < 1000:\n"
        "  if os.fork() == 0: time.sleep(60)\n"
        "  n += 1\n"
        "except OSError: pass\n"
        "print(n < 700)"
    )
    launch = site.launch("python3", "-c", program)
    assert (await site.run(launch)).exit_code == 0
    assert site.lines(launch) == ["True"]


async def test_uv_runs_with_packages_and_is_fast_the_second_time(site: Site) -> None:
    script = "uv run --no-project --with six python -c 'import six; print(six.__name__)'"
    first, text = await site.shell(script, memory_bytes=1 << 30)
    if "ailed to fetch" in text:
        pytest.skip("no package index here")
    assert first.exit_code == 0, text
    assert text.endswith("six")
    second, text = await site.shell(script, memory_bytes=1 << 30)
    assert text == "six" or text.endswith("\nsix")
    assert "warning" not in text
    assert second.started_at is not None
    assert second.finished_at - second.started_at < timedelta(seconds=5)
    if site.capabilities.images:
        return  # whether there is an environment to install into is the image's business
    record, text = await site.shell("uv pip install six && python -c 'import six'", memory_bytes=1 << 30)
    assert record.exit_code == 0, text
    assert "warning" not in text


async def test_two_servers_on_one_machine_leave_each_other_alone(site: Site, tmp_path: Path) -> None:
    launch = site.launch("sh", "-c", "echo ready; sleep 60")
    handle = await site.start(launch)
    await site.line(launch, "ready")
    (tmp_path / "other").mkdir()
    other = site.row.build(tmp_path / "other", lambda _kind, _job_id: None)
    capabilities = await other.open()
    assert capabilities.instance != site.capabilities.instance
    if capabilities.private_network:
        assert capabilities.host_address != site.capabilities.host_address
    [seen] = await other.poll([handle])
    assert seen.state is AttemptState.LOST  # not its own
    await other.close()
    assert (await site.look(handle)).state is AttemptState.RUNNING
    record, text = await site.shell("echo still")
    assert (record.exit_code, text) == (0, "still")


async def test_a_data_directory_that_vanishes_leaves_nothing(site: Site, tmp_path: Path) -> None:
    data_dir = tmp_path / "lost"
    data_dir.mkdir()
    executor = site.row.build(data_dir, lambda _kind, _job_id: None)
    capabilities = await executor.open()
    assert _leavings(data_dir, capabilities.instance)
    site.row.abandon(executor)
    await asyncio.to_thread(shutil.rmtree, data_dir)
    async with asyncio.timeout(20):
        while left := _leavings(data_dir, capabilities.instance):
            await asyncio.sleep(0.1)
    assert not left


async def test_volumes_are_seen_where_they_are_asked_for(site: Site) -> None:
    if not site.capabilities.volumes:
        launch = site.launch("true", mounts=(Mount(site.data_dir, "/data", True),))
        with pytest.raises(Invalid):
            await site.executor.start(launch)
        assert site.capabilities.without_volumes
        return
    folders = {name: site.data_dir / "volumes" / name for name in ("rw", "ro")}
    for path in folders.values():
        path.mkdir(parents=True)
        (path / "file").write_text(f"of {path.name}\n")
        if site.capabilities.private_ids:
            owner = places.first_id(str(site.data_dir), "alice")
            for one in (path, path / "file"):
                os.chown(one, owner, owner)
    for base in ("/new/deep", "/mnt/new", "/workspace/new", "/root/.cache/new", "/tmp/new", "/var/lib/new", "/opt"):
        mounts = (Mount(folders["rw"], f"{base}/rw", False), Mount(folders["ro"], f"{base}/ro", True))
        script = (
            f"cat {base}/rw/file {base}/ro/file && echo more >> {base}/rw/file && mkdir {base}/rw/sub && "
            f"rmdir {base}/rw/sub && ! touch {base}/ro/file && ! touch {base}/ro/new && ls {base}"
        )
        record, said = await site.shell(script, mounts=mounts)
        assert record.exit_code == 0, (base, said)
        assert "of rw" in said
        assert "of ro" in said
    assert (folders["rw"] / "file").read_text() == "of rw\n" + 7 * "more\n"
    assert (folders["ro"] / "file").read_text() == "of ro\n"


async def test_a_volume_that_cannot_be_mounted_fails_the_start(site: Site) -> None:
    if not site.capabilities.volumes:
        pytest.skip("no volumes here")
    record, _ = await site.shell("true", mounts=(Mount(site.data_dir / "none", "/data", False),))
    assert record.reason is ExitReason.START_FAILED
