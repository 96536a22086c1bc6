"""Volumes of jobs: which are accepted, and their life around an attempt.

Access is decided once, when a job is created, with the rights of who creates it. What had the name then is what is
mounted: a bucket that was deleted and made anew meanwhile is another bucket.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from runstead.executors.interface import Capabilities
from runstead.kit.clock import Clock
from runstead.model.accounts import Caller, Permission
from runstead.model.buckets import Bucket, path_problem
from runstead.model.errors import EntryNotFound, Forbidden, Invalid, NotFound, RepoNotFound, Unsupported
from runstead.model.jobs import Job
from runstead.model.volumes import Flushed, Mount, MountCaller, MountRequest, Volume, VolumeKind
from runstead.services.buckets.buckets import Buckets
from runstead.services.mount_paths import check_mount_paths
from runstead.services.mount_tokens import MountTokens
from runstead.stores.interface import BucketStore, JobStore
from runstead.volumes.interface import VolumeProvider

_TOKEN_SPARE = timedelta(days=1)


class VolumeRules:
    """Which volumes a job may have."""

    def __init__(self, buckets: Buckets, store: BucketStore, capabilities: Capabilities) -> None:
        self._buckets = buckets
        self._store = store
        self._capabilities = capabilities

    async def accept(self, caller: Caller, volumes: Sequence[Volume]) -> tuple[Volume, ...]:
        """Return the volumes as they are stored with the job.

        Raises, with the field at fault: Invalid for what can be no volume, NotFound or Forbidden for a source that
        the caller may not mount, Unsupported for what this server does not have.
        """
        if not volumes:
            return ()
        if not self._capabilities.volumes:
            raise Unsupported(f"volumes: {self._capabilities.without_volumes}; submit the job without volumes")
        check_mount_paths([volume.mount_path for volume in volumes])
        return tuple([await self._accept(caller, f"volumes[{i}]", volume) for i, volume in enumerate(volumes)])

    async def _accept(self, caller: Caller, field: str, volume: Volume) -> Volume:
        if volume.kind is not VolumeKind.BUCKET:
            raise Unsupported(
                f"{field}.type: this version of Runstead has no {volume.kind} repositories yet, so the job was not "
                f"created; mount a bucket, like hf://buckets/owner/name, instead of {volume.source!r}"
            )
        if volume.revision is not None:
            raise Invalid(
                f"a bucket has no revisions, so none can be mounted: {volume.revision!r}", f"{field}.revision"
            )
        bucket = await self._bucket(caller, f"{field}.source", volume)
        path = volume.path.strip("/")
        if path:
            await self._check_folder(f"{field}.path", bucket, path)
        return replace(volume, source=bucket.path, path=path, source_id=bucket.id)

    async def _bucket(self, caller: Caller, field: str, volume: Volume) -> Bucket:
        namespace, separator, name = volume.source.partition("/")
        if not separator or not namespace or not name or "/" in name:
            raise Invalid(f"should be owner/name, not {volume.source[:200]!r}", field)
        needed = Permission.READ if volume.read_only else Permission.WRITE
        try:
            return await self._buckets.get(caller, namespace, name, needed)
        except RepoNotFound as error:
            raise RepoNotFound(f"{field}: {error.message}") from error
        except Forbidden as error:
            raise Forbidden(f"{field}: {error.message}; mount it read-only (:ro), or use a bucket of yours") from error

    async def _check_folder(self, field: str, bucket: Bucket, path: str) -> None:
        problem = path_problem(path)
        if problem is not None:
            raise Invalid(f"{problem}: {path[:200]!r}", field)
        if await self._store.tree(bucket.seq, path, path + "/", 1):
            return
        if await self._store.files(bucket.seq, [path]):
            raise Invalid(f"a folder is mounted, and this is a file of {bucket.path}: {path[:200]!r}", field)
        raise Invalid(f"there is no such folder in {bucket.path}; put a file into it first: {path[:200]!r}", field)


class MountRequests:
    """What a provider is asked for, made of what is stored; always anew, because it holds tokens."""

    def __init__(
        self,
        jobs: JobStore,
        buckets: BucketStore,
        tokens: MountTokens,
        clock: Clock,
        endpoint: str,
        *,
        recovery: bool = False,
    ) -> None:
        """`endpoint` is where this server is reached from the node; with `recovery` the job may be over."""
        self._jobs = jobs
        self._buckets = buckets
        self._tokens = tokens
        self._clock = clock
        self._endpoint = endpoint
        self._recovery = recovery

    async def of_attempt(self, job_id: str, attempt: int) -> list[MountRequest]:
        """Return the requests of one attempt. Raises NotFound without its job, or without a source."""
        job = await self._jobs.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id!r}")
        return [await self._of_volume(job, attempt, index) for index in range(len(job.spec.volumes))]

    async def _of_volume(self, job: Job, attempt: int, index: int) -> MountRequest:
        volume = job.spec.volumes[index]
        namespace, _, name = volume.source.partition("/")
        bucket = await self._buckets.find(namespace, name)
        if bucket is None or bucket.id != volume.source_id:
            raise NotFound(f"the bucket was deleted or renamed after the job was created: {volume.source}")
        permission = Permission.READ if volume.read_only else Permission.WRITE
        caller = MountCaller(job.id, attempt, {bucket.id: permission})
        expires_at = self._clock.now() + timedelta(seconds=job.spec.timeout_seconds) + _TOKEN_SPARE
        return MountRequest(
            job_id=job.id,
            attempt=attempt,
            namespace=job.namespace,
            index=index,
            volume=volume,
            endpoint=self._endpoint,
            token=self._tokens.mint_for_recovery(caller) if self._recovery else self._tokens.mint(caller, expires_at),
            expires_at=expires_at,
        )


class Volumes:
    """The volumes of attempts, from before their start until after their end."""

    def __init__(
        self, provider: VolumeProvider, requests: MountRequests, store: BucketStore, flush_seconds: float
    ) -> None:
        self._provider = provider
        self._requests = requests
        self._store = store
        self._flush_seconds = flush_seconds

    async def prepare(self, job: Job) -> tuple[Mount, ...]:
        """Make the volumes of the job's attempt appear on the node. Raises as `VolumeProvider.prepare` does."""
        if not job.spec.volumes:
            return ()
        requests = await self._requests.of_attempt(job.id, job.attempt)
        for request in requests:
            await self._check_there(request.volume)
        return tuple(await self._provider.prepare(requests))

    async def flush(self, job: Job) -> Flushed:
        """Return when what the attempt wrote is in its buckets. Raises as `VolumeProvider.flush` does."""
        return await self._provider.flush(job.id, job.attempt, self._flush_seconds)

    async def release(self, job: Job) -> None:
        """Give back what the attempt's volumes hold on the node; what is in no bucket yet is kept."""
        if job.spec.volumes:
            await self._provider.release(job.id, job.attempt, keep_unflushed=True)

    async def forget(self, job_id: str, attempt: int) -> None:
        """The same, for an attempt that no job needs."""
        await self._provider.release(job_id, attempt, keep_unflushed=True)

    async def owned(self) -> list[tuple[str, int]]:
        """Return (job_id, attempt) of every attempt with volumes on this node."""
        return await self._provider.owned()

    async def _check_there(self, volume: Volume) -> None:
        """Raise EntryNotFound if the mounted folder went away since the job was created."""
        if not volume.path:
            return
        namespace, _, name = volume.source.partition("/")
        bucket = await self._store.find(namespace, name)
        if bucket is not None and not await self._store.tree(bucket.seq, volume.path, volume.path + "/", 1):
            raise EntryNotFound(f"the folder was deleted after the job was created: {volume.source}/{volume.path}")
