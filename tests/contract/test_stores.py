"""What every JobStore and AccountStore promises, on SQLite and on PostgreSQL."""

import asyncio
import random
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runstead.model.accounts import (
    Caller,
    Membership,
    NamespaceKind,
    Organization,
    OrgRole,
    Permission,
    Token,
    TokenRole,
    User,
)
from runstead.model.errors import Conflict, Invalid, NotFound, Unavailable
from runstead.model.ids import new_id
from runstead.model.jobs import (
    FailureClass,
    Initiator,
    Job,
    JobFilter,
    JobSpec,
    NewJob,
    Phase,
    Reservation,
    Stage,
    Transition,
)
from runstead.model.ports import Ports
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.database import Database
from runstead.stores.interface import Admission, JobStore
from runstead.stores.jobs import SqlJobStore
from runstead.stores.migration import upgrade
from runstead.stores.opening import open_database
from runstead.stores.schema import HEAD, REVISIONS

NOW = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
HERE = "local-1"
ME, YOU = "host/1", "host/2"


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
async def other_database(url: str, database: Database) -> AsyncIterator[Database]:
    """A second server on the same database."""
    async with opened(url) as database:
        yield database


@pytest.fixture
def store(database: Database) -> SqlJobStore:
    return SqlJobStore(database)


@pytest.fixture
def other_store(other_database: Database) -> SqlJobStore:
    return SqlJobStore(other_database)


@pytest.fixture
def accounts(database: Database) -> SqlAccountStore:
    return SqlAccountStore(database)


def new_job(
    namespace: str = "alice",
    flavor: str = "cpu-basic",
    labels: Mapping[str, str] | None = None,
    **fields: Any,
) -> NewJob:
    given: dict[str, Any] = {
        "id": new_id(NOW),
        "namespace_id": "id of the namespace",
        "namespace": namespace,
        "namespace_kind": "user",
        "created_by_id": "id of bob",
        "created_by": "bob",
        "spec": JobSpec(command=("python", "-c", "print(1)"), flavor=flavor, docker_image="a/b", labels=labels or {}),
        "initiator": Initiator("user", "id of bob", "bob"),
        "created_at": NOW,
        "message": "queued",
    }
    return NewJob(**(given | fields))


async def admitted(store: JobStore, owner: str = ME, **fields: Any) -> Job:
    job = await store.add(new_job(**fields))
    [job] = await store.admit([admission(job)], owner, LATER, NOW)
    return job


def admission(job: Job, executor: str = HERE) -> Admission:
    return Admission(job.id, job.attempt, Reservation(1500, 2**33, ("gpu-0",)), executor)


def to(job: Job, phase: Phase, stage: Stage, **fields: Any) -> Transition:
    given: dict[str, Any] = {
        "job_id": job.id,
        "attempt": job.attempt,
        "from_phases": frozenset({job.phase}),
        "phase": phase,
        "stage": stage,
        "at": NOW,
    }
    return Transition(**(given | fields))


async def applied(store: JobStore, job: Job, phase: Phase, stage: Stage, **fields: Any) -> Job:
    after = await store.apply(to(job, phase, stage, **fields), ME)
    assert after is not None
    return after


async def finished(store: JobStore, at: datetime = NOW, stage: Stage = Stage.COMPLETED, **fields: Any) -> Job:
    job = await admitted(store, **fields)
    job = await applied(store, job, Phase.RUNNING, Stage.RUNNING, started_at=at)
    job = await applied(store, job, Phase.RELEASING, stage, finished_at=at)
    return await applied(store, job, Phase.DONE, stage, reservation=None)


def ids(jobs: Sequence[Job]) -> list[str]:
    return [job.id for job in jobs]


async def together(*callers: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*callers))


class TestAdd:
    async def test_what_is_read_is_what_was_stored(self, store: SqlJobStore) -> None:
        spec = JobSpec(
            command=("sh", "-c", "echo 'ü\N{GRINNING FACE}'"),
            flavor="a10g-small",
            space_id="alice/space",
            arguments=("--x", ""),
            environment={"A": "1", "B": "zwei\n", "C": "\0"},
            secret_names=("HF_TOKEN",),
            timeout_seconds=86_400,
            attempts=3,
            labels={"name": "n-1", "flag": ""},
            resource_group_id="g",
            arch="arm64",
            tags=("t", "u"),
        )
        job = await store.add(new_job(spec=spec, initiator=Initiator("webhook", "w1"), sealed_secrets=b"\0sealed"))
        assert job == await store.get(job.id)
        assert job.spec == spec
        assert (job.stage, job.phase, job.attempt, job.message) == (Stage.SCHEDULING, Phase.WAITING, 1, "queued")
        assert job.created_at == NOW
        assert job.created_at.tzinfo is UTC
        assert await store.sealed_secrets(job.id) == b"\0sealed"

    async def test_newer_is_larger(self, store: SqlJobStore) -> None:
        jobs = [await store.add(new_job()) for _ in range(5)]
        assert [job.seq for job in jobs] == sorted({job.seq for job in jobs})

    async def test_it_has_its_first_history_row(self, store: SqlJobStore) -> None:
        job = await store.add(new_job())
        [entry] = await store.history(job.id)
        assert (entry.job_id, entry.at, entry.attempt) == (job.id, NOW, 1)
        assert (entry.stage, entry.phase, entry.message) == (Stage.SCHEDULING, Phase.WAITING, "queued")

    async def test_without_secrets_there_are_none(self, store: SqlJobStore) -> None:
        job = await store.add(new_job())
        assert await store.sealed_secrets(job.id) is None

    async def test_several_are_stored_as_each_by_itself(self, store: SqlJobStore) -> None:
        spec = JobSpec(command=("x",), flavor="f", docker_image="i", labels={"a": "1", "b": "2"}, secret_names=("S",))
        new = [new_job(spec=spec, sealed_secrets=bytes([number])) for number in range(3)]
        new.append(new_job(labels={"c": "3"}))
        added = await store.add_all(new)
        assert ids(added) == [one.id for one in new]
        assert [await store.get(job.id) for job in added] == added
        assert [await store.sealed_secrets(job.id) for job in added] == [b"\0", b"\1", b"\2", None]
        found = await store.page("alice", JobFilter(labels={"a": "1", "b": "2"}), None, 10)
        assert ids(found) == ids(added[2::-1])
        assert [len(await store.history(job.id)) for job in added] == [1] * 4

    async def test_of_several_all_are_stored_or_none(self, store: SqlJobStore) -> None:
        there = await store.add(new_job())
        new = [new_job(), new_job(id=there.id), new_job()]
        with pytest.raises(Conflict, match=new[0].id):
            await store.add_all(new)
        assert await store.get(new[0].id) is None and await store.get(new[2].id) is None
        assert await store.count("alice", JobFilter()) == 1

    async def test_the_same_id_twice_is_a_conflict_that_changes_nothing(self, store: SqlJobStore) -> None:
        job = await store.add(new_job(labels={"a": "1"}))
        with pytest.raises(Conflict, match=job.id):
            await store.add(new_job(id=job.id, labels={"b": "2"}, sealed_secrets=b"x"))
        assert await store.get(job.id) == job
        assert await store.sealed_secrets(job.id) is None
        assert await store.page("alice", JobFilter(labels={"b": "2"}), None, 10) == []

    async def test_one_that_fails_takes_no_other_with_it(self, store: SqlJobStore) -> None:
        taken = await store.add(new_job())
        wanted = [new_job(id=taken.id if n % 5 == 3 else new_id(NOW)) for n in range(40)]
        results = await asyncio.gather(*(store.add(job) for job in wanted), return_exceptions=True)
        for job, result in zip(wanted, results, strict=True):
            if job.id == taken.id:
                assert isinstance(result, Conflict)
            else:
                assert await store.get(job.id) == result

    async def test_the_same_key_is_the_same_job(self, store: SqlJobStore) -> None:
        first = await store.add(new_job(idempotency_key="k", message="first"))
        again = await store.add(new_job(idempotency_key="k", message="again", sealed_secrets=b"x"))
        assert again == first
        assert await store.sealed_secrets(first.id) is None
        assert len(await store.history(first.id)) == 1
        assert await store.count("alice", JobFilter()) == 1

    async def test_a_key_counts_in_its_namespace_only(self, store: SqlJobStore) -> None:
        mine = await store.add(new_job("alice", idempotency_key="k"))
        assert await store.keyed("carol", "k") is None
        yours = await store.add(new_job("carol", idempotency_key="k"))
        assert await store.keyed("alice", "k") == mine
        assert await store.keyed("alice", "no-such-key") is None
        assert mine.id != yours.id

    async def test_the_same_key_from_many_callers_at_once(self, store: SqlJobStore, other_store: SqlJobStore) -> None:
        jobs = await together(*(s.add(new_job(idempotency_key="k")) for _ in range(10) for s in (store, other_store)))
        assert len(set(ids(jobs))) == 1
        assert await store.count("alice", JobFilter()) == 1

    @pytest.mark.parametrize("field", ["message", "idempotency_key", "namespace", "created_by"])
    async def test_a_nul_is_refused_with_its_field(self, store: SqlJobStore, field: str) -> None:
        with pytest.raises(Invalid) as refused:
            await store.add(new_job(**{field: "a\0b"}))
        assert refused.value.field == field

    async def test_text_that_is_not_unicode_is_refused(self, store: SqlJobStore) -> None:
        with pytest.raises(Invalid):
            await store.add(new_job(message="\ud800"))

    async def test_an_instant_without_zone_is_refused(self, store: SqlJobStore) -> None:
        with pytest.raises(TypeError):
            await store.add(new_job(created_at=NOW.replace(tzinfo=None)))

    async def test_it_outlives_the_process(self, url: str) -> None:
        async with opened(url) as database:
            job = await SqlJobStore(database).add(new_job(labels={"a": "1"}, sealed_secrets=b"s"))
        async with opened(url) as database:
            store = SqlJobStore(database)
            assert await store.get(job.id) == job
            assert await store.sealed_secrets(job.id) == b"s"
            assert await store.page("alice", JobFilter(labels={"a": "1"}), None, 10) == [job]

    async def test_a_caller_that_gives_up_leaves_it_whole_or_not_there(self, store: SqlJobStore) -> None:
        wanted = [new_job(labels={"a": "1"}, sealed_secrets=b"s") for _ in range(60)]
        tasks = [asyncio.create_task(store.add(job)) for job in wanted]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.add(new_job())
        for job, task in zip(wanted, tasks, strict=True):
            stored = await store.get(job.id)
            assert stored is not None or task.cancelled()
            if stored is not None:
                assert len(await store.history(job.id)) == 1
                assert await store.sealed_secrets(job.id) == b"s"


