"""Jobs through their whole life over a real database, with an executor whose faults the test decides."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from runstead.events.interface import JOBS, WORK
from runstead.events.local import LocalEventBus
from runstead.executors.inside import Inside
from runstead.executors.interface import Capabilities, Executor
from runstead.kit.clock import SystemClock
from runstead.logs.files import FileLogStore
from runstead.logs.interface import START
from runstead.model.accounts import Caller, Namespace, NamespaceKind, Token, TokenRole, User
from runstead.model.buckets import Bucket
from runstead.model.errors import BackendFailure, ImageFailure, Invalid, NotFound, RunsteadError, Unavailable
from runstead.model.hardware import Machine
from runstead.model.jobs import FailureClass, Job, JobSpec, Phase, Stage
from runstead.model.launches import AttemptState, ExitReason, ExitRecord, Handle, Launch, Observation, Usage
from runstead.model.volumes import Flushed, Mount, MountRequest, Volume, VolumeKind
from runstead.services.admission import AdmissionRounds
from runstead.services.buckets.buckets import Buckets
from runstead.services.content.content import Content
from runstead.services.hardware import Hardware, derive_flavors
from runstead.services.jobs import JobLimits, Jobs
from runstead.services.launching import Launching
from runstead.services.mount_tokens import MountTokens
from runstead.services.port_rules import PortRules
from runstead.services.preparing import Preparing
from runstead.services.reconcile import LEASE, Reconcile
from runstead.services.sandboxes.recognition import SandboxRules
from runstead.services.secrets import SecretBox
from runstead.services.volumes import MountRequests, VolumeRules, Volumes
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from runstead.volumes.interface import VolumeProvider, not_saved

NOW = datetime(2026, 3, 1, tzinfo=UTC)
USER = User("a" * 24, "alice", "Alice", True, NOW)
ALICE = Caller(USER, Token("b" * 24, USER.id, "t", TokenRole.WRITE, NOW, "1234"))
SPEC = JobSpec(command=("true",), flavor="cpu-basic", docker_image="python:3.12")
MACHINE = Machine(2000, 4 * 2**30, 10 * 2**30)


@dataclass
class FakeExecutor(Executor):
    """Keeps attempts in memory; does what the test says."""

    start_errors: list[RunsteadError] = field(default_factory=list)
    attempts: dict[tuple[str, int], Observation] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    removed: list[tuple[str, int]] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    lines: asyncio.Queue[str | ImageFailure | None] | None = None  # what preparing tells, until None
    prepared: list[str] = field(default_factory=list)

    async def open(self) -> Capabilities:
        return Capabilities(
            "fake",
            "fake@here",
            self.lines is not None,
            True,
            False,
            None,
            MACHINE,
            ("{image} is not used",),
            volumes=True,
        )

    async def close(self) -> None: ...

    async def prepare(self, launch: Launch, tell: Callable[[str], None]) -> None:
        assert self.lines is not None
        while (line := await self.lines.get()) is not None:
            if isinstance(line, ImageFailure):
                raise line
            tell(line)
        self.prepared.append(launch.image)

    async def inside(self, handle: Handle) -> Inside:
        raise NotImplementedError

    async def start(self, launch: Launch) -> Handle:
        if self.start_errors:
            raise self.start_errors.pop(0)
        key = (launch.job_id, launch.attempt)
        if key not in self.attempts:
            self.launches.append(launch)
            self.attempts[key] = Observation(AttemptState.RUNNING, started_at=datetime.now(UTC))
        self.started.set()
        return Handle("fake@here", 1, {"job": launch.job_id, "attempt": launch.attempt})

    async def poll(self, handles: Sequence[Handle]) -> list[Observation]:
        lost = Observation(AttemptState.LOST)
        return [self.attempts.get((h.data["job"], h.data["attempt"]), lost) for h in handles]

    async def stop(self, handle: Handle, grace_seconds: float) -> None:
        self.stopped.append(handle.data["job"])
        self.end(handle.data["job"], handle.data["attempt"], ExitReason.STOPPED, 143)

    async def remove(self, handle: Handle) -> None:
        key = (handle.data["job"], handle.data["attempt"])
        self.removed.append(key)
        self.attempts.pop(key, None)

    async def owned(self) -> list[tuple[str, int, Handle]]:
        return [(j, a, Handle("fake@here", 1, {"job": j, "attempt": a})) for j, a in self.attempts]

    async def usage(self, handle: Handle) -> Usage | None:
        return None

    def end(self, job_id: str, attempt: int, reason: ExitReason = ExitReason.EXITED, code: int = 0) -> None:
        now = datetime.now(UTC)
        self.attempts[job_id, attempt] = Observation(AttemptState.EXITED, exit=ExitRecord(reason, code, None, now, now))


@dataclass
class FakeVolumes(VolumeProvider):
    """Keeps no files; fails as the test says."""

    prepare_errors: list[RunsteadError] = field(default_factory=list)
    flush_errors: list[RunsteadError] = field(default_factory=list)
    flushed: Flushed = field(default_factory=lambda: Flushed(0, 0))
    done: list[tuple[str, str, int]] = field(default_factory=list)
    held: set[tuple[str, int]] = field(default_factory=set)
    may_prepare: asyncio.Event = field(default_factory=asyncio.Event)
    may_flush: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_prepare.set()
        self.may_flush.set()

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def prepare(self, requests: Sequence[MountRequest]) -> list[Mount]:
        await self.may_prepare.wait()
        if self.prepare_errors:
            raise self.prepare_errors.pop(0)
        first = requests[0]
        self.held.add((first.job_id, first.attempt))
        self.done.append(("prepare", first.job_id, first.attempt))
        return [Mount(Path("/node") / str(r.index), r.volume.mount_path, r.volume.read_only) for r in requests]

    async def flush(self, job_id: str, attempt: int, within_seconds: float) -> Flushed:
        self.done.append(("flush", job_id, attempt))
        await self.may_flush.wait()
        if self.flush_errors:
            raise self.flush_errors.pop(0)
        return self.flushed

    async def release(self, job_id: str, attempt: int, keep_unflushed: bool) -> None:
        assert keep_unflushed
        self.done.append(("release", job_id, attempt))
        self.held.discard((job_id, attempt))

    async def holds(self, job_id: str, attempt: int) -> bool:
        return (job_id, attempt) in await self.owned()

    async def owned(self) -> list[tuple[str, int]]:
        return sorted(self.held)


@dataclass
class House:
    executor: FakeExecutor
    store: SqlJobStore
    logs: FileLogStore
    events: LocalEventBus
    jobs: Jobs
    volumes: FakeVolumes

    async def with_volume(self, *, attempts: int = 1, read_only: bool = False) -> Job:
        """Submit a job with a volume."""
        volume = Volume(VolumeKind.BUCKET, "alice/outputs", "/out", read_only=read_only)
        spec = replace(SPEC, volumes=(volume,), attempts=attempts)
        return await self.jobs.submit(ALICE, "alice", spec, {})

    async def messages(self, job_id: str) -> list[str | None]:
        return [entry.message for entry in await self.store.history(job_id)]

    async def job(self, job_id: str) -> Job:
        found = await self.store.get(job_id)
        assert found is not None
        return found

    async def until_message(self, job_id: str, wanted: str) -> None:
        with self.events.subscribe(JOBS, job_id) as changed:
            async with asyncio.timeout(10):
                while (await self.job(job_id)).message != wanted:
                    await changed.wait(1)

    async def until(self, job_id: str, wanted: Phase | Stage, attempt: int = 1) -> Job:
        with self.events.subscribe(JOBS, job_id) as changed:
            async with asyncio.timeout(10):
                while True:
                    job = await self.store.get(job_id)
                    assert job is not None
                    if wanted in (job.phase, job.stage) and job.attempt >= attempt:
                        return job
                    await changed.wait(0.2)

    def end(self, job: Job, reason: ExitReason = ExitReason.EXITED, code: int = 0) -> None:
        self.executor.end(job.id, job.attempt, reason, code)
        self.events.publish(WORK, job.id)


@asynccontextmanager
async def open_house(
    path: Path, executor: FakeExecutor | None = None, process: str = "1", provider: "FakeVolumes | None" = None
) -> AsyncGenerator[House]:
    executor = executor or FakeExecutor()
    capabilities = await executor.open()
    database = await open_database(f"sqlite:///{path / 'db'}")
    store, logs, events, clock = SqlJobStore(database), FileLogStore(path / "logs"), LocalEventBus(), SystemClock()
    hardware = Hardware(derive_flavors(MACHINE), MACHINE, 1.0)
    secrets = SecretBox(b"k" * 32)
    launching = Launching(store, logs, hardware, secrets, capabilities, clock, lambda: "http://here")
    owner = f"fake@here/{process}"
    buckets = SqlBucketStore(database)
    tokens = MountTokens(b"k" * 32, store, clock)
    requests = MountRequests(store, buckets, tokens, clock, "http://here")
    provider = provider or FakeVolumes()
    volumes = Volumes(provider, requests, buckets, 5.0)
    owner_of = Namespace(USER.id, USER.name, NamespaceKind.USER)
    if await buckets.find("alice", "outputs") is None:
        await buckets.add(Bucket(0, "c" * 24, owner_of, "outputs", False, NOW, NOW))
    preparing = Preparing(store, executor, logs, launching, volumes, events, clock, owner, images=capabilities.images)
    reconcile = Reconcile(
        store, executor, "fake@here", logs, launching, events, clock, owner, 0.2, 1.0, volumes, preparing
    )
    admission = AdmissionRounds(store, hardware, events, clock, "fake@here", owner, LEASE, 0.2, reconcile.take)
    rules = VolumeRules(Buckets(buckets, cast(Content, None), events, clock), buckets, capabilities)
    limits = JobLimits(1800, None)
    ports, sandboxes = PortRules(capabilities, store), SandboxRules(capabilities)
    jobs = Jobs(store, hardware, secrets, admission, events, clock, limits, ports, rules, sandboxes)
    duties = [asyncio.create_task(reconcile.run()), asyncio.create_task(admission.run())]
    try:
        yield House(executor, store, logs, events, jobs, provider)
    finally:
        for duty in duties:
            duty.cancel()
        await asyncio.gather(*duties, return_exceptions=True)
        await database.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


async def test_a_job_runs_and_completes_and_nothing_of_it_is_left(house: House) -> None:
    job = await house.jobs.submit(ALICE, "alice", SPEC, {"TOKEN": "s3cr3t"})
    assert job.stage is Stage.RUNNING  # the answer waited for the start
    assert job.message == "runstead: python:3.12 is not used"
    (launch,) = house.executor.launches
    assert launch.environment["TOKEN"] == "s3cr3t"
    assert launch.environment["JOB_ID"] == job.id
    assert launch.environment["HF_ENDPOINT"] == "http://here"
    assert launch.preamble[0].startswith("===== Job started at ")
    house.end(job)
    done = await house.until(job.id, Phase.DONE)
    assert (done.stage, done.failure_class, done.exit_code) == (Stage.COMPLETED, None, 0)
    assert house.executor.removed == [(job.id, 1)]
    stages = [(entry.phase, entry.stage) for entry in await house.store.history(job.id)]
    assert stages == [
        (Phase.WAITING, Stage.SCHEDULING),
        (Phase.STARTING, Stage.SCHEDULING),
        (Phase.RUNNING, Stage.RUNNING),
        (Phase.RELEASING, Stage.COMPLETED),
        (Phase.DONE, Stage.COMPLETED),
    ]


async def test_a_job_that_does_not_fit_is_told_why_and_starts_when_it_can(house: House) -> None:
    first = await house.jobs.submit(ALICE, "alice", SPEC, {})
    second = await house.jobs.submit(ALICE, "alice", SPEC, {})
    assert second.stage is Stage.SCHEDULING
    message = house.jobs.message(second)
    assert message is not None
    assert "waiting for 2 vCPU (0 of 2 free)" in message
    assert "position 1 of 1" in message
    assert "next at" in message
    house.end(first)
    assert (await house.until(second.id, Stage.RUNNING)).started_at is not None


async def test_canceling_a_waiting_and_a_running_job(house: House) -> None:
    running = await house.jobs.submit(ALICE, "alice", SPEC, {})
    waiting = await house.jobs.submit(ALICE, "alice", SPEC, {})
    canceled = await house.jobs.cancel(ALICE, "alice", waiting.id)
    assert canceled.stage is Stage.CANCELED
    assert (await house.jobs.cancel(ALICE, "alice", running.id)).stage is Stage.CANCELED
    assert house.executor.stopped == [running.id]
    done = await house.until(running.id, Phase.DONE)
    assert done.failure_class is FailureClass.CANCELED
    assert (await house.jobs.cancel(ALICE, "alice", running.id)).stage is Stage.CANCELED


async def test_a_failed_attempt_is_retried_and_the_last_one_counts(house: House) -> None:
    spec = JobSpec(command=("false",), flavor="cpu-basic", docker_image="x", attempts=2)
    job = await house.jobs.submit(ALICE, "alice", spec, {})
    house.end(job, code=3)
    waiting = await house.until(job.id, Stage.SCHEDULING, attempt=2)
    assert waiting.failure_count == 1
    assert "attempt 1 of 2 failed (user: the command exited with code 3)" in str(house.jobs.message(waiting))
    again = await house.until(job.id, Stage.RUNNING, attempt=2)
    assert house.executor.removed == [(job.id, 1)]
    assert house.executor.launches[1].log_path.name == "2.log"
    house.end(again, code=4)
    done = await house.until(job.id, Phase.DONE)
    assert (done.stage, done.exit_code, done.failure_count) == (Stage.ERROR, 4, 2)


async def test_a_start_that_may_succeed_later_is_tried_again(house: House) -> None:
    house.executor.start_errors = [Unavailable("not yet")]
    job = await house.jobs.submit(ALICE, "alice", SPEC, {})
    assert (await house.until(job.id, Stage.RUNNING)).failure_count == 0


@pytest.mark.parametrize(
    ("error", "failure"),
    [(Invalid("no such thing"), FailureClass.USER), (BackendFailure("broken"), FailureClass.INFRA)],
)
async def test_a_start_that_cannot_succeed_fails_the_job_with_its_reason(
    house: House, error: RunsteadError, failure: FailureClass
) -> None:
    house.executor.start_errors = [error]
    job = await house.jobs.submit(ALICE, "alice", SPEC, {})
    done = await house.until(job.id, Phase.DONE)
    assert (done.stage, done.failure_class) == (Stage.ERROR, failure)
    assert error.message in str(done.message)


async def test_a_lost_attempt_ends_the_job_with_class_infra(house: House) -> None:
    job = await house.jobs.submit(ALICE, "alice", SPEC, {})
    house.executor.attempts.clear()  # found by the poll: nobody says so
    done = await house.until(job.id, Phase.DONE)
    assert (done.stage, done.failure_class) == (Stage.ERROR, FailureClass.INFRA)


async def test_a_new_process_finds_the_jobs_of_the_old_one(tmp_path: Path) -> None:
    executor = FakeExecutor()
    async with open_house(tmp_path, executor) as house:
        running = await house.jobs.submit(ALICE, "alice", SPEC, {})
        waiting = await house.jobs.submit(ALICE, "alice", SPEC, {})
    executor.attempts["f" * 24, 1] = Observation(AttemptState.RUNNING)  # nobody's
    executor.end(running.id, 1)
    async with open_house(tmp_path, executor, process="2") as house:
        assert (await house.until(running.id, Phase.DONE)).stage is Stage.COMPLETED
        await house.until(waiting.id, Stage.RUNNING)
        assert ("f" * 24, 1) in executor.removed
    assert len(executor.launches) == 2


async def test_an_attempt_whose_handle_was_never_saved_is_not_started_twice(tmp_path: Path) -> None:
    executor = FakeExecutor()
    async with open_house(tmp_path, executor) as house:
        executor.start_errors = [Unavailable("crash here")] * 9
        job = await house.jobs.submit(ALICE, "alice", SPEC, {})
        await house.until(job.id, Phase.STARTING)
        executor.attempts[job.id, 1] = Observation(AttemptState.RUNNING)
    executor.start_errors = []
    async with open_house(tmp_path, executor, process="2") as house:
        await house.until(job.id, Stage.RUNNING)
        assert executor.launches == []


async def test_canceling_when_the_handle_was_never_saved_still_removes_the_attempt(tmp_path: Path) -> None:
    executor = FakeExecutor()
    async with open_house(tmp_path, executor) as house:
        executor.start_errors = [Unavailable("crash here")] * 9
        job = await house.jobs.submit(ALICE, "alice", SPEC, {})
        await house.until(job.id, Phase.STARTING)
        executor.attempts[job.id, 1] = Observation(AttemptState.RUNNING)
    async with open_house(tmp_path, executor, process="2") as house:
        await house.store.request_cancel(job.id, datetime.now(UTC) + timedelta(0))
        house.events.publish(WORK, job.id)
        await house.until(job.id, Phase.DONE)
        assert (job.id, 1) in executor.removed


async def test_volumes_are_prepared_before_the_start_saved_after_the_end_and_given_back(house: House) -> None:
    house.volumes.flushed = Flushed(3, 1234, ("'link' is not saved",))
    job = await house.with_volume()
    (launch,) = house.executor.launches
    assert launch.mounts == (Mount(Path("/node/0"), "/out", False),)
    house.end(job)
    done = await house.until(job.id, Phase.DONE)
    assert done.message == "saved 3 files (1,234 bytes) to alice/outputs"
    assert done.stage is Stage.COMPLETED
    assert [what for what, _, _ in house.volumes.done] == ["prepare", "flush", "release"]
    assert house.volumes.held == set()
    block = await house.logs.read(job.id, START, 10_000)
    assert b"runstead: 'link' is not saved" in block.lines


async def test_while_files_are_saved_the_job_runs_and_says_so(house: House) -> None:
    house.volumes.may_flush.clear()
    job = await house.with_volume()
    house.end(job)
    async with asyncio.timeout(5):
        while ("flush", job.id, 1) not in house.volumes.done:
            await asyncio.sleep(0.01)
    now = await house.store.get(job.id)
    assert now is not None
    assert now.stage is Stage.RUNNING
    assert now.message == "the command has ended; saving what it wrote to alice/outputs"
    house.volumes.may_flush.set()
    assert (await house.until(job.id, Phase.DONE)).stage is Stage.COMPLETED


async def test_a_read_only_volume_is_not_saved(house: House) -> None:
    job = await house.with_volume(read_only=True)
    house.end(job)
    await house.until(job.id, Phase.DONE)
    assert [what for what, _, _ in house.volumes.done] == ["prepare", "release"]


@pytest.mark.parametrize("code", [0, 3])
async def test_what_could_not_be_saved_is_class_volume_however_the_command_ended(house: House, code: int) -> None:
    job = await house.with_volume(attempts=3)
    house.volumes.flush_errors = [not_saved(job.id, "the store is away", "/somewhere")]
    house.end(job, code=code)
    done = await house.until(job.id, Phase.DONE)
    assert (done.stage, done.failure_class, done.attempt) == (Stage.ERROR, FailureClass.VOLUME, 1)
    assert str(done.message).startswith("volume: what the job wrote is not all in alice/outputs: the store is away")
    assert "/somewhere" in str(done.message)
    assert f"`runstead job recover {job.id}`" in str(done.message)


async def test_a_failed_command_saves_and_keeps_its_class(house: House) -> None:
    house.volumes.flushed = Flushed(1, 5)
    job = await house.with_volume()
    house.end(job, code=3)
    done = await house.until(job.id, Phase.DONE)
    assert (done.failure_class, done.exit_code) == (FailureClass.USER, 3)
    assert done.message == "user: the command exited with code 3; saved 1 file (5 bytes) to alice/outputs"


async def test_a_canceled_job_saves_as_well(house: House) -> None:
    job = await house.with_volume()
    await house.jobs.cancel(ALICE, "alice", job.id)
    done = await house.until(job.id, Phase.DONE)
    assert done.stage is Stage.CANCELED
    assert ("flush", job.id, 1) in house.volumes.done


async def test_an_attempt_is_saved_before_the_next_begins(house: House) -> None:
    job = await house.with_volume(attempts=2)
    house.end(job, code=1)
    again = await house.until(job.id, Stage.RUNNING, attempt=2)
    assert house.volumes.done.index(("flush", job.id, 1)) < house.volumes.done.index(("prepare", job.id, 2))
    house.end(again)
    await house.until(job.id, Phase.DONE)
    assert house.volumes.held == set()


async def test_what_is_lost_is_removed_before_it_is_saved(house: House) -> None:
    job = await house.with_volume()
    house.executor.attempts.clear()
    house.events.publish(WORK, job.id)
    done = await house.until(job.id, Phase.DONE)
    assert done.failure_class is FailureClass.INFRA
    assert ("flush", job.id, 1) in house.volumes.done
    assert house.executor.removed[0] == (job.id, 1)


@pytest.mark.parametrize(
    ("error", "prepared"),
    [(NotFound("the bucket was deleted"), 1), (BackendFailure("damaged"), 1), (Unavailable("away"), 5)],
)
async def test_a_volume_that_cannot_be_had_fails_the_job_with_class_volume(
    house: House, error: RunsteadError, prepared: int
) -> None:
    house.volumes.prepare_errors = [error] * 9
    job = await house.with_volume()
    done = await house.until(job.id, Phase.DONE)
    assert (done.stage, done.failure_class) == (Stage.ERROR, FailureClass.VOLUME)
    assert error.message in str(done.message)
    assert 9 - len(house.volumes.prepare_errors) == prepared
    assert house.executor.launches == []


async def test_a_job_can_be_canceled_while_its_volumes_are_prepared(house: House) -> None:
    house.volumes.may_prepare.clear()
    job = await house.with_volume()
    await house.jobs.cancel(ALICE, "alice", job.id)
    done = await house.until(job.id, Phase.DONE)
    assert done.stage is Stage.CANCELED
    assert house.executor.launches == []


async def test_a_new_process_goes_on_with_saving(tmp_path: Path) -> None:
    executor, volumes = FakeExecutor(), FakeVolumes()
    volumes.may_flush.clear()
    async with open_house(tmp_path, executor, provider=volumes) as house:
        job = await house.with_volume()
        house.end(job)
        async with asyncio.timeout(5):
            while ("flush", job.id, 1) not in volumes.done:
                await asyncio.sleep(0.01)
    volumes.may_flush.set()
    volumes.held.add(("f" * 24, 1))  # nobody's
    async with open_house(tmp_path, executor, process="2", provider=volumes) as house:
        done = await house.until(job.id, Phase.DONE)
        assert done.stage is Stage.COMPLETED
        assert volumes.held == set()


def telling(*lines: str | ImageFailure | None) -> FakeExecutor:
    executor = FakeExecutor(lines=asyncio.Queue())
    assert executor.lines is not None
    for line in lines:
        executor.lines.put_nowait(line)
    return executor


async def log_of(house: House, job: Job) -> list[str]:
    block = await house.logs.read(job.id, START, 100_000)
    return [line.split(b" ", 1)[1].decode() for line in block.lines.splitlines()]


async def test_an_image_is_brought_before_the_start_and_its_progress_is_told(tmp_path: Path) -> None:
    executor = telling("pulling python:3.12 1 % 1/65 MB")
    async with open_house(tmp_path, executor) as house:
        job = await house.jobs.submit(ALICE, "alice", SPEC, {})
        await house.until_message(job.id, "pulling python:3.12 1 % 1/65 MB")
        assert house.jobs.message(await house.job(job.id)) == "pulling python:3.12 1 % 1/65 MB"
        assert executor.lines is not None
        executor.lines.put_nowait("pulling python:3.12 63 % 41/65 MB")
        await house.until_message(job.id, "pulling python:3.12 63 % 41/65 MB")
        executor.lines.put_nowait("pulled python:3.12")
        executor.lines.put_nowait(None)
        running = await house.until(job.id, Stage.RUNNING)
        assert running.message != "pulled python:3.12"
        assert executor.prepared == ["python:3.12"]
        # Each change of the job is one entry of its history; progress is none.
        assert [entry.phase for entry in await house.store.history(job.id)] == [
            Phase.WAITING,
            Phase.STARTING,
            Phase.RUNNING,
        ]
        log = await log_of(house, job)
        assert log[0] == "runstead: pulling python:3.12 1 % 1/65 MB"
        assert log[-1] == "runstead: pulled python:3.12"
        (launch,) = executor.launches
        assert launch.log_not_before >= datetime.now(UTC) - timedelta(seconds=5)


async def test_an_image_that_cannot_be_had_ends_the_job_with_its_reason(tmp_path: Path) -> None:
    executor = telling(ImageFailure("manifest unknown: python:3.99"))
    async with open_house(tmp_path, executor) as house:
        job = await house.jobs.submit(ALICE, "alice", replace(SPEC, attempts=3), {})
        done = await house.until(job.id, Phase.DONE)
        assert (done.stage, done.failure_class, done.attempt) == (Stage.ERROR, FailureClass.IMAGE, 1)
        assert "manifest unknown: python:3.99" in str(done.message)
        assert executor.launches == []
        assert "manifest unknown: python:3.99" in (await log_of(house, job))[-1]


async def test_an_image_that_may_be_had_later_is_tried_again_as_attempts_allow(tmp_path: Path) -> None:
    executor = telling(ImageFailure("the registry is away", again=True), None)
    async with open_house(tmp_path, executor) as house:
        job = await house.jobs.submit(ALICE, "alice", replace(SPEC, attempts=2), {})
        running = await house.until(job.id, Stage.RUNNING, attempt=2)
        assert running.failure_count == 1


async def test_a_job_can_be_canceled_while_its_image_is_pulled(tmp_path: Path) -> None:
    executor = telling("pulling python:3.12 1 % 1/65 MB")
    async with open_house(tmp_path, executor) as house:
        job = await house.jobs.submit(ALICE, "alice", SPEC, {})
        await house.until_message(job.id, "pulling python:3.12 1 % 1/65 MB")
        await house.jobs.cancel(ALICE, "alice", job.id)
        done = await house.until(job.id, Phase.DONE)
        assert (done.stage, executor.launches) == (Stage.CANCELED, [])


async def test_an_image_and_volumes_are_brought_together(tmp_path: Path) -> None:
    executor, volumes = telling(), FakeVolumes()
    async with open_house(tmp_path, executor, provider=volumes) as house:
        job = await house.with_volume()
        async with asyncio.timeout(5):
            while not volumes.done:  # while the image is not there
                await asyncio.sleep(0.01)
        assert executor.lines is not None
        executor.lines.put_nowait(None)
        await house.until(job.id, Stage.RUNNING)
        (launch,) = executor.launches
        assert launch.mounts == (Mount(Path("/node/0"), "/out", False),)


async def test_other_jobs_go_on_while_images_are_pulled(tmp_path: Path) -> None:
    executor = telling()
    async with open_house(tmp_path, executor) as house:
        slow = [await house.jobs.submit(ALICE, "alice", SPEC, {}) for _ in range(2)]
        waiting = await house.jobs.submit(ALICE, "alice", SPEC, {})
        await house.jobs.cancel(ALICE, "alice", waiting.id)
        assert (await house.until(waiting.id, Phase.DONE)).stage is Stage.CANCELED
        assert (await house.job(slow[0].id)).phase in (Phase.STARTING, Phase.WAITING)
