"""What jobs wrote to their volumes: noted with every batch that comes from one, so it is there when the job is not."""

from collections.abc import AsyncIterator

from runstead.model.buckets import Output
from runstead.model.errors import NotFound
from runstead.stores.interface import BucketLog, JobStore

PAGE = 1000

Place = tuple[int, str]
START: Place = (0, "")


class Outputs:
    """Of any job; whether somebody may see the job was decided before."""

    def __init__(self, jobs: JobStore, log: BucketLog) -> None:
        self._jobs = jobs
        self._log = log

    async def page(self, job_id: str, after: Place) -> tuple[list[Output], Place | None]:
        """Return a page of files by bucket and path, and where the next begins (None: there is none)."""
        found = await self._log.outputs(job_id, after, PAGE + 1)
        last = found[PAGE - 1] if len(found) > PAGE else None
        return found[:PAGE], None if last is None else (last.bucket_seq, last.path)

    async def all(self, job_id: str) -> AsyncIterator[Output]:
        """Yield all of them. Raises NotFound without the job."""
        if await self._jobs.get(job_id) is None:
            raise NotFound(f"there is no such job: {job_id}")
        after: Place | None = START
        while after is not None:
            page, after = await self.page(job_id, after)
            for output in page:
                yield output