async def test_what_is_missing(store: SqlJobStore) -> None:
    unknown = new_id(NOW)
    assert await store.get(unknown) is None
    assert await store.sealed_secrets(unknown) is None
    assert await store.set_labels(unknown, {"a": "b"}) is None
    assert await store.request_cancel(unknown, NOW) is None
    assert await store.history(unknown) == []
    assert await store.held("nowhere") == []
    assert await store.leased("nobody") == []
    assert await store.queue() == []
    assert await store.waiting(NOW, 5) == []
    assert await store.claim([HERE], ME, NOW, LATER, 5) == []
    assert await store.claim([], ME, NOW, LATER, 5) == []
    assert await store.admit([], ME, LATER, NOW) == []
    assert await store.admit([Admission(unknown, 1, None, HERE)], ME, LATER, NOW) == []
    assert await store.delete_finished(NOW, 5) == []
    await store.renew("nobody", LATER)
    await store.release_leases("nobody")
    assert await store.page("nobody", JobFilter(), None, 5) == []
    assert await store.count("nobody", JobFilter()) == 0


class TestPage:
    async def test_newest_first_and_no_more_than_asked(self, store: SqlJobStore) -> None:
        jobs = [await store.add(new_job()) for _ in range(5)]
        await store.add(new_job("carol"))
        assert await store.page("alice", JobFilter(), None, 3) == jobs[:1:-1]
        assert await store.page("alice", JobFilter(), jobs[2].seq, 3) == jobs[1::-1]

    async def test_it_is_stable_while_jobs_are_added_and_change(self, store: SqlJobStore) -> None:
        jobs = [await store.add(new_job(labels={"a": "1"})) for _ in range(25)]
        for wanted in (JobFilter(), JobFilter(labels={"a": "1"}), JobFilter(stages=frozenset(Stage))):
            seen: list[str] = []
            before = None
            while page := await store.page("alice", wanted, before, 4):
                seen += ids(page)
                before = page[-1].seq
                await store.add(new_job(labels={"a": "1"}))
                await store.request_cancel(page[0].id, NOW)
            assert [job for job in seen if job in ids(jobs)] == ids(jobs[::-1])
            assert len(set(seen)) == len(seen)

    async def test_every_filter_finds_exactly_what_fits(self, store: SqlJobStore) -> None:
        dice = random.Random(7)
        everything: list[Job] = []
        for _ in range(60):
            labels = {
                f"k{n}": str(dice.randrange(2)) for n in range(dice.choice([0, 1, 2, 3, 4, 8])) if dice.random() < 0.9
            }
            job = await store.add(new_job(dice.choice(["alice", "carol"]), labels=labels))
            kind = dice.randrange(4)
            if kind:
                [job] = await store.admit([admission(job)], ME, LATER, NOW)
            if kind > 1:
                job = await applied(store, job, Phase.RUNNING, Stage.RUNNING)
            if kind > 2:
                job = await applied(store, job, Phase.RELEASING, dice.choice([Stage.ERROR, Stage.COMPLETED]))
            everything.insert(0, job)
        for _ in range(150):
            stages = frozenset(dice.sample(list(Stage), dice.randrange(4)))
            names = dice.sample([f"k{n}" for n in range(8)], dice.choice([0, 1, 1, 2, 2, 3, 4, 7]))
            labels = {name: str(dice.randrange(2)) for name in names}
            fits = [
                job
                for job in everything
                if job.namespace == "alice"
                and (not stages or job.stage in stages)
                and labels.items() <= job.labels.items()
            ]
            wanted = JobFilter(stages, labels or None)
            assert await store.page("alice", wanted, None, 100) == fits
            assert await store.count("alice", wanted) == len(fits)
            if len(fits) > 3:
                assert await store.page("alice", wanted, fits[1].seq, 1) == [fits[2]]

    async def test_labels_that_look_alike_are_not(self, store: SqlJobStore) -> None:
        await store.add(new_job(labels={"a": "b", "c": "d"}))
        for labels in ({"a": "d"}, {"a": ""}, {"A": "b"}, {"a": "b", "c": "D"}, {"ab": ""}, {"c": "b", "a": "d"}):
            assert await store.page("alice", JobFilter(labels=labels), None, 10) == []


