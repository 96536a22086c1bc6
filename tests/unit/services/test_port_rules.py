"""Ports of a machine that its jobs share: each has one holder, however many ask at once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from runstead.executors.interface import Capabilities
from runstead.model.errors import Conflict
from runstead.model.ids import new_id
from runstead.model.jobs import Initiator, Job, JobSpec, NewJob
from runstead.model.ports import Ports
from runstead.services.port_rules import PortRules
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database

NOW = datetime(2026, 3, 4, tzinfo=UTC)


def new_job(*ports: int, **fields: Any) -> NewJob:
    spec = JobSpec(("serve",), "cpu-basic", docker_image="i", ports=Ports(ports, ()))
    who = ("n", "alice", "user", "u", "alice")
    return NewJob(new_id(NOW), *who, spec, Initiator("user", "u", "alice"), NOW, **{"message": "queued"} | fields)


def rules(store: SqlJobStore, *, private: bool = False) -> PortRules:
    return PortRules(Capabilities("process", "x", False, private, False, None, None, ports=True), store)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlJobStore]:
    database = await open_database(f"sqlite:///{tmp_path}/runstead.db")
    yield SqlJobStore(database)
    await database.close()


async def create(rules: PortRules, store: SqlJobStore, new: NewJob) -> Job:
    async with rules.reserved(new):
        return await store.add(new)


async def test_of_many_at_once_one_gets_the_port(store: SqlJobStore) -> None:
    rule = rules(store)
    created = [create(rule, store, new_job(8000 + number % 4, 9000 + number)) for number in range(40)]
    found = await asyncio.gather(*created, return_exceptions=True)
    jobs = [one for one in found if isinstance(one, Job)]
    assert sorted(job.spec.ports.exposed[0] for job in jobs) == [8000, 8001, 8002, 8003]
    reasons = [str(one) for one in found if isinstance(one, Conflict)]
    assert len(reasons) == 36
    assert all(any(f"job {job.id} exposes port" in reason for job in jobs) for reason in reasons)


async def test_who_comes_while_another_is_stored_waits_and_is_refused(store: SqlJobStore) -> None:
    rule, stored = rules(store), asyncio.Event()

    async def slowly(new: NewJob) -> Job:
        async with rule.reserved(new):
            await stored.wait()
            return await store.add(new)

    first = asyncio.create_task(slowly(new_job(8000)))
    second = asyncio.create_task(create(rule, store, new_job(8000)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    stored.set()
    job = await first
    with pytest.raises(Conflict, match=f"job {job.id} exposes port 8000 already"):
        await second


async def test_jobs_that_are_stored_together_are_held_apart_too(store: SqlJobStore) -> None:
    rule = rules(store)
    with pytest.raises(Conflict, match="only one of 2 can expose port 8000"):
        async with rule.reserved(new_job(8000), new_job(8000)):
            raise AssertionError
    new = [new_job(8000), new_job(8001)]
    async with rule.reserved(*new):
        jobs = await store.add_all(new)
    for job, port in zip(jobs, (8000, 8001), strict=True):
        with pytest.raises(Conflict, match=job.id):
            await create(rule, store, new_job(port))


async def test_what_was_not_stored_holds_nothing(store: SqlJobStore) -> None:
    rule = rules(store)
    with pytest.raises(ValueError, match="no"):
        async with rule.reserved(new_job(8000)):
            raise ValueError("no")
    assert (await create(rule, store, new_job(8000))).spec.ports.exposed == (8000,)


async def test_the_same_job_again_is_no_other(store: SqlJobStore) -> None:
    rule = rules(store)
    first = await create(rule, store, new_job(8000, idempotency_key="k"))
    assert (await create(rule, store, new_job(8000, idempotency_key="k"))).id == first.id
    with pytest.raises(Conflict, match=first.id):
        await create(rule, store, new_job(8000, idempotency_key="other"))


async def test_ports_that_are_opened_late_are_held_too(store: SqlJobStore) -> None:
    rule = rules(store)
    first, second = await create(rule, store, new_job(8000)), await create(rule, store, new_job(8001))
    with pytest.raises(Conflict, match=second.id):
        async with rule.changed(first.id, Ports((8000, 8001), ())):
            raise AssertionError
    async with rule.changed(first.id, Ports((8002,), ())):
        await store.set_ports(first.id, Ports((8002,), ()))
    assert (await create(rule, store, new_job(8000))).spec.ports.exposed == (8000,)
    with pytest.raises(Conflict, match=first.id):
        await create(rule, store, new_job(8002))


async def test_after_a_restart_the_store_tells(store: SqlJobStore) -> None:
    first = await create(rules(store), store, new_job(8000))
    with pytest.raises(Conflict, match=first.id):
        await create(rules(store), store, new_job(8000))


async def test_jobs_with_networks_of_their_own_share_nothing(store: SqlJobStore) -> None:
    rule = rules(store, private=True)
    jobs = await asyncio.gather(*(create(rule, store, new_job(8000)) for _ in range(5)))
    assert len({job.id for job in jobs}) == 5
