"""Runs of schedules, with a clock that tests turn: each due instant once, whatever clocks and servers do."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import bindparam, select

from runstead.events.interface import SCHEDULES
from runstead.events.local import LocalEventBus
from runstead.kit.clock import Clock
from runstead.model.accounts import Caller, Namespace, Organization, OrgRole, User
from runstead.model.errors import Conflict, Invalid, NotFound, OverBudget, RunsteadError, Unavailable
from runstead.model.ids import new_id
from runstead.model.jobs import Initiator, Job, JobFilter, JobSpec, NewJob, Phase, Stage, Transition
from runstead.model.schedules import NewSchedule, Schedule, ScheduleEventKind
from runstead.model.volumes import Volume, VolumeKind
from runstead.services import cron
from runstead.services.jobs import Jobs
from runstead.services.scheduled_runs import ScheduledRuns
from runstead.services.secrets import SecretBox
from runstead.services.ticker import LONGEST_SLEEP_SECONDS, MOST_CAUGHT_UP, CatchUp, Ticker
from runstead.stores import ledger
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.database import Database
from runstead.stores.interface import ScheduleChange
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from runstead.stores.schedules import SqlScheduleStore
from runstead.stores.tables import jobs as job_table

START = datetime(2026, 1, 1, tzinfo=UTC)
UTC_ZONE, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")
ALICE = User("a" * 24, "alice", "Alice", False, START)
_KEY = select(job_table.c.idempotency_key).where(job_table.c.id == bindparam("id"))
SPEC = JobSpec(command=("true",), flavor="cpu-basic", docker_image="x")


@dataclass
class ManualClock(Clock):
    at: datetime = START

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass
class AnyJob:
    """Accepts every job, or fails as told; stands for `Jobs`, whose rules have tests of their own."""

    clock: ManualClock
    fault: Exception | None = None
    taken: str | None = None  # why what a run needs for itself alone cannot be had
    entered_jobs: list[Job] = field(default_factory=list)

    async def accept(self, caller: Caller, spec: JobSpec, secrets: Mapping[str, str]) -> JobSpec:
        if self.fault is not None:
            raise self.fault
        return spec

    def draft(
        self, user: User, owner: Namespace, spec: JobSpec, secrets: Mapping[str, str], initiator: Initiator, key: str
    ) -> NewJob:
        now = self.clock.now()
        who = (owner.id, owner.name, owner.kind, user.id, user.name)
        return NewJob(new_id(now), *who, spec, initiator, now, "queued", idempotency_key=key)

    @contextlib.asynccontextmanager
    async def reserved(self, new: NewJob) -> AsyncGenerator[None]:
        if self.taken is not None:
            raise Conflict(self.taken)
        yield

    def entered(self, job: Job) -> None:
        self.entered_jobs.append(job)


@dataclass
class House:
    """A database with a server or two on it."""

    database: Database
    clock: ManualClock
    jobs_service: AnyJob
    events: LocalEventBus = field(default_factory=LocalEventBus)

    def __post_init__(self) -> None:
        self.store = SqlScheduleStore(self.database)
        self.jobs = SqlJobStore(self.database)
        self.accounts = SqlAccountStore(self.database)

    def server(self, catch_up: CatchUp = CatchUp.ONCE, zone: ZoneInfo = UTC_ZONE) -> Ticker:
        jobs = cast(Jobs, self.jobs_service)
        runs = ScheduledRuns(self.store, self.accounts, jobs, SecretBox(b"k" * 32))
        return Ticker(self.store, runs, jobs, self.events, self.clock, zone, catch_up)

    async def schedule(
        self, expression: str, *, zone: ZoneInfo = UTC_ZONE, concurrency: bool = True, **fields: Any
    ) -> Schedule:
        new = NewSchedule(
            id=new_id(self.clock.now()),
            namespace_id=ALICE.id,
            namespace=ALICE.name,
            namespace_kind="user",
            created_by_id=ALICE.id,
            created_by=ALICE.name,
            spec=SPEC,
            expression=expression,
            time_zone=zone.key,
            concurrency=concurrency,
            suspended=False,
            next_run_at=cron.parse(expression, zone).after(self.clock.now()),
            created_at=self.clock.now(),
        )
        stored_as = fields.pop("stored_as", expression)
        return await self.store.add(replace(new, expression=stored_as, **fields))

    async def runs(self, schedule: Schedule) -> list[datetime]:
        """The due instants that got a job, in the order of the jobs."""
        found: list[datetime] = []
        before: int | None = None
        while page := await self.jobs.page("alice", JobFilter(), before, 500):
            rows = await self.database.read(
                lambda t, page=page: [t.row(_KEY, {"id": job.id}) for job in page if job.initiator.id == schedule.id]
            )
            keys = [row[0] for row in rows if row is not None]
            found += [datetime.strptime(key.partition("/")[2], "%Y%m%dT%H%M%S").replace(tzinfo=UTC) for key in keys]
            before = page[-1].seq
        return found[::-1]

    async def history(self, schedule: Schedule) -> list[tuple[ScheduleEventKind, str | None]]:
        return [(one.kind, one.message) for one in await self.store.events(schedule.id, 100)]

    async def now(self, schedule: Schedule) -> Schedule:
        found = await self.store.get(schedule.id)
        assert found is not None
        return found

    async def pass_time(self, *servers: Ticker, until: datetime) -> None:
        """Turn the clock from due instant to due instant, as sleeping servers do."""
        while (due := await self.store.next_due()) is not None and due <= until:
            self.clock.at = max(due, self.clock.at)
            await asyncio.gather(*(server.run_once() for server in servers))
        self.clock.at = until

    async def finish(self, job_id: str) -> None:
        done = Transition(
            job_id, 1, frozenset({Phase.WAITING}), Phase.DONE, Stage.COMPLETED, self.clock.now(), finished_at=START
        )
        assert await self.jobs.apply(done, "nobody") is not None


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    database = await open_database(f"sqlite:///{tmp_path / 'db'}")
    clock = ManualClock()
    made = House(database, clock, AnyJob(clock))
    await made.accounts.add_user(ALICE)
    yield made
    await database.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("servers", [1, 2])
async def test_ten_years_with_none_missed_and_none_doubled(house: House, servers: int) -> None:
    expressions = ["30 2 * * 0", "0 0 29 2 *", "@monthly", "0 2 25-31 3,10 *", "0 30 2 13 * *", "*/30 1-3 28-31 10 0"]
    if servers == 1:
        expressions.append("30 2 * * *")
    made = {one: await house.schedule(one, zone=BERLIN) for one in expressions}
    tickers = [house.server(zone=BERLIN) for _ in range(servers)]
    end = datetime(2036, 1, 1, tzinfo=UTC)
    await house.pass_time(*tickers, until=end)
    for expression, schedule in made.items():
        assert await house.runs(schedule) == list(cron.parse(expression, BERLIN).between(START, end)), expression


async def test_a_run_is_like_a_job_of_the_schedules_user(house: House) -> None:
    schedule = await house.schedule("@hourly")
    await house.pass_time(house.server(), until=START + timedelta(hours=1))
    [job] = house.jobs_service.entered_jobs
    assert job.initiator == Initiator("scheduled-job", schedule.id)
    assert (job.created_by, job.namespace, job.spec) == ("alice", "alice", SPEC)
    now = await house.now(schedule)
    assert (now.last_job_id, now.last_run_at, now.runs) == (job.id, START + timedelta(hours=1), 1)
    assert now.next_run_at == START + timedelta(hours=2)


async def test_it_sleeps_until_the_next_due_instant(house: House) -> None:
    server = house.server()
    assert await server.run_once() == LONGEST_SLEEP_SECONDS
    await house.schedule("*/3 * * * * *")
    assert await server.run_once() == 3
    house.clock.at += timedelta(seconds=1.25)
    assert await server.run_once() == 1.75


async def test_a_schedule_that_was_just_made_wakes_it(house: House) -> None:
    """With the machine's clock: nobody else wakes the ticker before its long sleep is over."""
    house.clock.at = datetime.now(UTC)
    task = asyncio.create_task(house.server().run())
    try:
        while not house.events._by_topic.get(SCHEDULES):  # pyright: ignore[reportPrivateUsage]
            await asyncio.sleep(0)
        schedule = await house.schedule("* * * * * *")
        house.clock.at += timedelta(seconds=1)
        house.events.publish(SCHEDULES, schedule.id)
        async with asyncio.timeout(LONGEST_SLEEP_SECONDS / 2):
            while not house.jobs_service.entered_jobs:
                await asyncio.sleep(0.01)
    finally:
        task.cancel()