class TestSetLabels:
    async def test_it_replaces_all(self, store: SqlJobStore) -> None:
        job = await store.add(new_job(labels={"a": "1", "b": "2"}))
        after = await store.set_labels(job.id, {"b": "3", "c": "4"})
        assert after == replace(job, spec=replace(job.spec, labels={"b": "3", "c": "4"}))
        assert await store.get(job.id) == after
        assert await store.page("alice", JobFilter(labels={"b": "3", "c": "4"}), None, 10) == [after]
        assert await store.page("alice", JobFilter(labels={"a": "1"}), None, 10) == []
        assert await store.page("alice", JobFilter(labels={"b": "2"}), None, 10) == []

    async def test_twice_and_to_none(self, store: SqlJobStore) -> None:
        job = await store.add(new_job(labels={"a": "1"}))
        assert await store.set_labels(job.id, {"a": "1"}) == job
        cleared = await store.set_labels(job.id, {})
        assert cleared is not None
        assert cleared.labels == {}
        assert await store.count("alice", JobFilter(labels={"a": "1"})) == 0

    async def test_a_terminal_job_keeps_its_stage(self, store: SqlJobStore) -> None:
        job = await finished(store, stage=Stage.ERROR)
        after = await store.set_labels(job.id, {"a": "1"})
        assert await store.page("alice", JobFilter(frozenset({Stage.ERROR}), {"a": "1"}), None, 10) == [after]

    async def test_while_the_stage_changes(self, store: SqlJobStore, other_store: SqlJobStore) -> None:
        for _ in range(10):
            job = await admitted(store, labels={"a": "1"})
            await together(
                store.apply(to(job, Phase.RUNNING, Stage.RUNNING), ME), other_store.set_labels(job.id, {"b": "2"})
            )
            after = await store.get(job.id)
            assert await store.page("alice", JobFilter(frozenset({Stage.RUNNING}), {"b": "2"}), None, 1) == [after]
            assert await store.count("alice", JobFilter(frozenset({Stage.SCHEDULING}), {"b": "2"})) == 0
            assert await store.count("alice", JobFilter(labels={"a": "1"})) == 0


class TestSetPorts:
    async def test_it_replaces_them_and_nothing_else(self, store: SqlJobStore) -> None:
        job = await store.add(new_job(labels={"a": "1"}))
        opened = await store.set_ports(job.id, Ports((8000, 9000), (9000,)))
        assert opened == replace(job, spec=replace(job.spec, ports=Ports((8000, 9000), (9000,))))
        assert await store.get(job.id) == opened
        assert await store.set_ports(job.id, Ports()) == job

    async def test_those_that_have_some_are_found_until_they_are_over(self, store: SqlJobStore) -> None:
        await store.add(new_job(spec=JobSpec(("echo", '"ports":'), "cpu-basic", docker_image="a/b")))
        over, job = await admitted(store), await store.add(new_job())
        await store.set_ports(over.id, Ports((1,)))
        opened = await store.set_ports(job.id, Ports((8000,)))
        assert {found.id for found in await store.open_with_ports()} == {over.id, job.id}
        await store.apply(to(over, Phase.RELEASING, Stage.ERROR), ME)
        assert await store.open_with_ports() == [opened]

    async def test_a_job_that_is_over_keeps_its_own(self, store: SqlJobStore) -> None:
        job = await finished(store)
        assert await store.set_ports(job.id, Ports((8000,))) == job

    async def test_of_none(self, store: SqlJobStore) -> None:
        assert await store.set_ports("0" * 24, Ports((8000,))) is None


class TestRequestCancel:
    async def test_the_first_request_counts(self, store: SqlJobStore) -> None:
        job = await store.add(new_job())
        noted = await store.request_cancel(job.id, NOW)
        assert noted == replace(job, cancel_requested_at=NOW)
        assert await store.request_cancel(job.id, LATER) == noted
        assert await store.get(job.id) == noted

    async def test_a_terminal_job_is_left_alone(self, store: SqlJobStore) -> None:
        job = await admitted(store)
        job = await applied(store, job, Phase.RUNNING, Stage.RUNNING)
        job = await applied(store, job, Phase.RELEASING, Stage.COMPLETED)
        assert await store.request_cancel(job.id, NOW) == job


class TestQueue:
    async def test_the_oldest_of_each_flavor(self, store: SqlJobStore) -> None:
        small = [await store.add(new_job(flavor="small")) for _ in range(4)]
        large = [await store.add(new_job(flavor="large"))]
        assert [(w.flavor, list(w.jobs)) for w in await store.waiting(NOW, 2)] == [
            ("large", large),
            ("small", small[:2]),
        ]
        assert await store.queue() == [(job.seq, job.id) for job in small + large]

    async def test_only_who_may_start(self, store: SqlJobStore) -> None:
        cancelled = await store.add(new_job())
        await store.request_cancel(cancelled.id, NOW)
        await admitted(store)
        retried = await admitted(store)
        waits = await applied(
            store, retried, Phase.WAITING, Stage.SCHEDULING, not_before=LATER, next_attempt=2, reservation=None
        )
        ready = await store.add(new_job())
        assert [ids(w.jobs) for w in await store.waiting(NOW, 10)] == [[ready.id]]
        assert [ids(w.jobs) for w in await store.waiting(LATER, 10)] == [[waits.id, ready.id]]
        assert [job_id for _, job_id in await store.queue()] == [cancelled.id, waits.id, ready.id]


class TestAdmit:
    async def test_the_job_starts_and_is_leased(self, store: SqlJobStore) -> None:
        job = await store.add(new_job())
        [after] = await store.admit([admission(job)], ME, LATER, NOW + timedelta(seconds=1))
        reservation = Reservation(1500, 2**33, ("gpu-0",))
        assert after == replace(job, phase=Phase.STARTING, executor=HERE, reservation=reservation, message=None)
        assert await store.get(job.id) == after
        assert await store.leased(ME) == [after]
        assert await store.held(HERE) == [reservation]
        assert await store.held("elsewhere") == []
        entry = (await store.history(job.id))[-1]
        assert (entry.at, entry.attempt, entry.phase) == (NOW + timedelta(seconds=1), 1, Phase.STARTING)

    async def test_who_is_not_waiting_is_left_out(self, store: SqlJobStore) -> None:
        admissions = [admission(await admitted(store, YOU)), admission(await finished(store))]
        cancelled = await store.add(new_job())
        await store.request_cancel(cancelled.id, NOW)
        other_attempt = await store.add(new_job())
        ready = await store.add(new_job())
        admissions += [admission(cancelled), replace(admission(other_attempt), attempt=2), admission(ready)]
        assert ids(await store.admit(admissions, ME, LATER, NOW)) == [ready.id]
        assert len(await store.history(cancelled.id)) == 1

    async def test_the_same_job_twice_in_one_call(self, store: SqlJobStore) -> None:
        job = await store.add(new_job())
        assert ids(await store.admit([admission(job), admission(job)], ME, LATER, NOW)) == [job.id]

    async def test_without_a_reservation_it_holds_nothing(self, store: SqlJobStore) -> None:
        job = await store.add(new_job())
        await store.admit([replace(admission(job), reservation=None)], ME, LATER, NOW)
        assert await store.held(HERE) == []

    async def test_many_at_once_admit_each_job_once(self, store: SqlJobStore, other_store: SqlJobStore) -> None:
        jobs = [await store.add(new_job()) for _ in range(20)]
        forward, backward = [admission(j) for j in jobs], [admission(j) for j in reversed(jobs)]
        callers = [
            s.admit(wanted, f"host/{n}", LATER, NOW)
            for n, (s, wanted) in enumerate([(store, forward), (other_store, backward)] * 3)
        ]
        answers = await together(*callers)
        assert sorted([job.id for answer in answers for job in answer]) == sorted(ids(jobs))
        for n, answer in enumerate(answers):
            assert sorted(ids(await store.leased(f"host/{n}"))) == sorted(ids(answer))
        for job in jobs:
            assert len(await store.history(job.id)) == 2


