"""Deletes the scripts that clients sent up for jobs that are long over.

A client puts a local script into a new folder `<YYYYMMDDTHHMMSS>-<6 hex>` of the bucket `<namespace>/jobs-artifacts`
and mounts the folder (huggingface_hub 2.4.0, `run_uv_job`). Nobody ever deletes it. Jobs write results into the same
folder, so it goes only if all of this holds: its name has that form and is older than the time that is set; a job
that mounts it is known, all that do are over, and no schedule mounts it; and no file in it is newer than the first of
those jobs, so that no job wrote into it. What is deleted goes into the history of the bucket, as with any other
deletion.
"""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import structlog

from runstead.events.interface import BUCKETS, EventBus
from runstead.kit.clock import Clock
from runstead.model.buckets import Bucket, Folder, place_behind
from runstead.model.jobs import Job, JobFilter
from runstead.model.volumes import Volume
from runstead.stores.interface import AccountStore, BucketStore, JobStore, ScheduleStore

log = structlog.get_logger()

EVERY_SECONDS = 6 * 3600.0
_BUCKET = "jobs-artifacts"
_AGENTS = "_scripts"  # where the scripts that agents send are (`runstead.mcp.scripts`)
_NAME = re.compile(rf"(?:{_AGENTS}/)?(\d{{8}}T\d{{6}})-[0-9a-f]{{6}}", re.ASCII)
_AT_ONCE = 500
_MOST_FILES = 5000  # with more than that, it is no folder of a script


class ScriptFolders:
    """The sweep over all namespaces. `keep_days` 0 keeps everything for ever."""

    def __init__(
        self,
        accounts: AccountStore,
        jobs: JobStore,
        schedules: ScheduleStore,
        buckets: BucketStore,
        events: EventBus,
        clock: Clock,
        keep_days: float,
    ) -> None:
        self._accounts = accounts
        self._jobs = jobs
        self._schedules = schedules
        self._buckets = buckets
        self._events = events
        self._clock = clock
        self._keep = timedelta(days=keep_days)

    async def run(self) -> None:
        """Sweep, then rest."""
        await self.run_once()
        await self._clock.sleep(EVERY_SECONDS)

    async def run_once(self) -> list[str]:
        """Delete what may go; return the folders, as `namespace/bucket/folder`."""
        if not self._keep:
            return []
        namespaces = [user.name for user in await self._accounts.users()]
        namespaces += [org.name for org in await self._accounts.organizations()]
        deleted: list[str] = []
        for namespace in namespaces:
            bucket = await self._buckets.find(namespace, _BUCKET)
            old = [name async for name in self._old_folders(bucket)] if bucket is not None else []
            if bucket is not None and old:
                deleted += await self._sweep(bucket, old, namespaces)
        return deleted

    async def _old_folders(self, bucket: Bucket) -> AsyncIterator[str]:
        before = self._clock.now() - self._keep
        for parent in ("", _AGENTS):
            place = ""
            while entries := await self._buckets.level(bucket.seq, parent, place, _AT_ONCE):
                for entry in entries:
                    if isinstance(entry, Folder) and is_old_script_folder(entry.path, before):
                        yield entry.path
                place = place_behind(entries[-1])

    async def _sweep(self, bucket: Bucket, folders: list[str], namespaces: list[str]) -> list[str]:
        first_use: dict[str, datetime] = {}
        in_use: set[str] = set()
        async for job, volume in self._mounts(bucket, namespaces):
            for folder in folders:
                if _touches(volume.path, folder):
                    first_use[folder] = min(job.created_at, first_use.get(folder, job.created_at))
                    if not job.stage.is_terminal:
                        in_use.add(folder)
        async for volume in self._mounts_of_schedules(bucket):
            in_use.update(folder for folder in folders if _touches(volume.path, folder))
        deleted: list[str] = []
        for folder in folders:
            if folder in first_use and folder not in in_use and await self._delete(bucket, folder, first_use[folder]):
                log.info("deleted a script that no job uses any more", bucket=bucket.path, folder=folder)
                deleted.append(f"{bucket.path}/{folder}")
        return deleted

    async def _delete(self, bucket: Bucket, folder: str, first_use: datetime) -> bool:
        files = await self._buckets.tree(bucket.seq, folder, "", _MOST_FILES + 1)
        if len(files) > _MOST_FILES or any(file.uploaded_at > first_use for file in files):
            return False
        await self._buckets.apply(bucket.seq, dict.fromkeys(file.path for file in files), self._clock.now())
        self._events.publish(BUCKETS, bucket.id)
        return True

    async def _mounts(self, bucket: Bucket, namespaces: list[str]) -> AsyncIterator[tuple[Job, Volume]]:
        """Yield every job, over or not, with each of its volumes that is of this bucket."""
        for namespace in namespaces:
            before: int | None = None
            while jobs := await self._jobs.page(namespace, JobFilter(), before, _AT_ONCE):
                for job in jobs:
                    for volume in job.spec.volumes:
                        if volume.source_id == bucket.id:
                            yield job, volume
                before = jobs[-1].seq

    async def _mounts_of_schedules(self, bucket: Bucket) -> AsyncIterator[Volume]:
        """Yield every volume of a schedule that is of this bucket; suspended ones may be resumed."""
        last = 0
        while schedules := await self._schedules.after(last, _AT_ONCE):
            for schedule in schedules:
                for volume in schedule.spec.volumes:
                    if volume.source_id == bucket.id:
                        yield volume
            last = schedules[-1].seq


def is_old_script_folder(name: str, before: datetime) -> bool:
    """Say whether a name is one that clients give to the folder of a script, of before that time."""
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    try:
        return datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC) < before
    except ValueError:
        return False


def _touches(mounted: str, folder: str) -> bool:
    """Say whether what is mounted is the folder, contains it or lies in it. A whole bucket contains all."""
    return not mounted or mounted == folder or mounted.startswith(folder + "/")