class TestMissed:
    """Due instants that pass while no server runs."""

    async def test_one_run_for_all_by_default(self, house: House) -> None:
        schedule = await house.schedule("*/5 * * * *")
        house.clock.at += timedelta(days=2, minutes=3)
        server = house.server()
        await server.run_once()
        assert await house.runs(schedule) == [START + timedelta(days=2)]
        assert (await house.now(schedule)).next_run_at == START + timedelta(days=2, minutes=5)
        assert [kind for kind, _ in await house.history(schedule)] == ["run", "missed", "created"]
        assert (await house.history(schedule))[1][1] == (
            "runs were due from 2026-01-01 00:05:00 UTC until 2026-01-03 00:00:00 UTC, while no server ran; one is made"
        )

    async def test_none_if_the_site_says_so(self, house: House) -> None:
        schedule = await house.schedule("*/5 * * * *")
        house.clock.at += timedelta(hours=1, seconds=20)
        server = house.server(CatchUp.SKIP)
        await server.run_once()
        await server.run_once()
        # Twenty seconds are no downtime: the last one is not missed.
        assert await house.runs(schedule) == [START + timedelta(hours=1)]
        assert [kind for kind, _ in await house.history(schedule)] == ["run", "missed", "created"]

    async def test_all_if_the_site_says_so(self, house: House) -> None:
        schedule = await house.schedule("*/5 * * * *")
        house.clock.at += timedelta(hours=1, seconds=20)
        await house.pass_time(house.server(CatchUp.ALL), until=house.clock.at)
        assert await house.runs(schedule) == [START + timedelta(minutes=n) for n in range(5, 65, 5)]

    async def test_all_is_not_without_end(self, house: House) -> None:
        schedule = await house.schedule("* * * * *")
        house.clock.at += timedelta(days=30)
        await house.pass_time(house.server(CatchUp.ALL), until=house.clock.at)
        runs = await house.runs(schedule)
        assert len(runs) == MOST_CAUGHT_UP
        assert runs[-1] == house.clock.at
        assert runs == sorted(set(runs))

    async def test_a_short_stop_misses_nothing(self, house: House) -> None:
        schedule = await house.schedule("*/10 * * * * *")
        house.clock.at += timedelta(seconds=45)
        await house.pass_time(house.server(), until=house.clock.at)
        assert await house.runs(schedule) == [START + timedelta(seconds=n) for n in (10, 20, 30, 40)]

    async def test_one_missed_leap_day_is_one_run(self, house: House) -> None:
        schedule = await house.schedule("0 0 29 2 *")
        house.clock.at = datetime(2028, 3, 5, tzinfo=UTC)
        await house.pass_time(house.server(), until=house.clock.at)
        assert await house.runs(schedule) == [datetime(2028, 2, 29, tzinfo=UTC)]
        assert (await house.now(schedule)).next_run_at == datetime(2032, 2, 29, tzinfo=UTC)