class TestClaim:
    async def test_a_job_nobody_holds(self, store: SqlJobStore) -> None:
        job = await admitted(store, YOU)
        assert await store.claim([HERE], ME, NOW, LATER, 5) == []
        await store.release_leases(YOU)
        assert await store.claim(["elsewhere"], ME, NOW, LATER, 5) == []
        assert await store.claim(["elsewhere", HERE], ME, NOW, LATER, 5) == [job]
        assert await store.leased(ME) == [job]
        assert await store.claim([HERE], ME, NOW, LATER, 5) == []

    async def test_a_lease_that_ran_out(self, store: SqlJobStore) -> None:
        job = await admitted(store, YOU)
        assert await store.claim([HERE], ME, LATER - timedelta(microseconds=1), LATER, 5) == []
        assert await store.claim([HERE], ME, LATER, LATER + timedelta(seconds=30), 5) == [job]
        assert await store.leased(YOU) == []

    async def test_one_s_own_lease_that_ran_out(self, store: SqlJobStore) -> None:
        first, second = await admitted(store), await admitted(store)
        after = LATER + timedelta(seconds=1)
        [mine] = await store.claim([HERE], ME, after, after + timedelta(seconds=30), 1)
        [left] = {first.id, second.id} - {mine.id}
        assert ids(await store.leased(ME)) == [mine.id]
        assert ids(await store.claim([HERE], YOU, after, after + timedelta(seconds=30), 5)) == [left]

    async def test_every_phase_in_hand_and_no_other(self, store: SqlJobStore) -> None:
        starting = await admitted(store)
        running = await applied(store, await admitted(store), Phase.RUNNING, Stage.RUNNING)
        releasing = await applied(
            store,
            await applied(store, await admitted(store), Phase.RUNNING, Stage.RUNNING),
            Phase.RELEASING,
            Stage.ERROR,
        )
        await finished(store)
        await store.add(new_job())
        await store.release_leases("host/")
        claimed = await store.claim([HERE], YOU, NOW, LATER, 10)
        assert sorted(ids(claimed)) == sorted(ids([starting, running, releasing]))

    async def test_a_waiting_job_to_be_cancelled(self, store: SqlJobStore) -> None:
        job = await store.add(new_job())
        noted = await store.request_cancel(job.id, NOW)
        assert await store.claim([], ME, NOW, LATER, 5) == [noted]
        assert await store.claim([], YOU, NOW, LATER, 5) == []
        assert await store.leased(ME) == []
        after = LATER + timedelta(seconds=1)
        assert await store.claim([], YOU, after, after, 5) == [noted]

    async def test_no_more_than_asked(self, store: SqlJobStore) -> None:
        for _ in range(5):
            await admitted(store)
        await store.release_leases("host/")
        assert [len(await store.claim([HERE], ME, NOW, LATER, 2)) for _ in range(4)] == [2, 2, 1, 0]

    async def test_two_callers_never_get_the_same(self, store: SqlJobStore, other_store: SqlJobStore) -> None:
        jobs = [await admitted(store) for _ in range(40)]
        for round_ in range(3):
            await store.release_leases("host/")
            taken: list[str] = []

            async def take(s: SqlJobStore, owner: str, taken: list[str] = taken) -> None:
                while got := await s.claim([HERE], owner, NOW, LATER, 3):
                    taken.extend(ids(got))

            await together(*(take(s, f"host/{round_}-{n}") for n, s in enumerate([store, other_store] * 2)))
            assert sorted(taken) == sorted(ids(jobs))


class TestLeases:
    async def test_renewing_extends_them_all(self, store: SqlJobStore) -> None:
        jobs = [await admitted(store) for _ in range(3)]
        await store.renew(ME, LATER + timedelta(seconds=30))
        assert await store.claim([HERE], YOU, LATER + timedelta(seconds=1), LATER, 5) == []
        assert await store.leased(ME) == jobs

    async def test_renewing_never_shortens(self, store: SqlJobStore) -> None:
        await admitted(store)
        await store.renew(ME, NOW)
        assert await store.claim([HERE], YOU, NOW, LATER, 5) == []

    async def test_releasing_goes_by_the_beginning_of_the_name(self, store: SqlJobStore) -> None:
        owners = ["host/1", "host/2", "Host/1", "host", "hos_/1"]
        for owner in owners:
            await admitted(store, owner)
        await store.release_leases("host/")
        assert [len(await store.leased(owner)) for owner in owners] == [0, 0, 1, 1, 1]
        await store.renew("host/1", LATER)
        assert len(await store.claim([HERE], YOU, NOW, LATER, 9)) == 2

    async def test_owners_that_are_gone_are_forgotten(self, url: str, store: SqlJobStore) -> None:
        now = NOW
        await admitted(store, "owner-0")
        for n in range(1, 5):
            now += timedelta(minutes=1)
            assert len(await store.claim([HERE], f"owner-{n}", now, now + timedelta(seconds=30), 5)) == 1
        now += timedelta(minutes=1)
        await store.claim([HERE], ME, now, now, 5)
        assert len(_query(url, "SELECT owner FROM leases")) <= 3

    async def test_the_released_may_not_change_the_job(self, store: SqlJobStore) -> None:
        job = await admitted(store)
        await store.release_leases("host/")
        assert await store.apply(to(job, Phase.RUNNING, Stage.RUNNING), ME) is None


