"""When sandboxes were last used: kept in memory, written down every few seconds, read back after a restart."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from runstead.kit.clock import Clock
from runstead.model.jobs import Job
from runstead.stores.interface import SandboxStore

SAVE_EVERY_SECONDS = 5.0
# Nobody could use a sandbox while no server ran: after a start each gets this time, or its idle timeout if shorter.
_AFTER_START = timedelta(seconds=60)

WHOLE = ""  # the id of a dedicated sandbox, and of a host, within its job
Key = tuple[str, str]


class Activity:
    """The last use of each sandbox: the job's id, and that of its part or `WHOLE`."""

    def __init__(self, store: SandboxStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._opened_at = clock.now()
        self._last: dict[Key, datetime] = {}
        self._busy: dict[Key, int] = {}
        self._unsaved: set[Key] = set()

    def touch(self, job_id: str, sandbox_id: str = WHOLE) -> None:
        """Note that the sandbox is used now."""
        key = (job_id, sandbox_id)
        self._last[key] = self._clock.now()
        self._unsaved.add(key)

    @contextmanager
    def busy(self, job_id: str, sandbox_id: str = WHOLE) -> Generator[None]:
        """Note that the sandbox is used for as long as the context is open."""
        key = (job_id, sandbox_id)
        self._busy[key] = self._busy.get(key, 0) + 1
        self.touch(*key)
        try:
            yield
        finally:
            self._busy[key] -= 1
            if not self._busy[key]:
                del self._busy[key]
            if key in self._last:
                self.touch(*key)

    def recall(self, job_id: str, sandbox_id: str, noted_at: datetime, idle_seconds: int) -> None:
        """Take over what an earlier server noted, if nothing newer is known."""
        # What was noted may be older than the truth by the time between two writings.
        noted_at += timedelta(seconds=SAVE_EVERY_SECONDS)
        idle = timedelta(seconds=idle_seconds)
        if noted_at < self._opened_at:
            noted_at = max(noted_at, self._opened_at - idle + min(idle, _AFTER_START))
        self._last.setdefault((job_id, sandbox_id), noted_at)

    def idle_since(self, job_id: str, sandbox_id: str = WHOLE) -> datetime | None:
        """Return when it was last used; None while it is, or when that is not known."""
        key = (job_id, sandbox_id)
        return None if key in self._busy else self._last.get(key)

    async def recall_jobs(self, jobs: Sequence[Job]) -> None:
        """Find out about those of these jobs of which nothing is known."""
        unknown = {job.id: job for job in jobs if (job.id, WHOLE) not in self._last}
        if not unknown:
            return
        noted = await self._store.activity(unknown)
        for job in unknown.values():
            idle_seconds = (job.spec.sandbox.idle_seconds if job.spec.sandbox else None) or 0
            began = job.started_at or job.created_at
            self.recall(job.id, WHOLE, max(noted.get(job.id, began), began), idle_seconds)

    async def save(self) -> None:
        """Write down what changed since this was last called."""
        keys, self._unsaved = self._unsaved, set()
        at = {key: self._last[key] for key in keys if key in self._last}
        if not at:
            return
        try:
            await self._store.note_activity(at)
        except BaseException:
            self._unsaved |= keys
            raise

    def forget(self, job_id: str, sandbox_id: str = WHOLE) -> None:
        """Forget a sandbox that is over."""
        self._last.pop((job_id, sandbox_id), None)

    def jobs(self) -> set[str]:
        """Return the jobs of which something is known."""
        return {job_id for job_id, _ in self._last}

    def forget_job(self, job_id: str) -> None:
        """Forget a job and its parts."""
        for key in [key for key in self._last if key[0] == job_id]:
            del self._last[key]