class TestClockSteps:
    """The machine's clock is set while the server runs."""

    async def test_back(self, house: House) -> None:
        schedule = await house.schedule("@hourly")
        server = house.server()
        await house.pass_time(server, until=START + timedelta(hours=3))
        house.clock.at -= timedelta(hours=2)
        await server.run_once()
        await house.pass_time(server, until=START + timedelta(hours=4))
        assert await house.runs(schedule) == [START + timedelta(hours=n) for n in (1, 2, 3, 4)]

    async def test_back_and_the_next_run_found_anew(self, house: House) -> None:
        """What resuming or rescheduling does: due instants come up again that had their run."""
        schedule = await house.schedule("@hourly")
        server = house.server()
        await house.pass_time(server, until=START + timedelta(hours=3))
        house.clock.at = START + timedelta(minutes=30)
        again = ScheduleChange(timing=(START + timedelta(hours=1), "UTC"))
        assert await house.store.change(await house.now(schedule), again) is not None
        await house.pass_time(server, until=START + timedelta(hours=5))
        assert await house.runs(schedule) == [START + timedelta(hours=n) for n in (1, 2, 3, 4, 5)]
        assert (await house.now(schedule)).runs == 5

    async def test_forward(self, house: House) -> None:
        schedule = await house.schedule("@hourly")
        server = house.server()
        await house.pass_time(server, until=START + timedelta(hours=1))
        house.clock.at += timedelta(hours=6, minutes=10)
        await server.run_once()
        await server.run_once()
        await house.pass_time(server, until=START + timedelta(hours=8))
        assert await house.runs(schedule) == [START + timedelta(hours=n) for n in (1, 7, 8)]


