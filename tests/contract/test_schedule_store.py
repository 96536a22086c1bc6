"""What every ScheduleStore and UsageStore promises, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runstead.model.accounts import NamespaceKind, Organization, User
from runstead.model.costs import Span, UsageBy, UsageQuery, UsageSum, cost_micro_usd, money, month_of, shares
from runstead.model.errors import Conflict, Invalid, OverBudget
from runstead.model.ids import new_id
from runstead.model.jobs import Initiator, Job, JobFilter, JobSpec, NewJob, Phase, Reservation, Stage, Transition
from runstead.model.schedules import (
    Firing,
    NewSchedule,
    Outcome,
    Schedule,
    ScheduleEvent,
    ScheduleEventKind,
)
from runstead.model.volumes import Volume, VolumeKind
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.database import Database
from runstead.stores.interface import Admission, ScheduleChange
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from runstead.stores.schedules import SqlScheduleStore
from runstead.stores.usage import SqlUsageStore

NOW = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
HOUR = timedelta(hours=1)
ME = "host/1"
SPEC = JobSpec(
    command=("python", "-c", "1"),
    flavor="gpu",
    docker_image="a/b",
    labels={"team": "a"},
    volumes=(Volume(VolumeKind.BUCKET, "alice/b", "/data", "x", source_id="id"),),
    secret_names=("KEY",),
)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/runstead.db"
    return request.getfixturevalue("new_postgres_database")()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = await open_database(url, connections=4)
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with opened(url) as database:
        yield database


@pytest.fixture
async def other(url: str, database: Database) -> AsyncIterator[SqlScheduleStore]:
    """A second server on the same database."""
    async with opened(url) as second:
        yield SqlScheduleStore(second)


@pytest.fixture
def store(database: Database) -> SqlScheduleStore:
    return SqlScheduleStore(database)


@pytest.fixture
def jobs(database: Database) -> SqlJobStore:
    return SqlJobStore(database)


@pytest.fixture
def usage(database: Database) -> SqlUsageStore:
    return SqlUsageStore(database)


def new_schedule(**fields: Any) -> NewSchedule:
    given = NewSchedule(
        id=new_id(NOW),
        namespace_id="id of alice",
        namespace="alice",
        namespace_kind="user",
        created_by_id="id of bob",
        created_by="bob",
        spec=SPEC,
        expression="@hourly",
        time_zone="UTC",
        concurrency=False,
        suspended=False,
        next_run_at=NOW + HOUR,
        created_at=NOW,
    )
    return replace(given, **fields)


def new_job(schedule: Schedule | None = None, price: int = 0, **fields: Any) -> NewJob:
    initiator = Initiator("user", "id of bob", "bob") if schedule is None else Initiator("scheduled-job", schedule.id)
    given = NewJob(
        id=new_id(NOW),
        namespace_id="id of alice",
        namespace="alice",
        namespace_kind="user",
        created_by_id="id of bob",
        created_by="bob",
        spec=replace(SPEC, volumes=(), secret_names=(), timeout_seconds=600),
        initiator=initiator,
        created_at=NOW,
        price_micro_usd=price,
    )
    return replace(given, **fields)


def firing(schedule: Schedule, *, job: bool = True, **fields: Any) -> Firing:
    assert schedule.next_run_at is not None
    due = schedule.next_run_at
    new = new_job(schedule, idempotency_key=f"{schedule.id}/{due.isoformat()}") if job else None
    return replace(Firing(schedule, due, due + HOUR, due, new), **fields)


async def again(store: SqlScheduleStore, schedule: Schedule) -> Schedule:
    found = await store.get(schedule.id)
    assert found is not None
    return found


async def kinds(store: SqlScheduleStore, schedule: Schedule) -> list[str]:
    return [event.kind.value for event in await store.events(schedule.id, 500)]


class TestSchedules:
    async def test_what_is_stored_comes_back(self, store: SqlScheduleStore) -> None:
        new = new_schedule(sealed_secrets=b"\0sealed", concurrency=True)
        stored = await store.add(new)
        assert await store.get(stored.id) == stored
        for name in ("id", "namespace", "spec", "expression", "time_zone", "concurrency", "next_run_at", "created_at"):
            assert getattr(stored, name) == getattr(new, name), name
        assert (stored.suspended, stored.suspend_reason, stored.runs, stored.cost_micro_usd) == (False, None, 0, 0)
        assert await store.sealed_secrets(stored.id) == b"\0sealed"
        assert await store.events(stored.id, 10) == [
            ScheduleEvent(NOW, ScheduleEventKind.CREATED, message="@hourly by bob")
        ]
        assert await store.get("f" * 24) is None
        assert await store.sealed_secrets("f" * 24) is None

    async def test_they_are_listed_by_namespace_and_labels(self, store: SqlScheduleStore) -> None:
        first = await store.add(new_schedule())
        second = await store.add(new_schedule(spec=replace(SPEC, labels={"team": "b", "x": ""})))
        theirs = await store.add(new_schedule(namespace="carol"))
        assert await store.all("alice", {}) == [second, first]
        assert await store.all("alice", {"team": "a"}) == [first]
        assert await store.all("alice", {"team": "b", "x": ""}) == [second]
        assert await store.all("alice", {"team": "b", "x": "y"}) == []
        assert await store.after(0, 2) == [first, second]
        assert await store.after(second.seq, 2) == [theirs]

    async def test_due_is_what_is_due_the_longest_first(self, store: SqlScheduleStore) -> None:
        assert await store.next_due() is None
        later = await store.add(new_schedule(next_run_at=NOW + HOUR))
        sooner = await store.add(new_schedule(next_run_at=NOW + timedelta(minutes=1)))
        await store.add(new_schedule(next_run_at=None, suspended=True))
        assert await store.due(NOW, 10) == []
        assert await store.next_due() == NOW + timedelta(minutes=1)
        assert await store.due(NOW + HOUR, 10) == [sooner, later]
        assert await store.due(NOW + HOUR, 1) == [sooner]
        assert await store.in_other_zones("Europe/Berlin") == [later, sooner]
        assert await store.in_other_zones("UTC") == []

    async def test_a_change_names_what_was_seen(self, store: SqlScheduleStore, other: SqlScheduleStore) -> None:
        seen = await store.add(new_schedule())
        event = ScheduleEvent(NOW, ScheduleEventKind.SUSPENDED, message="gone")
        change = ScheduleChange(event, suspended=True, suspend_reason="gone", timing=(None, "Europe/Berlin"))
        both = await asyncio.gather(store.change(seen, change), other.change(seen, change))
        [changed] = [one for one in both if one is not None]
        assert (changed.suspended, changed.suspend_reason, changed.next_run_at) == (True, "gone", None)
        assert changed.time_zone == "Europe/Berlin"
        assert await again(store, seen) == changed
        assert await kinds(store, seen) == ["suspended", "created"]
        spec = replace(SPEC, labels={"new": "1"}, volumes=())
        resumed = await store.change(
            changed,
            ScheduleChange(
                suspended=False,
                expression="@daily",
                labels={"new": "1"},
                created_by=("id", "carol"),
                spec=spec,
                timing=(NOW, "UTC"),
            ),
        )
        assert resumed is not None
        assert (resumed.suspended, resumed.suspend_reason, resumed.expression) == (False, None, "@daily")
        assert (resumed.spec, resumed.created_by_id, resumed.created_by) == (spec, "id", "carol")

    async def test_what_is_deleted_is_gone_and_its_runs_stay(self, store: SqlScheduleStore, jobs: SqlJobStore) -> None:
        schedule = await store.add(new_schedule(sealed_secrets=b"x"))
        fired = await store.fire(firing(schedule))
        assert fired.job is not None
        assert await store.delete(schedule.id)
        assert not await store.delete(schedule.id)
        assert await store.get(schedule.id) is None
        assert await store.events(schedule.id, 10) == []
        assert await store.sealed_secrets(schedule.id) is None
        assert (await store.fire(firing(schedule))).outcome is Outcome.LOST
        assert await store.trigger(schedule, new_job(schedule), NOW) is None
        assert await jobs.get(fired.job.id) == fired.job

    async def test_an_account_with_schedules_stays(self, store: SqlScheduleStore, database: Database) -> None:
        accounts = SqlAccountStore(database)
        await accounts.add_user(User("id of alice", "alice", "Alice", False, NOW))
        await accounts.add_organization(Organization("id of org", "org", "Org", NOW))
        schedule = await store.add(new_schedule())
        await store.add(new_schedule(namespace="org", namespace_kind=NamespaceKind.ORG.value))
        for remove in (accounts.remove_user("alice"), accounts.remove_organization("org")):
            with pytest.raises(Conflict, match="owns schedules"):
                await remove
        await store.delete(schedule.id)
        assert await accounts.remove_user("alice")

    async def test_text_no_database_can_keep(self, store: SqlScheduleStore) -> None:
        with pytest.raises(Invalid):
            await store.add(new_schedule(expression="a\0b"))


class TestRuns:
    async def test_a_due_instant_has_one_run(
        self, store: SqlScheduleStore, other: SqlScheduleStore, jobs: SqlJobStore
    ) -> None:
        schedule = await store.add(new_schedule(concurrency=True))
        fired = await asyncio.gather(*(one.fire(firing(schedule)) for one in (store, other) * 5))
        assert sorted(one.outcome for one in fired) == ["lost"] * 9 + ["started"]
        [job] = await jobs.page("alice", JobFilter(), None, 10)
        now = await again(store, schedule)
        assert (now.last_job_id, now.last_run_at, now.runs) == (job.id, NOW + HOUR, 1)
        assert now.next_run_at == NOW + 2 * HOUR
        [event, _] = await store.events(schedule.id, 10)
        assert event == ScheduleEvent(NOW + HOUR, ScheduleEventKind.RUN, NOW + HOUR, job.id)

    async def test_an_instant_that_comes_up_again_gets_no_other(
        self, store: SqlScheduleStore, jobs: SqlJobStore
    ) -> None:
        schedule = await store.add(new_schedule(concurrency=True))
        await store.fire(firing(schedule))
        back = await store.change(await again(store, schedule), ScheduleChange(timing=(NOW + HOUR, "UTC")))
        assert back is not None
        assert (await store.fire(firing(back))).outcome is Outcome.SKIPPED
        assert len(await jobs.page("alice", JobFilter(), None, 10)) == 1
        now = await again(store, schedule)
        assert (now.next_run_at, now.runs) == (NOW + 2 * HOUR, 1)
        assert await kinds(store, schedule) == ["run", "created"]

    async def test_one_at_a_time(self, store: SqlScheduleStore, jobs: SqlJobStore) -> None:
        schedule = await store.add(new_schedule())
        first = (await store.fire(firing(schedule))).job
        assert first is not None
        for _ in range(3):
            assert (await store.fire(firing(await again(store, schedule)))).outcome is Outcome.SKIPPED
        [skipped, *_] = await store.events(schedule.id, 10)
        assert (skipped.kind, skipped.count, skipped.job_id) == (ScheduleEventKind.SKIPPED, 3, first.id)
        with pytest.raises(Conflict, match=first.id):
            await store.trigger(schedule, new_job(schedule), NOW)
        await end(jobs, first, None)
        assert (await store.fire(firing(await again(store, schedule)))).outcome is Outcome.STARTED
        assert await kinds(store, schedule) == ["run", "skipped", "run", "created"]

    async def test_several_at_a_time(self, store: SqlScheduleStore) -> None:
        schedule = await store.add(new_schedule(concurrency=True))
        for _ in range(3):
            assert (await store.fire(firing(await again(store, schedule)))).outcome is Outcome.STARTED
        assert await store.trigger(schedule, new_job(schedule), NOW) is not None
        assert (await again(store, schedule)).runs == 4

    async def test_a_run_by_hand_moves_nothing(self, store: SqlScheduleStore) -> None:
        schedule = await store.add(new_schedule())
        job = await store.trigger(schedule, new_job(schedule), NOW)
        assert job is not None
        now = await again(store, schedule)
        assert (now.next_run_at, now.last_job_id, now.last_run_at, now.runs) == (NOW + HOUR, job.id, NOW, 1)
        assert await kinds(store, schedule) == ["triggered", "created"]

    async def test_two_runs_by_hand_at_once_are_one(self, store: SqlScheduleStore, other: SqlScheduleStore) -> None:
        schedule = await store.add(new_schedule())
        tries = [one.trigger(schedule, new_job(schedule), NOW) for one in (store, other) * 4]
        done = await asyncio.gather(*tries, return_exceptions=True)
        assert len([one for one in done if isinstance(one, Job)]) == 1
        assert len([one for one in done if isinstance(one, Conflict)]) == 7

    async def test_passing_over_says_why_and_what_was_missed(self, store: SqlScheduleStore) -> None:
        schedule = await store.add(new_schedule())
        fired = await store.fire(firing(schedule, job=False, message="no budget", missed="runs were due"))
        assert fired.outcome is Outcome.SKIPPED
        events = await store.events(schedule.id, 10)
        assert [(one.kind.value, one.message) for one in events[:2]] == [
            ("skipped", "no budget"),
            ("missed", "runs were due"),
        ]
        now = await again(store, schedule)
        assert (now.runs, now.last_job_id, now.next_run_at) == (0, None, NOW + 2 * HOUR)

    async def test_the_last_due_instant(self, store: SqlScheduleStore) -> None:
        schedule = await store.add(new_schedule())
        assert (await store.fire(firing(schedule, next_run_at=None))).outcome is Outcome.STARTED
        assert await store.next_due() is None

    async def test_some_hundred_events_are_kept(self, store: SqlScheduleStore) -> None:
        schedule = await store.add(new_schedule(concurrency=True))
        for _ in range(110):
            await store.fire(firing(await again(store, schedule)))
        events = await store.events(schedule.id, 500)
        assert len(events) == 100
        assert events[0].due_at == NOW + 110 * HOUR

    async def test_a_run_that_cannot_be_stored_moves_nothing(self, store: SqlScheduleStore) -> None:
        schedule = await store.add(new_schedule())
        wrong = firing(schedule)
        assert wrong.job is not None
        with pytest.raises(Invalid):
            await store.fire(replace(wrong, job=replace(wrong.job, message="a\0b")))
        assert await again(store, schedule) == schedule


async def start(jobs: SqlJobStore, job: Job, began_at: datetime) -> Job:
    [admitted] = await jobs.admit([Admission(job.id, job.attempt, Reservation(1, 1), "here")], ME, NOW + HOUR, NOW)
    running = Transition(
        job.id,
        job.attempt,
        frozenset({admitted.phase}),
        Phase.RUNNING,
        Stage.RUNNING,
        began_at,
        started_at=began_at,
        handle={"x": 1},
    )
    found = await jobs.apply(running, ME)
    assert found is not None
    return found


async def end(jobs: SqlJobStore, job: Job, used: Span | None, *, retry: bool = False) -> Job:
    phase, stage = (Phase.WAITING, Stage.SCHEDULING) if retry else (Phase.RELEASING, Stage.COMPLETED)
    if job.phase is Phase.WAITING:
        phase, stage = Phase.DONE, Stage.CANCELED
    fields: dict[str, Any] = {"next_attempt": job.attempt + 1, "started_at": None} if retry else {}
    fields["finished_at"] = None if retry else (used.ended_at if used else NOW)
    over = Transition(job.id, job.attempt, frozenset({job.phase}), phase, stage, NOW, used=used, **fields)
    found = await jobs.apply(over, ME)
    assert found is not None
    return found


def sums(found: list[UsageSum]) -> Mapping[tuple[str, ...], tuple[int, int, float, int]]:
    return {one.values: (one.attempts, one.running, one.used.total_seconds(), one.cost_micro_usd) for one in found}


ALL = (1, 999_912)


class TestUsage:
    async def test_retries_and_what_still_runs(
        self, jobs: SqlJobStore, usage: SqlUsageStore, store: SqlScheduleStore
    ) -> None:
        job = await jobs.add(new_job(price=60_000_000, spec=replace(SPEC, attempts=3, timeout_seconds=600)))
        job = await start(jobs, job, NOW)
        job = await end(jobs, job, Span(NOW, NOW + timedelta(seconds=10)), retry=True)
        assert (job.cost_micro_usd, job.price_micro_usd) == (10_000_000, 60_000_000)
        job = await start(jobs, job, NOW + timedelta(seconds=20))
        now = NOW + timedelta(seconds=25)
        assert job.cost_at(now) == 15_000_000
        by_job = UsageQuery((UsageBy.JOB,), ALL)
        assert sums(await usage.usage(by_job, now)) == {(job.id,): (2, 1, 15.0, 15_000_000)}
        job = await end(jobs, job, Span(NOW + timedelta(seconds=20), NOW + timedelta(seconds=50)))
        assert job.cost_micro_usd == job.cost_at(NOW + HOUR) == 40_000_000
        assert (await jobs.get(job.id)) == job
        assert sums(await usage.usage(by_job, NOW + HOUR)) == {(job.id,): (2, 0, 40.0, 40_000_000)}

    async def test_deleted_jobs_stay_in_it(self, jobs: SqlJobStore, usage: SqlUsageStore) -> None:
        job = await start(jobs, await jobs.add(new_job()), NOW)
        job = await end(jobs, job, Span(NOW, NOW + HOUR))
        done = Transition(job.id, 1, frozenset({Phase.RELEASING}), Phase.DONE, Stage.COMPLETED, NOW)
        assert await jobs.apply(done, ME) is not None
        assert len(await jobs.delete_finished(NOW + 2 * HOUR, 10)) == 1
        wanted = UsageQuery((UsageBy.USER, UsageBy.FLAVOR), ALL)
        assert sums(await usage.usage(wanted, NOW)) == {("bob", "gpu"): (1, 0, 3600.0, 0)}

    async def test_a_job_that_never_ran_used_nothing(self, jobs: SqlJobStore, usage: SqlUsageStore) -> None:
        await end(jobs, await jobs.add(new_job(price=1)), None)
        assert await usage.usage(UsageQuery((UsageBy.USER,), ALL), NOW) == []

    async def test_months_are_told_apart(self, jobs: SqlJobStore, usage: SqlUsageStore) -> None:
        began = datetime(2026, 12, 31, 23, 50, tzinfo=UTC)
        spec = replace(SPEC, timeout_seconds=100_000)
        job = await start(jobs, await jobs.add(new_job(price=7, spec=spec)), began)
        await end(jobs, job, Span(began, began + timedelta(minutes=15)))
        by_month = UsageQuery((UsageBy.MONTH,), ALL)
        assert sums(await usage.usage(by_month, NOW)) == {
            ("202612",): (1, 0, 600.0, 70),
            ("202701",): (1, 0, 300.0, 35),
        }
        assert sums(await usage.usage(replace(by_month, months=(202701, 202701)), NOW)) == {
            ("202701",): (1, 0, 300.0, 35)
        }

    async def test_by_labels_users_namespaces_and_schedules(
        self, jobs: SqlJobStore, usage: SqlUsageStore, store: SqlScheduleStore
    ) -> None:
        schedule = await store.add(new_schedule())
        of_schedule = (await store.fire(firing(schedule))).job
        assert of_schedule is not None
        await end(jobs, await start(jobs, of_schedule, NOW), Span(NOW, NOW + HOUR))
        labels = {"team": "b", "x": ""}
        other = await jobs.add(new_job(namespace="org", created_by="carol", spec=replace(SPEC, labels=labels)))
        await end(jobs, await start(jobs, other, NOW), Span(NOW, NOW + HOUR / 2))
        plain = await jobs.add(new_job(spec=replace(SPEC, labels={})))
        await end(jobs, await start(jobs, plain, NOW), Span(NOW, NOW + HOUR / 4))

        async def by(*what: UsageBy, **fields: Any) -> dict[tuple[str, ...], float]:
            found = await usage.usage(UsageQuery(what, ALL, **fields), NOW)
            return {one.values: one.used / HOUR for one in found}

        assert await by(UsageBy.LABEL) == {("team=a",): 1, ("team=b",): 0.5, ("x=",): 0.5, ("",): 0.25}
        assert await by(UsageBy.LABEL, label="team") == {("a",): 1, ("b",): 0.5, ("",): 0.25}
        assert await by(UsageBy.USER) == {("bob",): 1.25, ("carol",): 0.5}
        assert await by(UsageBy.SCHEDULE, namespace="alice") == {(schedule.id,): 1, ("",): 0.25}
        assert await by(UsageBy.NAMESPACE, UsageBy.USER) == {("alice", "bob"): 1.25, ("org", "carol"): 0.5}

    async def test_a_schedule_knows_what_its_runs_cost(self, jobs: SqlJobStore, store: SqlScheduleStore) -> None:
        schedule = await store.add(new_schedule(concurrency=True))
        fired = firing(schedule)
        assert fired.job is not None
        first = (await store.fire(replace(fired, job=replace(fired.job, price_micro_usd=60)))).job
        assert first is not None
        await end(jobs, await start(jobs, first, NOW), Span(NOW, NOW + timedelta(seconds=100)))
        assert (await again(store, schedule)).cost_micro_usd == 100
        second = await store.trigger(schedule, new_job(schedule, price=60), NOW)
        assert second is not None
        await start(jobs, second, NOW)
        assert await store.cost_so_far([schedule.id, "other"], NOW + timedelta(seconds=30)) == {schedule.id: 30}
        assert await store.cost_so_far([], NOW) == {}


class TestBudgets:
    async def test_what_a_job_may_cost_must_be_left(self, jobs: SqlJobStore, usage: SqlUsageStore) -> None:
        # 600 s at a unit a minute: ten units at most.
        assert await usage.set_budget("alice", 25_000_000, NOW)
        first = await jobs.add(new_job(price=1_000_000))
        await jobs.add(new_job(price=1_000_000))
        with pytest.raises(OverBudget) as refused:
            await jobs.add(new_job(price=1_000_000))
        assert refused.value.message.startswith(
            "'alice' may spend $25.00 in a month: $0.00 is spent, and jobs that are not over may cost $20.00 more. "
            "This job may cost $10.00 (gpu at $1.00 a minute, a time limit of 600 s), and $5.00 is left"
        )
        assert len(await jobs.page("alice", JobFilter(), None, 10)) == 2
        # What it did not use is left again.
        await end(jobs, await start(jobs, first, NOW), Span(NOW, NOW + timedelta(seconds=60)))
        [budget] = await usage.budgets(month_of(NOW))
        assert (budget.spent_micro_usd, budget.reserved_micro_usd) == (1_000_000, 10_000_000)
        await jobs.add(new_job(price=1_000_000))

    async def test_retries_are_set_aside_and_given_back(self, jobs: SqlJobStore, usage: SqlUsageStore) -> None:
        await usage.set_budget("alice", 30_000_000, NOW)
        spec = replace(SPEC, attempts=3, timeout_seconds=600)
        job = await jobs.add(new_job(price=1_000_000, spec=spec))

        async def reserved() -> int:
            return (await usage.budgets(month_of(NOW)))[0].reserved_micro_usd

        assert await reserved() == 30_000_000
        job = await end(jobs, await start(jobs, job, NOW), Span(NOW, NOW + timedelta(seconds=6)), retry=True)
        assert await reserved() == 20_000_000
        job = await end(jobs, job, None)  # cancelled while it waits
        assert await reserved() == 0
        [budget] = await usage.budgets(month_of(NOW))
        assert budget.spent_micro_usd == 100_000

    async def test_what_is_free_is_free(self, jobs: SqlJobStore, usage: SqlUsageStore) -> None:
        await usage.set_budget("alice", 0, NOW)
        await jobs.add(new_job())
        with pytest.raises(OverBudget):
            await jobs.add(new_job(price=1))

    async def test_two_servers_cannot_both_take_the_last_of_it(
        self, jobs: SqlJobStore, usage: SqlUsageStore, url: str
    ) -> None:
        await usage.set_budget("alice", 10_000_000, NOW)
        async with opened(url) as second:
            tries = [one.add(new_job(price=1_000_000)) for one in (jobs, SqlJobStore(second)) * 4]
            done = await asyncio.gather(*tries, return_exceptions=True)
        assert len([one for one in done if isinstance(one, Job)]) == 1
        assert len([one for one in done if isinstance(one, OverBudget)]) == 7

    async def test_a_run_over_budget_leaves_the_schedule(
        self, store: SqlScheduleStore, usage: SqlUsageStore, jobs: SqlJobStore
    ) -> None:
        await usage.set_budget("alice", 1, NOW)
        schedule = await store.add(new_schedule())
        fired = firing(schedule)
        assert fired.job is not None
        with pytest.raises(OverBudget):
            await store.fire(replace(fired, job=replace(fired.job, price_micro_usd=100)))
        assert await again(store, schedule) == schedule
        assert await jobs.page("alice", JobFilter(), None, 10) == []

    async def test_the_same_key_is_not_paid_twice(self, jobs: SqlJobStore, usage: SqlUsageStore) -> None:
        await usage.set_budget("alice", 15_000_000, NOW)
        first = await jobs.add(new_job(price=1_000_000, idempotency_key="k"))
        assert (await jobs.add(new_job(price=1_000_000, idempotency_key="k"))).id == first.id
        assert (await usage.budgets(month_of(NOW)))[0].reserved_micro_usd == 10_000_000

    async def test_set_and_removed(self, usage: SqlUsageStore) -> None:
        assert await usage.budgets(202603) == []
        await usage.set_budget("alice", 1, NOW)
        await usage.set_budget("alice", 2, NOW)
        assert [one.limit_micro_usd for one in await usage.budgets(202603)] == [2]
        assert await usage.set_budget("alice", None, NOW)
        assert not await usage.set_budget("alice", None, NOW)
        with pytest.raises(Invalid):
            await usage.set_budget("a\0", 1, NOW)


def test_costs_are_exact() -> None:
    assert cost_micro_usd(60, timedelta(seconds=1)) == 1
    assert cost_micro_usd(1, timedelta(microseconds=1)) == 1
    assert cost_micro_usd(0, HOUR) == 0
    assert cost_micro_usd(60, -HOUR) == 0
    began = datetime(2026, 1, 31, 23, 59, 59, 999999, tzinfo=UTC)
    span = Span(began, began + timedelta(days=70, seconds=3))
    parts = list(shares(7, span))
    assert [part.month for part in parts] == [202601, 202602, 202603, 202604]
    assert sum(part.cost_micro_usd for part in parts) == cost_micro_usd(7, span.ended_at - span.began_at)
    assert sum((part.used for part in parts), timedelta()) == span.ended_at - span.began_at
    assert [money(one) for one in (0, 1, 1_500_000, 1_234_567_890_000)] == [
        "$0.00",
        "$0.000001",
        "$1.50",
        "$1,234,567.89",
    ]