class TestApply:
    async def test_everything_it_may_set(self, store: SqlJobStore) -> None:
        job = await admitted(store, labels={"a": "1"})
        moved = to(
            job,
            Phase.RUNNING,
            Stage.RUNNING,
            at=LATER,
            message="running",
            failure_class=FailureClass.OOM,
            exit_code=137,
            started_at=NOW,
            finished_at=LATER,
            not_before=LATER,
            handle={"version": 1, "data": {"pid": 3}},
            reservation=Reservation(1, 2),
            executor="local-2",
            next_attempt=2,
            failure_count=4,
        )
        after = await store.apply(moved, ME)
        assert after == replace(
            job,
            phase=Phase.RUNNING,
            stage=Stage.RUNNING,
            message="running",
            failure_class=FailureClass.OOM,
            exit_code=137,
            started_at=NOW,
            finished_at=LATER,
            not_before=LATER,
            handle={"version": 1, "data": {"pid": 3}},
            reservation=Reservation(1, 2),
            executor="local-2",
            attempt=2,
            failure_count=4,
        )
        assert await store.get(job.id) == after
        assert await store.page("alice", JobFilter(frozenset({Stage.RUNNING}), {"a": "1"}), None, 5) == [after]
        entry = (await store.history(job.id))[-1]
        assert (entry.at, entry.attempt, entry.stage, entry.phase) == (LATER, 1, Stage.RUNNING, Phase.RUNNING)
        assert (entry.message, entry.failure_class) == ("running", FailureClass.OOM)

    async def test_unset_stays_and_none_empties(self, store: SqlJobStore) -> None:
        job = await admitted(store)
        job = await applied(store, job, Phase.STARTING, Stage.SCHEDULING, message="m", handle={"a": 1}, exit_code=1)
        same = await applied(store, job, Phase.STARTING, Stage.SCHEDULING)
        assert same == job
        empty = await applied(
            store, job, Phase.STARTING, Stage.SCHEDULING, message=None, handle=None, exit_code=None, reservation=None
        )
        assert empty == replace(job, message=None, handle=None, exit_code=None, reservation=None)

    async def test_every_guard(self, store: SqlJobStore) -> None:
        job = await admitted(store)
        moved = to(job, Phase.RUNNING, Stage.RUNNING)
        for refused in (
            store.apply(replace(moved, job_id=new_id(NOW)), ME),
            store.apply(replace(moved, attempt=2), ME),
            store.apply(replace(moved, from_phases=frozenset({Phase.RUNNING})), ME),
            store.apply(replace(moved, from_phases=frozenset()), ME),
            store.apply(moved, YOU),
            store.apply(moved, ""),
        ):
            assert await refused is None
        assert await store.get(job.id) == job
        assert len(await store.history(job.id)) == 2
        assert await store.apply(replace(moved, from_phases=frozenset({Phase.STARTING, Phase.RUNNING})), ME) is not None
        assert await store.apply(moved, ME) is None

    async def test_a_retry_gives_the_job_back_to_the_queue(self, store: SqlJobStore) -> None:
        job = await applied(store, await admitted(store, labels={"a": "1"}), Phase.RUNNING, Stage.RUNNING)
        again = await applied(
            store, job, Phase.WAITING, Stage.SCHEDULING, next_attempt=2, reservation=None, message="attempt 1 failed"
        )
        assert await store.leased(ME) == []
        assert await store.held(HERE) == []
        assert [entry.attempt for entry in await store.history(job.id)] == [1, 1, 1, 1]
        assert await store.page("alice", JobFilter(frozenset({Stage.SCHEDULING}), {"a": "1"}), None, 5) == [again]
        [second] = await store.admit([admission(again)], YOU, LATER, NOW)
        assert second.attempt == 2
        assert (await store.history(job.id))[-1].attempt == 2

    async def test_done_is_leased_to_nobody(self, store: SqlJobStore) -> None:
        await finished(store)
        assert await store.leased(ME) == []
        after = LATER + timedelta(days=1)
        assert await store.claim([HERE], YOU, after, after, 5) == []

    async def test_a_waiting_job_needs_no_lease(self, store: SqlJobStore) -> None:
        job = await store.add(new_job())
        job = await applied(store, job, Phase.WAITING, Stage.SCHEDULING, message="no room")
        await store.request_cancel(job.id, NOW)
        await store.claim([], YOU, NOW, LATER, 1)
        done = await store.apply(to(job, Phase.DONE, Stage.CANCELED, finished_at=NOW), ME)
        assert done is not None
        assert done.stage is Stage.CANCELED
        assert await store.queue() == []

    async def test_progress_is_noted_without_history(self, store: SqlJobStore) -> None:
        job = await admitted(store)
        assert await store.note(job.id, 1, "pulling python:3.12 63 %", ME)
        assert await store.note(job.id, 1, "pulling python:3.12 99 %", ME)
        noted = await store.get(job.id)
        assert noted is not None
        assert noted.message == "pulling python:3.12 99 %"
        assert [entry.phase for entry in await store.history(job.id)] == [Phase.WAITING, Phase.STARTING]
        assert not await store.note(job.id, 2, "of another attempt", ME)
        assert not await store.note(job.id, 1, "of another server", YOU)
        await applied(store, job, Phase.RUNNING, Stage.RUNNING, message="runs")
        assert not await store.note(job.id, 1, "too late", ME)
        noted = await store.get(job.id)
        assert noted is not None
        assert noted.message == "runs"

    async def test_the_history_is_in_order(self, store: SqlJobStore) -> None:
        job = await finished(store)
        phases = [entry.phase for entry in await store.history(job.id)]
        assert phases == [Phase.WAITING, Phase.STARTING, Phase.RUNNING, Phase.RELEASING, Phase.DONE]

    async def test_of_many_at_once_one_wins(self, store: SqlJobStore, other_store: SqlJobStore) -> None:
        job = await applied(store, await admitted(store), Phase.RUNNING, Stage.RUNNING)
        stages = [Stage.COMPLETED, Stage.ERROR, Stage.CANCELED] * 4
        answers = await together(
            *((store, other_store)[n % 2].apply(to(job, Phase.RELEASING, s), ME) for n, s in enumerate(stages))
        )
        [winner] = [answer for answer in answers if answer is not None]
        assert await store.get(job.id) == winner
        assert len(await store.history(job.id)) == 4

    async def test_a_nul_is_refused_with_its_field(self, store: SqlJobStore) -> None:
        job = await admitted(store)
        with pytest.raises(Invalid) as refused:
            await store.apply(to(job, Phase.RUNNING, Stage.RUNNING, message="a\0"), ME)
        assert refused.value.field == "message"


class TestDeleteFinished:
    async def test_the_oldest_with_all_that_belongs_to_them(self, store: SqlJobStore) -> None:
        fields: dict[str, Any] = {"labels": {"a": "1", "b": "2"}, "sealed_secrets": b"s"}
        old = await finished(store, NOW - timedelta(days=2), **fields)
        older = await finished(store, NOW - timedelta(days=3), **fields)
        young = await finished(store, NOW, **fields)
        running = await applied(store, await admitted(store), Phase.RUNNING, Stage.RUNNING)
        assert await store.delete_finished(NOW, 1) == [older]
        assert await store.delete_finished(NOW, 10) == [old]
        assert await store.delete_finished(NOW, 10) == []
        for gone in (old, older):
            assert await store.get(gone.id) is None
            assert await store.history(gone.id) == []
            assert await store.sealed_secrets(gone.id) is None
        assert await store.page("alice", JobFilter(), None, 10) == [running, young]
        assert await store.count("alice", JobFilter(labels={"a": "1"})) == 1
        assert await store.count("alice", JobFilter(labels={"a": "1", "b": "2"})) == 1

    async def test_a_number_is_never_given_again(self, store: SqlJobStore) -> None:
        job = await finished(store, idempotency_key="k")
        await store.delete_finished(LATER, 10)
        again = await store.add(new_job(id=job.id, idempotency_key="k"))
        assert again.seq > job.seq

    async def test_two_callers_delete_each_job_once(self, store: SqlJobStore, other_store: SqlJobStore) -> None:
        jobs = [await finished(store) for _ in range(20)]
        answers = await together(*(s.delete_finished(LATER, 7) for s in (store, other_store) * 3))
        deleted = [job.id for answer in answers for job in answer]
        assert len(deleted) == len(set(deleted))
        while more := await store.delete_finished(LATER, 7):
            deleted += ids(more)
        assert sorted(deleted) == sorted(ids(jobs))


def user(name: str = "alice", **fields: Any) -> User:
    given: dict[str, Any] = {"id": f"id of {name}", "name": name, "full_name": name.title(), "is_admin": False}
    return User(**(given | {"created_at": NOW} | fields))


def organization(name: str = "org", **fields: Any) -> Organization:
    return Organization(**({"id": f"id of {name}", "name": name, "full_name": "O", "created_at": NOW} | fields))


