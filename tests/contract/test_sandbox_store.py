"""What every SandboxStore promises, on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runstead.model.ids import new_id
from runstead.model.jobs import CancelReason, Initiator, JobSpec, NewJob
from runstead.model.sandboxes import PooledSandbox
from runstead.stores.database import Database
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from runstead.stores.sandboxes import SqlSandboxStore

NOW = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/runstead.db"
    if request.param == "postgres":
        url = request.getfixturevalue("new_postgres_database")()
    database = await open_database(url, connections=4)
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> SqlSandboxStore:
    return SqlSandboxStore(database)


async def a_job(database: Database) -> str:
    job = NewJob(
        id=new_id(NOW),
        namespace_id="1",
        namespace="alice",
        namespace_kind="user",
        created_by_id="1",
        created_by="alice",
        spec=JobSpec(command=("x",), flavor="cpu-basic", docker_image="a"),
        initiator=Initiator("user", "1"),
        created_at=NOW,
    )
    return (await SqlJobStore(database).add(job)).id


def pooled(job_id: str, number: int, **changes: object) -> PooledSandbox:
    made = PooledSandbox(
        job_id=job_id,
        id=f"{number:016x}",
        uid=20_000 + number,
        home=f"/home/{number}",
        confinement="uid",
        created_at=NOW + timedelta(seconds=number),
        active_at=NOW + timedelta(seconds=number),
        idle_seconds=None if number % 2 else 60,
        sealed=b"\0sealed",
    )
    return replace(made, **changes)


async def test_pooled_sandboxes_come_back_oldest_first(database: Database, store: SqlSandboxStore) -> None:
    one, other = await a_job(database), await a_job(database)
    await store.add([pooled(one, 2), pooled(one, 1)])
    await store.add([pooled(other, 3)])
    assert await store.of_host(one) == [pooled(one, 1), pooled(one, 2)]
    await store.remove(one, ["0" * 15 + "1", "f" * 16])
    assert await store.of_host(one) == [pooled(one, 2)]
    assert await store.of_host(other) == [pooled(other, 3)]


async def test_activity_is_that_of_the_job_or_of_its_part(database: Database, store: SqlSandboxStore) -> None:
    one, other = await a_job(database), await a_job(database)
    await store.add([pooled(one, 1)])
    assert await store.activity([one, other]) == {}
    part = pooled(one, 1).id
    await store.note_activity({(one, ""): NOW, (one, part): LATER, (other, ""): LATER})
    await store.note_activity({(one, ""): LATER})
    assert await store.activity([one, other]) == {one: LATER, other: LATER}
    assert await store.of_host(one) == [pooled(one, 1, active_at=LATER)]


async def test_what_is_gone_is_not_noted(database: Database, store: SqlSandboxStore) -> None:
    one = await a_job(database)
    await store.note_activity({(one, "f" * 16): NOW, (new_id(NOW), ""): NOW, (one, ""): NOW})
    assert await store.of_host(one) == []
    assert await store.activity([one]) == {one: NOW}


async def test_the_first_reason_to_end_a_job_counts(database: Database) -> None:
    jobs, one = SqlJobStore(database), await a_job(database)
    noted = await jobs.request_cancel(one, NOW, CancelReason.IDLE)
    assert noted is not None and noted.cancel_reason is CancelReason.IDLE
    assert await jobs.request_cancel(one, LATER) == noted == await jobs.get(one)
