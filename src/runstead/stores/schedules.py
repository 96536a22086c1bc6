"""Schedules in SQL.

Whoever changes a schedule names the version that was seen, so that of two callers one wins and the other sees that it
lost. How runs begin is in `schedule_runs`.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Update, bindparam, delete, select, text, update

# Its ON CONFLICT is written alike for SQLite; the SQLite form of it cannot be written for PostgreSQL.
from sqlalchemy.dialects.postgresql import insert

from runstead.model.costs import cost_micro_usd
from runstead.model.jobs import Job, NewJob
from runstead.model.schedules import (
    Fired,
    Firing,
    NewSchedule,
    Schedule,
    ScheduleEvent,
    ScheduleEventKind,
)
from runstead.stores import schedule_runs
from runstead.stores.database import Database, Transaction, reject_unstorable
from runstead.stores.interface import ScheduleChange, ScheduleStore
from runstead.stores.jobs import checked_row
from runstead.stores.portable import one_of, text_list
from runstead.stores.rows import instant_from, instant_to, label_columns, spec_to
from runstead.stores.schedule_rows import (
    EVENT_COLUMNS,
    EVENTS,
    SCHEDULE_COLUMNS,
    WITH_EVENTS,
    event_from,
    schedule_from,
    schedule_to,
)
from runstead.stores.schedule_tables import RUNS_IN_HAND, TO_RUN, schedule_events, schedule_secrets, schedules
from runstead.stores.tables import jobs


class SqlScheduleStore(ScheduleStore):
    """Schedules in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, schedule: NewSchedule) -> Schedule:
        """Store a schedule with all that belongs to it."""
        row = schedule_to(schedule)
        reject_unstorable(row)
        created = ScheduleEvent(
            schedule.created_at, ScheduleEventKind.CREATED, message=f"{schedule.expression} by {schedule.created_by}"
        )

        def work(transaction: Transaction) -> Schedule:
            seq = transaction.rows(_INSERT, row)[0][0]
            schedule_runs.note(transaction, seq, 1, created)
            if schedule.sealed_secrets is not None:
                transaction.run(_INSERT_SECRETS, {"seq": seq, "sealed": schedule.sealed_secrets})
            return schedule_from(transaction.rows(_BY_SEQ, {"seq": seq})[0])

        return await self._database.write(work)

    async def get(self, schedule_id: str) -> Schedule | None:
        """Return the schedule, or None."""
        row = await self._database.read(lambda transaction: transaction.row(_BY_ID, {"id": schedule_id}))
        return None if row is None else schedule_from(row)

    async def all(self, namespace: str, labels: Mapping[str, str]) -> list[Schedule]:
        """Return the schedules of a namespace, newest first."""
        wanted = labels.items()

        def work(transaction: Transaction) -> list[Schedule]:
            found = [schedule_from(row) for row in transaction.rows(_OF_NAMESPACE, {"namespace": namespace})]
            return [one for one in found if wanted <= one.spec.labels.items()] if labels else found

        return await self._database.read(work)

    async def after(self, seq: int, limit: int) -> list[Schedule]:
        """Return schedules of all namespaces."""
        rows = await self._database.read(lambda t: t.rows(_AFTER, {"seq": seq, "limit": limit}))
        return [schedule_from(row) for row in rows]

    async def sealed_secrets(self, schedule_id: str) -> bytes | None:
        """Return the sealed secrets."""
        row = await self._database.read(lambda transaction: transaction.row(_SECRETS, {"id": schedule_id}))
        return None if row is None else bytes(row[0])

    async def change(self, seen: Schedule, change: ScheduleChange) -> Schedule | None:
        """Change a schedule that is as it was seen."""
        columns = _columns(change)
        reject_unstorable(columns)
        event = change.event
        statement = _change(tuple(sorted(columns)))
        parameters = {f"new_{name}": value for name, value in columns.items()} | {
            "of_seq": seen.seq,
            "of_version": seen.version,
            "more_events": 0 if event is None else 1,
        }

        def work(transaction: Transaction) -> Schedule | None:
            row = transaction.row(statement, parameters)
            if row is not None and event is not None:
                schedule_runs.note(transaction, seen.seq, row[EVENTS], event)
            return None if row is None else schedule_from(row)

        return await self._database.write(work)

    async def delete(self, schedule_id: str) -> bool:
        """Delete a schedule; the database deletes its secrets and events with it."""
        return await self._database.write(lambda transaction: transaction.run(_DELETE, {"of_id": schedule_id})) > 0

    async def events(self, schedule_id: str, limit: int) -> list[ScheduleEvent]:
        """Return the last events."""
        rows = await self._database.read(lambda t: t.rows(_EVENTS_OF, {"id": schedule_id, "limit": limit}))
        return [event_from(row) for row in rows]

    async def due(self, now: datetime, limit: int) -> list[Schedule]:
        """Return schedules whose next run is due."""
        parameters = {"now": instant_to(now), "limit": limit}
        rows = await self._database.read(lambda transaction: transaction.rows(_DUE, parameters))
        return [schedule_from(row) for row in rows]

    async def next_due(self) -> datetime | None:
        """Return when the next run is due."""
        row = await self._database.read(lambda transaction: transaction.row(_NEXT_DUE))
        return None if row is None else instant_from(row[0])

    async def in_other_zones(self, time_zone: str) -> list[Schedule]:
        """Return the schedules whose next run was found in another time zone."""
        rows = await self._database.read(lambda transaction: transaction.rows(_IN_OTHER_ZONES, {"zone": time_zone}))
        return [schedule_from(row) for row in rows]

    async def fire(self, firing: Firing) -> Fired:
        """Store a due run and move the schedule on, or pass the instant over."""
        row = None if firing.job is None else checked_row(firing.job)
        return await self._database.write(lambda transaction: schedule_runs.fire(transaction, firing, row))

    async def trigger(self, seen: Schedule, job: NewJob, at: datetime) -> Job | None:
        """Store a run that somebody asked for."""
        row = checked_row(job)
        return await self._database.write(lambda transaction: schedule_runs.trigger(transaction, seen, job, row, at))

    async def cost_so_far(self, schedule_ids: Collection[str], now: datetime) -> Mapping[str, int]:
        """Return what the running attempts have cost until now."""
        if not schedule_ids:
            return {}
        parameters = {"ids": text_list(schedule_ids)}
        rows = await self._database.read(lambda transaction: transaction.rows(_RUNNING, parameters))
        costs: dict[str, int] = {}
        for schedule_id, price, began in rows:
            costs[schedule_id] = costs.get(schedule_id, 0) + cost_micro_usd(price, now - instant_from(began))
        return costs