class TestOneAtATime:
    """Schedules without concurrency."""

    async def test_a_due_run_is_passed_over_while_one_is_active(self, house: House) -> None:
        schedule = await house.schedule("@hourly", concurrency=False)
        server = house.server()
        await house.pass_time(server, until=START + timedelta(hours=4))
        assert await house.runs(schedule) == [START + timedelta(hours=1)]
        [first] = house.jobs_service.entered_jobs
        events = await house.store.events(schedule.id, 10)
        assert [(one.kind, one.count, one.job_id) for one in events] == [
            ("skipped", 3, first.id),
            ("run", 1, first.id),
            ("created", 1, None),
        ]
        assert events[0].due_at == START + timedelta(hours=4)
        assert events[0].message == "another run was active, and the schedule allows one at a time"
        await house.finish(first.id)
        await house.pass_time(server, until=START + timedelta(hours=5))
        assert await house.runs(schedule) == [START + timedelta(hours=1), START + timedelta(hours=5)]

    async def test_two_servers_and_a_manual_run_make_one(self, house: House) -> None:
        schedule = await house.schedule("@hourly", concurrency=False)
        house.clock.at += timedelta(hours=1)
        one, other = house.server(), house.server()
        runs = ScheduledRuns(house.store, house.accounts, cast(Jobs, house.jobs_service), SecretBox(b"k" * 32))
        by_hand = await runs.prepare(schedule)
        await asyncio.gather(
            one.run_once(),
            house.store.trigger(schedule, by_hand, house.clock.now()),
            other.run_once(),
            return_exceptions=True,
        )
        assert len(await house.jobs.page("alice", JobFilter(), None, 10)) == 1


