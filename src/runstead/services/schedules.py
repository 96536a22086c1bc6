"""What users do with schedules: make, look, suspend, resume, run now, change, delete.

`runstead.services.ticker` begins the runs that are due.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

from runstead.events.interface import SCHEDULES, EventBus
from runstead.kit.clock import Clock
from runstead.model.accounts import Caller, Permission
from runstead.model.errors import Forbidden, Invalid, NotFound
from runstead.model.ids import is_id, new_id
from runstead.model.jobs import Job, JobSpec
from runstead.model.schedules import NewSchedule, Schedule, ScheduleEvent, ScheduleEventKind
from runstead.services import cron, specs
from runstead.services.accounts import authorize
from runstead.services.jobs import Jobs
from runstead.services.scheduled_runs import ScheduledRuns
from runstead.services.secrets import SecretBox
from runstead.stores.interface import ScheduleChange, ScheduleStore

_EVENTS = 100


class Schedules:
    """The schedules of all namespaces, seen by one caller at a time."""

    def __init__(
        self,
        store: ScheduleStore,
        jobs: Jobs,
        runs: ScheduledRuns,
        secrets: SecretBox,
        events: EventBus,
        clock: Clock,
        zone: ZoneInfo,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._runs = runs
        self._secrets = secrets
        self._events = events
        self._clock = clock
        self.zone = zone

    async def create(
        self,
        caller: Caller,
        namespace: str,
        spec: JobSpec,
        secrets: Mapping[str, str],
        expression: str,
        *,
        concurrency: bool = False,
        suspend: bool = False,
    ) -> Schedule:
        """Accept a schedule. It is durable when this returns, and the job is one that could be submitted now.

        Raises Forbidden, or Invalid/Unsupported naming the field that cannot be had.
        """
        owner = authorize(caller, Permission.WRITE, namespace)
        now = self._clock.now()
        next_run_at = self._next(expression, now)
        spec = await self._jobs.accept(caller, spec, secrets)
        schedule_id = new_id(now)
        new = NewSchedule(
            id=schedule_id,
            namespace_id=owner.id,
            namespace=owner.name,
            namespace_kind=owner.kind,
            created_by_id=caller.user.id,
            created_by=caller.user.name,
            spec=replace(spec, secret_names=tuple(sorted(secrets))),
            expression=cron.parse(expression, self.zone).expression,
            time_zone=self.zone.key,
            concurrency=concurrency,
            suspended=suspend,
            next_run_at=None if suspend else next_run_at,
            created_at=now,
            sealed_secrets=self._secrets.seal(schedule_id, secrets) if secrets else None,
        )
        schedule = await self._store.add(new)
        self._events.publish(SCHEDULES, schedule.id)
        return schedule

    async def get(self, caller: Caller, namespace: str, schedule_id: str) -> Schedule:
        """Return a schedule. Raises NotFound for one that is not there, or not in this namespace; Forbidden."""
        authorize(caller, Permission.READ, namespace)
        schedule = await self._store.get(schedule_id) if is_id(schedule_id) else None
        if schedule is None or schedule.namespace != namespace:
            raise NotFound(
                f"there is no schedule {schedule_id[:100]!r} in {namespace!r}: `hf jobs scheduled ps -a` shows those "
                "there are"
            )
        return schedule

    async def all(self, caller: Caller, namespace: str, labels: Mapping[str, str] | None = None) -> list[Schedule]:
        """Return the schedules of a namespace that have all these labels, newest first, suspended ones too."""
        authorize(caller, Permission.READ, namespace)
        return await self._store.all(namespace, labels or {})

    async def history(self, caller: Caller, namespace: str, schedule_id: str) -> list[ScheduleEvent]:
        """Return what happened to a schedule of late, newest first: its runs, and why some did not begin."""
        schedule = await self.get(caller, namespace, schedule_id)
        return await self._store.events(schedule.id, _EVENTS)

    async def cost_micro_usd(self, schedule: Schedule) -> int:
        """Return what all runs of a schedule have cost until now, in millionths."""
        return (await self.costs_micro_usd([schedule]))[schedule.id]

    async def costs_micro_usd(self, schedules: list[Schedule]) -> Mapping[str, int]:
        """The same for many schedules, by id."""
        running = await self._store.cost_so_far([one.id for one in schedules], self._clock.now())
        return {one.id: one.cost_micro_usd + running.get(one.id, 0) for one in schedules}

    async def suspend(self, caller: Caller, namespace: str, schedule_id: str) -> Schedule:
        """Let no more runs begin; one that runs goes on. A suspended schedule stays as it is."""
        while True:
            schedule = await self._changeable(caller, namespace, schedule_id)
            if schedule.suspended:
                return schedule
            event = ScheduleEvent(self._clock.now(), ScheduleEventKind.SUSPENDED, message=f"by {caller.user.name}")
            change = ScheduleChange(event, suspended=True, timing=(None, self.zone.key))
            if (changed := await self._change(schedule, change)) is not None:
                return changed

    async def resume(self, caller: Caller, namespace: str, schedule_id: str) -> Schedule:
        """Let runs begin again, from the next due instant on. One that is not suspended stays as it is.

        If the schedule's own user may not run it any more, its runs have the caller's rights from now on. Raises
        Invalid, NotFound, Forbidden or Unsupported while what it suspended itself for still holds.
        """
        while True:
            schedule = await self._changeable(caller, namespace, schedule_id)
            if not schedule.suspended:
                return schedule
            now = self._clock.now()
            next_run_at = self._next(schedule.expression, now)
            spec, user = await self._accepted_anew(caller, schedule)
            event = ScheduleEvent(now, ScheduleEventKind.RESUMED, message=f"by {caller.user.name}")
            change = ScheduleChange(
                event,
                suspended=False,
                created_by=user,
                spec=spec,
                timing=(next_run_at, self.zone.key),
            )
            if (changed := await self._change(schedule, change)) is not None:
                return changed

    async def reschedule(self, caller: Caller, namespace: str, schedule_id: str, expression: str) -> Schedule:
        """Change when a schedule runs; nothing else of it, also not whether it is suspended."""
        while True:
            schedule = await self._changeable(caller, namespace, schedule_id)
            now = self._clock.now()
            next_run_at = self._next(expression, now)
            expression = cron.parse(expression, self.zone).expression
            event = ScheduleEvent(now, ScheduleEventKind.RESCHEDULED, message=f"to {expression} by {caller.user.name}")
            change = ScheduleChange(
                event,
                expression=expression,
                timing=(None if schedule.suspended else next_run_at, self.zone.key),
            )
            if (changed := await self._change(schedule, change)) is not None:
                return changed

    async def set_labels(self, caller: Caller, namespace: str, schedule_id: str, labels: Mapping[str, str]) -> Schedule:
        """Replace all labels of a schedule, which its later runs get too."""
        specs.check_labels(labels)
        while True:
            schedule = await self._changeable(caller, namespace, schedule_id)
            if (changed := await self._change(schedule, ScheduleChange(labels=labels))) is not None:
                return changed

    async def delete(self, caller: Caller, namespace: str, schedule_id: str) -> None:
        """Delete a schedule; its runs stay, also one that is active."""
        schedule = await self._changeable(caller, namespace, schedule_id)
        await self._store.delete(schedule.id)
        self._events.publish(SCHEDULES, schedule.id)

    async def trigger(self, caller: Caller, namespace: str, schedule_id: str) -> Job:
        """Begin a run now, also of a suspended schedule. When it runs next does not change.

        Raises Conflict without concurrency while a run is active, and as `resume` does.
        """
        schedule = await self._changeable(caller, namespace, schedule_id)
        run = await self._runs.prepare(schedule)

        async def store() -> Job:
            job = await self._store.trigger(schedule, run, self._clock.now())
            if job is None:
                raise NotFound(f"schedule {schedule_id!r} was deleted meanwhile")
            return job

        return await self._jobs.enter(run, store)

    async def _changeable(self, caller: Caller, namespace: str, schedule_id: str) -> Schedule:
        schedule = await self.get(caller, namespace, schedule_id)
        authorize(caller, Permission.WRITE, namespace)
        return schedule

    async def _change(self, seen: Schedule, change: ScheduleChange) -> Schedule | None:
        changed = await self._store.change(seen, change)
        if changed is not None:
            self._events.publish(SCHEDULES, seen.id)
        return changed

    async def _accepted_anew(self, caller: Caller, schedule: Schedule) -> tuple[JobSpec, tuple[str, str]]:
        """Return the job of a schedule as it is accepted now, and for whom: its own user if possible."""
        secrets = await self._runs.secrets_of(schedule)
        try:
            own = await self._runs.caller_of(schedule)
            spec = await self._jobs.accept(own, schedule.spec, secrets)
        except (Forbidden, NotFound):
            if caller.user.id == schedule.created_by_id:
                raise
            own, spec = caller, await self._jobs.accept(caller, schedule.spec, secrets)
        return replace(spec, secret_names=tuple(sorted(secrets))), (own.user.id, own.user.name)

    def _next(self, expression: str, now: datetime) -> datetime:
        found = cron.parse(expression, self.zone).after(now)
        if found is None:
            raise Invalid(f"this time is over and does not come again: {expression[:50]!r}", "schedule")
        return found
