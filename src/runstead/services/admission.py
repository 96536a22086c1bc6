"""Which waiting jobs may start now, and why the others wait.

The queue is first come, first served by what a job needs: the oldest job that does not fit holds its share
back from all younger ones, so that a large job is never starved by small ones, while jobs that need nothing it
lacks pass it. Jobs of one flavor need the same, so only the heads of each flavor's queue are looked at, and
the cost of a round does not grow with the length of the queue.
"""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from runstead.events.interface import QUEUE, EventBus
from runstead.kit.clock import Clock
from runstead.kit.wakeup import Wakeup
from runstead.model.hardware import Flavor, Resources
from runstead.model.jobs import Job, Phase, Reservation
from runstead.services.hardware import Hardware
from runstead.stores.interface import Admission, JobStore, Waiting

_HEADS_PER_FLAVOR = 64
# A round that could admit nothing is not repeated for every new submission.
_PAUSE_WHEN_FULL_SECONDS = 0.02
_REPAIR_QUEUE_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of one round: what to admit, and per flavor that waits on, what it lacks."""

    admissions: Sequence[Admission]
    blocked: Mapping[str, str]


@dataclass(slots=True)
class _Free:
    cpu_millicores: int
    memory_bytes: int
    gpu_ids: list[str]


def plan(
    waiting: Sequence[Waiting],
    flavors: Mapping[str, Flavor],
    capacity: Resources | None,
    gpu_ids: Sequence[str],
    held: Sequence[Reservation],
    executor: str,
) -> Plan:
    """Decide one round. `capacity` None means that the backend queues by itself: everything is admitted."""
    jobs = sorted((job for heads in waiting for job in heads.jobs), key=lambda job: job.seq)
    if capacity is None:
        return Plan([Admission(job.id, job.attempt, None, executor) for job in jobs], {})
    taken = {gpu for reservation in held for gpu in reservation.gpu_ids}
    free = _Free(
        capacity.cpu_millicores - sum(r.cpu_millicores for r in held),
        capacity.memory_bytes - sum(r.memory_bytes for r in held),
        [gpu for gpu in gpu_ids if gpu not in taken],
    )
    admissions: list[Admission] = []
    blocked: dict[str, str] = {}
    for job in jobs:
        if job.spec.flavor in blocked:
            continue
        flavor = flavors.get(job.spec.flavor)
        if flavor is None:
            blocked[job.spec.flavor] = f"the configuration no longer has flavor {job.spec.flavor!r}; cancel the job"
            continue
        lack = _lack(flavor.resources, free, capacity)
        wanted = flavor.resources
        gpus = free.gpu_ids[: wanted.gpus]
        # What a blocked job needs is held back for it as well.
        free.cpu_millicores -= wanted.cpu_millicores
        free.memory_bytes -= wanted.memory_bytes
        del free.gpu_ids[: wanted.gpus]
        if lack:
            blocked[job.spec.flavor] = lack
        else:
            reservation = Reservation(wanted.cpu_millicores, wanted.memory_bytes, tuple(gpus))
            admissions.append(Admission(job.id, job.attempt, reservation, executor))
    return Plan(admissions, blocked)


def _lack(wanted: Resources, free: _Free, capacity: Resources) -> str | None:
    lacks: list[str] = []
    if wanted.gpus > len(free.gpu_ids):
        lacks.append(f"{wanted.gpus} GPU ({len(free.gpu_ids)} of {capacity.gpus} free)")
    if wanted.cpu_millicores > free.cpu_millicores:
        lacks.append(
            f"{wanted.cpu_millicores / 1000:g} vCPU "
            f"({max(free.cpu_millicores, 0) / 1000:g} of {capacity.cpu_millicores / 1000:g} free)"
        )
    if wanted.memory_bytes > free.memory_bytes:
        lacks.append(
            f"{wanted.memory_bytes / 1e9:.1f} GB memory "
            f"({max(free.memory_bytes, 0) / 1e9:.1f} of {capacity.memory_bytes / 1e9:.1f} free)"
        )
    return "waiting for " + " and ".join(lacks) if lacks else None


class AdmissionRounds:
    """Runs rounds of admission when something changed, and tells waiting jobs why they wait."""

    def __init__(
        self,
        store: JobStore,
        hardware: Hardware,
        events: EventBus,
        clock: Clock,
        executor: str,
        owner: str,
        lease: timedelta,
        poll_seconds: float,
        take: Callable[[Sequence[Job]], None],
    ) -> None:
        self._store = store
        self._hardware = hardware
        self._events = events
        self._clock = clock
        self._executor = executor
        self._owner = owner
        self._lease = lease
        self._poll_seconds = poll_seconds
        self._take = take
        self._blocked: Mapping[str, str] = {}
        self._queue: list[tuple[int, str]] = []
        self._queue_repaired_at: datetime | None = None
        self._next_look: datetime | None = None
        self._watchers: dict[str, Wakeup] = {}

    @contextmanager
    def watched(self, job_id: str, wakeup: Wakeup) -> Generator[None]:
        """Wake `wakeup` when a round looked at this job and left it waiting, so that its submitter hears so."""
        self._watchers[job_id] = wakeup
        try:
            yield
        finally:
            del self._watchers[job_id]

    def is_blocked(self, flavor: str) -> bool:
        """Say whether the last round left jobs of this flavor waiting."""
        return flavor in self._blocked

    def joined(self, job: Job) -> None:
        """Note a new waiting job in the view of the queue."""
        insort(self._queue, (job.seq, job.id))

    def left(self, job: Job) -> None:
        """Note that a job waits no longer."""
        index = bisect_left(self._queue, (job.seq, job.id))
        if index < len(self._queue) and self._queue[index] == (job.seq, job.id):
            del self._queue[index]

    def reason(self, job: Job) -> str | None:
        """Return why a waiting job waits, its place in the queue, and when it is looked at next."""
        if job.phase is not Phase.WAITING:
            return job.message
        now = self._clock.now()
        if job.not_before is not None and job.not_before > now:
            return f"{job.message}; looked at again at {job.not_before:%H:%M:%S} UTC"
        blocked = self._blocked.get(job.spec.flavor)
        if blocked is None:
            return job.message
        place = bisect_left(self._queue, (job.seq, job.id)) + 1
        next_look = self._next_look or now
        return (
            f"{blocked}; position {place} of {max(len(self._queue), place)} in the queue; looked at whenever a job "
            f"ends, and next at {next_look:%H:%M:%S} UTC"
        )

    async def run(self) -> None:
        """Run rounds until cancelled."""
        with self._events.subscribe(QUEUE) as wakeup:
            while True:
                if await self.run_once() >= _HEADS_PER_FLAVOR:
                    continue  # there may be more where these came from
                if self._blocked:
                    await asyncio.sleep(_PAUSE_WHEN_FULL_SECONDS)
                self._next_look = self._clock.now() + timedelta(seconds=self._poll_seconds)
                await wakeup.wait(self._poll_seconds)

    async def run_once(self) -> int:
        """Run one round; return how many jobs were admitted."""
        now = self._clock.now()
        await self._repair_queue(now)
        waiting = await self._store.waiting(now, _HEADS_PER_FLAVOR)
        if not waiting:
            self._blocked = {}
            return 0
        machine = self._hardware.machine
        outcome = plan(
            waiting,
            {flavor.name: flavor for flavor in self._hardware.flavors()},
            self._hardware.capacity,
            [gpu.id for gpu in machine.gpus] if machine else [],
            await self._store.held(self._executor),
            self._executor,
        )
        self._blocked = outcome.blocked
        jobs: list[Job] = []
        if outcome.admissions:
            jobs = await self._store.admit(outcome.admissions, self._owner, now + self._lease, now)
            for job in jobs:
                self.left(job)
            self._take(jobs)
        started = {job.id for job in jobs}
        for heads in waiting:
            for job in heads.jobs:
                if job.id not in started and (watcher := self._watchers.get(job.id)):
                    watcher.notify()
        return len(jobs)

    async def _repair_queue(self, now: datetime) -> None:
        if self._queue_repaired_at is None or now - self._queue_repaired_at > _REPAIR_QUEUE_EVERY:
            self._queue_repaired_at = now
            self._queue = sorted(await self._store.queue())
