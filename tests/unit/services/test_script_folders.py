"""Which scripts go, and above all which stay."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runstead.events.local import LocalEventBus
from runstead.kit.clock import Clock
from runstead.model.accounts import Namespace, NamespaceKind, User
from runstead.model.buckets import Bucket, NewFile
from runstead.model.ids import new_id
from runstead.model.jobs import Initiator, JobSpec, NewJob, Phase, Stage, Transition
from runstead.model.schedules import NewSchedule
from runstead.model.volumes import Volume, VolumeKind
from runstead.services.script_folders import ScriptFolders
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.buckets import SqlBucketStore
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database
from runstead.stores.schedules import SqlScheduleStore

THEN = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
NOW = THEN + timedelta(days=40)
ALICE = Namespace("a" * 24, "alice", NamespaceKind.USER)
FOLDER = "20260101T120000-0a1b2c"


class FixedClock(Clock):
    def now(self) -> datetime:
        return NOW

    async def sleep(self, seconds: float) -> None: ...


@dataclass
class House:
    jobs: SqlJobStore
    schedules: SqlScheduleStore
    buckets: SqlBucketStore
    sweep: ScriptFolders
    bucket: Bucket

    async def put(self, path: str, at: datetime = THEN) -> None:
        await self.buckets.apply(self.bucket.seq, {path: NewFile(b"h" * 32, 5, at)}, at)

    async def job(self, path: str = FOLDER, *, over: bool = True, bucket_id: str | None = None) -> None:
        at = THEN + timedelta(seconds=1)
        volume = Volume(VolumeKind.BUCKET, "alice/jobs-artifacts", "/data", path, source_id=bucket_id or self.bucket.id)
        spec = JobSpec(command=("true",), flavor="cpu-basic", docker_image="x", volumes=(volume,))
        new = NewJob(new_id(at), ALICE.id, "alice", "user", ALICE.id, "alice", spec, Initiator("user", ALICE.id), at)
        job = await self.jobs.add(new)
        if over:
            phases = frozenset({Phase.WAITING})
            done = Transition(job.id, 1, phases, Phase.DONE, Stage.CANCELED, at, finished_at=at)
            assert await self.jobs.apply(done, "nobody") is not None

    async def schedule(self, path: str = FOLDER, *, suspended: bool = False) -> str:
        volume = Volume(VolumeKind.BUCKET, "alice/jobs-artifacts", "/data", path, source_id=self.bucket.id)
        spec = JobSpec(command=("true",), flavor="cpu-basic", docker_image="x", volumes=(volume,))
        new = NewSchedule(
            *(new_id(THEN), ALICE.id, "alice", "user", ALICE.id, "alice", spec, "@daily", "UTC"),
            concurrency=False,
            suspended=suspended,
            next_run_at=None if suspended else NOW,
            created_at=THEN,
        )
        return (await self.schedules.add(new)).id

    async def files(self) -> set[str]:
        return {file.path for file in await self.buckets.tree(self.bucket.seq, "", "", 100)}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    database = await open_database(f"sqlite:///{tmp_path / 'db'}")
    accounts, jobs, buckets = SqlAccountStore(database), SqlJobStore(database), SqlBucketStore(database)
    await accounts.add_user(User(ALICE.id, "alice", "Alice", True, THEN))
    bucket = await buckets.add(Bucket(0, "b" * 24, ALICE, "jobs-artifacts", True, THEN, THEN))
    schedules = SqlScheduleStore(database)
    sweep = ScriptFolders(accounts, jobs, schedules, buckets, LocalEventBus(), FixedClock(), 30)
    yield House(jobs, schedules, buckets, sweep, bucket)
    await database.close()


@pytest.mark.parametrize("suspended", [False, True])
async def test_a_script_that_a_schedule_mounts_stays_until_the_schedule_goes(house: House, suspended: bool) -> None:
    await house.put(f"{FOLDER}/script.py")
    await house.job()
    schedule = await house.schedule(suspended=suspended)
    assert await house.sweep.run_once() == []
    await house.schedules.delete(schedule)
    assert await house.sweep.run_once() == [f"alice/jobs-artifacts/{FOLDER}"]


async def test_a_script_whose_jobs_are_over_goes(house: House) -> None:
    await house.put(f"{FOLDER}/script.py")
    await house.put("kept.txt")
    await house.job()
    assert await house.sweep.run_once() == [f"alice/jobs-artifacts/{FOLDER}"]
    assert await house.files() == {"kept.txt"}
    assert await house.sweep.run_once() == []


async def test_scripts_that_agents_sent_go_too(house: House) -> None:
    await house.put(f"_scripts/{FOLDER}/script.py")
    await house.put("_scripts/mine/script.py")
    assert await house.sweep.run_once() == []
    await house.job(f"_scripts/{FOLDER}")
    assert await house.sweep.run_once() == [f"alice/jobs-artifacts/_scripts/{FOLDER}"]
    assert await house.files() == {"_scripts/mine/script.py"}


async def test_what_a_job_wrote_stays_with_its_script(house: House) -> None:
    await house.put(f"{FOLDER}/script.py")
    await house.job()
    await house.put(f"{FOLDER}/result.txt", THEN + timedelta(minutes=5))
    assert await house.sweep.run_once() == []


@pytest.mark.parametrize("path", [FOLDER, "", f"{FOLDER}/inner"])
async def test_what_a_job_may_still_use_stays(house: House, path: str) -> None:
    await house.put(f"{FOLDER}/script.py")
    await house.put(f"{FOLDER}/inner/x")
    await house.job()
    await house.job(path, over=False)
    assert await house.sweep.run_once() == []


async def test_a_folder_that_no_known_job_used_stays(house: House) -> None:
    await house.put(f"{FOLDER}/script.py")
    await house.job(bucket_id="f" * 24)
    assert await house.sweep.run_once() == []


@pytest.mark.parametrize(
    "name",
    [
        "20260109T120000-0a1b2",
        "20260101T120000-0A1B2C",
        "results",
        "dir-0123abcd",
        "20261301T120000-0a1b2c",
        (NOW - timedelta(days=29)).strftime("%Y%m%dT%H%M%S") + "-0a1b2c",
    ],
)
async def test_folders_of_another_form_and_young_ones_stay(house: House, name: str) -> None:
    await house.put(f"{name}/script.py")
    await house.job(name)
    assert await house.sweep.run_once() == []