def token(owner: User, **fields: Any) -> Token:
    given: dict[str, Any] = {"id": new_id(NOW), "user_id": owner.id, "name": "laptop", "role": TokenRole.WRITE}
    return Token(**(given | {"created_at": NOW, "hint": "abcd"} | fields))


class TestAccounts:
    async def test_what_is_read_is_what_was_stored(self, accounts: SqlAccountStore) -> None:
        zoe = await accounts.add_user(user("zoe", email="z@example.org", is_admin=True))
        alice = await accounts.add_user(user("alice", full_name="Älice \N{GRINNING FACE}"))
        capital = await accounts.add_user(user("Bob"))
        org = await accounts.add_organization(organization())
        assert await accounts.users() == [capital, alice, zoe]
        assert await accounts.user("zoe") == zoe
        assert await accounts.organizations() == [org]
        assert await accounts.namespace("zoe") == zoe.namespace
        found = await accounts.namespace("org")
        assert found == org.namespace
        assert found is not None
        assert found.kind is NamespaceKind.ORG

    async def test_what_is_missing(self, accounts: SqlAccountStore) -> None:
        await accounts.add_user(user())
        await accounts.add_organization(organization())
        assert await accounts.user("org") is None
        assert await accounts.user("nobody") is None
        assert await accounts.namespace("nobody") is None
        assert await accounts.remove_user("nobody") is False
        assert await accounts.remove_user("org") is False
        assert await accounts.remove_organization("alice") is False
        assert await accounts.memberships("nobody") == []
        assert await accounts.tokens("nobody") == []
        assert await accounts.revoke_token("nothing") is False
        assert await accounts.caller(b"unknown") is None
        with pytest.raises(NotFound, match="alice"):
            await accounts.members("alice")
        with pytest.raises(NotFound, match="nobody"):
            await accounts.set_member("org", "nobody", OrgRole.READ)
        with pytest.raises(NotFound, match="nothing"):
            await accounts.set_member("nothing", "alice", None)

    async def test_a_name_is_given_once(self, accounts: SqlAccountStore) -> None:
        await accounts.add_user(user("x"))
        for again in (
            accounts.add_user(user("x", id="other")),
            accounts.add_organization(organization("x", id="other")),
        ):
            with pytest.raises(Conflict, match="x"):
                await again

    async def test_a_name_is_given_once_in_a_race(self, accounts: SqlAccountStore, other_database: Database) -> None:
        other = SqlAccountStore(other_database)
        results = await asyncio.gather(
            *(accounts.add_user(user("x", id=f"u{n}")) for n in range(5)),
            *(other.add_organization(organization("x", id=f"o{n}")) for n in range(5)),
            return_exceptions=True,
        )
        assert sum(isinstance(result, Conflict) for result in results) == 9
        assert len(await accounts.users()) + len(await accounts.organizations()) == 1

    async def test_members(self, accounts: SqlAccountStore) -> None:
        zoe, alice = await accounts.add_user(user("zoe")), await accounts.add_user(user("alice"))
        org, second = (
            await accounts.add_organization(organization()),
            await accounts.add_organization(organization("another")),
        )
        await accounts.set_member("org", "zoe", OrgRole.ADMIN)
        await accounts.set_member("org", "alice", OrgRole.READ)
        await accounts.set_member("org", "alice", OrgRole.WRITE)
        await accounts.set_member("another", "alice", OrgRole.CONTRIBUTOR)
        assert await accounts.members("org") == [(alice, OrgRole.WRITE), (zoe, OrgRole.ADMIN)]
        assert await accounts.memberships(alice.id) == [
            Membership(second, OrgRole.CONTRIBUTOR),
            Membership(org, OrgRole.WRITE),
        ]
        await accounts.set_member("org", "zoe", None)
        await accounts.set_member("org", "zoe", None)
        assert await accounts.members("org") == [(alice, OrgRole.WRITE)]
        assert await accounts.remove_organization("org") is True
        assert await accounts.memberships(alice.id) == [Membership(second, OrgRole.CONTRIBUTOR)]

    async def test_a_user_goes_with_tokens_and_memberships(self, accounts: SqlAccountStore) -> None:
        alice = await accounts.add_user(user())
        await accounts.add_organization(organization())
        await accounts.set_member("org", "alice", OrgRole.ADMIN)
        await accounts.add_token(token(alice), b"digest")
        assert await accounts.remove_user("alice") is True
        assert await accounts.remove_user("alice") is False
        assert await accounts.caller(b"digest") is None
        assert await accounts.tokens() == []
        assert await accounts.members("org") == []

    async def test_who_owns_jobs_stays(self, accounts: SqlAccountStore, store: SqlJobStore) -> None:
        await accounts.add_user(user("alice"))
        await accounts.add_organization(organization("org"))
        await finished(store, namespace="alice")
        await finished(store, namespace="org")
        with pytest.raises(Conflict, match="alice"):
            await accounts.remove_user("alice")
        with pytest.raises(Conflict, match="org"):
            await accounts.remove_organization("org")
        await store.delete_finished(LATER, 10)
        assert await accounts.remove_user("alice")
        assert await accounts.remove_organization("org")


class TestTokens:
    async def test_what_is_read_is_what_was_stored(self, accounts: SqlAccountStore) -> None:
        alice, bob = await accounts.add_user(user("alice")), await accounts.add_user(user("bob"))
        first = await accounts.add_token(token(alice, created_at=NOW - timedelta(days=1)), b"1")
        scopes = (("org", Permission.READ), ("alice", Permission.WRITE))
        second = await accounts.add_token(token(alice, role=TokenRole.FINE_GRAINED, scopes=scopes), b"2")
        third = await accounts.add_token(token(bob, created_at=LATER, expires_at=LATER), b"3")
        assert await accounts.tokens() == [third, second, first]
        assert await accounts.tokens("alice") == [second, first]

    async def test_the_caller(self, accounts: SqlAccountStore) -> None:
        alice = await accounts.add_user(user())
        mine = await accounts.add_token(token(alice), b"\0\xff")
        assert await accounts.caller(b"\0\xff") == Caller(alice, mine, ())
        orgs = [await accounts.add_organization(organization(name)) for name in ("b-org", "a-org")]
        for org in orgs:
            await accounts.set_member(org.name, "alice", OrgRole.WRITE)
        caller = await accounts.caller(b"\0\xff")
        assert caller is not None
        assert caller.memberships == (Membership(orgs[1], OrgRole.WRITE), Membership(orgs[0], OrgRole.WRITE))

    async def test_a_value_is_known_once(self, accounts: SqlAccountStore) -> None:
        alice = await accounts.add_user(user())
        await accounts.add_token(token(alice), b"1")
        with pytest.raises(Conflict):
            await accounts.add_token(token(alice), b"1")

    async def test_of_an_unknown_user(self, accounts: SqlAccountStore) -> None:
        with pytest.raises(NotFound, match="id of alice"):
            await accounts.add_token(token(user()), b"1")

    async def test_revoked_is_unknown(self, accounts: SqlAccountStore) -> None:
        alice = await accounts.add_user(user())
        mine = await accounts.add_token(token(alice), b"1")
        assert await accounts.revoke_token(mine.id) is True
        assert await accounts.revoke_token(mine.id) is False
        assert await accounts.caller(b"1") is None


