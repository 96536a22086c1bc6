"""Ends sandboxes that nobody uses: a dedicated one or a host by ending its job, a pooled one by removing it."""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from runstead.events.interface import WORK, EventBus
from runstead.executors.interface import Executor, Inside
from runstead.kit.clock import Clock
from runstead.model.errors import EntryNotFound, NotRunning
from runstead.model.jobs import CancelReason, Job, Phase
from runstead.model.sandboxes import Mode
from runstead.services.sandboxes.activity import SAVE_EVERY_SECONDS, WHOLE, Activity
from runstead.services.sandboxes.entrance import inside_of
from runstead.services.sandboxes.hosts import Hosts
from runstead.stores.interface import JobStore


class Idling:
    """Looks at the running sandboxes of this server every few seconds."""

    def __init__(
        self,
        jobs: JobStore,
        executor: Executor,
        activity: Activity,
        hosts: Hosts,
        events: EventBus,
        clock: Clock,
        in_hand: Callable[[], Collection[Job]],
    ) -> None:
        """`in_hand` returns the jobs that this server works on."""
        self._jobs = jobs
        self._executor = executor
        self._activity = activity
        self._hosts = hosts
        self._events = events
        self._clock = clock
        self._in_hand = in_hand

    async def run(self) -> None:
        """Rest, then look."""
        await self._clock.sleep(SAVE_EVERY_SECONDS)
        await self.run_once()

    async def run_once(self) -> None:
        """End what has been idle for as long as it may, and write down what was used."""
        running = [job for job in self._in_hand() if job.spec.sandbox is not None and job.phase is Phase.RUNNING]
        await self._activity.recall_jobs(running)
        for job in running:
            if job.cancel_requested_at is None:
                try:
                    await self._look(job)
                except NotRunning:
                    continue  # it has just ended
        await self._activity.save()
        self._forget_all_but({job.id for job in running})

    async def _look(self, job: Job) -> None:
        assert job.spec.sandbox is not None
        now = self._clock.now()
        if job.spec.sandbox.mode is Mode.POOL:
            if await self._look_at_members(job, now):
                self._activity.touch(job.id)
                return
        elif not self._is_due(job, WHOLE, job.spec.sandbox.idle_seconds, now):
            return
        elif await self._works(await inside_of(self._executor, job)):
            self._activity.touch(job.id)
            return
        if self._is_due(job, WHOLE, job.spec.sandbox.idle_seconds, now):
            await self._jobs.request_cancel(job.id, now, CancelReason.IDLE)
            self._events.publish(WORK, job.id)

    async def _look_at_members(self, job: Job, now: datetime) -> bool:
        """Remove those that are idle; say whether any is left."""
        idle: list[str] = []
        members = await self._hosts.members(job)
        for member in members:
            sandbox = member.sandbox
            if not self._is_due(job, sandbox.id, sandbox.idle_seconds, now):
                continue
            inside = await inside_of(self._executor, job)
            if await self._works(await inside.compartment(sandbox.id)):
                self._activity.touch(job.id, sandbox.id)
            else:
                idle.append(sandbox.id)
        if idle:
            await self._hosts.remove(job, idle)
        return len(members) > len(idle)

    def _is_due(self, job: Job, sandbox_id: str, idle_seconds: int | None, now: datetime) -> bool:
        if idle_seconds is None:
            return False
        since = self._activity.idle_since(job.id, sandbox_id)
        return since is not None and now - since >= timedelta(seconds=idle_seconds)

    async def _works(self, inside: Inside) -> bool:
        """Say whether a program runs in the background."""
        try:
            return any(program.ended is None for program in await inside.background())
        except EntryNotFound:
            return False

    def _forget_all_but(self, running: Collection[str]) -> None:
        for job_id in self._activity.jobs() - set(running):
            self._activity.forget_job(job_id)
            self._hosts.forget(job_id)
