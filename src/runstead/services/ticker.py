"""Begins the runs of schedules at their due instants, once each.

It sleeps until the next due instant, is woken when that changes, and looks once in a while without a reason: for a
clock that was set, and for what another server was told that is no more. What it decides takes effect only while the
schedule is as it was seen, so any number of servers may run one.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

import structlog

from runstead.events.interface import SCHEDULES, EventBus
from runstead.kit.clock import Clock
from runstead.model.accounts import Caller
from runstead.model.errors import Conflict, Forbidden, Invalid, OverBudget, RunsteadError, Unavailable
from runstead.model.schedules import Fired, Firing, Outcome, Schedule, ScheduleEvent, ScheduleEventKind
from runstead.services import cron
from runstead.services.jobs import Jobs
from runstead.services.scheduled_runs import ScheduledRuns
from runstead.stores.interface import ScheduleChange, ScheduleStore

log = structlog.get_logger()

LONGEST_SLEEP_SECONDS = 5.0
# What is later than this was missed, and `catch_up` says what becomes of it.
LATE = timedelta(minutes=1)
MOST_CAUGHT_UP = 1000
_AT_ONCE = 256  # as many as the database writes together
_REST_SECONDS = 1.0


class CatchUp(StrEnum):
    """What becomes of the due instants that passed while no server ran."""

    ONCE = "once"
    SKIP = "skip"
    ALL = "all"


class Ticker:
    """Begins due runs of all namespaces."""

    def __init__(
        self,
        store: ScheduleStore,
        runs: ScheduledRuns,
        jobs: Jobs,
        events: EventBus,
        clock: Clock,
        zone: ZoneInfo,
        catch_up: CatchUp,
    ) -> None:
        self._store = store
        self._runs = runs
        self._jobs = jobs
        self._events = events
        self._clock = clock
        self._zone = zone
        self._catch_up = catch_up
        # The schedules that are given all they missed, each with the first instant that it still gets.
        self._catching_up: dict[str, datetime] = {}

    async def run(self) -> None:
        """Begin runs until cancelled."""
        with self._events.subscribe(SCHEDULES) as changed:
            await self.adopt_zone()
            while True:
                await changed.wait(await self.run_once())

    async def adopt_zone(self) -> None:
        """Find the next runs anew that were found in another time zone. One that is due by now is not put off."""
        now = self._clock.now()
        for schedule in await self._store.in_other_zones(self._zone.key):
            next_run_at = schedule.next_run_at
            if next_run_at is None or next_run_at > now:
                try:
                    next_run_at = cron.parse(schedule.expression, self._zone).after(now)
                except Invalid as error:
                    await self._suspend(schedule, error.message)
                    continue
            await self._store.change(schedule, ScheduleChange(timing=(next_run_at, self._zone.key)))

    async def run_once(self) -> float:
        """Begin what is due; return after how many seconds to look again."""
        now = self._clock.now()
        due = await self._store.due(now, _AT_ONCE)
        callers = await self._runs.callers_of(due)
        rests = await asyncio.gather(
            *(self._tick(schedule, now, caller) for schedule, caller in zip(due, callers, strict=True))
        )
        if len(due) == _AT_ONCE:
            return 0 if not any(rests) else max(rests)
        next_due = await self._store.next_due()
        if next_due is None:
            return LONGEST_SLEEP_SECONDS
        left = (next_due - self._clock.now()).total_seconds()
        return min(max(left, 0, *rests), LONGEST_SLEEP_SECONDS)

    async def _tick(self, schedule: Schedule, now: datetime, caller: Caller | Forbidden) -> float:
        """Let the schedule's due instant take effect; return how long to rest if that was not possible."""
        try:
            firing = self._decide(schedule, now)
        except Invalid as error:  # stored by a version that understood more
            await self._suspend(schedule, error.message)
            return 0
        try:
            await self._fire(firing, caller)
        except Unavailable as error:
            log.warning("a due run could not begin yet", schedule=schedule.id, reason=error.message)
            return _REST_SECONDS
        except Exception:
            log.exception("a due run could not begin; it is passed over", schedule=schedule.id)
            await self._store.fire(replace(firing, message="the server failed on this run; its log says why"))
        return 0

    async def _fire(self, firing: Firing, caller: Caller | Forbidden) -> Fired:
        schedule = firing.schedule
        if firing.message is None and firing.missed is not None and self._catch_up is CatchUp.SKIP:
            return await self._store.fire(firing)
        try:
            job = await self._runs.prepare(schedule, firing.due_at, caller)
        except Unavailable:
            raise
        except RunsteadError as error:
            await self._suspend(schedule, error.message)
            return Fired(Outcome.SKIPPED)
        try:
            async with self._jobs.reserved(job):
                fired = await self._store.fire(replace(firing, job=job))
        except (OverBudget, Conflict) as error:
            return await self._store.fire(replace(firing, message=error.message))
        if fired.outcome is Outcome.STARTED and fired.job is not None:
            self._jobs.entered(fired.job)
        return fired

    async def _suspend(self, schedule: Schedule, reason: str) -> None:
        log.warning("a schedule suspends itself", schedule=schedule.id, reason=reason)
        event = ScheduleEvent(self._clock.now(), ScheduleEventKind.SUSPENDED, message=reason)
        change = ScheduleChange(event, suspended=True, suspend_reason=reason, timing=(None, self._zone.key))
        await self._store.change(schedule, change)

    def _decide(self, schedule: Schedule, now: datetime) -> Firing:
        """Return what shall happen at the schedule's due instant, the job aside."""
        times = cron.parse(schedule.expression, self._zone)
        due = schedule.next_run_at or now
        if now - due <= LATE:
            self._catching_up.pop(schedule.id, None)
            return Firing(schedule, due, times.after(due), now, None)
        match self._catch_up:
            case CatchUp.SKIP:
                following = times.after(now - LATE)
                missed = f"runs were due from {_shown(due)} until {_shown(now - LATE)}, while no server ran"
                return Firing(schedule, due, following, now, None, missed=missed)
            case CatchUp.ONCE:
                last = next(iter(times.latest(due, now, 1)), due)
                missed = None
                if last > due:
                    missed = f"runs were due from {_shown(due)} until {_shown(last)}, while no server ran; one is made"
                return Firing(schedule, last, times.after(now), now, None, missed=missed)
            case CatchUp.ALL:
                return self._one_of_all(schedule, times, due, now)

    def _one_of_all(self, schedule: Schedule, times: cron.Cron, due: datetime, now: datetime) -> Firing:
        first = self._catching_up.get(schedule.id)
        if first is None:
            last: Sequence[datetime] = times.latest(due, now, MOST_CAUGHT_UP)
            first = self._catching_up[schedule.id] = last[0] if last else due
        if due >= first:
            return Firing(schedule, due, times.after(due), now, None)
        missed = f"runs were due from {_shown(due)} on, while no server ran; the last {MOST_CAUGHT_UP:,} are made"
        return Firing(schedule, first, times.after(first), now, None, missed=missed)


def _shown(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
