"""The way into the attempt of a running job."""

from runstead.executors.interface import Executor, Inside
from runstead.model.errors import NotRunning
from runstead.model.jobs import Job, Phase
from runstead.model.launches import Handle


async def inside_of(executor: Executor, job: Job) -> Inside:
    """Return the inside of a job's attempt. Raises NotRunning."""
    if job.phase is not Phase.RUNNING or job.handle is None:
        raise NotRunning(f"the job does not run: its stage is {job.stage}: {job.id}")
    return await executor.inside(Handle(job.handle["executor"], job.handle["version"], job.handle["data"]))