class TestWhatIsGone:
    """A schedule that cannot run any more suspends itself and says why."""

    @pytest.mark.parametrize("fault", [Invalid("no such flavor", "flavor"), NotFound("no such bucket")])
    async def test_flavor_and_volume(self, house: House, fault: RunsteadError) -> None:
        schedule = await house.schedule("@hourly")
        house.jobs_service.fault = fault
        await house.pass_time(house.server(), until=START + timedelta(hours=3))
        now = await house.now(schedule)
        assert (now.suspended, now.suspend_reason, now.next_run_at, now.runs) == (True, fault.message, None, 0)
        assert (await house.history(schedule))[0] == ("suspended", fault.message)

    async def test_another_bucket_of_the_same_name(self, house: House) -> None:
        volume = Volume(VolumeKind.BUCKET, "alice/data", "/data", source_id="old")
        schedule = await house.schedule("@hourly", spec=replace(SPEC, volumes=(volume,)))

        async def accept(caller: Caller, spec: JobSpec, secrets: Mapping[str, str]) -> JobSpec:
            return replace(spec, volumes=(replace(volume, source_id="new"),))

        house.jobs_service.accept = accept  # type: ignore[method-assign]
        await house.pass_time(house.server(), until=START + timedelta(hours=1))
        assert (await house.now(schedule)).suspend_reason == (
            "what was mounted is gone, and there is another of its name now: alice/data"
        )

    async def test_rights_in_an_organization(self, house: House) -> None:
        bob = User("b" * 24, "bob", "Bob", False, START)
        org = Organization("c" * 24, "org", "Org", START)
        await house.accounts.add_user(bob)
        await house.accounts.add_organization(org)
        await house.accounts.set_member("org", "bob", OrgRole.WRITE)
        theirs = {"namespace_id": org.id, "namespace": "org", "namespace_kind": "org"}
        schedule = await house.schedule("@hourly", created_by_id=bob.id, created_by="bob", **theirs)
        server = house.server()
        await house.pass_time(server, until=START + timedelta(hours=1))
        assert (await house.now(schedule)).runs == 1
        await house.accounts.set_member("org", "bob", OrgRole.READ)
        await house.pass_time(server, until=START + timedelta(hours=2))
        now = await house.now(schedule)
        assert (now.runs, now.suspend_reason) == (1, "bob may not start jobs in 'org' any more")

    async def test_the_user(self, house: House) -> None:
        schedule = await house.schedule("@hourly", created_by_id="d" * 24)
        await house.pass_time(house.server(), until=START + timedelta(hours=1))
        assert (await house.now(schedule)).suspend_reason == ("the user that the schedule belongs to is gone: alice")

    async def test_an_expression_that_is_no_longer_understood(self, house: House) -> None:
        """Stored by another version; it must not keep the other schedules from running."""
        due = {"next_run_at": START + timedelta(hours=1)}
        odd = await house.schedule("@hourly", **due, stored_as="0 9 * * MON")
        odd_elsewhere = await house.schedule("@daily", **due, stored_as="@fortnightly", time_zone="Europe/Paris")
        schedule = await house.schedule("@hourly")
        server = house.server()
        await server.adopt_zone()
        await house.pass_time(server, until=START + timedelta(hours=2))
        assert len(await house.runs(schedule)) == 2
        assert "numbers instead of names" in str((await house.now(odd)).suspend_reason)
        assert "aliases" in str((await house.now(odd_elsewhere)).suspend_reason)

    async def test_what_is_only_down_is_tried_again(self, house: House) -> None:
        schedule = await house.schedule("@hourly")
        house.clock.at += timedelta(hours=1)
        house.jobs_service.fault = Unavailable("the database is in use")
        server = house.server()
        assert await server.run_once() > 0
        house.jobs_service.fault = None
        await server.run_once()
        assert await house.runs(schedule) == [START + timedelta(hours=1)]
        assert not (await house.now(schedule)).suspended

    async def test_a_defect_costs_one_run_and_is_told(self, house: House) -> None:
        schedule = await house.schedule("@hourly")
        house.jobs_service.fault = ZeroDivisionError("a defect")
        server = house.server()
        await house.pass_time(server, until=START + timedelta(hours=1))
        assert (await house.history(schedule))[0] == (
            "skipped",
            "the server failed on this run; its log says why",
        )
        house.jobs_service.fault = None
        await house.pass_time(server, until=START + timedelta(hours=2))
        assert await house.runs(schedule) == [START + timedelta(hours=2)]

    async def test_the_budget(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        schedule = await house.schedule("@hourly")

        def refuse(*_: object) -> None:
            raise OverBudget("'alice' may spend $1.00 in a month")

        monkeypatch.setattr(ledger, "reserve", refuse)
        server = house.server()
        await house.pass_time(server, until=START + timedelta(hours=2))
        assert (await house.history(schedule))[0] == ("skipped", "'alice' may spend $1.00 in a month")
        assert not (await house.now(schedule)).suspended
        monkeypatch.undo()
        await house.pass_time(server, until=START + timedelta(hours=3))
        assert await house.runs(schedule) == [START + timedelta(hours=3)]

    async def test_a_port_that_another_job_has(self, house: House) -> None:
        schedule = await house.schedule("@hourly")
        house.jobs_service.taken = "job x exposes port 7000 already"
        server = house.server()
        await house.pass_time(server, until=START + timedelta(hours=2))
        assert (await house.history(schedule))[0] == ("skipped", "job x exposes port 7000 already")
        assert not (await house.now(schedule)).suspended
        house.jobs_service.taken = None
        await house.pass_time(server, until=START + timedelta(hours=3))
        assert await house.runs(schedule) == [START + timedelta(hours=3)]


async def test_another_time_zone_in_the_settings(house: House) -> None:
    schedule = await house.schedule("0 9 * * *")
    overdue = await house.schedule("0 1 * * *")
    house.clock.at += timedelta(hours=2)
    server = house.server(zone=BERLIN)
    await server.adopt_zone()
    now = await house.now(schedule)
    assert (now.time_zone, now.next_run_at) == ("Europe/Berlin", START + timedelta(hours=8))
    await server.run_once()
    assert len(await house.runs(overdue)) == 1
    ran = await house.now(overdue)
    assert (ran.time_zone, ran.next_run_at) == ("Europe/Berlin", START + timedelta(days=1))


async def test_many_that_are_due_at_once(house: House) -> None:
    made = [await house.schedule("@hourly") for _ in range(150)]
    house.clock.at += timedelta(hours=1)
    server = house.server()
    while await server.run_once() == 0:
        pass
    assert len(house.jobs_service.entered_jobs) == len(made)
