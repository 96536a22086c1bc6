"""What jobs wrote and could not be saved when they ended: brought into its buckets later, or given up."""

from collections.abc import AsyncIterator

from runstead.model.errors import NotFound
from runstead.model.jobs import Job
from runstead.model.volumes import Flushed
from runstead.stores.interface import JobStore
from runstead.volumes.interface import VolumeProvider


class Recovery:
    """For the operator of the server's machine. The server runs meanwhile: content goes through its API."""

    def __init__(self, store: JobStore, provider: VolumeProvider, within_seconds: float) -> None:
        self._store = store
        self._provider = provider
        self._within_seconds = within_seconds

    async def recover(self, job_id: str) -> AsyncIterator[tuple[int, Flushed]]:
        """Save what is kept of a job's attempts, oldest first, and yield what came into its buckets of each.

        Raises NotFound when nothing is kept of it, Unavailable when it cannot be saved now; then it stays kept.
        """
        found = False
        job = await self._ended(job_id)
        for attempt in range(1, job.attempt + 1):
            try:
                flushed = await self._provider.flush(job.id, attempt, self._within_seconds)
            except NotFound:
                continue
            found = True
            await self._provider.release(job.id, attempt, keep_unflushed=True)
            yield attempt, flushed
        if not found:
            raise NotFound(f"nothing is kept of this job on this machine: {job_id}")

    async def discard(self, job_id: str) -> None:
        """Give up what is kept of a job."""
        job = await self._ended(job_id)
        for attempt in range(1, job.attempt + 1):
            await self._provider.release(job.id, attempt, keep_unflushed=False)

    async def _ended(self, job_id: str) -> Job:
        job = await self._store.get(job_id)
        if job is None or not job.stage.is_terminal:
            state = (
                "there is no such job" if job is None else "this job is not over, and its files are saved when it is"
            )
            raise NotFound(f"{state}: {job_id}")
        return job