class TestDatabase:
    async def test_a_write_is_seen_by_every_read_after_it(self, store: SqlJobStore) -> None:
        async def add_and_look() -> None:
            for _ in range(10):
                job = await store.add(new_job())
                assert await store.get(job.id) == job

        await together(*(add_and_look() for _ in range(8)))

    async def test_the_event_loop_goes_on(self, store: SqlJobStore) -> None:
        await store.add(new_job())
        working = asyncio.gather(*(store.add(new_job()) for _ in range(300)))
        turns = 0
        while not working.done():
            await asyncio.sleep(0)
            turns += 1
        await working
        assert turns > 10

    async def test_closed_is_unavailable(self, url: str) -> None:
        database = await open_database(url)
        store = SqlJobStore(database)
        adding = [asyncio.create_task(store.add(new_job())) for _ in range(20)]
        await asyncio.sleep(0)
        await database.close()
        await database.close()
        assert len(await together(*adding)) == 20
        for work in (store.add(new_job()), store.get("x")):
            with pytest.raises(Unavailable):
                await work

    async def test_work_that_raises_changes_nothing(self, database: Database, store: SqlJobStore) -> None:
        job = await store.add(new_job())

        def work(transaction: Any) -> None:
            from runstead.stores.tables import jobs

            assert transaction.run(jobs.delete()) >= 1
            raise ZeroDivisionError

        results = await asyncio.gather(
            *(database.write(work) for _ in range(3)), store.add(new_job()), return_exceptions=True
        )
        assert [type(result) for result in results] == [ZeroDivisionError] * 3 + [Job]
        assert await store.get(job.id) == job

    async def test_a_lost_connection_is_made_anew(self, url: str, database: Database, store: SqlJobStore) -> None:
        if not url.startswith("postgresql"):
            pytest.skip("SQLite has no connections to lose")
        jobs = await together(*(store.add(new_job()) for _ in range(20)))
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert await together(*(store.get(job.id) for job in jobs)) == jobs
        assert len(set(ids(await together(*(store.add(new_job()) for _ in range(20)))))) == 20


@dataclass
class Expected:
    """What a store must know of a job, in the plainest words."""

    job: Job
    owner: str | None = None
    changes: int = 1


class Model:
    """A store of jobs in two dictionaries, to compare the real ones with."""

    def __init__(self) -> None:
        self.jobs: dict[str, Expected] = {}
        self.until: dict[str, datetime] = {}

    def begin_lease(self, owner: str, now: datetime, until: datetime) -> None:
        if self.until.get(owner, now) <= now:
            self.drop(owner)
            self.until[owner] = until
        self.until[owner] = max(self.until[owner], until)

    def drop(self, owner: str) -> None:
        for expected in self.jobs.values():
            if expected.owner == owner:
                expected.owner = None

    def free(self, now: datetime) -> set[str]:
        return {
            job_id
            for job_id, expected in self.jobs.items()
            if (expected.owner is None or self.until[expected.owner] <= now)
            and (
                expected.job.phase in (Phase.STARTING, Phase.RUNNING, Phase.RELEASING)
                or (expected.job.phase is Phase.WAITING and expected.job.cancel_requested_at is not None)
            )
        }

    def ready(self, now: datetime) -> list[str]:
        return [
            job_id
            for job_id, expected in self.jobs.items()
            if expected.job.phase is Phase.WAITING
            and expected.job.cancel_requested_at is None
            and (expected.job.not_before is None or expected.job.not_before <= now)
        ]


@pytest.mark.parametrize("seed", range(4))
async def test_a_long_walk_agrees_with_the_model(store: SqlJobStore, seed: int) -> None:
    dice = random.Random(seed)
    model, now, owners = Model(), NOW, ["a/1", "a/2", "b/1"]
    for _ in range(150):
        now += timedelta(seconds=dice.choice([0, 1, 5, 20]))
        owner, until = dice.choice(owners), now + timedelta(seconds=dice.choice([10, 30]))
        known = list(model.jobs.values())
        some = dice.sample(known, min(3, len(known)))
        match dice.choice(["add", "add", "admit", "admit", "claim", "renew", "release", "cancel"] + ["apply"] * 6):
            case "add":
                job = await store.add(new_job(labels={"a": str(dice.randrange(2))}, created_at=now))
                model.jobs[job.id] = Expected(job)
            case "admit":
                able = [e.job.id for e in some if e.job.phase is Phase.WAITING and e.job.cancel_requested_at is None]
                got = await store.admit([admission(e.job) for e in some], owner, until, now)
                assert sorted(ids(got)) == sorted(able)
                if some:
                    model.begin_lease(owner, now, until)
                for job in got:
                    expected = model.jobs[job.id]
                    assert job == replace(
                        expected.job,
                        phase=Phase.STARTING,
                        message=None,
                        not_before=None,
                        executor=HERE,
                        reservation=Reservation(1500, 2**33, ("gpu-0",)),
                    )
                    model.jobs[job.id] = Expected(job, owner, expected.changes + 1)
            case "claim":
                free, limit = model.free(now), dice.choice([1, 3, 100])
                got = await store.claim([HERE], owner, now, until, limit)
                assert len(got) == min(limit, len(free))
                assert set(ids(got)) <= free
                if got:
                    model.begin_lease(owner, now, until)
                for job in got:
                    assert job == model.jobs[job.id].job
                    model.jobs[job.id].owner = owner
            case "renew":
                await store.renew(owner, until)
                if owner in model.until:
                    model.until[owner] = max(model.until[owner], until)
            case "release":
                prefix = dice.choice(["a/", "a/1", "b/", "c"])
                await store.release_leases(prefix)
                for dead in owners:
                    if dead.startswith(prefix):
                        model.drop(dead)
                        model.until.pop(dead, None)
            case "cancel":
                for expected in some:
                    job = await store.request_cancel(expected.job.id, now)
                    if expected.job.cancel_requested_at is None and not expected.job.stage.is_terminal:
                        expected.job = replace(expected.job, cancel_requested_at=now)
                    assert job == expected.job
            case _:
                for expected in some:
                    await _walk_on(store, dice, expected, dice.choice([owner, expected.owner or owner]), now)
        await _agree(store, model, now, owners)


_NEXT = {
    Phase.WAITING: [(Phase.WAITING, Stage.SCHEDULING), (Phase.DONE, Stage.CANCELED)],
    Phase.STARTING: [(Phase.RUNNING, Stage.RUNNING), (Phase.RELEASING, Stage.ERROR), (Phase.WAITING, Stage.SCHEDULING)],
    Phase.RUNNING: [(Phase.RELEASING, Stage.COMPLETED), (Phase.WAITING, Stage.SCHEDULING)],
    Phase.RELEASING: [(Phase.DONE, None)],
    Phase.DONE: [],
}


async def _walk_on(store: SqlJobStore, dice: random.Random, expected: Expected, owner: str, now: datetime) -> None:
    phase = dice.choice([expected.job.phase] * 5 + [Phase.RUNNING])
    if not _NEXT[phase]:
        return
    into, stage = dice.choice(_NEXT[phase])
    stage = stage or (expected.job.stage if expected.job.stage.is_terminal else Stage.ERROR)
    attempt = expected.job.attempt + (dice.random() < 0.1)
    fields: dict[str, Any] = {"message": f"to {into}", "failure_count": dice.randrange(3)}
    if into is Phase.WAITING:
        fields |= {"next_attempt": attempt + 1, "not_before": now + timedelta(seconds=10), "reservation": None}
    moved = Transition(expected.job.id, attempt, frozenset({phase}), into, stage, now, **fields)
    after = await store.apply(moved, owner)
    held = phase is Phase.WAITING or expected.owner == owner
    if phase is not expected.job.phase or attempt != expected.job.attempt or not held:
        assert after is None
        return
    changed = {name: value for name, value in fields.items() if name != "next_attempt"}
    changed["attempt"] = fields.get("next_attempt", attempt)
    expected.job = replace(expected.job, phase=into, stage=stage, **changed)
    assert after == expected.job
    expected.changes += 1
    if into in (Phase.WAITING, Phase.DONE):
        expected.owner = None


