"""Deletes what has been kept long enough: finished jobs and their logs."""

from datetime import timedelta

from runstead.kit.clock import Clock
from runstead.logs.interface import LogStore
from runstead.stores.interface import JobStore

_AT_ONCE = 500
EVERY_SECONDS = 600.0


class Sweeper:
    """Forgets old jobs. `retention_days` 0 keeps them for ever."""

    def __init__(self, store: JobStore, logs: LogStore, clock: Clock, retention_days: float) -> None:
        self._store = store
        self._logs = logs
        self._clock = clock
        self._retention = timedelta(days=retention_days)

    async def run(self) -> None:
        """Sweep, then rest."""
        await self.run_once()
        await self._clock.sleep(EVERY_SECONDS)

    async def run_once(self) -> int:
        """Delete all jobs that finished longer ago than they are kept; return how many."""
        if not self._retention:
            return 0
        deleted = 0
        while jobs := await self._store.delete_finished(self._clock.now() - self._retention, _AT_ONCE):
            for job in jobs:
                await self._logs.delete(job.id)
            deleted += len(jobs)
        return deleted
