"""Brings jobs from what is stored to what was asked for, one small step at a time.

A job that this server works on is leased to it and kept in `_active`. Whatever happens to it (an event from
its executor, a request to cancel it, a slow poll) wakes the job's own task, which asks `decide` for the next
step, carries it out and asks again until there is nothing to do. Steps of one job never overlap.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import structlog

from runstead.events.interface import JOBS, LOGS, QUEUE, WORK, EventBus
from runstead.executors.interface import Executor
from runstead.kit.clock import Clock
from runstead.logs.interface import LogStore
from runstead.model.errors import RunsteadError
from runstead.model.jobs import FailureClass, Job, Phase, Transition
from runstead.model.launches import Handle, Observation
from runstead.model.volumes import Flushed
from runstead.services import decide as steps
from runstead.services.launching import Launching
from runstead.services.preparing import CanceledMeanwhile, Preparing, StartProblem, start_problem
from runstead.services.volumes import Volumes
from runstead.stores.interface import JobStore

log = structlog.get_logger()

LEASE = timedelta(seconds=30)
_RENEW_EVERY = timedelta(seconds=10)
_CLAIM_AT_ONCE = 256
_STEPS_AT_ONCE = 32
_REMEMBERED = 64
_START_TRIES = 5
_SHORT_REST_SECONDS = 0.5
_SHORT_GRACE_SECONDS = 1.0


class Reconcile:
    """Carries out the steps of the jobs leased to this server."""

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        instance: str,
        logs: LogStore,
        launching: Launching,
        events: EventBus,
        clock: Clock,
        owner: str,
        poll_seconds: float,
        cancel_grace_seconds: float,
        volumes: Volumes,
        preparing: Preparing,
    ) -> None:
        self._store = store
        self._executor = executor
        self._instance = instance
        self._logs = logs
        self._launching = launching
        self._events = events
        self._clock = clock
        self._owner = owner
        self._poll_seconds = poll_seconds
        self._grace = cancel_grace_seconds
        self._volumes = volumes
        self._preparing = preparing
        self._active: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken: set[str] = set()
        self._fresh: set[str] = set()  # of the active ones, those that nothing happened to since they were read
        self._slots = asyncio.Semaphore(_STEPS_AT_ONCE)
        self._over: deque[str] = deque(maxlen=_REMEMBERED)  # the last that we finished: news of them is old
        self._start_failures: dict[str, int] = {}
        self._refused: set[str] = set()
        self._recovered = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled; the tasks of single jobs are awaited before this returns."""
        try:
            with self._events.subscribe(WORK) as wakeup:
                await self.recover()
                self._recovered.set()
                next_poll = self._clock.now()
                renewed_at = self._clock.now()
                while True:
                    keys = await wakeup.wait(self._poll_seconds)
                    strangers = [key for key in keys if not self.wake(key) and key not in self._over]
                    now = self._clock.now()
                    if now >= next_poll or strangers or self._refused:
                        await self.claim()
                    if now >= next_poll:
                        next_poll = now + timedelta(seconds=self._poll_seconds)
                        await self._poll_all()
                    if now - renewed_at >= _RENEW_EVERY and self._active:
                        renewed_at = now
                        await self._store.renew(self._owner, now + LEASE)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def recover(self) -> None:
        """After a start: take over what an earlier process of this server left, and remove what nobody owns."""
        await self._store.release_leases(self._owner.rpartition("/")[0] + "/")
        await self.claim()
        for job_id, attempt, handle in await self._executor.owned():
            if not await self._is_wanted(job_id, attempt):
                log.info("removing an attempt that no job needs", job=job_id, attempt=attempt)
                await self._executor.remove(handle)
        for job_id, attempt in await self._volumes.owned():
            if not await self._is_wanted(job_id, attempt):
                log.info("removing the volumes of an attempt that no job needs", job=job_id, attempt=attempt)
                await self._volumes.forget(job_id, attempt)

    async def _is_wanted(self, job_id: str, attempt: int) -> bool:
        job = await self._store.get(job_id)
        return job is not None and job.attempt == attempt and job.phase not in (Phase.WAITING, Phase.DONE)

    async def claim(self) -> None:
        """Lease the unfinished jobs that nobody works on."""
        while True:
            now = self._clock.now()
            jobs = await self._store.claim([self._instance], self._owner, now, now + LEASE, _CLAIM_AT_ONCE)
            self.take(jobs)
            if len(jobs) < _CLAIM_AT_ONCE:
                break
        if self._refused:
            self._refused.clear()
            self.take([job for job in await self._store.leased(self._owner) if job.id not in self._active])

    def in_hand(self) -> list[Job]:
        """Return the jobs that this server works on, as it last saw them."""
        return list(self._active.values())

    def take(self, jobs: Sequence[Job]) -> None:
        """Begin to work on jobs that were just leased to this server."""
        for job in jobs:
            self._active[job.id] = job
            self.wake(job.id)
            self._fresh.add(job.id)

    def wake(self, job_id: str) -> bool:
        """Look at a job as soon as possible; False when it is not one of ours."""
        if job_id not in self._active:
            return False
        self._woken.add(job_id)
        self._fresh.discard(job_id)
        if job_id not in self._tasks:
            task = asyncio.create_task(self._work(job_id), name=f"job {job_id}")
            self._tasks[job_id] = task
        return True

    async def cancel_all(self, within_seconds: float) -> None:
        """Cancel every job that is not over and return when nothing of them is left, or at the time limit.

        For a server whose jobs shall not outlive it; they get little time to say good-bye.
        """
        self._grace = min(self._grace, _SHORT_GRACE_SECONDS)
        deadline = self._clock.now() + timedelta(seconds=within_seconds)
        canceled: set[str] = set()
        with self._events.subscribe(JOBS) as changed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_seconds):
                    await self._recovered.wait()  # else jobs of the last server would be nobody's yet
            while True:
                await self.claim()
                queued = [job_id for _, job_id in await self._store.queue()]
                for job_id in {*queued, *self._active} - canceled:
                    canceled.add(job_id)
                    await self._store.request_cancel(job_id, self._clock.now())
                    self.wake(job_id)
                left = (deadline - self._clock.now()).total_seconds()
                if not self._active or left <= 0:
                    break
                await changed.wait(min(left, self._poll_seconds))
        for _, _, handle in await self._executor.owned():
            await self._executor.remove(handle)

    async def _poll_all(self) -> None:
        """Look at every running attempt in one call, and at each job whose state does not fit."""
        jobs = [job for job in self._active.values() if job.handle is not None and job.id not in self._tasks]
        seen = await self._executor.poll([_handle(job) for job in jobs])
        for job, one in zip(jobs, seen, strict=True):
            current = self._active.get(job.id)
            if current is job and not isinstance(steps.decide(job, one, self._clock.now()), steps.Wait):
                self.wake(job.id)
        for job in list(self._active.values()):
            if job.handle is None:
                self.wake(job.id)

    async def _work(self, job_id: str) -> None:
        try:
            while job_id in self._woken and job_id in self._active:
                self._woken.discard(job_id)
                async with self._slots:
                    await self._advance(job_id)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a step of a job failed; it will be tried again", job=job_id)
        finally:
            del self._tasks[job_id]
            if job_id not in self._active:
                self._woken.discard(job_id)
            elif job_id in self._woken:
                self.wake(job_id)

    async def _advance(self, job_id: str) -> None:
        """Take steps until there is nothing to do for this job right now."""
        job = self._active.get(job_id) if job_id in self._fresh else await self._store.get(job_id)
        self._fresh.discard(job_id)
        saved: steps.Saved = None
        seen: Observation | None = None
        sealed = began = False
        while job is not None and job_id in self._active:
            self._active[job_id] = job
            if began:  # and was looked at just now; what happens to it from here on wakes us
                began = False
            elif saved is None:  # else it is over, and how it ended was seen before it was removed
                asked = job.handle is not None and job.phase is not Phase.RELEASING
                seen = (await self._executor.poll([_handle(job)]))[0] if asked else None
            step = steps.decide(job, seen, self._clock.now(), saved)
            match step:
                case steps.Wait():
                    return
                case steps.Stop():
                    await self._executor.stop(_handle(job), self._grace)
                    return
                case steps.Start():
                    job, seen = await self._start(job)
                    began = seen is not None
                case steps.Save():
                    if step.lost:
                        await self._executor.remove(_handle(job))
                    job = await self._apply(job, step.then)
                    if job is not None:
                        saved = await self._save(job)
                case steps.Release():
                    if not sealed:
                        await self._logs.seal(job.id, job.attempt)
                    await self._remove(job)
                    job = await self._apply(job, step.then)
                case steps.Retry():
                    # The attempt is over and on record, so the next may be queued before the last is tidied up.
                    await self._logs.seal(job.id, job.attempt)
                    ended = job
                    job = await self._apply(job, step.then)
                    await self._remove(ended)
                case steps.Finish():
                    await self._logs.seal(job.id, job.attempt)
                    sealed = True
                    job = await self._apply(job, step.then)
                case steps.Apply():
                    job = await self._apply(job, step.then)

    async def _start(self, job: Job) -> tuple[Job | None, Observation | None]:
        """Return the job as it is then, and the attempt as it was seen if there is one."""
        try:
            launch = await self._preparing.prepare(job, lambda: self._take_wake(job.id), self._out_of_turn)
            try:
                handle = await self._executor.start(launch)
            except RunsteadError as error:
                raise start_problem(error, FailureClass.USER, FailureClass.INFRA) from error
        except CanceledMeanwhile:
            return await self._store.get(job.id), None
        except StartProblem as problem:
            failures = self._start_failures[job.id] = self._start_failures.get(job.id, 0) + 1
            if problem.soon and failures < _START_TRIES:
                log.warning("an attempt could not be started yet", job=job.id, reason=problem.error.message)
                await self._clock.sleep(_SHORT_REST_SECONDS * failures)
                self._woken.add(job.id)
                return None, None
            return await self._failed_start(job, problem.failure, problem.error, again=problem.again), None
        self._start_failures.pop(job.id, None)
        stored = {"executor": handle.executor, "version": handle.version, "data": dict(handle.data)}
        seen = (await self._executor.poll([handle]))[0]
        # One that is over already ran all the same, and is said to run before it is said to have ended.
        began = seen.exit.started_at if seen.exit else seen.started_at
        moved = steps.running(job, began or self._clock.now(), self._launching.note(job), self._clock.now())
        return await self._apply(job, replace(moved, handle=stored)), seen

    def _take_wake(self, job_id: str) -> bool:
        """Whether a job was woken since this was last asked; what takes long looks at it by itself."""
        woken = job_id in self._woken
        self._woken.discard(job_id)
        return woken

    async def _save(self, job: Job) -> Flushed | steps.NotSaved:
        """Bring what the attempt wrote into its buckets."""
        async with self._out_of_turn():
            try:
                flushed = await self._volumes.flush(job)
            except RunsteadError as error:
                log.warning("what a job wrote could not be saved", job=job.id, reason=error.message)
                await self._logs.append(job.id, job.attempt, [f"runstead: {error.message}"], self._clock.now())
                return steps.NotSaved(error.message)
        if flushed.notes:
            notes = [f"runstead: {note}" for note in flushed.notes]
            await self._logs.append(job.id, job.attempt, notes, self._clock.now())
        return flushed

    @asynccontextmanager
    async def _out_of_turn(self) -> AsyncGenerator[None]:
        """Let the steps of other jobs go on meanwhile, for what may take long."""
        self._slots.release()
        try:
            yield
        finally:
            await self._slots.acquire()

    async def _failed_start(self, job: Job, failure: FailureClass, error: RunsteadError, *, again: bool) -> Job | None:
        self._start_failures.pop(job.id, None)
        now = self._clock.now()
        reason = f"the attempt could not be started: {error.message}"
        await self._logs.append(job.id, job.attempt, [f"{failure}: {reason}"], now)
        await self._logs.seal(job.id, job.attempt)
        if again and job.cancel_requested_at is None and job.attempt < job.spec.attempts:
            await self._remove(job)
            return await self._apply(job, steps.retry(job, failure, reason, now))
        return await self._apply(job, steps.ended(job, failure, reason, now))

    async def _remove(self, job: Job) -> None:
        await self._remove_attempt(job)
        await self._volumes.release(job)

    async def _remove_attempt(self, job: Job) -> None:
        if job.handle is not None:
            await self._executor.remove(_handle(job))
            return
        # A crash, or a failed start, may have left an attempt whose handle was never saved.
        for job_id, attempt, handle in await self._executor.owned():
            if (job_id, attempt) == (job.id, job.attempt):
                await self._executor.remove(handle)

    async def _apply(self, job: Job, transition: Transition) -> Job | None:
        applied = await self._store.apply(transition, self._owner)
        if applied is None:
            # Somebody else holds the job, or changed it: look at it afresh, if it is still ours.
            del self._active[job.id]
            self._refused.add(job.id)
            self._events.publish(WORK, job.id)
            return None
        if applied.phase in (Phase.WAITING, Phase.DONE):
            del self._active[job.id]
            if applied.phase is Phase.DONE:
                self._over.append(job.id)
            self._start_failures.pop(job.id, None)
        else:
            self._active[job.id] = applied
        self._events.publish(JOBS, job.id)
        if applied.stage.is_terminal or applied.phase is Phase.WAITING:
            self._events.publish(LOGS, job.id)
        if applied.phase in (Phase.WAITING, Phase.RELEASING, Phase.DONE):
            self._events.publish(QUEUE)
        return applied


def _handle(job: Job) -> Handle:
    if job.handle is None:
        raise ValueError(f"job {job.id} has no handle")
    return Handle(job.handle["executor"], job.handle["version"], job.handle["data"])
