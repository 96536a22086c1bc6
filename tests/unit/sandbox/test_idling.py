"""Sandboxes that nobody uses are ended, those in use never, also when the server was not there for a while."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from runstead.events.local import LocalEventBus
from runstead.executors.interface import Executor, Inside
from runstead.model.errors import EntryNotFound, Invalid
from runstead.model.executions import Background, Command, Compartment, CompartmentLimits, Ended
from runstead.model.ids import new_id
from runstead.model.jobs import CancelReason, Initiator, Job, JobSpec, NewJob, Phase, Stage
from runstead.model.launches import Handle
from runstead.model.sandboxes import Mode, NewPooledSandbox, SandboxSpec
from runstead.services.sandboxes.activity import Activity
from runstead.services.sandboxes.hosts import Hosts
from runstead.services.sandboxes.idling import Idling
from runstead.services.secrets import SecretBox
from runstead.stores.database import Database
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from runstead.stores.sandboxes import SqlSandboxStore

START = datetime(2026, 3, 1, tzinfo=UTC)
HANDLE = {"executor": "x", "version": 1, "data": {}}


@dataclass
class ManualClock:
    at: datetime = START

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass
class FakeInside:
    """Programs that run and compartments that are there because the test says so."""

    programs: dict[str, list[Background]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    part: str = ""

    async def background(self) -> list[Background]:
        if self.part and self.part not in self.ids:
            raise EntryNotFound(self.part)
        return self.programs.get(self.part, [])

    async def execute(self, command: Command) -> None:
        raise Invalid("there is no shell")

    async def make_compartments(self, ids: Sequence[str], limits: CompartmentLimits) -> list[Compartment]:
        self.ids += ids
        return [Compartment(one, 20_000 + n, f"/homes/{one}", "none") for n, one in enumerate(ids)]

    async def compartments(self) -> list[Compartment]:
        return [Compartment(one, 20_000 + n, f"/homes/{one}", "none") for n, one in enumerate(self.ids)]

    async def compartment(self, compartment_id: str) -> "FakeInside":
        return replace(self, part=compartment_id)

    async def remove_compartments(self, ids: Sequence[str]) -> int:
        gone = [one for one in ids if one in self.ids]
        for one in gone:
            self.ids.remove(one)
        return len(gone)


class FakeExecutor:
    def __init__(self) -> None:
        self.rooms = FakeInside()

    async def inside(self, handle: Handle) -> Inside:
        return cast(Inside, self.rooms)


class House:
    """The parts around a sandbox; `restart` makes those anew that a restart does."""

    def __init__(self, database: Database, job: Job) -> None:
        self.database = database
        self.job = job
        self.clock = ManualClock()
        self.executor = FakeExecutor()
        self.restart()

    def restart(self) -> None:
        events, store = LocalEventBus(), SqlSandboxStore(self.database)
        executor = cast(Executor, self.executor)
        self.jobs = SqlJobStore(self.database)
        self.activity = Activity(store, self.clock)
        self.hosts = Hosts(store, executor, SecretBox(b"k" * 32), self.activity, self.clock)
        self.idling = Idling(self.jobs, executor, self.activity, self.hosts, events, self.clock, lambda: [self.job])

    async def after(self, seconds: float) -> None:
        self.clock.at += timedelta(seconds=seconds)
        await self.idling.run_once()

    async def ended(self) -> bool:
        job = await self.jobs.get(self.job.id)
        assert job is not None
        assert job.cancel_requested_at is None or job.cancel_reason is CancelReason.IDLE
        return job.cancel_requested_at is not None


async def make_house(path: Path, sandbox: SandboxSpec) -> House:
    database = await open_database(f"sqlite:///{path / 'db'}")
    spec = JobSpec(command=("x",), flavor="cpu-basic", docker_image="a", sandbox=sandbox)
    initiator = Initiator("user", "1")
    new = NewJob(new_id(START), "1", "alice", "user", "1", "alice", spec, initiator, START)
    job = await SqlJobStore(database).add(new)
    running = replace(job, phase=Phase.RUNNING, stage=Stage.RUNNING, started_at=START, handle=HANDLE)
    return House(database, running)


@pytest.fixture
async def house(tmp_path: Path, request: Any) -> AsyncIterator[House]:
    made = await make_house(tmp_path, getattr(request, "param", SandboxSpec(Mode.DEDICATED, idle_seconds=600)))
    yield made
    await made.database.close()


pool = pytest.mark.parametrize("house", [SandboxSpec(Mode.POOL, idle_seconds=600, capacity=3)], indirect=True)
endless = pytest.mark.parametrize("house", [SandboxSpec(Mode.DEDICATED)], indirect=True)


def program(ended: Ended | None = None) -> Background:
    return Background(0, 1, ("x",), None, START, ended)


async def test_a_sandbox_ends_when_nobody_used_it_for_that_long(house: House) -> None:
    await house.after(0)
    await house.after(604)
    assert not await house.ended()
    await house.after(2)
    assert await house.ended()


@endless
async def test_one_without_a_timeout_never_ends(house: House) -> None:
    await house.after(0)
    await house.after(10**8)
    assert not await house.ended()


async def test_every_use_counts_from_its_end(house: House) -> None:
    await house.after(0)
    with house.activity.busy(house.job.id):
        await house.after(5000)
        assert not await house.ended()
    await house.after(599)
    assert not await house.ended()
    await house.after(2)
    assert await house.ended()


async def test_a_program_in_the_background_is_use(house: House) -> None:
    house.executor.rooms.programs[""] = [program()]
    await house.after(0)
    for _ in range(3):
        await house.after(700)
    assert not await house.ended()
    house.executor.rooms.programs[""] = [program(Ended(0, None))]
    await house.after(700)
    assert await house.ended()


async def test_a_restart_neither_ends_a_sandbox_nor_forgets_its_idleness(house: House) -> None:
    await house.after(0)
    house.activity.touch(house.job.id)
    await house.after(500)
    house.restart()
    await house.after(90)
    assert not await house.ended()
    house.restart()
    await house.after(16)  # it counts from the last use, not from the restart
    assert not await house.ended()  # but nobody loses it in the first minute
    await house.after(50)
    assert await house.ended()


async def test_after_a_long_absence_there_is_a_minute_to_come_back(house: House) -> None:
    await house.after(0)
    house.activity.touch(house.job.id)
    await house.after(1)
    house.clock.at += timedelta(days=1)
    house.restart()
    await house.after(59)
    assert not await house.ended()
    house.activity.touch(house.job.id)
    await house.after(599)
    assert not await house.ended()
    await house.after(2)
    assert await house.ended()


@pool
async def test_a_host_ends_when_it_had_no_sandboxes_for_that_long(house: House) -> None:
    await house.after(0)
    [member], rejected = await house.hosts.create(house.job, NewPooledSandbox(), 1)
    assert rejected == 0
    await house.after(5000)
    assert not await house.ended()
    assert await house.hosts.remove(house.job, [member.sandbox.id]) == 1
    await house.after(599)
    assert not await house.ended()
    await house.after(2)
    assert await house.ended()


@pool
async def test_a_pooled_sandbox_is_removed_when_it_was_idle(house: House) -> None:
    await house.after(0)
    [idle, used], _ = await house.hosts.create(house.job, NewPooledSandbox(idle_seconds=60), 2)
    [endless], _ = await house.hosts.create(house.job, NewPooledSandbox(), 1)
    house.executor.rooms.programs[used.sandbox.id] = [program()]
    await house.after(61)
    assert await house.hosts.members(house.job) == [used, endless]
    assert house.executor.rooms.ids == [used.sandbox.id, endless.sandbox.id]
    house.executor.rooms.programs.clear()
    with house.activity.busy(house.job.id, used.sandbox.id):
        await house.after(61)
    assert await house.hosts.members(house.job) == [used, endless]
    await house.after(61)
    assert await house.hosts.members(house.job) == [endless]
    assert idle.sandbox.id not in house.executor.rooms.ids


@pool
async def test_a_full_host_takes_no_more(house: House) -> None:
    made, rejected = await house.hosts.create(house.job, NewPooledSandbox(), 2)
    assert (len(made), rejected) == (2, 0)
    made, rejected = await house.hosts.create(house.job, NewPooledSandbox(), 2)
    assert (len(made), rejected) == (1, 1)
    made, rejected = await house.hosts.create(house.job, NewPooledSandbox(), 1)
    assert (len(made), rejected) == (0, 1)
    assert len(house.executor.rooms.ids) == 3


@pool
async def test_another_server_finds_the_sandboxes_with_their_secrets(house: House) -> None:
    wanted = NewPooledSandbox(60, {"A": "secret-value"})
    made, _ = await house.hosts.create(house.job, wanted, 2)
    assert "secret-value" not in repr(made)
    house.executor.rooms.ids += ["f" * 16]  # made, and never written down
    house.executor.rooms.ids.remove(made[0].sandbox.id)  # written down, and gone
    house.restart()
    assert await house.hosts.members(house.job) == [made[1]]
    assert house.executor.rooms.ids == [made[1].sandbox.id]
    await house.after(59)
    house.restart()
    assert await house.hosts.members(house.job) == [made[1]]
    await house.after(61)
    assert await house.hosts.members(house.job) == []