async def _agree(store: SqlJobStore, model: Model, now: datetime, owners: list[str]) -> None:
    everything = [expected.job for expected in reversed(model.jobs.values())]
    assert await store.page("alice", JobFilter(), None, 1000) == everything
    running = [job for job in everything if job.stage is Stage.RUNNING and job.labels == {"a": "1"}]
    assert await store.page("alice", JobFilter(frozenset({Stage.RUNNING}), {"a": "1"}), None, 1000) == running
    ready = model.ready(now)
    assert [ids(w.jobs) for w in await store.waiting(now, 5)] == ([ready[:5]] if ready else [])
    assert len(await store.held(HERE)) == sum(job.reservation is not None for job in everything)
    for owner in owners:
        mine = [e.job for e in model.jobs.values() if e.owner == owner and e.job.phase is not Phase.WAITING]
        assert await store.leased(owner) == mine
    if everything:
        some = everything[len(everything) // 2]
        assert len(await store.history(some.id)) == model.jobs[some.id].changes


class TestSchema:
    async def test_the_migrations_lead_to_what_is_created(self, url: str, tmp_path: Path) -> None:
        await (await open_database(url)).close()
        created = _schema(url)
        assert created
        _forget_everything(url)
        assert _schema(url) == []
        await asyncio.to_thread(_migrate, url, "head")
        assert _schema(url) == created

    async def test_an_old_database_is_brought_up_to_date(self, url: str) -> None:
        await asyncio.to_thread(_migrate, url, REVISIONS[0])
        async with opened(url) as database, opened(url) as other:
            job = await SqlJobStore(database).add(new_job())
            assert await SqlJobStore(other).get(job.id) == job
        assert _query(url, "SELECT version_num FROM alembic_version") == [(HEAD,)]

    async def test_what_buckets_were_outlives_the_change_of_its_order(self, url: str) -> None:
        await asyncio.to_thread(_migrate, url, "0006")
        columns = "bucket, path, version, file_hash, size, mtime, uploaded_at, content_type, replaced_at"
        rows = [
            f"({bucket}, 'p{path}', {version}, {file_hash}, {path}, 1, {version}, NULL, {version + 1})"
            for file_hash in ["X'00ff'" if url.startswith("sqlite") else r"'\x00ff'"]
            for bucket in (2, 1)
            for path in range(3)
            for version in (3, 1, 2)
        ]
        _query(url, f"INSERT INTO bucket_history ({columns}) VALUES {', '.join(rows)}")
        everything = f"SELECT {columns} FROM bucket_history ORDER BY bucket, path, version"
        before = _query(url, everything)
        await (await open_database(url)).close()
        assert len(before) == 18
        assert _query(url, everything) == before

    async def test_a_newer_database_is_refused(self, url: str) -> None:
        await (await open_database(url)).close()
        _query(url, "UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(Conflict, match="newer version of Runstead"):
            await open_database(url)

    async def test_many_processes_open_it_at_once(self, url: str) -> None:
        program = "import asyncio, sys; from runstead.stores.opening import open_database\n"
        program += "sys.stdin.readline(); asyncio.run(open_database(sys.argv[1])); print('alembic' in sys.modules)"
        children = [
            subprocess.Popen(
                [sys.executable, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        answers = [await asyncio.to_thread(child.communicate) for child in children]
        assert [out for out, _ in answers] == ["False\n"] * 3
        assert all(child.returncode == 0 for child in children)
        async with opened(url) as database:
            await SqlJobStore(database).add(new_job())


def _query(url: str, statement: str) -> list[Any]:
    """Run a statement past the stores."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _migrate(url: str, revision: str) -> None:
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        upgrade(lambda: sqlite3.connect(path, isolation_level=None), "sqlite", "BEGIN IMMEDIATE", revision)
    else:
        upgrade(lambda: psycopg.connect(url), "postgresql+psycopg", "SELECT 1", revision)


def _forget_everything(url: str) -> None:
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).unlink()
    else:
        _query(url, "DROP SCHEMA public CASCADE")
        _query(url, "CREATE SCHEMA public")


def _schema(url: str) -> list[Any]:
    """Everything that a database says of its tables, columns, constraints and indexes, and what is in them."""
    if url.startswith("postgresql"):
        described = [
            "SELECT table_name, column_name, data_type, is_nullable, collation_name, column_default "
            "FROM information_schema.columns WHERE table_schema = 'public'",
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE connamespace = 'public'::regnamespace",
        ]
        return [*(sorted(map(str, _query(url, d))) for d in described if _query(url, d))]
    tables = _query(url, "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [
        (
            name,
            "WITHOUT ROWID" in sql,
            "AUTOINCREMENT" in sql,
            sorted(re.findall(r"CONSTRAINT (\w+)", sql)),
            _query(url, f"PRAGMA table_xinfo({name})"),
            sorted(row[2:] for row in _query(url, f"PRAGMA foreign_key_list({name})")),
            sorted(
                (re.sub(r"\s+", " ", str(index_sql)), [row[2:] for row in _query(url, f"PRAGMA index_xinfo({index})")])
                for index, index_sql in _query(
                    url, f"SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = '{name}'"
                )
            ),
        )
        for name, sql in tables
    ]


_ADDER = """
import asyncio, os, sys
from datetime import UTC, datetime
from runstead.model.ids import new_id
from runstead.model.jobs import Initiator, JobSpec, NewJob
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database

async def main():
    store = SqlJobStore(await open_database(sys.argv[1], connections=4))
    async def add():
        while True:
            now = datetime.now(UTC)
            job = NewJob(new_id(now), "n", "alice", "user", "n", "alice",
                JobSpec(command=("x",), flavor="f", docker_image="i", labels={"a": "1", "b": "2"}),
                Initiator("user", "n"), now, sealed_secrets=b"s")
            await store.add(job)
            os.write(1, f"{job.id}\\n".encode())
    await asyncio.gather(*(add() for _ in range(16)))

asyncio.run(main())
"""


async def test_what_was_answered_outlives_kill_9(url: str) -> None:
    dice = random.Random()
    answered: list[str] = []
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", _ADDER, url], stdout=subprocess.PIPE)
        assert child.stdout is not None
        first = await asyncio.to_thread(child.stdout.readline)
        await asyncio.sleep(dice.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        child.wait()
        answered += [line.decode().strip() for line in (first + rest).splitlines(keepends=True) if line.endswith(b"\n")]
    assert answered
    async with opened(url) as database:
        store = SqlJobStore(database)
        stored = await store.page("alice", JobFilter(), None, 100_000)
        assert set(answered) <= set(ids(stored))
        for labels in ({"a": "1"}, {"b": "2"}, {"a": "1", "b": "2"}):
            assert await store.page("alice", JobFilter(labels=labels), None, 100_000) == stored
        for job in stored:
            assert len(await store.history(job.id)) == 1
            assert await store.sealed_secrets(job.id) == b"s"