def _columns(change: ScheduleChange) -> dict[str, Any]:
    """Return the columns that a change sets."""
    columns: dict[str, Any] = {}
    if change.suspended is not None:
        columns |= {"suspended": change.suspended, "suspend_reason": change.suspend_reason}
    if change.expression is not None:
        columns["expression"] = change.expression
    if change.labels is not None:
        columns["labels"] = label_columns(change.labels)
    if change.spec is not None:
        columns["spec"] = spec_to(change.spec)
    if change.created_by is not None:
        columns["created_by_id"], columns["created_by"] = change.created_by
    if change.timing is not None:
        next_run_at, columns["time_zone"] = change.timing
        columns["next_run_at"] = None if next_run_at is None else instant_to(next_run_at)
    return columns


def _binds(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in names}


_OF_SEQ = schedules.c.seq == bindparam("of_seq")
_NEXT_VERSION = {"version": schedules.c.version + 1}

_INSERT = (
    insert(schedules)
    .values(
        _binds(
            *("id", "namespace_id", "namespace", "namespace_kind", "created_by_id", "created_by", "spec", "labels"),
            *("expression", "time_zone", "concurrency", "suspended", "next_run_at", "created_at", "version", "events"),
            *("runs", "cost_micro_usd"),
        )
    )
    .returning(schedules.c.seq)
)
_INSERT_SECRETS = insert(schedule_secrets).values(_binds("seq", "sealed"))
_BY_SEQ = select(*WITH_EVENTS).where(schedules.c.seq == bindparam("seq"))
_BY_ID = select(*SCHEDULE_COLUMNS).where(schedules.c.id == bindparam("id"))
_OF_NAMESPACE = (
    select(*SCHEDULE_COLUMNS).where(schedules.c.namespace == bindparam("namespace")).order_by(schedules.c.seq.desc())
)
_AFTER = (
    select(*SCHEDULE_COLUMNS)
    .where(schedules.c.seq > bindparam("seq"))
    .order_by(schedules.c.seq)
    .limit(bindparam("limit"))
)
_SECRETS = (
    select(schedule_secrets.c.sealed).join_from(schedule_secrets, schedules).where(schedules.c.id == bindparam("id"))
)
_DELETE = delete(schedules).where(schedules.c.id == bindparam("of_id"))

_DUE = (
    select(*SCHEDULE_COLUMNS)
    .where(text(TO_RUN), schedules.c.next_run_at <= bindparam("now"))
    .order_by(schedules.c.next_run_at)
    .limit(bindparam("limit"))
)
_NEXT_DUE = select(schedules.c.next_run_at).where(text(TO_RUN)).order_by(schedules.c.next_run_at).limit(1)
_IN_OTHER_ZONES = (
    select(*SCHEDULE_COLUMNS).where(text(TO_RUN), schedules.c.time_zone != bindparam("zone")).order_by(schedules.c.seq)
)
_RUNNING = select(jobs.c.initiator_id, jobs.c.price_micro_usd, jobs.c.started_at).where(
    text(RUNS_IN_HAND),
    jobs.c.started_at.is_not(None),
    jobs.c.finished_at.is_(None),
    one_of(jobs.c.initiator_id, "ids"),
)

_EVENTS_OF = (
    select(*EVENT_COLUMNS)
    .join_from(schedule_events, schedules)
    .where(schedules.c.id == bindparam("id"))
    .order_by(schedule_events.c.number.desc())
    .limit(bindparam("limit"))
)


@cache
def _change(columns: tuple[str, ...]) -> Update:
    """Return the statement that sets these columns of a schedule that is as it was seen."""
    return (
        update(schedules)
        .values(
            {
                **{name: bindparam(f"new_{name}") for name in columns},
                **_NEXT_VERSION,
                "events": schedules.c.events + bindparam("more_events"),
            }
        )
        .where(_OF_SEQ, schedules.c.version == bindparam("of_version"))
        .returning(*WITH_EVENTS)
    )
